//! Work whose processes must not outlive it, in a process namespace of its own.
//!
//! ```text
//! we ── new process namespace ──▶ the same command again: its first process ──▶ whatever it starts
//!  └─────── a pipe ──────────────▶ its standard input: at the end of it, it ends, and the kernel ends all others
//! ```
//!
//! So it does not matter who is killed, and how: of a program that has left its group, its session and its parent nothing
//! stays either.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use crate::failure::OURS;

const CLONE_NEWPID: u64 = 0x2000_0000;
/// Tells the second process that it is it.
const MARK: &str = "COFFERDAM_IS_SUPERVISED";

/// Runs this very command once more under supervision and returns how it ended. None means: do the work here. Either this is
/// that second process, or there cannot be one.
pub(crate) fn elsewhere() -> Option<ExitCode> {
    if std::env::var_os(MARK).is_some() {
        std::thread::spawn(end_with_parent);
        return None;
    }
    // A thread that has left its process namespace can start processes in no other any more.
    let started = std::thread::spawn(|| {
        cofferdam_linux::process::unshare(CLONE_NEWPID).ok()?;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let mut command = Command::new("/proc/self/exe");
        command.arg0("cofferdam").args(arguments).env(MARK, "1").stdin(Stdio::piped()).spawn().ok()
    });
    let mut child = started.join().ok()??;
    // Its pipe stays open for as long as we live; waiting would close it.
    let _pipe = child.stdin.take();
    Some(child.wait().map_or(ExitCode::from(OURS), exit_code))
}

fn end_with_parent() {
    let mut nothing = [0; 64];
    while std::io::stdin().read(&mut nothing).is_ok_and(|count| count > 0) {}
    std::process::exit(i32::from(OURS));
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(OURS))
}
