//! What is said on the control socket, in the JSON of `Request` and `Reply` frames.
//!
//! ```text
//! client                          shim
//!   Request ───────────────────────▶     one at a time
//!   ◀─────────────────────────── Reply
//!   after Start{attach}, Attach and Exec that were answered with `Attached`:
//!   Stdin, StdinEnd, Resize ───────▶
//!   ◀────────────────── Stdout, Stderr   until
//!   ◀──────────── Reply::Ended or Status the process has ended
//! ```
//!
//! The socket pair on which the launcher started the shim is such a connection from its first byte, and the only
//! one that may say [`Request::Start`]. If it closes before that, the launch is undone.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::Exit;

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// Which processes of a task a signal goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillScope {
    /// The first process.
    Init,
    /// Every process in the task's cgroup.
    All,
}

/// Which streams an attached client takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachStreams {
    /// It sends standard input.
    pub stdin: bool,
    /// It receives output.
    pub output: bool,
    /// Size of its terminal, applied at once.
    pub size: Option<WindowSize>,
}

/// A process to run in the task beside its first one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The process, as the runtime specification writes it.
    pub process: oci_spec::runtime::Process,
    /// What the client takes part in; `None` runs it without anybody watching.
    pub attach: Option<AttachStreams>,
}

/// A client's wish.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Let the created task run.
    Start {
        /// Become an attached client of it, from its first byte.
        attach: Option<AttachStreams>,
    },
    /// Tell the task's status.
    Status,
    /// Tell the task's status once it is final.
    Wait,
    /// Send a signal.
    Kill {
        /// The signal's number.
        signal: i32,
        /// To whom.
        scope: KillScope,
    },
    /// End the task: a signal, and after the grace SIGKILL to everything in it.
    Stop {
        /// The first signal.
        signal: i32,
        /// How long to wait for it to work.
        grace_ms: u64,
    },
    /// Take part in the task's streams.
    Attach(AttachStreams),
    /// Run another process in the task.
    Exec(Box<ExecRequest>),
}

/// The shim's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The task is created and waits for `Start`.
    Created {
        /// Its first process.
        pid: i32,
    },
    /// It runs.
    Started {
        /// Its first process.
        pid: i32,
        /// How long each step of the launch took, in order.
        steps: Vec<StepTime>,
    },
    /// Done.
    Done,
    /// The connection now carries streams. For an exec: of this process.
    Attached {
        /// The process whose streams they are.
        pid: i32,
    },
    /// The exec'd process has ended; the connection's last frame.
    Ended {
        /// How.
        exit: Exit,
    },
    /// The task's status, written by the executor's half.
    Status(Value),
    /// It could not be done.
    Failed(Failure),
}

/// One timed step of a launch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepTime {
    /// The step, in words.
    pub step: String,
    /// When it was done, counted from the beginning of its list.
    pub nanos: u64,
}

/// Why something could not be done, for a person and for a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// What was asked, what failed, where and why.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into() }
    }
}

/// The kinds of failure that callers act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The program to run is not in the task's root file system.
    CommandNotFound,
    /// The program is there but the kernel cannot run it.
    CommandNotExecutable,
    /// The request makes no sense.
    InvalidInput,
    /// What it names is not there.
    NotFound,
    /// It does not fit the task's state.
    Conflict,
    /// The kernel or a rule refused.
    Denied,
    /// The host, this kernel or this build cannot do it.
    Unsupported,
    /// A limit or a resource ran out.
    Exhausted,
    /// Anything else: our error or the host's.
    Internal,
}
