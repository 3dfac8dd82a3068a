//! Talking to CRIU, which checkpoints and restores trees of processes: `criu swrk FD`, a socket, protobuf messages.
//!
//! ```text
//! us ── request: DUMP | PRE_DUMP | RESTORE, options ──▶ criu
//! us ◀── response NOTIFY script=NAME pid=N [a descriptor] ── criu      any number of times
//! us ── request NOTIFY, success ──▶ criu
//! us ◀── response of the request's type, success or error number ── criu
//! ```
//! CRIU works as a child of ours, so that what it restores becomes our child too (`rst_sibling`).
//!
//! Read first: [`Session`], then `message` (what goes over the socket) and `protobuf` (how it is written).

pub(crate) mod message;
mod protobuf;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cofferdam_linux::wait::readable;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, system};
use crate::state::file_error;
use message::{Answer, Folders, Notice, Options, Request};

/// CRIU's program, looked for on the search path.
const PROGRAM: &str = "criu";

/// Largest message of CRIU that is read, in bytes: answers are small.
const MESSAGE_MAX_BYTES: usize = 64 << 10;

/// How long CRIU may say nothing: between two words of it all memory is written, at the pace of a slow disk.
const ANSWER_MAX: Duration = Duration::from_secs(30 * 60);

/// How many lines of CRIU's log are repeated in an error.
const LOG_LINES_MAX: usize = 3;

/// Who hears of each stage, with the descriptor that came with it, and says whether to go on.
type Notified<'a> = &'a mut dyn FnMut(&Notice, Option<OwnedFd>) -> Result<(), Error>;

/// What CRIU is run with besides its request.
pub(crate) struct Session<'a> {
    /// What is asked for.
    pub request: Request,
    /// With these options. `log_file` is below the work directory, or the images' where there is none.
    pub options: Options,
    /// Where the images are.
    pub images: &'a Path,
    /// Where CRIU works; where the images are if there is none.
    pub work: Option<&'a Path>,
    /// Where CRIU's log is, for the error.
    pub log: PathBuf,
    /// A directory that CRIU's mount namespace shows as a mount of its own; restoring needs its root to be one.
    pub root: Option<&'a Path>,
}

impl Session<'_> {
    /// Runs CRIU once. `notified` hears every notification and says whether to go on; a descriptor may come with it.
    /// The answer is the restored process, 0 for other requests.
    pub(crate) fn run(self, notified: Notified<'_>) -> Result<i32, Error> {
        let failed = |problem: String| Error::Criu { problem, log: self.log.clone() };
        let words =
            |errno: rustix::io::Errno| failed(format!("its socket: {}", cofferdam_apply::in_words(errno)));
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).map_err(words)?;
        let (mut child, folders) = self.spawn(theirs)?;
        let request = message::request(self.request, &folders, &self.options);
        rustix::net::send(&ours, &request, SendFlags::NOSIGNAL).map_err(words)?;
        let mut refused = None;
        let outcome = loop {
            if !readable(&ours, ANSWER_MAX).map_err(words)? {
                let _ = child.kill();
                break Err(format!("it said nothing for {} s, and was killed", ANSWER_MAX.as_secs()));
            }
            let mut buffer = vec![0; MESSAGE_MAX_BYTES];
            let received = cofferdam_linux::terminal::receive_descriptor(ours.as_fd(), &mut buffer);
            let (size, descriptor) = match received {
                Err(rustix::io::Errno::INTR) => continue,
                result => result.map_err(words)?,
            };
            if size == 0 {
                break Err("it ended without an answer".to_owned());
            }
            match message::answer(&buffer[..size]) {
                Some(Answer::Notice(notice)) => {
                    let result = notified(&notice, descriptor);
                    let reply = message::notified(result.is_ok());
                    refused = refused.or(result.err());
                    rustix::net::send(&ours, &reply, SendFlags::NOSIGNAL).map_err(words)?;
                }
                Some(Answer::Done { pid }) => break Ok(pid),
                Some(Answer::Failed { errno, words }) => break Err(explain(errno, &words)),
                None => break Err("it answered what is not understood".to_owned()),
            }
        };
        drop(ours);
        let _ = child.wait();
        match (refused, outcome) {
            (Some(error), _) => Err(error),
            (None, outcome) => outcome.map_err(|problem| failed(complaints(&self.log).unwrap_or(problem))),
        }
    }
}

/// Whether CRIU is there, before anything is touched.
pub(crate) fn find() -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).find(|program| program.is_file());
    found.ok_or(Error::CriuMissing)
}

impl Session<'_> {
    /// From a thread of its own: for a restore it goes into a mount namespace where the root is a mount, which ends with
    /// CRIU and the container, so that nothing is left on the host whatever ends us. There it opens CRIU's directories
    /// too, for CRIU mounts things in them.
    fn spawn(&self, socket: OwnedFd) -> Result<(Child, Folders), Error> {
        let program = find()?;
        let number = socket.as_raw_fd().to_string();
        let inherited = self.options.descriptors.iter().map(OwnedFd::as_fd).chain([socket.as_fd()]);
        for descriptor in inherited {
            inherit(descriptor)?;
        }
        let spawn = || -> Result<(Child, Folders), Error> {
            if let Some(root) = self.root {
                make_mount(root).map_err(system(format!("making {} a mount", root.display())))?;
            }
            let folders = Folders {
                images: open_directory(self.images)?,
                work: self.work.map(open_directory).transpose()?,
            };
            let mut command = Command::new(&program);
            command.args(["swrk", &number]).process_group(0).stdin(Stdio::inherit());
            let child = command.spawn().map_err(|error| file_error("starting", &program, &error))?;
            Ok((child, folders))
        };
        let failed = || Error::Criu { problem: "its thread failed".into(), log: PathBuf::new() };
        std::thread::scope(|scope| scope.spawn(spawn).join().unwrap_or_else(|_| Err(failed())))
    }
}

/// Lets a program that we start keep a descriptor.
fn inherit(descriptor: BorrowedFd<'_>) -> Result<(), Error> {
    fcntl_setfd(descriptor, FdFlags::empty()).map_err(system("passing a descriptor to criu"))
}

/// Makes a directory unless it is there.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(file_error("making", path, &error))
        }
        _ => Ok(()),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    make_directory(path)?;
    let opened =
        OwnedFd::from(std::fs::File::open(path).map_err(|error| file_error("opening", path, &error))?);
    inherit(opened.as_fd())?;
    Ok(opened)
}

fn make_mount(root: &Path) -> Result<(), rustix::io::Errno> {
    use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
    cofferdam_linux::process::unshare_directory()?;
    cofferdam_linux::process::unshare(cofferdam_plan::Namespace::Mount.flag())?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slave)?;
    mount_bind_recursive(root, root)?;
    mount_change(root, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

fn explain(errno: i32, words: &str) -> String {
    match (words.trim_end(), errno.abs()) {
        ("", 0) => "it failed".to_owned(),
        ("", errno) => {
            format!("it failed: {}", cofferdam_apply::in_words(rustix::io::Errno::from_raw_os_error(errno)))
        }
        (words, _) => words.to_owned(),
    }
}

/// The errors at the end of CRIU's log, which say more than its answer.
fn complaints(log: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(log).and_then(|mut file| file.read_to_string(&mut text)).ok()?;
    let lines: Vec<&str> =
        text.lines().filter_map(|line| line.split_once("Error ")).map(|(_, text)| text).collect();
    let last = &lines[lines.len().saturating_sub(LOG_LINES_MAX)..];
    (!last.is_empty()).then(|| last.join("; "))
}
