//! `cargo xtask bench NAME`: the benches are a program of their own; this builds it for release and runs it.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::command;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    // What is measured lies beside the program that measures.
    let measured =
        "build --release --package cofferdam --package cofferdam-oci --package cofferdam-cni-plugins";
    if !command::succeeds(&mut workspace.cargo(measured))? {
        return Ok(ExitCode::FAILURE);
    }
    let mut bench = workspace.cargo("run --release --package cofferdam-benches --");
    let succeeded = command::succeeds(bench.args(arguments))?;
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
