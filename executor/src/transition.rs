//! The life of a task as a pure function: `transition(status, event) -> (status, actions)`.
//!
//! ```text
//!               Prepared               Started
//!   STAGING ───────────────▶ STARTING ─────────▶ RUNNING
//!      │                      │  ▲                 │ Exited
//!      │ PrepareFailed        │  └──── restart ────┤
//!      │ KillRequested        │ StartFailed        ▼
//!      └──────────────────────┴──────────▶ FINISHED | FAILED | KILLED     (final: nothing leaves them)
//! ```
//!
//! No clock, no file, no process is touched here: whoever calls it carries out the actions, in order, and stores the
//! status before it acts, so that an event may be delivered twice (a replay after a crash) without harm.

use std::time::Duration;

use cofferdam_shim::{Exit, Timestamp};

use crate::restart::{SETTLED_AFTER, pause_before};
use crate::signal::Signal;
use crate::status::{KillProgress, Limitation, Reason, Status, TaskState};

/// Something that happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Image, network and files are ready.
    Prepared,
    /// They could not be made ready.
    PrepareFailed {
        /// Why.
        reason: Reason,
        /// The same in words.
        message: String,
    },
    /// Its program runs.
    Started {
        /// Its first process.
        pid: i32,
    },
    /// The container could not be made or its program not be executed.
    StartFailed {
        /// Why.
        reason: Reason,
        /// The same in words.
        message: String,
    },
    /// Its first process has ended.
    Exited {
        /// How.
        exit: Exit,
        /// The kernel had killed something of it for want of memory.
        out_of_memory: bool,
    },
    /// Somebody wants a signal sent.
    SignalRequested {
        /// Which.
        signal: Signal,
    },
    /// Somebody wants it ended.
    StopRequested {
        /// The first signal.
        signal: Signal,
        /// How long until SIGKILL.
        grace: Duration,
    },
    /// That time is over.
    GraceOver,
    /// The pause before a restart is over.
    RestartDue,
    /// Whoever was responsible for it is gone, and so is the task.
    OwnerLost {
        /// How they went.
        reason: Reason,
    },
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Store the status and tell the world.
    Publish,
    /// Create the container and start its program.
    Launch,
    /// Send a signal to the first process.
    Signal(Signal),
    /// Send SIGKILL to every process.
    KillAll,
    /// Report [`Event::GraceOver`] after this time.
    ArmGrace(Duration),
    /// Report [`Event::RestartDue`] after this time.
    ArmRestart(Duration),
    /// The task is over: give back everything it held, killing what is left of it.
    Release,
}

/// What becomes of a task when `event` happens at `now`, and what is to be done about it.
pub fn transition(status: Status, event: Event, now: Timestamp) -> (Status, Vec<Action>) {
    if status.state.is_final() {
        return (status, Vec::new());
    }
    match event {
        Event::Prepared => prepared(status, now),
        Event::PrepareFailed { reason, message } | Event::StartFailed { reason, message } => {
            start_failed(status, reason, message, now)
        }
        Event::Started { pid } => started(status, pid, now),
        Event::Exited { exit, out_of_memory } => exited(status, exit, out_of_memory, now),
        Event::SignalRequested { signal } => signal_requested(status, signal, now),
        Event::StopRequested { signal, grace } => stop_requested(status, signal, grace, now),
        Event::GraceOver => {
            (status.clone(), if is_stopping(&status) { vec![Action::KillAll] } else { Vec::new() })
        }
        Event::RestartDue if is_waiting(&status) => restart_due(status, now),
        Event::RestartDue => (status, Vec::new()),
        Event::OwnerLost { reason } => {
            let message = lost_message(reason).to_owned();
            over(status, TaskState::Failed, reason, message, now)
        }
    }
}

fn is_stopping(status: &Status) -> bool {
    matches!(status.kill, Some(KillProgress::Stopping { .. }))
}

/// Whether it ended and waits to be started again: it has no process.
fn is_waiting(status: &Status) -> bool {
    status.state == TaskState::Starting && status.reason == Some(Reason::WaitingToRestart)
}

fn lost_message(reason: Reason) -> &'static str {
    match reason {
        Reason::LauncherLost => "the program that launched the task ended before the task ran",
        Reason::HostRebooted => "the host was started anew while the task ran",
        _ => "the task's supervisor was killed; the task's processes were killed with it",
    }
}

fn enter(mut status: Status, state: TaskState, now: Timestamp) -> Status {
    status.state = state;
    status.since = now;
    status
}

fn over(
    status: Status,
    state: TaskState,
    reason: Reason,
    message: String,
    now: Timestamp,
) -> (Status, Vec<Action>) {
    let mut status = enter(status, state, now);
    status.reason = Some(reason);
    status.message = Some(message);
    status.finished = Some(now);
    status.pid = None;
    (status, vec![Action::Publish, Action::Release])
}

fn prepared(status: Status, now: Timestamp) -> (Status, Vec<Action>) {
    if status.state != TaskState::Staging {
        return (status, Vec::new());
    }
    (enter(status, TaskState::Starting, now), vec![Action::Publish, Action::Launch])
}

fn start_failed(status: Status, reason: Reason, message: String, now: Timestamp) -> (Status, Vec<Action>) {
    if status.state == TaskState::Running || is_waiting(&status) {
        return (status, Vec::new());
    }
    over(status, TaskState::Failed, reason, message, now)
}

