//! `init COMMAND…`: a process 1 that starts one command, passes signals on to it, reaps everything, and ends as it ended.
//!
//! ```text
//!  signal ──▶ sigwait ──▶ SIGCHLD? ── reap all ── the command? ──▶ exit with its code, or 128 + its signal
//!                 ▲          │ no: send it to the command                    │ no
//!                 └──────────┴───────────────────────────────────────────────┘
//! ```
//! When process 1 ends the kernel kills what is left in the pid namespace, so nothing is left to do then.

use std::io;
use std::process::{Command, ExitCode};

use crate::applets::{USAGE, complain};
use crate::guest::signals::{Blocked, SIGCHLD, is_forwarded, reap, send};

/// Runs the part.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let Some((program, rest)) = arguments.split_first().filter(|(first, _)| *first != "--").or_else(|| {
        let (_, after) = arguments.split_first()?;
        after.split_first()
    }) else {
        return complain(USAGE, "usage: init [--] COMMAND [ARGUMENT…]");
    };
    match supervise(program, rest) {
        Ok(code) => ExitCode::from(code),
        Err(error) => complain(start_code(&error), &format!("{program}: {error}")),
    }
}

fn supervise(program: &str, arguments: &[String]) -> io::Result<u8> {
    let signals = Blocked::new()?;
    let command = signals.spawn_foreground(Command::new(program).args(arguments))?.id();
    loop {
        let signal = signals.wait()?;
        if signal == SIGCHLD {
            while let Some((pid, status)) = reap() {
                if pid == command {
                    return Ok(status);
                }
            }
        } else if is_forwarded(signal) {
            send(command, signal);
        }
    }
}

/// The codes that shells and container engines use for a command that did not start.
fn start_code(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    }
}
