//! What can go wrong, by what a caller can do about it.

use std::io;
use std::path::PathBuf;

use cofferdam_shim::durable::RecordError;
use cofferdam_shim::protocol::{Failure, FailureKind};

use crate::request::Refusal;
use crate::status::{Reason, TaskState};

/// What a caller can do about an error. Adapters map it to an exit code, a gRPC code or a scheduler's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// What was named is not there.
    NotFound,
    /// What was to be made is there.
    AlreadyExists,
    /// The request makes no sense, here or anywhere.
    InvalidInput,
    /// This host or this build cannot do it.
    Unsupported,
    /// It does not fit the state of things.
    Conflict,
    /// A permission is missing.
    Denied,
    /// A limit or a resource ran out.
    Exhausted,
    /// It was cut short; trying again may work.
    Interrupted,
    /// Our error, or one of the host's that nobody foresaw.
    Internal,
}

/// An operation of the executor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request cannot be carried out.
    #[error(transparent)]
    Request(#[from] Refusal),
    /// There is no such task.
    #[error("there is no task {0:?}")]
    NoSuchTask(String),
    /// Several tasks' ids begin so.
    #[error("{0:?} is the beginning of several tasks' ids")]
    Ambiguous(String),
    /// The name is taken.
    #[error("the name {name:?} is taken by task {by}; choose another, or remove that one first")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        by: String,
    },
    /// The task is in the wrong state.
    #[error("cannot {operation} task {task}: it is {state}")]
    WrongState {
        /// What was asked.
        operation: &'static str,
        /// Of which task.
        task: String,
        /// What it is.
        state: TaskState,
    },
    /// A file of ours could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A system call failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A directory of ours is not safe to use.
    #[error("{} cannot be used: {problem}", path.display())]
    UnsafeDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: &'static str,
    },
    /// We lack the privileges.
    #[error("cofferdam needs to run as root here: it makes namespaces, mounts and control groups")]
    NotRoot,
    /// The image could not be had.
    #[error("{message}")]
    Image {
        /// What can be done about it.
        kind: Kind,
        /// What was asked, what failed and why.
        message: String,
    },
    /// No subordinate ids are left for another task.
    #[error("no {count} ids in a row are free in {}: {tasks} tasks have theirs; remove some, or give out more there", path.display())]
    NoFreeIds {
        /// The file that says which there are.
        path: PathBuf,
        /// How many were to be had.
        count: u32,
        /// How many tasks have some.
        tasks: usize,
    },
    /// This host cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The network could not be made.
    #[error("{message}")]
    Network {
        /// What can be done about it.
        kind: Kind,
        /// What was asked, what failed and why.
        message: String,
    },
    /// The task did not start.
    #[error("{message}")]
    NotStarted {
        /// Why.
        reason: Reason,
        /// What was asked, what failed and why.
        message: String,
    },
    /// The task's supervisor refused or failed.
    #[error("{}", .0.message)]
    Supervisor(Failure),
    /// The task's supervisor went away in the middle of a conversation.
    #[error("the supervisor of task {task} went away")]
    SupervisorGone {
        /// Which task's.
        task: String,
    },
    /// A worker thread of ours panicked.
    #[error("an internal worker failed: {0}")]
    Worker(String),
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Request(_) | Error::Ambiguous(_) => Kind::InvalidInput,
            Error::NoSuchTask(_) => Kind::NotFound,
            Error::NameTaken { .. } => Kind::AlreadyExists,
            Error::WrongState { .. } => Kind::Conflict,
            Error::NotRoot | Error::UnsafeDirectory { .. } => Kind::Denied,
            Error::Io { source, .. } | Error::Record(RecordError::Io { source, .. }) => kind_of_io(source),
            Error::Image { kind, .. } | Error::Network { kind, .. } => *kind,
            Error::NoFreeIds { .. } => Kind::Exhausted,
            Error::Unsupported(_) => Kind::Unsupported,
            Error::NotStarted { reason, .. } => kind_of_reason(*reason),
            Error::Supervisor(failure) => kind_of_failure(failure.kind),
            Error::SupervisorGone { .. } => Kind::Interrupted,
            Error::Record(_) | Error::Worker(_) => Kind::Internal,
        }
    }

    /// The exit code that `docker run` would end with: 126 and 127 for a program that cannot be run or found, 125 for
    /// everything else.
    pub fn shell_code(&self) -> i32 {
        let failure = if let Error::Supervisor(failure) = self { Some(failure.kind) } else { None };
        match self {
            Error::NotStarted { reason: Reason::CommandNotFound, .. } => 127,
            Error::NotStarted { reason: Reason::CommandNotExecutable, .. } => 126,
            _ => match failure {
                Some(FailureKind::CommandNotFound) => 127,
                Some(FailureKind::CommandNotExecutable) => 126,
                _ => 125,
            },
        }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { operation, path, source }
    }
}

fn kind_of_io(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::AlreadyExists => Kind::AlreadyExists,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            Kind::Exhausted
        }
        io::ErrorKind::Interrupted => Kind::Interrupted,
        _ => Kind::Internal,
    }
}

fn kind_of_reason(reason: Reason) -> Kind {
    match reason {
        Reason::CommandNotFound | Reason::ImageUnavailable => Kind::NotFound,
        Reason::CommandNotExecutable | Reason::InvalidRequest => Kind::InvalidInput,
        Reason::LaunchCancelled | Reason::LauncherLost | Reason::SupervisorLost => Kind::Interrupted,
        _ => Kind::Internal,
    }
}

fn kind_of_failure(kind: FailureKind) -> Kind {
    match kind {
        FailureKind::CommandNotFound | FailureKind::NotFound => Kind::NotFound,
        FailureKind::CommandNotExecutable | FailureKind::InvalidInput => Kind::InvalidInput,
        FailureKind::Conflict => Kind::Conflict,
        FailureKind::Denied => Kind::Denied,
        FailureKind::Unsupported => Kind::Unsupported,
        FailureKind::Exhausted => Kind::Exhausted,
        _ => Kind::Internal,
    }
}

/// What a failed start means for the task.
pub(crate) fn reason_of_failure(kind: FailureKind) -> Reason {
    match kind {
        FailureKind::CommandNotFound => Reason::CommandNotFound,
        FailureKind::CommandNotExecutable => Reason::CommandNotExecutable,
        FailureKind::InvalidInput => Reason::InvalidRequest,
        _ => Reason::IsolationFailed,
    }
}
