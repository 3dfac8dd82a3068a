//! Runs an external plugin: input and output at the same time, a deadline that ends the whole process tree, bounded output.
//!
//! ```text
//! spawn ──▶ poll { stdin writable, stdout, stderr, pidfd } ──▶ exited ──▶ drain what is there ──▶ reaped
//!                                └── deadline ──▶ SIGTERM to the group ──▶ grace ──▶ SIGKILL to the tree
//! ```
//!
//! The child starts from a clean state ([`cofferdam_linux::spawn`]): its own process group, `/` as working directory, only
//! the environment given, default signal dispositions and an empty mask, no descriptor but its three streams; and the
//! start costs the same whatever the caller's memory.

use std::ffi::{CString, OsStr};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use cofferdam_linux::process::{Child, Vector};
use cofferdam_linux::spawn::{Program, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::tree::Tree;

/// A result longer than this is none: plugins answer in kilobytes.
const STDOUT_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// What is kept of the end of standard error, for the message.
const STDERR_TAIL_BYTES: usize = 64 * 1024;
/// How long after SIGTERM a plugin may clean up.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long output of a plugin that has exited is still waited for.
const DRAIN: Duration = Duration::from_millis(100);
/// How long a program that is being replaced (`ETXTBSY`) is tried again.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Reads of 16 KiB that empty a pipe.
const READS_AT_ONCE: usize = 4;

/// What a plugin did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr_tail: String,
    pub(crate) elapsed: Duration,
}

/// A plugin that could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("cannot start {path}: {source}")]
    Start { path: String, source: io::Error },
    #[error("did not finish within {} ms and was killed", .0.as_millis())]
    Deadline(Duration, String),
    #[error("wrote more than {STDOUT_LIMIT_BYTES} bytes to its standard output and was killed")]
    TooMuch(String),
    #[error("cannot talk to it: {0}")]
    Talk(Errno),
}

impl ExecError {
    /// The end of what it wrote to its standard error.
    pub(crate) fn stderr_tail(&self) -> &str {
        match self {
            Self::Deadline(_, tail) | Self::TooMuch(tail) => tail,
            _ => "",
        }
    }
}

/// Runs `program` to its end, at the latest `limit` from now, in the cgroup of `tree`.
pub(crate) fn run(
    program: &Path,
    environment: &[(String, String)],
    input: &[u8],
    limit: Duration,
    tree: &Tree,
) -> Result<Output, ExecError> {
    let started = Instant::now();
    let (child, streams) = start(program, environment, started + limit.min(BUSY_LIMIT), tree)?;
    let mut talk = Talk::new(child, streams, input, tree).map_err(ExecError::Talk)?;
    let outcome = talk.until(started + limit);
    let exited = matches!(outcome, Ok(Outcome::Exited));
    if !exited {
        talk.end();
    }
    let status = talk.reap(exited).map_err(ExecError::Talk)?;
    let stderr_tail = String::from_utf8_lossy(&talk.stderr).into_owned();
    match outcome.map_err(ExecError::Talk)? {
        Outcome::Exited => {
            Ok(Output { status, stdout: talk.stdout, stderr_tail, elapsed: started.elapsed() })
        }
        Outcome::Deadline => Err(ExecError::Deadline(limit, stderr_tail)),
        Outcome::TooMuch => Err(ExecError::TooMuch(stderr_tail)),
    }
}

/// Our ends of a plugin's streams.
struct Streams {
    stdin: PipeWriter,
    stdout: PipeReader,
    stderr: PipeReader,
}

