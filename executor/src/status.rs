//! What is known of a task: the same values in status files, events, `inspect` and the library.

use std::fmt;

use cofferdam_shim::{Exit, Timestamp};
use serde::{Deserialize, Serialize};

use crate::id::TaskId;
use crate::restart::RestartPolicy;
use crate::signal::Signal;

/// Version of the stored form. A reader takes this one and the one before.
pub(crate) const STATUS_VERSION: u32 = 1;

/// Where a task stands. `Finished`, `Failed` and `Killed` are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum TaskState {
    /// Its image, network and files are being made ready.
    Staging,
    /// Its container is being created; or it has ended and will be started again.
    Starting,
    /// Its program runs.
    Running,
    /// It ended with exit code 0.
    Finished,
    /// It ended otherwise, or never ran.
    Failed,
    /// It ended because somebody asked.
    Killed,
}

impl TaskState {
    /// Whether nothing comes after it.
    pub fn is_final(self) -> bool {
        matches!(self, TaskState::Finished | TaskState::Failed | TaskState::Killed)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            TaskState::Staging => "STAGING",
            TaskState::Starting => "STARTING",
            TaskState::Running => "RUNNING",
            TaskState::Finished => "FINISHED",
            TaskState::Failed => "FAILED",
            TaskState::Killed => "KILLED",
        })
    }
}

/// Why a task is where it is. The set is closed: adapters translate each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Its program ended by itself, with the exit code given.
    CommandExited,
    /// A signal that nobody asked us to send killed it.
    CommandSignaled,
    /// It used more memory than it may: the kernel killed it.
    MemoryLimit,
    /// A stop or a kill was asked for.
    KillRequested,
    /// The launch was taken back before the task ran.
    LaunchCancelled,
    /// The request cannot be carried out on this host.
    InvalidRequest,
    /// Its image could not be had.
    ImageUnavailable,
    /// Its network could not be made.
    NetworkUnavailable,
    /// Its program is not in its root file system.
    CommandNotFound,
    /// Its program cannot be executed.
    CommandNotExecutable,
    /// Its isolation could not be built.
    IsolationFailed,
    /// The program that launched it was killed before the task ran.
    LauncherLost,
    /// Its supervisor was killed; what was left of the task was killed with it.
    SupervisorLost,
    /// The host was started anew while it ran.
    HostRebooted,
    /// It ended and is to be started again.
    WaitingToRestart,
}

/// A limit that ended a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limitation {
    /// Memory; the limit, if there was one of its own.
    Memory {
        /// What it was allowed.
        limit_bytes: Option<u64>,
    },
}

/// A wish to end the task that is being carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillProgress {
    /// One signal was sent and nothing follows: the task may well survive it.
    Signalled(Signal),
    /// A stop: a signal was or will be sent, SIGKILL follows.
    Stopping {
        /// The signal.
        signal: Signal,
        /// When SIGKILL follows.
        grace_ms: u64,
    },
}

/// What is known of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the stored form: 1.
    pub version: u32,
    /// Which task.
    pub task: TaskId,
    /// Where it stands.
    pub state: TaskState,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: Option<Reason>,
    /// The same in a sentence, with the details.
    pub message: Option<String>,
    /// How its first process ended, the last time it did.
    pub exit: Option<Exit>,
    /// The limit that ended it.
    pub limitation: Option<Limitation>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When its program was last started.
    pub started: Option<Timestamp>,
    /// When it was over.
    pub finished: Option<Timestamp>,
    /// Its first process, while it runs.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// How often in a row, which is what the pauses between go by.
    pub restarts_in_a_row: u32,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// Memory it may use, to say so when it used more.
    pub memory_limit_bytes: Option<u64>,
    /// A wish to end it.
    pub kill: Option<KillProgress>,
}

impl Status {
    /// The status of a task that was just asked for.
    pub fn new(
        task: TaskId,
        now: Timestamp,
        restart: RestartPolicy,
        memory_limit_bytes: Option<u64>,
    ) -> Status {
        Status {
            version: STATUS_VERSION,
            task,
            state: TaskState::Staging,
            since: now,
            reason: None,
            message: None,
            exit: None,
            limitation: None,
            created: now,
            started: None,
            finished: None,
            pid: None,
            restarts: 0,
            restarts_in_a_row: 0,
            restart,
            memory_limit_bytes,
            kill: None,
        }
    }

    /// The status that an event told.
    pub(crate) fn of_event(event: &crate::event::TaskEvent) -> Status {
        let mut status = Status::new(event.task.clone(), event.time, RestartPolicy::No, None);
        status.state = event.state;
        status.reason = event.reason;
        status.message.clone_from(&event.message);
        status.exit = event.exit;
        status.limitation = event.limitation;
        status.pid = event.pid;
        status.restarts = event.restarts;
        status.finished = event.state.is_final().then_some(event.time);
        status
    }

    /// The exit code that `docker run` would end with: 125 for our own failures, 126 and 127 for a program that
    /// cannot be run or found, 128 plus the signal, or the task's own code.
    pub fn shell_code(&self) -> i32 {
        match (self.exit, self.reason) {
            (Some(exit), _) => exit.shell_code(),
            (None, Some(Reason::CommandNotFound)) => 127,
            (None, Some(Reason::CommandNotExecutable)) => 126,
            _ => 125,
        }
    }
}
