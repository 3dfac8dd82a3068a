//! kill: a signal to the container's first process, or to all of them. runtime-spec runtime.md, "Kill".

use cofferdam_isolators::namespaces::Membership;
use cofferdam_linux::cgroup::Cgroup;
use cofferdam_linux::wait::readable;
use cofferdam_plan::{ContainerId, Namespace};
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Error, system};
use crate::runtime::Runtime;
use crate::state::{Record, Status, noted_process};

impl Runtime {
    /// Sends `signal` to the container's first process, or to every process of its cgroup. KILL goes to all where they share
    /// a pid namespace with others.
    pub fn kill(&self, id: &ContainerId, signal: i32, all: bool) -> Result<(), Error> {
        let (locked, record) = self.lock(id)?;
        if all && let Some(path) = &record.cgroup {
            let cgroup = self.own_cgroup(&record.layout(), &record.id, path, record.process().is_some())?;
            return cgroup.map_or(Ok(()), |cgroup| crate::resources::signal_all(&cgroup, signal));
        }
        if signal == Signal::KILL.as_raw()
            && let Some(cgroup) = self.shared_members(&record)?
        {
            return Ok(cgroup.kill()?);
        }
        let status = record.status(&locked.directory);
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
            crate::resources::thaw(&record)?;
        }
        Ok(())
    }
}

impl Runtime {
    /// The cgroup of a container that has no pid namespace of its own, where somebody is in it: nobody ends with the first
    /// process there, so that ending the container is ending all of them, also when that one has gone before.
    fn shared_members(&self, record: &Record) -> Result<Option<Cgroup>, Error> {
        let Some(path) = &record.cgroup else { return Ok(None) };
        if Membership::of(record.spec.get()?)?.makes(Namespace::Pid) {
            return Ok(None);
        }
        let cgroup = self.own_cgroup(&record.layout(), &record.id, path, record.process().is_some())?;
        let Some(cgroup) = cgroup else { return Ok(None) };
        Ok((!cgroup.processes()?.is_empty()).then_some(cgroup))
    }
}

/// Ends every process of a container and waits until they are gone: the first process, and whatever its cgroup holds. The
/// cgroup, empty now, comes back; one that another container has taken over is left alone.
pub(crate) fn kill_all(
    runtime: &Runtime,
    directory: &Path,
    record: &Record,
) -> Result<Option<Cgroup>, Error> {
    let process = record.process().or_else(|| noted_process(directory));
    if let Some(process) = &process {
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    let cgroup = match &record.cgroup {
        Some(path) => runtime.own_cgroup(&record.layout(), &record.id, path, process.is_some())?,
        None => None,
    };
    if let Some(cgroup) = &cgroup {
        cgroup.kill()?;
    }
    let limit = runtime.options.limits.end;
    match process {
        Some(process) if !readable(&process, limit).is_ok_and(|ended| ended) => Err(Error::StillRunning {
            id: record.id.clone(),
            seconds: limit.as_secs_f32(),
            pids: vec![record.pid],
        }),
        _ => Ok(cgroup),
    }
}