/// Starts the program; one that is open for writing is tried again.
fn start(
    program: &Path,
    environment: &[(String, String)],
    busy_until: Instant,
    tree: &Tree,
) -> Result<(Child, Streams), ExecError> {
    let failed = |source: io::Error| ExecError::Start { path: program.display().to_string(), source };
    let text = |bytes: &OsStr| CString::new(bytes.as_bytes()).map_err(|error| failed(error.into()));
    let path = text(program.as_os_str())?;
    let variables = environment.iter().map(|(key, value)| text(format!("{key}={value}").as_ref()));
    let variables = variables.collect::<Result<Vec<_>, _>>()?;
    let arguments = Vector::new([path.as_c_str()]);
    let environment = Vector::new(variables.iter().map(CString::as_c_str));
    let pipes = || -> io::Result<_> { Ok((io::pipe()?, io::pipe()?, io::pipe()?)) };
    let ((stdin_theirs, stdin), (stdout, stdout_theirs), (stderr, stderr_theirs)) =
        pipes().map_err(failed)?;
    let mut cgroup = tree.directory();
    loop {
        let spawned = spawn(&Program {
            path: &path,
            arguments: &arguments,
            environment: &environment,
            directory: c"/",
            streams: [stdin_theirs.as_fd(), stdout_theirs.as_fd(), stderr_theirs.as_fd()],
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        });
        match spawned {
            Ok(child) => return Ok((child, Streams { stdin, stdout, stderr })),
            Err(Errno::TXTBSY) if Instant::now() < busy_until => std::thread::sleep(BUSY_PAUSE),
            // The cgroup may be one that we can make and not enter; the program itself says so once more if it is not that.
            Err(Errno::BUSY | Errno::OPNOTSUPP | Errno::ACCESS | Errno::NODEV | Errno::NOENT)
                if cgroup.is_some() =>
            {
                cgroup = None;
            }
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

enum Outcome {
    Exited,
    Deadline,
    TooMuch,
}

/// The conversation with one child. Descriptors are closed (`None`) when their side is done.
struct Talk<'a> {
    pid: Pid,
    pidfd: OwnedFd,
    tree: &'a Tree,
    input: &'a [u8],
    stdin: Option<OwnedFd>,
    stdout_pipe: Option<OwnedFd>,
    stderr_pipe: Option<OwnedFd>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn new(child: Child, streams: Streams, input: &'a [u8], tree: &'a Tree) -> Result<Self, Errno> {
        let pid = Pid::from_raw(child.pid).ok_or(Errno::CHILD)?;
        let pipes: [OwnedFd; 3] = [streams.stdin.into(), streams.stdout.into(), streams.stderr.into()];
        for pipe in &pipes {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        let [stdin, stdout_pipe, stderr_pipe] = pipes.map(Some);
        let (stdout, stderr) = (Vec::new(), Vec::new());
        Ok(Self { pid, pidfd: child.pidfd, tree, input, stdin, stdout_pipe, stderr_pipe, stdout, stderr })
    }

    /// Feeds and drains until the child has exited and its output is read, or time is up.
    fn until(&mut self, deadline: Instant) -> Result<Outcome, Errno> {
        let mut exited = false;
        let mut deadline = deadline;
        loop {
            if exited && self.stdout_pipe.is_none() && self.stderr_pipe.is_none() {
                return Ok(Outcome::Exited);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(if exited { Outcome::Exited } else { Outcome::Deadline });
            }
            if self.wait(left, exited)? && !exited {
                exited = true;
                // A grandchild may hold the pipes for ever.
                deadline = deadline.min(Instant::now() + DRAIN);
            }
            self.feed();
            let mut too_much = false;
            drain(&mut self.stdout_pipe, |bytes| {
                too_much |= self.stdout.len() + bytes.len() > STDOUT_LIMIT_BYTES;
                if !too_much {
                    self.stdout.extend(bytes);
                }
            });
            drain(&mut self.stderr_pipe, |bytes| keep_tail(&mut self.stderr, bytes));
            if too_much {
                return Ok(Outcome::TooMuch);
            }
        }
    }

    /// Waits for something to do; tells whether the child has exited.
    fn wait(&self, left: Duration, exited: bool) -> Result<bool, Errno> {
        let mut waiting = Vec::with_capacity(4);
        if !exited {
            waiting.push(PollFd::new(&self.pidfd, PollFlags::IN));
        }
        waiting.extend(self.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        waiting.extend(self.stdout_pipe.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        waiting.extend(self.stderr_pipe.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) => Ok(!exited && !waiting[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Writes what the pipe takes. A plugin that does not want its input is within its rights.
    fn feed(&mut self) {
        while let Some(fd) = &self.stdin {
            if self.input.is_empty() {
                self.stdin = None;
                return;
            }
            match rustix::io::write(fd, self.input) {
                Ok(written) => self.input = &self.input[written..],
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => self.stdin = None,
            }
        }
    }

    /// Asks the group to end, and ends it if it does not.
    fn end(&mut self) {
        self.stdin = None;
        // The child is not reaped yet, so its number cannot be anybody else's.
        let _ = kill_process_group(self.pid, Signal::TERM);
        let grace = Timespec { tv_sec: TERM_GRACE.as_secs().cast_signed(), tv_nsec: 0 };
        let mut exited = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let _ = poll(&mut exited, Some(&grace));
        drain(&mut self.stderr_pipe, |bytes| keep_tail(&mut self.stderr, bytes));
    }

    /// Kills the tree if the plugin did not end by itself, or left somebody who holds its output; collects its status.
    fn reap(&mut self, exited: bool) -> Result<ExitStatus, Errno> {
        let held = self.stdout_pipe.is_some() || self.stderr_pipe.is_some();
        if held || !exited {
            self.tree.kill(self.pid);
        }
        cofferdam_linux::process::reap(self.pidfd.as_fd())
    }
}

/// Reads what is there; closes the pipe at its end.
fn drain(pipe: &mut Option<OwnedFd>, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0; 16 * 1024];
    // No more than a pipe holds at once: a plugin that writes without end must not keep us from looking at the clock.
    for _ in 0..READS_AT_ONCE {
        let Some(fd) = pipe.as_ref() else { return };
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                take(&buffer[..count]);
                if count < buffer.len() {
                    return;
                }
            }
            Err(Errno::AGAIN) => return,
            Err(Errno::INTR) => {}
            Err(_) => *pipe = None,
        }
    }
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend(bytes);
    if tail.len() > STDERR_TAIL_BYTES {
        tail.drain(..tail.len() - STDERR_TAIL_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        std::fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    fn run(
        program: &Path,
        environment: &[(String, String)],
        input: &[u8],
        limit: Duration,
    ) -> Result<Output, ExecError> {
        // The name is the path of a throw-away directory's.
        let name = program.display().to_string().replace('/', "-");
        super::run(program, environment, input, limit, &Tree::new(name.trim_start_matches('-')))
    }

    fn environment() -> Vec<(String, String)> {
        vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())]
    }

    #[test]
    fn a_megabyte_in_each_direction_does_not_deadlock() {
        let (_dir, path) =
            script("head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2; wc -c >&2; exit 3");
        let input = vec![b'x'; 1 << 20];
        let output = run(&path, &environment(), &input, Duration::from_secs(20)).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout.len(), 1 << 20);
        assert!(output.stderr_tail.len() <= STDERR_TAIL_BYTES);
        assert!(output.stderr_tail.trim_end().ends_with("1048576"));
    }

    #[test]
    fn a_plugin_that_closes_its_input_early_is_fine() {
        let (_dir, path) = script("exec 0<&-; echo '{}'");
        let output = run(&path, &environment(), &vec![b'x'; 1 << 20], Duration::from_secs(10)).unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"{}\n");
    }

    #[test]
    fn a_grandchild_that_holds_the_output_is_killed_with_a_hanging_plugin() {
        let (dir, path) = script("sleep 20 & echo $! > \"$D/pid\"; echo waiting >&2; wait");
        let mut env = environment();
        env.push(("D".into(), dir.path().display().to_string()));
        let started = Instant::now();
        let error = run(&path, &env, b"", Duration::from_millis(500)).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        assert!(matches!(&error, ExecError::Deadline(_, tail) if tail.contains("waiting")), "{error:?}");
        assert_gone(dir.path());
    }

    #[test]
    fn a_grandchild_that_outlives_its_plugin_does_not_hold_us() {
        let (dir, path) = script("sleep 20 & echo $! > \"$D/pid\"; echo '{}'");
        let mut env = environment();
        env.push(("D".into(), dir.path().display().to_string()));
        let started = Instant::now();
        let output = run(&path, &env, b"", Duration::from_secs(10)).unwrap();
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        assert_eq!(output.stdout, b"{}\n");
        assert_gone(dir.path());
    }

    fn assert_gone(dir: &Path) {
        let pid: i32 = std::fs::read_to_string(dir.join("pid")).unwrap().trim().parse().unwrap();
        let stat = format!("/proc/{pid}/stat");
        for _ in 0..100 {
            match std::fs::read_to_string(&stat) {
                Ok(text) if !text.contains(") Z") => std::thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        panic!("process {pid} is still alive");
    }

    #[test]
    fn a_plugin_that_writes_without_end_is_stopped() {
        let (_dir, path) = script("exec cat /dev/zero");
        let error = run(&path, &environment(), b"", Duration::from_secs(20)).unwrap_err();
        assert!(matches!(error, ExecError::TooMuch(_)), "{error:?}");
    }

    #[test]
    fn a_program_that_is_being_replaced_is_tried_again() {
        let (dir, _) = script("");
        // Under its own name: it may be one of busybox, which looks at that.
        let path = dir.path().join("true");
        std::fs::copy("/bin/true", &path).unwrap();
        let held = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(held);
        });
        let output = run(&path, &environment(), b"", Duration::from_secs(10)).unwrap();
        assert!(output.status.success());
        assert!(output.elapsed >= Duration::from_millis(250));
        holder.join().unwrap();
        let held = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let error = run(&path, &environment(), b"", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, ExecError::Start { .. }), "{error:?}");
        drop(held);
    }

    #[test]
    fn only_the_environment_given_reaches_the_plugin() {
        let (_dir, path) = script("env; pwd");
        let output = run(&path, &environment(), b"", Duration::from_secs(10)).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("PATH=/usr/sbin") && !text.contains("CARGO"), "{text}");
        assert!(text.ends_with("/\n"));
    }
}
