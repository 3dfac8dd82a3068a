//! One error for the family of lifecycle operations. The words of the first lines are those that callers of runc parse.

use std::path::PathBuf;

use cofferdam_apply::{Failure, LateFailure, in_words};
use cofferdam_plan::op::HookPoint;
use cofferdam_plan::{Op, Plan, Refusal, Stage};

/// What kind of failure it is: what an edge maps to exit codes, gRPC codes or reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // house-style.md, "Errors": the words say it
pub enum Kind {
    NotFound,
    AlreadyExists,
    InvalidInput,
    Unsupported,
    Conflict,
    Denied,
    Exhausted,
    Interrupted,
    Internal,
}

/// A lifecycle operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No container has this id.
    #[error("container does not exist: {id}")]
    NotFound {
        /// The id.
        id: String,
    },
    /// A container has this id already.
    #[error("container with given ID already exists: {id}")]
    AlreadyExists {
        /// The id.
        id: String,
    },
    /// The text is not an id.
    #[error(transparent)]
    InvalidId(#[from] cofferdam_plan::id::InvalidId),
    /// The configuration cannot be read or is not one.
    #[error("{path}: {problem}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the JSON path.
        problem: String,
    },
    /// The configuration is refused.
    #[error("invalid configuration: {0}")]
    Refused(#[from] Refusal),
    /// The container's program cannot be found or executed.
    #[error("unable to start container process: {problem}")]
    Program {
        /// As `process.args[0]` says it.
        name: String,
        /// What of it failed and why, in the words that callers parse.
        problem: String,
        /// Whether it is there but may not be executed.
        denied: bool,
    },
    /// The working directory cannot be entered. In runc's words, which callers look for.
    #[error("unable to start container process: chdir to cwd ({path:?}) set in config.json failed: {}", in_words(*errno))]
    WorkingDirectory {
        /// The directory.
        path: String,
        /// The kernel's answer.
        errno: rustix::io::Errno,
    },
    /// A step failed; everything before it was undone.
    #[error("unable to start container process: {part}{0}", part = part_of(.0))]
    Step(#[from] Box<Failure>),
    /// A step of an update failed; everything before it was taken back.
    #[error("unable to update the container: {0}")]
    Change(Box<Failure>),
    /// A step after the gate failed: the container is stopped.
    #[error("unable to start container process: {description}: {}", in_words(failure.errno))]
    Late {
        /// The step, as the plan prints it.
        description: String,
        /// Its number and the kernel's answer.
        failure: LateFailure,
    },
    /// The operation does not fit the container's status.
    #[error("{0}")]
    Conflict(String),
    /// This host lacks what was asked for.
    #[error("{0}")]
    Unsupported(String),
    /// A hook failed.
    #[error("error running {} hook #{index}: {problem}", point.key())]
    Hook {
        /// When it was run.
        point: HookPoint,
        /// Its index in the list.
        index: usize,
        /// How it failed, with what it said.
        problem: String,
    },
    /// A file of the state root cannot be read, written or understood.
    #[error("{operation} {path}: {problem}")]
    StateFile {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The service manager did not do what it was asked to.
    #[error(transparent)]
    Systemd(#[from] crate::systemd::Problem),
    /// The container's cgroup could not be used.
    #[error(transparent)]
    Cgroup(#[from] cofferdam_linux::cgroup::Error),
    /// A system call on the container failed.
    #[error("{operation}: {}", in_words(*errno))]
    System {
        /// What was tried, on what.
        operation: String,
        /// The kernel's answer.
        errno: rustix::io::Errno,
    },
    /// Another operation holds the container's lock for too long.
    #[error("{path}: locked by {holder}, which did not let go within {seconds} s")]
    Locked {
        /// The container's directory.
        path: PathBuf,
        /// How long it was waited for.
        seconds: f32,
        /// Who holds it.
        holder: String,
    },
    /// What was waited for did not come.
    #[error("{waited_for}: nothing came within {seconds} s; given up, and undone")]
    TimedOut {
        /// What it was.
        waited_for: String,
        /// How long it was waited for.
        seconds: f32,
    },
    /// CRIU is needed and is not there.
    #[error(
        "criu is not installed: checkpoint and restore need the program criu on the search path (Debian: apt-get install criu)"
    )]
    CriuMissing,
    /// CRIU did not do what it was asked for.
    #[error("criu failed: {problem}{}", if log.as_os_str().is_empty() { String::new() } else { format!("\n  log file: {}", log.display()) })]
    Criu {
        /// What it says, with the errors of its log.
        problem: String,
        /// Where its log is.
        log: PathBuf,
    },
    /// The container's processes could not be brought to an end.
    #[error("container {id} still has processes after {seconds} s: {pids:?}")]
    StillRunning {
        /// The container.
        id: String,
        /// How long it was tried.
        seconds: f32,
        /// Who is left.
        pids: Vec<i32>,
    },
}

/// What runc says before the reason of a mount that fails.
fn part_of(failure: &Failure) -> &'static str {
    let mounts = failure.stage == Stage::Enter && failure.why.starts_with("/mounts/");
    if mounts { "error during container init: error mounting: " } else { "" }
}

impl Error {
    /// The kind of failure.
    pub fn kind(&self) -> Kind {
        use rustix::io::Errno;
        let of = |errno: Errno| match errno {
            Errno::NOENT => Kind::NotFound,
            Errno::PERM | Errno::ACCESS | Errno::ROFS => Kind::Denied,
            Errno::NOSPC | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::DQUOT => {
                Kind::Exhausted
            }
            Errno::NOSYS | Errno::OPNOTSUPP => Kind::Unsupported,
            Errno::INTR | Errno::TIMEDOUT => Kind::Interrupted,
            _ => Kind::Internal,
        };
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::AlreadyExists { .. } => Kind::AlreadyExists,
            Self::InvalidId(_) | Self::Bundle { .. } | Self::Refused(Refusal::Invalid { .. }) => {
                Kind::InvalidInput
            }
            Self::Refused(_) => Kind::Unsupported,
            Self::Program { denied: true, .. } => Kind::Denied,
            Self::Program { .. } => Kind::NotFound,
            Self::Step(failure) | Self::Change(failure) => of(failure.errno),
            Self::Late { failure, .. } => of(failure.errno),
            Self::Conflict(_) | Self::StillRunning { .. } | Self::Locked { .. } => Kind::Conflict,
            Self::TimedOut { .. } => Kind::Interrupted,
            Self::Hook { .. } | Self::StateFile { .. } | Self::Systemd(_) => Kind::Internal,
            Self::CriuMissing | Self::Unsupported(_) => Kind::Unsupported,
            Self::Criu { .. } => Kind::Internal,
            Self::System { errno, .. } | Self::WorkingDirectory { errno, .. } => of(*errno),
            Self::Cgroup(error) => of(error.errno()),
        }
    }

    /// The failure of a plan, in the words that callers expect where it is the program that failed.
    pub(crate) fn from_failure(plan: &Plan, failure: Box<Failure>) -> Self {
        let step = plan.steps.get(failure.step);
        let by_program = step.is_some_and(|step| concerns_program(&step.op, step.stage));
        let injected = failure.detail.as_deref() == Some("injected");
        // A process that was killed on the way: what it was about to do is not to blame.
        if failure.errno == rustix::io::Errno::CHILD {
            return Self::Step(failure);
        }
        if let Some(Op::ChangeDirectory { path }) = step.map(|step| &step.op)
            && !injected
            && failure.left_behind.is_empty()
        {
            return Self::WorkingDirectory { path: path.to_string(), errno: failure.errno };
        }
        match program_name(plan) {
            Some(name) if by_program && !injected => {
                match plan.steps.get(failure.step).map(|step| &step.op) {
                    Some(Op::Exec { .. }) => Self::not_executed(name, failure.errno),
                    _ => Self::not_found(name, failure.errno),
                }
            }
            _ => Self::Step(failure),
        }
    }

    /// The program was found, and the kernel does not execute it: it may miss an interpreter, say.
    pub(crate) fn not_executed(name: String, errno: rustix::io::Errno) -> Self {
        let problem = format!("exec {name}: {}", in_words(errno));
        Self::Program { name, problem, denied: errno != rustix::io::Errno::NOENT }
    }

    /// The program is not there, or may not be executed.
    fn not_found(name: String, errno: rustix::io::Errno) -> Self {
        use rustix::io::Errno;
        let problem = match errno {
            Errno::NOENT if !name.contains('/') => "executable file not found in $PATH".into(),
            Errno::NOENT => format!("stat {name}: no such file or directory"),
            // execve(2) says EACCES of it, and podman 4 finds its status 126 by these words.
            Errno::ISDIR => "is a directory: permission denied".into(),
            errno => in_words(errno),
        };
        let problem = format!("exec: {name:?}: {problem}");
        Self::Program { name, problem, denied: errno != Errno::NOENT }
    }
}

pub(crate) fn concerns_program(op: &Op, stage: Stage) -> bool {
    matches!((op, stage), (Op::FindProgram { .. }, _) | (Op::Exec { .. }, Stage::Exec))
}

pub(crate) fn program_name(plan: &Plan) -> Option<String> {
    plan.find(|op| match op {
        Op::FindProgram { name, .. } => Some(name.to_string()),
        _ => None,
    })
}

/// A failed system call on `operation`.
pub(crate) fn system(operation: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::System { operation: operation.into(), errno }
}
