//! Starting a hook's program: on the host, or from the host in the container's namespaces.
//!
//! The process is cloned and not spawned by the library: it gets descriptors 0, 1 and 2 and no other that the caller may
//! have left open, and cannot be looked into or traced from inside a container before it executes its program.
//!
//! ```text
//! us ─ clone ─▶ between ─ setns ─ clone(CLONE_PARENT) ─▶ hook     a pid namespace takes only the children of who joins it
//!  ▲ pid or errno ┘                                       │ errno, or end of file when it has executed
//!  └──────────────────────────────────────────────────────┘
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cofferdam_linux::process::{
    CLONE_PARENT, Child, Vector, clone_child, close_all_from, exec, set_namespace,
};
use cofferdam_linux::wait::readable;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, pidfd_open};

/// What a hook executes, laid out before the clone.
pub(super) struct Program {
    pub path: CString,
    pub arguments: Vector,
    pub environment: Vector,
}

/// A hook's standard descriptors.
pub(super) struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Streams {
    /// The hook's ends, and ours: where its input is written and where its complaints are read.
    pub(super) fn make() -> Result<(Self, OwnedFd, OwnedFd), Errno> {
        let (stdin, input) = pipe_with(PipeFlags::CLOEXEC)?;
        let (complaints, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let stdout = rustix::fs::open(c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok((Self { stdin, stdout, stderr }, input, complaints))
    }
}

/// A word on the report pipe: the hook's pid, or why there is none. Written whole, being shorter than PIPE_BUF.
enum Word {
    Pid(i32),
    Failed(Errno),
}

impl Word {
    const LENGTH: usize = 8;

    fn tell(&self, report: BorrowedFd<'_>) {
        let (kind, value) = match self {
            Self::Pid(pid) => (0, *pid),
            Self::Failed(errno) => (1, errno.raw_os_error()),
        };
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = kind;
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        let _ = write(report, &bytes);
    }

    /// The next word, `None` when nobody is left to say one, `ETIMEDOUT` at the deadline.
    fn hear(report: BorrowedFd<'_>, deadline: Instant) -> Result<Option<Self>, Errno> {
        if !readable(report, deadline.saturating_duration_since(Instant::now()))? {
            return Err(Errno::TIMEDOUT);
        }
        let mut bytes = [0; Self::LENGTH];
        loop {
            match read(report, &mut bytes) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(Self::LENGTH) => break,
                Ok(_) => return Ok(None),
            }
        }
        let value = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        Ok(Some(if bytes[0] == 0 { Self::Pid(value) } else { Self::Failed(Errno::from_raw_os_error(value)) }))
    }
}

/// Starts a hook and waits until it has executed its program. `inside` is a process with those of its namespaces (`CLONE_NEW*`)
/// that the hook joins. On failure nothing is left.
pub(super) fn spawn(
    program: &Program,
    streams: &Streams,
    inside: Option<(BorrowedFd<'_>, u64)>,
    limit: Duration,
) -> Result<Child, Errno> {
    let deadline = Instant::now() + limit;
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let hook = || {
        let errno = become_hook(program, streams, theirs.as_fd()).err().unwrap_or(Errno::IO);
        Word::Failed(errno).tell(theirs.as_fd());
        1
    };
    let (child, known) = match inside {
        None => (clone_child(0, None, hook)?, None),
        Some((process, flags)) => {
            let between = clone_child(0, None, || {
                let joined = forbid_tracing().and_then(|()| set_namespace(process, flags));
                let word = joined.and_then(|()| clone_child(CLONE_PARENT, None, hook));
                word.map_or_else(Word::Failed, |child| Word::Pid(child.pid)).tell(theirs.as_fd());
                0
            })?;
            (between, Some(Word::hear(ours.as_fd(), deadline)))
        }
    };
    drop(theirs);
    let child = match known {
        None => child,
        Some(word) => {
            // It has said its only word, or hangs in setns: either way it is not needed any more.
            let _ = cofferdam_apply::kill(&child);
            match word? {
                Some(Word::Pid(pid)) => sibling(pid)?,
                Some(Word::Failed(errno)) => return Err(errno),
                None => return Err(Errno::CHILD),
            }
        }
    };
    match Word::hear(ours.as_fd(), deadline) {
        Ok(Some(Word::Failed(errno))) | Err(errno) => {
            let _ = cofferdam_apply::kill(&child);
            Err(errno)
        }
        Ok(_) => Ok(child),
    }
}

/// The hook that somebody else has cloned for us. It is our child: its pid is nobody else's until it is reaped.
fn sibling(pid: i32) -> Result<Child, Errno> {
    let number = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Child { pid, pidfd }),
        Err(errno) => {
            let _ = rustix::process::kill_process(number, Signal::KILL);
            let _ = rustix::process::waitpid(Some(number), rustix::process::WaitOptions::empty());
            Err(errno)
        }
    }
}

/// The memory of a clone is its maker's: nobody in the container may read it.
fn forbid_tracing() -> Result<(), Errno> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Child: from the clone to the program. *Child-safe.*
fn become_hook(program: &Program, streams: &Streams, report: BorrowedFd<'_>) -> Result<(), Errno> {
    forbid_tracing()?;
    // A group of its own, so that it can be ended with all that it starts.
    rustix::process::setpgid(None, None)?;
    // The specification leaves this open. In the container's root, as runc has it for createContainer, a linker or an
    // interpreter that looks into its working directory would run what the image put there (CVE-2025-23266).
    rustix::process::chdir(c"/")?;
    rustix::stdio::dup2_stdin(&streams.stdin)?;
    rustix::stdio::dup2_stdout(&streams.stdout)?;
    rustix::stdio::dup2_stderr(&streams.stderr)?;
    close_all_from(3, [report.as_raw_fd()])?;
    cofferdam_linux::signal::reset_to_defaults()?;
    Err(exec(&program.path, &program.arguments, &program.environment))
}
