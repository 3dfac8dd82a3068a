//! `cargo xtask tidy`: the architecture's invariants as failures, the house style as figures.

mod layers;
mod scorecard;
mod source;

use std::process::ExitCode;

use anyhow::Result;

use crate::tally::Tally;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    let tally = check(workspace)?;
    println!("\n{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints every violation and the scorecard; each invariant counts as one test.
pub(crate) fn check(workspace: &Workspace) -> Result<Tally> {
    let sources = source::read(workspace)?;
    let mut tally = Tally::default();
    let invariants = [
        ("dependencies go down the layers", layers::upward_edges(workspace)),
        ("no async runtime where there must be none", layers::async_runtimes(workspace)),
        ("unsafe code only in cofferdam-linux, every block argued", scorecard::unsafe_violations(&sources)),
    ];
    for (name, violations) in invariants {
        println!("  {} {name}", if violations.is_empty() { "ok    " } else { "BROKEN" });
        for violation in &violations {
            println!("         {violation}");
        }
        tally += Tally::of_check(violations.is_empty());
    }
    scorecard::print(&sources);
    Ok(tally)
}
