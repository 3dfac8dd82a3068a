//! One run of the plugin, with what a shell needs to do it again.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, test_kill_process_group};
use serde_json::Value;

/// A plugin that takes longer is stopped, and has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// Input longer than this is told by its length.
const LONGEST_REPLAY_BYTES: usize = 4096;

/// What the plugin did.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
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

    /// How it ended, in a line.
    pub(crate) fn text(&self) -> String {
        let how = match self.status {
            None => format!("did not end within {} s", LIMIT.as_secs()),
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
                let _ = write!(text, "; {name}: {}", stream.chars().take(400).collect::<String>());
            }
        }
        text
    }
}

/// Runs the program; after `kill_after` it and its group are killed.
pub(crate) fn run(
    program: &Path,
    environment: &[(String, String)],
    input: &[u8],
    kill_after: Option<Duration>,
) -> std::io::Result<Said> {
    let started = Instant::now();
    let mut child = Command::new(program)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| feed(stdin, input));
        let stdout = scope.spawn(|| drain(stdout));
        let stderr = scope.spawn(|| drain(stderr));
        let is_over = cofferdam_linux::wait::readable(&pidfd, kill_after.unwrap_or(LIMIT)).unwrap_or(false);
        let left_children = if is_over {
            // Reaped first: a zombie is a member of its group as well.
            None
        } else {
            let _ = kill_process_group(pid, Signal::KILL);
            Some(false)
        };
        let elapsed = started.elapsed();
        let status = child.wait();
        let left_children = left_children.unwrap_or_else(|| test_kill_process_group(pid).is_ok());
        if left_children {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let texts = [stdout, stderr].map(|thread| thread.join().unwrap_or_default());
        status.map(|status| (status, is_over, left_children, elapsed, texts))
    });
    let (status, is_over, left_children, elapsed, [stdout, stderr]) = ended?;
    let verb = environment.iter().find(|(name, _)| name == "CNI_COMMAND").map(|(_, verb)| verb.clone());
    Ok(Said {
        status: (is_over || kill_after.is_some()).then_some(status),
        stdout,
        stderr,
        elapsed,
        left_children,
        verb: verb.unwrap_or_default(),
    })
}

fn feed(stdin: Option<ChildStdin>, input: &[u8]) {
    if let Some(mut stdin) = stdin {
        // A plugin that does not want its input is within its rights.
        let _ = stdin.write_all(input);
    }
}

fn drain(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
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
