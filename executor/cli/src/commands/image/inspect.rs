//! `cofferdam image inspect`.

use std::process::ExitCode;

use cofferdam_executor::{Executor, Image};
use serde_json::{Value, json};

use super::find;
use crate::commands::Outcome;
use crate::escape::escape;
use crate::failure::Failure;
use crate::template::{Shape, fill};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print: json, or a template such as '{{.config.config.Labels}}' for each image
    #[arg(short, long, default_value = "json")]
    format: Shape,
    /// Images
    #[arg(required = true)]
    images: Vec<String>,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let store = executor.images()?;
    let mut code = ExitCode::SUCCESS;
    let mut found = Vec::new();
    for name in &args.images {
        match find(&store, name) {
            Ok(image) => found.push(as_json(&image)),
            Err(failure) => code = failure.report(),
        }
    }
    if let Shape::Template(pieces) = &args.format {
        for image in &found {
            println!("{}", escape(&fill(pieces, image)?));
        }
        return Ok(code);
    }
    let text = serde_json::to_string_pretty(&found).map_err(|error| Failure::plain(error.to_string()))?;
    // JSON escapes what could steer a terminal.
    println!("{text}");
    Ok(code)
}

/// Everything that is known of an image.
pub(crate) fn as_json(image: &Image) -> Value {
    let mut value = summary(image);
    value["layers"] = json!(image.layers);
    value["configuration"] = if image.artifact.is_none() { json!(image.config) } else { Value::Null };
    value["blobs"] = json!(image.artifact.as_ref().map(|artifact| &artifact.blobs));
    value
}

/// What a listing says of an image.
pub(crate) fn summary(image: &Image) -> Value {
    json!({
        "names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "id": image.id.to_string(),
        "digest": image.digest.to_string(),
        "platform": image.platform.to_string(),
        "artifact": image.artifact.as_ref().map(|artifact| &artifact.kind),
        "size_bytes": image.size_bytes,
        "created": image.created,
        "stored_at": image.stored_at,
    })
}
