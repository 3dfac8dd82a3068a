//! What the shim asks of whoever makes containers. In production it is the runtime; the shim's own tests use
//! plain processes.

use std::os::fd::OwnedFd;

use crate::protocol::{Failure, KillScope, StepTime};

/// The standard streams of a process about to be made.
#[derive(Debug)]
pub enum ProcessStdio {
    /// Its ends of pipes.
    Pipes {
        /// What it reads.
        stdin: OwnedFd,
        /// What it writes.
        stdout: OwnedFd,
        /// What it writes errors to.
        stderr: OwnedFd,
    },
    /// A terminal that the engine makes; the master comes back in [`Process::console`].
    Terminal,
}

/// A process that the engine made. The shim is its parent and reaps it.
#[derive(Debug)]
pub struct Process {
    /// Its id in the shim's own pid namespace.
    pub pid: i32,
    /// A descriptor of it, readable once it has ended.
    pub pidfd: OwnedFd,
    /// Master of its terminal.
    pub console: Option<OwnedFd>,
}

/// One container, created and destroyed as often as the restart policy wants.
pub trait Engine {
    /// Makes the container up to the gate before its program runs.
    fn create(&mut self, stdio: ProcessStdio) -> Result<Process, Failure>;
    /// Opens the gate. Returns after the program was executed, with the times of all steps since create, or with the
    /// reason why it was not.
    fn start(&mut self) -> Result<Vec<StepTime>, Failure>;
    /// Runs another process in it.
    fn exec(&mut self, process: &oci_spec::runtime::Process, stdio: ProcessStdio)
    -> Result<Process, Failure>;
    /// Sends a signal. A container that has ended is no error.
    fn kill(&mut self, signal: i32, scope: KillScope) -> Result<(), Failure>;
    /// Whether the kernel killed a process of it for want of memory since it was created.
    fn oom_killed(&mut self) -> bool;
    /// Kills what is left and removes every trace of it: cgroups, mounts, state.
    fn delete(&mut self) -> Result<(), Failure>;
}
