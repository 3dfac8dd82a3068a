//! `cofferdam rmi`.

use std::process::ExitCode;

use cofferdam_executor::{Executor, remove_stored};

use super::Outcome;
use super::image::settle;
use crate::escape::escape_line;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also an image that tasks still use, or that has several names
    #[arg(short, long)]
    force: bool,
    /// Images
    #[arg(required = true)]
    images: Vec<String>,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let store = executor.images()?;
    let mut code = ExitCode::SUCCESS;
    for name in &args.images {
        match remove_stored(&store, name, args.force) {
            Ok(removed) => {
                removed
                    .untagged
                    .iter()
                    .for_each(|name| println!("Untagged: {}", escape_line(&name.to_string())));
                removed.deleted.iter().for_each(|digest| println!("Deleted: {digest}"));
            }
            Err(error) => code = Failure::from(error).report(),
        }
    }
    settle::leave(&store)?;
    Ok(code)
}
