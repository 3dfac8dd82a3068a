//! `demo`: looks at its own isolation from the inside and says in plain words whether each wall holds.
//!
//! [`facts`] reads `/proc`, [`walls`] judges, [`paint`] prints. The code is 0 when no wall is open.

mod facts;
mod paint;
mod walls;

use std::io;
use std::process::ExitCode;

use facts::Facts;
use walls::{Verdict, Wall};

use crate::applets::complain;

/// Runs the part.
pub(crate) fn run(_: &[String]) -> ExitCode {
    let walls = walls::look(&Facts::gather());
    if let Err(error) = paint::print(&walls, &mut io::stdout().lock()) {
        return complain(1, &error.to_string());
    }
    if walls.iter().any(|wall| wall.verdict == Verdict::Open) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
