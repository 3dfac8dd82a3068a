//! The executor's half of a shim: what facts mean for the task, written down before they are acted upon.
//!
//! It runs in the shim's process. The status on disk has one writer at a time: the launcher until it starts the shim, then
//! this, then (if the shim was killed) recovery, each of them holding the task's lock.

use std::io::Write as _;
use std::path::Path;

use cofferdam_shim::detach::{self, Entered};
use cofferdam_shim::frame::{self, FrameKind};
use cofferdam_shim::policy::{Fact, Order, Policy};
use cofferdam_shim::protocol::{Failure, FailureKind, KillScope, Reply};
use cofferdam_shim::{Launch, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk::{Disk, TaskRecord};
use crate::error::{Error, reason_of_failure};
use crate::event::{self, TaskEvent};
use crate::release::{self, Places};
use crate::signal::Signal;
use crate::status::{Reason, Status};
use crate::transition::{Action, Event, transition};

/// What the executor tells its half in the shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Handover {
    /// Where everything is.
    pub(crate) places: Places,
    /// The task.
    pub(crate) task: crate::id::TaskId,
}

/// Lets this program be the supervisor of a task when it was started to be one.
///
/// Call it first thing in `main`, before any thread is started and any argument is read: the executor starts the program
/// that it is part of once more for each task. In that case it does not return.
pub fn init() {
    let Some(state_directory) = detach::invoked() else { return };
    // Nobody reads our standard error; what fails was told on the launcher's connection.
    let code = if run(&state_directory).is_ok() { 0 } else { 1 };
    std::process::exit(code);
}

fn run(state_directory: &Path) -> Result<(), Error> {
    let entered = detach::enter().map_err(Error::io("become the supervisor of", state_directory))?;
    let mut voice =
        entered.launcher.try_clone().map_err(Error::io("use the connection of", state_directory))?;
    let supervised = supervise(state_directory, entered);
    if let Err(error) = &supervised {
        let failure = Failure::new(FailureKind::Internal, format!("the task's supervisor failed: {error}"));
        let mut bytes = Vec::new();
        let message = serde_json::to_vec(&Reply::Failed(failure)).unwrap_or_default();
        frame::encode(FrameKind::Reply, &message, &mut bytes);
        // The launcher may be gone; recovery will find the task then.
        let _ = voice.write_all(&bytes);
    }
    supervised
}

fn supervise(state_directory: &Path, entered: Entered) -> Result<(), Error> {
    let launch = Launch::load(state_directory)?;
    let handover: Handover = serde_json::from_value(launch.policy.clone())
        .map_err(|error| Error::Worker(format!("the launch file does not say where things are: {error}")))?;
    let disk = Disk::open(&handover.places.root, &handover.places.state)?;
    let record = disk.load_record(&handover.task)?;
    let status = disk.load_status(&handover.task)?;
    let socket = disk.socket(&handover.task);
    let listener = bind_private(&socket).map_err(Error::io("listen on", &socket))?;
    let mut engine = cofferdam_shim::RuntimeEngine::open(&launch).map_err(Error::Supervisor)?;
    let mut supervisor = Supervisor { disk, places: handover.places, record, status };
    let Entered { launcher, lock } = entered;
    let done = cofferdam_shim::supervise(&launch, launcher, listener, &mut engine, &mut supervisor);
    drop(lock);
    done.map_err(Error::io("supervise", state_directory))
}

/// The directory is 0700 already; the mode says it once more.
fn bind_private(socket: &Path) -> std::io::Result<std::os::unix::net::UnixListener> {
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = crate::control::bind(socket);
    rustix::process::umask(before);
    listener
}

struct Supervisor {
    disk: Disk,
    places: Places,
    record: TaskRecord,
    status: Status,
}

impl Policy for Supervisor {
    fn decide(&mut self, fact: Fact) -> Vec<Order> {
        if self.is_over() {
            // Somebody ended the task before we came to it: a launch that was taken back while the shim was starting.
            return vec![Order::Finish];
        }
        let Some(event) = event_of(fact) else { return Vec::new() };
        let (status, actions) = transition(self.status.clone(), event, Timestamp::now());
        self.status = status;
        actions.into_iter().filter_map(|action| self.carry_out(action)).collect()
    }

    fn status(&self) -> Value {
        serde_json::to_value(&self.status).unwrap_or_default()
    }

    fn is_over(&self) -> bool {
        self.status.state.is_final()
    }

    fn release(&mut self) {
        // What fails stays named by the task's state directory, which then stays too: the next recovery finds it.
        let _ = release::release(&self.places, &self.disk, &self.record, &self.status);
    }
}

impl Supervisor {
    fn carry_out(&self, action: Action) -> Option<Order> {
        match action {
            Action::Publish => {
                // A full disk must not keep a task from being supervised: the status is still told to clients.
                let _ = publish(&self.disk, &self.record, &self.status);
                None
            }
            Action::Launch => Some(Order::Restart),
            Action::Signal(signal) => Some(Order::Signal(signal.number(), KillScope::Init)),
            Action::KillAll => Some(Order::Signal(Signal::KILL.number(), KillScope::All)),
            Action::ArmGrace(pause) => Some(Order::ArmGrace(pause)),
            Action::ArmRestart(pause) => Some(Order::ArmRestart(pause)),
            Action::Release => Some(Order::Finish),
        }
    }
}

fn event_of(fact: Fact) -> Option<Event> {
    Some(match fact {
        Fact::LauncherGone => Event::StartFailed {
            reason: Reason::LauncherLost,
            message: "the program that launched the task ended before the task ran".to_owned(),
        },
        Fact::Started { pid } => Event::Started { pid },
        Fact::StartFailed(failure) => {
            Event::StartFailed { reason: reason_of_failure(failure.kind), message: failure.message }
        }
        Fact::Exited { exit, out_of_memory } => Event::Exited { exit, out_of_memory },
        Fact::KillAsked { signal, .. } => Event::SignalRequested { signal: Signal::try_from(signal).ok()? },
        Fact::StopAsked { signal, grace } => {
            Event::StopRequested { signal: Signal::try_from(signal).ok()?, grace }
        }
        Fact::GraceOver => Event::GraceOver,
        Fact::RestartDue => Event::RestartDue,
    })
}

/// Writes a status down and tells the world.
pub(crate) fn publish(disk: &Disk, record: &TaskRecord, status: &Status) -> Result<(), Error> {
    let stored = disk.store_status(status);
    let told = event::append(&disk.events(), &TaskEvent::of(record, status));
    stored.and(told)
}
