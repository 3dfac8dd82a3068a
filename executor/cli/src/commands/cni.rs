//! `cofferdam cni`: the workbench for networks and for those who write plugins.

mod test;

use super::Outcome;
use crate::args::PlaceArgs;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Test a plugin for conformance with the specification
    Test(test::Args),
}

pub(crate) fn run(verb: &Verb, places: &PlaceArgs) -> Outcome {
    match verb {
        Verb::Test(args) => test::run(args, places),
    }
}
