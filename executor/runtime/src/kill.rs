//! kill: a signal to the container's first process, or to all of them. runtime-spec runtime.md, "Kill".

use cofferdam_linux::cgroup::{Cgroup, Layout};
use cofferdam_plan::ContainerId;
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::AsFd;

use crate::error::{Error, system};
use crate::runtime::Runtime;
use crate::state::{Record, Status, wait_ended};

/// How long the end of killed processes is waited for.
pub const KILL_VERIFY_S: u64 = 10;

impl Runtime {
    /// Sends `signal` to the container's first process, or to every process of its cgroup.
    pub fn kill(&self, id: &ContainerId, signal: i32, all: bool) -> Result<(), Error> {
        let (locked, record) = self.lock(id)?;
        if all && let Some(cgroup) = &record.cgroup {
            return crate::resources::signal_all(&self.cgroups, cgroup, signal);
        }
        let status = record.status(&locked.directory, &self.cgroups);
        let process = record.process().filter(|_| status != Status::Stopped);
        if all && process.is_none() {
            return Ok(());
        }
        let process = process.ok_or_else(|| Error::Conflict("container not running".into()))?;
        match cofferdam_linux::signal::send(process.as_fd(), signal) {
            Err(rustix::io::Errno::SRCH) => Err(Error::Conflict("container not running".into())),
            result => result.map_err(system(format!("signalling process {}", record.pid))),
        }?;
        if status == Status::Paused && signal == Signal::KILL.as_raw() {
            // A frozen process acts on no signal, not even this one, on cgroup v1.
            crate::resources::thaw(&self.cgroups, &record)?;
        }
        Ok(())
    }
}

/// Ends every process of a container and waits until they are gone: the first process, and whatever its cgroup holds. The
/// cgroup, empty now, comes back.
pub(crate) fn kill_all(record: &Record, cgroups: &Layout) -> Result<Option<Cgroup>, Error> {
    let process = record.process();
    if let Some(process) = &process {
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    let cgroup =
        record.cgroup.as_deref().map(|path| crate::resources::existing(cgroups, path)).transpose()?.flatten();
    if let Some(cgroup) = &cgroup {
        cgroup.kill()?;
    }
    match process {
        Some(process) if !wait_ended(&process, KILL_VERIFY_S) => {
            Err(Error::StillRunning { id: record.id.clone(), seconds: KILL_VERIFY_S, pids: vec![record.pid] })
        }
        _ => Ok(cgroup),
    }
}
