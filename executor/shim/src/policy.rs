//! The border between mechanism and policy: facts go up, orders come down.
//!
//! The shim sees what happens and does what it is told. What a fact *means* for the task (its status, whether it is
//! restarted, what is written down) is decided by the executor's half, which runs in the same process through
//! [`Policy`]; so this crate needs to know nothing of tasks, images and networks.

use std::time::Duration;

use serde_json::Value;

use crate::exit::Exit;
use crate::protocol::{Failure, KillScope};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// The launcher went away before it said `Start`.
    LauncherGone,
    /// The task's program runs.
    Started {
        /// Its process.
        pid: i32,
    },
    /// The task could not be created or its program not be executed.
    StartFailed(Failure),
    /// The first process has ended.
    Exited {
        /// How.
        exit: Exit,
        /// The kernel had killed a process of the task for want of memory.
        out_of_memory: bool,
    },
    /// A client wants a signal sent.
    KillAsked {
        /// The signal.
        signal: i32,
        /// To whom.
        scope: KillScope,
    },
    /// A client wants the task ended.
    StopAsked {
        /// The first signal.
        signal: i32,
        /// How long it may take to work.
        grace: Duration,
    },
    /// The grace of a stop is over.
    GraceOver,
    /// The pause before a restart is over.
    RestartDue,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Create and start the container again.
    Restart,
    /// Send a signal.
    Signal(i32, KillScope),
    /// Report [`Fact::GraceOver`] after this time, instead of any earlier such wish.
    ArmGrace(Duration),
    /// Report [`Fact::RestartDue`] after this time.
    ArmRestart(Duration),
    /// The task is over: release what it held and end.
    Finish,
}

/// The executor's half.
pub trait Policy {
    /// Takes in a fact (writes down what must be written) and says what to do.
    fn decide(&mut self, fact: Fact) -> Vec<Order>;
    /// The task's status, for clients.
    fn status(&self) -> Value;
    /// Whether the status is final.
    fn is_over(&self) -> bool;
    /// Gives back everything but the container itself: network, state. Called once, after the last client was
    /// told. What fails is left for the next recovery.
    fn release(&mut self);
}