fn started(status: Status, pid: i32, now: Timestamp) -> (Status, Vec<Action>) {
    if status.state != TaskState::Starting || is_waiting(&status) {
        return (status, Vec::new());
    }
    let mut status = enter(status, TaskState::Running, now);
    status.pid = Some(pid);
    status.started = Some(now);
    status.reason = None;
    status.message = None;
    let mut actions = vec![Action::Publish];
    // A stop that came while the container was being made.
    if let Some(KillProgress::Stopping { signal, grace_ms }) = status.kill {
        actions.extend([Action::Signal(signal), Action::ArmGrace(Duration::from_millis(grace_ms))]);
    }
    (status, actions)
}

fn exited(mut status: Status, exit: Exit, out_of_memory: bool, now: Timestamp) -> (Status, Vec<Action>) {
    if status.state == TaskState::Staging || is_waiting(&status) {
        return (status, Vec::new());
    }
    status.exit = Some(exit);
    if status.started.is_some_and(|started| now.since(started) >= SETTLED_AFTER) {
        status.restarts_in_a_row = 0;
    }
    if !was_asked_to_end(&status, exit) && status.restart.wants_restart(exit, status.restarts_in_a_row) {
        return wait_to_restart(status, exit, now);
    }
    let (state, reason, message) = verdict(&status, exit, out_of_memory);
    if reason == Reason::MemoryLimit {
        status.limitation = Some(Limitation::Memory { limit_bytes: status.memory_limit_bytes });
    }
    over(status, state, reason, message, now)
}

fn was_asked_to_end(status: &Status, exit: Exit) -> bool {
    match status.kill {
        Some(KillProgress::Stopping { .. }) => true,
        Some(KillProgress::Signalled(signal)) => exit == Exit::Signal(signal.number()),
        None => false,
    }
}

/// What an end means.
fn verdict(status: &Status, exit: Exit, out_of_memory: bool) -> (TaskState, Reason, String) {
    if was_asked_to_end(status, exit) {
        return (TaskState::Killed, Reason::KillRequested, format!("ended on request with {exit}"));
    }
    match exit {
        Exit::Code(0) => {
            (TaskState::Finished, Reason::CommandExited, "the command ended with exit code 0".into())
        }
        _ if out_of_memory => (TaskState::Failed, Reason::MemoryLimit, memory_message(status, exit)),
        Exit::Code(_) => (TaskState::Failed, Reason::CommandExited, format!("the command ended with {exit}")),
        Exit::Signal(_) => {
            (TaskState::Failed, Reason::CommandSignaled, format!("the command was ended by {exit}"))
        }
    }
}

fn memory_message(status: &Status, exit: Exit) -> String {
    let limit = match status.memory_limit_bytes {
        Some(bytes) => format!("its limit of {}", crate::request::size::show_bytes(bytes)),
        None => "what the host had left".to_owned(),
    };
    format!("the task used more memory than {limit}; the kernel killed it ({exit})")
}

fn wait_to_restart(status: Status, exit: Exit, now: Timestamp) -> (Status, Vec<Action>) {
    let pause = pause_before(status.restarts_in_a_row);
    let mut status = enter(status, TaskState::Starting, now);
    status.reason = Some(Reason::WaitingToRestart);
    status.message = Some(format!("ended with {exit}; starts again in {} ms", pause.as_millis()));
    status.pid = None;
    status.kill = None;
    (status, vec![Action::Publish, Action::ArmRestart(pause)])
}

fn restart_due(mut status: Status, now: Timestamp) -> (Status, Vec<Action>) {
    status.reason = None;
    status.message = None;
    status.restarts += 1;
    status.restarts_in_a_row += 1;
    (enter(status, TaskState::Starting, now), vec![Action::Publish, Action::Launch])
}

fn signal_requested(mut status: Status, signal: Signal, now: Timestamp) -> (Status, Vec<Action>) {
    match status.state {
        _ if is_waiting(&status) && signal == Signal::KILL => cancelled(status, now),
        TaskState::Running => {
            if !is_stopping(&status) {
                status.kill = Some(KillProgress::Signalled(signal));
            }
            let action = if signal == Signal::KILL { Action::KillAll } else { Action::Signal(signal) };
            (status, vec![action])
        }
        // Nobody can be signalled yet. SIGKILL is remembered as the stop that it is.
        _ if signal == Signal::KILL => stop_requested(status, signal, Duration::ZERO, now),
        _ => (status, Vec::new()),
    }
}

fn stop_requested(
    mut status: Status,
    signal: Signal,
    grace: Duration,
    now: Timestamp,
) -> (Status, Vec<Action>) {
    if is_waiting(&status) || status.state == TaskState::Staging {
        return cancelled(status, now);
    }
    status.kill = Some(KillProgress::Stopping { signal, grace_ms: grace.as_millis() as u64 });
    if status.state == TaskState::Running {
        return (status, vec![Action::Signal(signal), Action::ArmGrace(grace)]);
    }
    (status, Vec::new())
}

/// It has no process: the wish to end it is fulfilled at once.
fn cancelled(status: Status, now: Timestamp) -> (Status, Vec<Action>) {
    let ran = status.started.is_some();
    let reason = if ran { Reason::KillRequested } else { Reason::LaunchCancelled };
    over(status, TaskState::Killed, reason, "ended on request while it was not running".to_owned(), now)
}

#[cfg(test)]
mod tests;
