//! The setuid programs that write id maps for those who may not: `newuidmap` and `newgidmap`.
//!
//! They are looked for in fixed places, not in the caller's PATH: what they say is taken for what /etc/subuid allows.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Where distributions keep setuid programs.
const FOLDERS: &[&str] = &["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/run/wrappers/bin"];

/// They read two small files; one that takes longer waits for a name service that does not answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much of what they say is kept, in bytes.
const WORDS_MAX_BYTES: u64 = 4096;

/// Runs one of them to its end. A failure carries its own words.
pub(crate) fn run(name: &str, arguments: impl Iterator<Item = String>) -> Result<(), (Errno, String)> {
    let Some(program) = find(name) else {
        let words = format!("{name} is in none of {}: install the package uidmap", FOLDERS.join(" "));
        return Err((Errno::NOENT, words));
    };
    run_program(&program, arguments, TIMEOUT)
}

fn run_program(
    program: &Path,
    arguments: impl Iterator<Item = String>,
    timeout: Duration,
) -> Result<(), (Errno, String)> {
    let failed = |error: std::io::Error| {
        (Errno::from_io_error(&error).unwrap_or(Errno::IO), format!("{}: {error}", program.display()))
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let ended = wait(Pid::from_child(&child), timeout).map_err(|errno| failed(errno.into()))?;
    if !ended {
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    if !ended {
        return Err((Errno::TIMEDOUT, format!("{} has not ended after {timeout:?}", program.display())));
    }
    if status.success() {
        return Ok(());
    }
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(WORDS_MAX_BYTES).read_to_string(&mut words);
    }
    let words = words.trim().replace('\n', "; ");
    Err((Errno::PERM, format!("{}: {status}: {words} (see /etc/subuid and /etc/subgid)", program.display())))
}

fn find(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|program| program.is_file())
}

/// Whether the process has ended in time.
fn wait(process: Pid, timeout: Duration) -> Result<bool, Errno> {
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let timeout =
        Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: i64::from(timeout.subsec_nanos()) };
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            result => return result.map(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Duration) -> Result<(), (Errno, String)> {
        run_program(Path::new("/bin/sh"), ["-c", script].map(String::from).into_iter(), timeout)
    }

    #[test]
    fn a_helper_s_own_words_come_back() {
        assert_eq!(shell("true", TIMEOUT), Ok(()));
        let (errno, words) = shell("echo range not allowed >&2; exit 1", TIMEOUT).unwrap_err();
        assert_eq!(errno, Errno::PERM);
        assert!(words.contains("range not allowed") && words.contains("/etc/subuid"), "{words}");
    }

    #[test]
    fn a_helper_that_hangs_is_ended() {
        let (errno, words) = shell("exec sleep 1000", Duration::from_millis(50)).unwrap_err();
        assert_eq!(errno, Errno::TIMEDOUT, "{words}");
    }

    #[test]
    fn a_missing_helper_is_named_with_its_package() {
        let (errno, words) = run("no-such-helper", std::iter::empty()).unwrap_err();
        assert_eq!(errno, Errno::NOENT);
        assert!(words.contains("no-such-helper") && words.contains("uidmap"), "{words}");
    }
}
