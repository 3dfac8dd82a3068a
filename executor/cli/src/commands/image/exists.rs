//! `cofferdam image exists`.

use std::process::ExitCode;

use cofferdam_executor::Executor;

use crate::commands::Outcome;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image
    image: String,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let found = executor.images()?.find(&args.image).map_err(|error| Failure::plain(error.to_string()))?;
    Ok(ExitCode::from(u8::from(found.is_none())))
}
