//! How a shim is started and becomes independent of its launcher.
//!
//! ```text
//! launcher ──spawn──▶ first stage ──fork──▶ shim          argv: cofferdam-shim STATE-DIRECTORY
//!     │                   │ exit 0                          stdin: the task's lock, held since before the task existed
//!     └── waits for it ◀──┘                                stdout: the launcher's connection
//! ```
//!
//! The lock is an open file description: while the launcher or the shim has it, the task has an owner, and there is
//! no moment between the two without one. The shim then moves both descriptors away, opens `/dev/null` in their place,
//! and is the leader of a session of its own, non-dumpable, with `/` as its directory and no environment.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::DumpableBehavior;

/// Name under which a program knows that it was started to be a shim.
pub const SHIM_NAME: &str = "cofferdam-shim";

/// What a shim was started with.
#[derive(Debug)]
pub struct Entered {
    /// The launcher's connection.
    pub launcher: UnixStream,
    /// The task's lock; hold it to the end.
    pub lock: OwnedFd,
}

/// Starts a shim for the task whose state is in `state_directory`.
///
/// `program` must call [`invoked`] first thing in its `main`. Returns the launcher's end of the connection. Costs do
/// not grow with the caller's memory: the process is made without copying its page tables.
pub fn spawn(program: &Path, state_directory: &Path, lock: OwnedFd) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    // Nothing here may make std fork this process instead of spawning, as a working directory would: a static C library has no
    // spawn action for it. The shim goes to its directory itself, in `enter`.
    let mut first_stage = Command::new(program)
        .arg0(SHIM_NAME)
        .arg(state_directory)
        .env_clear()
        .stdin(Stdio::from(lock))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()?;
    let status = first_stage.wait()?;
    if status.success() {
        return Ok(ours);
    }
    Err(io::Error::other(format!(
        "the shim's first stage ended with {status}: does the program call init() in main?"
    )))
}

/// The task's state directory if this process was started to be a shim.
pub fn invoked() -> Option<PathBuf> {
    let mut args = std::env::args_os();
    let name = args.next()?;
    if Path::new(&name).file_name() != Some(OsStr::new(SHIM_NAME)) {
        return None;
    }
    args.next().map(PathBuf::from)
}

/// Makes this process independent of its launcher. Call it before any thread exists; the first stage does not
/// return from it.
pub fn enter() -> io::Result<Entered> {
    if cofferdam_linux::fork::fork_single_threaded()?.is_some() {
        std::process::exit(0);
    }
    std::env::set_current_dir("/")?;
    // Whatever else the launcher's program left open for its children. No value of this process owns a descriptor yet.
    cofferdam_linux::process::close_all_from(3, [])?;
    rustix::process::setsid()?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let lock = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let launcher = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null: File = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    rustix::stdio::dup2_stderr(null.as_fd())?;
    Ok(Entered { launcher: UnixStream::from(launcher), lock })
}
