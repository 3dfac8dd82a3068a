//! One run of the plugin, with what a shell needs to do it again.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cofferdam_linux::process::{Child, Vector};
use cofferdam_linux::spawn::{Program, spawn};
use cofferdam_linux::wait::readable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde_json::Value;

/// Input longer than this is told by its length.
const LONGEST_REPLAY_BYTES: usize = 4096;
/// What is kept of what a plugin prints; results are kilobytes. The rest is read and forgotten.
const LONGEST_OUTPUT_BYTES: usize = 8 * 1024 * 1024;
/// How long what a plugin has printed is waited for once it has ended: somebody that it left may hold the pipe for ever.
const DRAIN: Duration = Duration::from_millis(100);
/// How often a plugin that reads nothing is looked at.
const FEED: Timespec = Timespec { tv_sec: 0, tv_nsec: 25_000_000 };
/// How often the memory of a plugin is looked at that is watched.
const GLANCE: Duration = Duration::from_millis(1);
/// How often a program is tried that somebody has open for writing, and how long apart.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A call that is ready to be made.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) input: Vec<u8>,
    /// A plugin that takes longer is killed, and has failed.
    pub(crate) limit: Duration,
    /// When it is killed on purpose.
    pub(crate) kill_after: Option<Duration>,
    /// Whether its memory is looked at.
    pub(crate) is_watched: bool,
}

/// What the plugin did.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
    /// The most memory that it was seen with, in KiB.
    pub(crate) peak_kib: u64,
    /// Whether something of its process group outlived it.
    pub(crate) left_children: bool,
    /// The verb, for messages.
    pub(crate) verb: String,
}

impl Said {
    pub(crate) fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Standard output as JSON; null if it is none, or more than one.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or(Value::Null)
    }

    /// The code of an error answer.
    pub(crate) fn code(&self) -> Option<u64> {
        self.value()["code"].as_u64()
    }

    /// How it ended, in a line, which steers no terminal whatever the plugin printed.
    pub(crate) fn text(&self) -> String {
        let how = match self.status {
            None => "did not end in time".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with {code}"),
                (None, signal) => format!("was killed by signal {}", signal.unwrap_or(0)),
            },
        };
        let mut text = format!("{} {how}", self.verb);
        for (name, stream) in [("stdout", self.stdout.as_str()), ("stderr", &self.stderr)] {
            // JSON on one line.
            let compact = serde_json::from_str::<Value>(stream).map(|value| value.to_string());
            let stream = compact.as_deref().unwrap_or(stream).trim();
            if !stream.is_empty() {
                let _ = write!(text, "; {name}: ");
                for character in stream.chars().take(400) {
                    match character {
                        '\n' => text.push('\n'),
                        control if control.is_control() => text.extend(control.escape_unicode()),
                        character => text.push(character),
                    }
                }
            }
        }
        text
    }
}

