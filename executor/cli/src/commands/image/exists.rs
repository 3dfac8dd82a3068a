//! `cofferdam image exists`.

use std::process::ExitCode;

use cofferdam_executor::{Executor, Kind, find_stored};

use crate::commands::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image
    image: String,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    match find_stored(&executor.images()?, &args.image) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == Kind::NotFound => Ok(ExitCode::from(1)),
        Err(error) => Err(error.into()),
    }
}
