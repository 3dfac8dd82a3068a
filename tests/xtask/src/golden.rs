//! `cargo xtask golden`: the golden plans (`tests/golden/CASE.json` → `CASE.plan`), compared or rewritten.

use std::process::ExitCode;

use anyhow::Result;

use crate::command;
use crate::workspace::Workspace;

/// What to do with a plan that differs from the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Fail.
    Compare,
    /// Store the new one, for a person to read in review.
    Bless,
}

pub(crate) fn run(workspace: &Workspace, mode: Mode) -> Result<ExitCode> {
    let mut test = workspace.cargo("test --quiet --package cofferdam-isolators --test golden");
    if mode == Mode::Bless {
        test.env("COFFERDAM_BLESS", "1");
    }
    let succeeded = command::succeeds(&mut test)?;
    if mode == Mode::Bless {
        command::succeeds(
            command::command("git", "status --short tests/golden").current_dir(workspace.root()),
        )?;
    }
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