impl Prepared<'_> {
    /// Runs the plugin. One that cannot be started has failed.
    pub(crate) fn run(&self) -> Said {
        let started = Instant::now();
        self.try_run(started).unwrap_or_else(|error| Said {
            status: None,
            stdout: String::new(),
            stderr: format!("cannot run {}: {error}", self.program.display()),
            elapsed: started.elapsed(),
            peak_kib: 0,
            left_children: false,
            verb: self.verb(),
        })
    }

    fn verb(&self) -> String {
        let verb = self.environment.iter().find(|(name, _)| name == "CNI_COMMAND");
        verb.map(|(_, verb)| verb.clone()).unwrap_or_default()
    }

    fn try_run(&self, started: Instant) -> std::io::Result<Said> {
        let (child, stdin, [stdout, stderr]) = self.start()?;
        let pid = Pid::from_raw(child.pid).ok_or(Errno::CHILD)?;
        let is_ended = AtomicBool::new(false);
        let mut said = std::thread::scope(|scope| {
            scope.spawn(|| feed(stdin, &self.input, &is_ended));
            let streams = [stdout, stderr].map(|pipe| scope.spawn(|| drain(pipe, &is_ended)));
            let (is_over, peak_kib) = self.wait(&child, started);
            if !is_over {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let elapsed = started.elapsed();
            let status = cofferdam_linux::process::reap(child.pidfd.as_fd());
            // After the reaping: a zombie is a member of its group as well.
            let left_children = is_over && test_kill_process_group(pid).is_ok();
            if left_children {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            is_ended.store(true, Ordering::Release);
            let [stdout, stderr] = streams.map(|thread| thread.join().unwrap_or_default());
            let verb = self.verb();
            status.map(|status| {
                let status = (is_over || self.kill_after.is_some()).then_some(status);
                Said { status, stdout, stderr, elapsed, peak_kib, left_children, verb }
            })
        })?;
        said.elapsed = said.elapsed.min(started.elapsed());
        Ok(said)
    }

    /// Starts the program with pipes for its streams. It is killed when the thread ends that starts it.
    fn start(&self) -> std::io::Result<(Child, PipeWriter, [PipeReader; 2])> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(std::io::Error::from);
        let path = text(self.program.as_os_str().as_bytes())?;
        let all =
            |texts: Vec<String>| texts.iter().map(|one| text(one.as_bytes())).collect::<Result<Vec<_>, _>>();
        let arguments = all(self.arguments.clone())?;
        let environment =
            all(self.environment.iter().map(|(name, value)| format!("{name}={value}")).collect())?;
        let arguments =
            Vector::new([path.as_c_str()].into_iter().chain(arguments.iter().map(CString::as_c_str)));
        let environment = Vector::new(environment.iter().map(CString::as_c_str));
        let (stdin, stdout, stderr) = (std::io::pipe()?, std::io::pipe()?, std::io::pipe()?);
        let program = Program {
            path: &path,
            arguments: &arguments,
            environment: &environment,
            directory: c"/",
            streams: [stdin.0.as_fd(), stdout.1.as_fd(), stderr.1.as_fd()],
            cgroup: None,
        };
        let mut tries = 0;
        loop {
            match spawn(&program) {
                Ok(child) => return Ok((child, stdin.1, [stdout.0, stderr.0])),
                Err(Errno::TXTBSY) if tries < BUSY_TRIES => {
                    tries += 1;
                    std::thread::sleep(BUSY_PAUSE);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for the end, or until it is time to kill; tells whether it ended, and the most memory it was seen with.
    fn wait(&self, child: &Child, started: Instant) -> (bool, u64) {
        let limit = self.kill_after.unwrap_or(self.limit);
        let mut peak_kib = 0;
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let step = if self.is_watched { left.min(GLANCE) } else { left };
            if readable(&child.pidfd, step).unwrap_or(false) {
                return (true, peak_kib);
            }
            if left.is_zero() {
                return (false, peak_kib);
            }
            peak_kib = peak_kib.max(memory_kib(child.pid));
        }
    }
}

/// The most memory that a process has had, in KiB, as proc_pid_status(5) tells it.
fn memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let words = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    words.and_then(|words| words.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Writes what the plugin takes, as long as it lives: somebody that it left may hold the other end.
fn feed(stdin: PipeWriter, mut input: &[u8], is_ended: &AtomicBool) {
    let flags = fcntl_getfl(&stdin).unwrap_or(OFlags::empty());
    let _ = fcntl_setfl(&stdin, flags | OFlags::NONBLOCK);
    while !input.is_empty() && !is_ended.load(Ordering::Acquire) {
        let mut room = [PollFd::new(&stdin, PollFlags::OUT)];
        let _ = poll(&mut room, Some(&FEED));
        match rustix::io::write(&stdin, input) {
            Ok(count) => input = &input[count..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A plugin that does not want its input is within its rights.
            Err(_) => return,
        }
    }
}

fn drain(mut pipe: PipeReader, is_ended: &AtomicBool) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let mut end = None;
    loop {
        if is_ended.load(Ordering::Acquire)
            && *end.get_or_insert_with(|| Instant::now() + DRAIN) < Instant::now()
        {
            break;
        }
        match readable(&pipe, DRAIN / 4) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => break,
        }
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let room = LONGEST_OUTPUT_BYTES.saturating_sub(kept.len());
                kept.extend(&buffer[..count.min(room)]);
            }
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The call as a command for a shell.
pub(crate) fn replay(program: &Path, environment: &[(String, String)], input: &[u8]) -> String {
    let mut text = String::from("env -i");
    for (name, value) in environment {
        let _ = write!(text, " {name}='{value}'");
    }
    let _ = write!(text, " {}", program.display());
    match std::str::from_utf8(input) {
        Ok("") => text.push_str(" </dev/null"),
        Ok(input) if input.len() <= LONGEST_REPLAY_BYTES => {
            let _ = write!(text, " <<'END'\n{input}\nEND");
        }
        _ => {
            let _ = write!(text, " # input: {} bytes, not shown", input.len());
        }
    }
    text
}
