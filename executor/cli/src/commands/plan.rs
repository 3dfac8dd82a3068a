//! `cofferdam plan`: what would be done for a bundle, without doing it.

use std::path::PathBuf;
use std::process::ExitCode;

use cofferdam_runtime::{ContainerId, Create, Options, Runtime};

use super::Outcome;
use crate::args::PlaceArgs;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bundle: a directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// The container's id
    #[arg(default_value = "plan")]
    id: String,
}

pub(crate) fn run(args: &Args, places: &PlaceArgs) -> Outcome {
    let failed = |error: cofferdam_runtime::Error| Failure::plain(error.to_string());
    let runtime = Runtime::open(&places.state.join("runtime"), Options::default()).map_err(failed)?;
    let spec = cofferdam_runtime::bundle::load(&args.bundle).map_err(failed)?;
    let id = ContainerId::parse(&args.id).map_err(|error| Failure::plain(error.to_string()))?;
    let plan = runtime.plan(&Create::new(id, args.bundle.clone(), spec)).map_err(failed)?;
    print!("{plan}");
    Ok(ExitCode::SUCCESS)
}
