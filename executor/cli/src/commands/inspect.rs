//! `cofferdam inspect`.

use std::process::ExitCode;

use cofferdam_executor::{Executor, find_stored};
use serde_json::{Value, json};

use super::Outcome;
use super::image::inspect::as_json;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Tasks or images
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in &args.names {
        match inspect(name, executor).await {
            Ok(value) => found.push(value),
            Err(failure) => code = failure.while_doing(name).report(),
        }
    }
    let text = serde_json::to_string_pretty(&found).map_err(|error| Failure::plain(error.to_string()))?;
    // JSON escapes what could steer a terminal.
    println!("{text}");
    Ok(code)
}

async fn inspect(name: &str, executor: &Executor) -> Result<Value, Failure> {
    let task = match executor.task(name).await {
        Ok(task) => task,
        Err(error) => return inspect_image(name, executor)?.ok_or_else(|| error.into()),
    };
    let info = task.info().await?;
    // A task that is over has no container, and so no configuration, any more.
    let configuration = task.configuration().await.ok();
    Ok(json!({
        "id": info.record.id,
        "name": info.record.name,
        "created": info.record.created,
        "image": info.record.image,
        "command": info.record.command,
        "status": info.status,
        "spec": info.record.spec,
        "configuration": configuration,
    }))
}

fn inspect_image(name: &str, executor: &Executor) -> Result<Option<Value>, Failure> {
    let image = find_stored(&executor.images()?, name).ok();
    Ok(image.map(|image| as_json(&image)))
}
