//! `cofferdam image tag`.

use std::process::ExitCode;

use cofferdam_executor::{Executor, ImageRef};

use super::find;
use crate::commands::Outcome;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image
    image: String,
    /// Names for it; those that stand for other images will not any more
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let store = executor.images()?;
    let image = find(&store, &args.image)?;
    let parse = |name: &String| ImageRef::parse(name).map_err(|error| Failure::plain(error.to_string()));
    // All of them are names, or none is set.
    let names: Vec<ImageRef> = args.names.iter().map(parse).collect::<Result<_, _>>()?;
    for name in names {
        store.tag(&image, &name).map_err(|error| Failure::plain(error.to_string()))?;
    }
    Ok(ExitCode::SUCCESS)
}
