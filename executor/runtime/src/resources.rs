//! The container's cgroup after create: processes, freezing, killing, statistics.

use cofferdam_linux::cgroup::{Cgroup, Error as CgroupError, Layout, Statistics};
use cofferdam_plan::ContainerId;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::AsFd;
use std::path::Path;

use crate::error::Error;
use crate::runtime::Runtime;
use crate::state::{Record, Status};

fn failed(error: CgroupError) -> Error {
    Error::Cgroup(error)
}

/// The cgroup, unless it is gone.
pub(crate) fn existing(cgroups: &Layout, path: &str) -> Result<Option<Cgroup>, Error> {
    match Cgroup::open_in(cgroups, path) {
        Err(error) if error.errno() == Errno::NOENT => Ok(None),
        result => result.map(Some).map_err(failed),
    }
}

pub(crate) fn thaw(record: &Record) -> Result<(), Error> {
    let cgroup = record.cgroup.as_deref().map(|path| existing(&record.layout(), path)).transpose()?.flatten();
    cgroup.map_or(Ok(()), |cgroup| cgroup.thaw().map_err(failed))
}

/// Sends a signal to every process of a cgroup.
pub(crate) fn signal_all(cgroup: &Cgroup, signal: i32) -> Result<(), Error> {
    for pid in cgroup.processes().map_err(failed)? {
        let Some(pid) = Pid::from_raw(pid) else { continue };
        // Gone meanwhile, which is what signals are mostly for.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let _ = cofferdam_linux::signal::send(process.as_fd(), signal);
    }
    Ok(())
}

/// The record of the container in a state folder, be it below this state root or another, if the cgroup is its.
fn holder(directory: &Path, cgroup: Option<&str>) -> Option<Record> {
    let id = directory.file_name()?.to_str()?;
    Record::load(directory, id).ok().filter(|record| record.cgroup.as_deref() == cgroup)
}

impl Runtime {
    /// Claims a cgroup for the container in `directory`. One that a stopped container has left empty is taken over.
    pub(crate) fn claim(
        &self,
        cgroup: &Cgroup,
        directory: &Path,
        record: &Record,
    ) -> Result<(), CgroupError> {
        let path = record.cgroup.as_deref();
        cgroup.claim(directory, |other| {
            let holder = holder(other, path);
            holder.is_none_or(|record| record.status(other) == Status::Stopped)
        })
    }

    /// The cgroup of a container, where there is one and it is still this container's. An empty one may be taken over by
    /// another container; when the first process is gone (`alive` is false) and somebody is in it, its last owner and the
    /// other containers are asked. What a stopped container leaves in its own cgroup without a pid namespace is rare.
    pub(crate) fn own_cgroup(
        &self,
        cgroups: &Layout,
        id: &str,
        path: &str,
        alive: bool,
    ) -> Result<Option<Cgroup>, Error> {
        let Some(cgroup) = existing(cgroups, path)? else { return Ok(None) };
        if alive || cgroup.processes().map_err(failed)?.is_empty() {
            return Ok(Some(cgroup));
        }
        let other = cgroup.owner().filter(|owner| *owner != self.root().join(id));
        if other.is_some_and(|other| holder(&other, Some(path)).is_some()) {
            return Ok(None);
        }
        let mut others = self.ids()?.into_iter().filter(|other| other.as_str() != id);
        let note = |other: ContainerId| crate::state::noted_cgroup(&self.directory(&other));
        Ok((!others.any(|other| note(other).as_deref() == Some(path))).then_some(cgroup))
    }

    /// Freezes every process of a container.
    pub fn pause(&self, id: &ContainerId) -> Result<(), Error> {
        self.with_cgroup(id, &[Status::Running, Status::Created], "pause", |cgroup| cgroup.freeze())
    }

    /// Thaws a paused container.
    pub fn resume(&self, id: &ContainerId) -> Result<(), Error> {
        self.with_cgroup(id, &[Status::Paused], "resume", |cgroup| cgroup.thaw())
    }

    /// The processes of a container, by pid as the caller sees them; a stopped one has none.
    pub fn pids(&self, id: &ContainerId) -> Result<Vec<i32>, Error> {
        let wanted = [Status::Created, Status::Running, Status::Paused];
        let record = Record::load(&self.directory(id), id.as_str())?;
        match record.status(&self.directory(id)) {
            Status::Stopped => return Ok(Vec::new()),
            status if record.cgroup.is_none() && wanted.contains(&status) => {
                return Ok(pid_namespace_members(&record));
            }
            _ => {}
        }
        self.with_cgroup(id, &wanted, "list the processes of", Cgroup::processes)
    }

    /// What a container has used.
    pub fn stats(&self, id: &ContainerId) -> Result<Statistics, Error> {
        let wanted = [Status::Created, Status::Running, Status::Paused];
        self.with_cgroup(id, &wanted, "read the statistics of", |cgroup| Ok(cgroup.statistics()))
    }

    /// A container's cgroup, for whoever watches it.
    pub fn cgroup(&self, id: &ContainerId) -> Result<Cgroup, Error> {
        let record = Record::load(&self.directory(id), id.as_str())?;
        open(&record, "watch")
    }

    fn with_cgroup<T>(
        &self,
        id: &ContainerId,
        wanted: &[Status],
        verb: &str,
        act: impl FnOnce(&Cgroup) -> Result<T, CgroupError>,
    ) -> Result<T, Error> {
        let (locked, record) = self.lock(id)?;
        let status = record.status(&locked.directory);
        if !wanted.contains(&status) {
            return Err(Error::Conflict(format!("cannot {verb} a container that is {status}")));
        }
        act(&open(&record, verb)?).map_err(failed)
    }
}

/// The processes of a container without a cgroup: those of its first process's pid namespace, where it has one of its own.
fn pid_namespace_members(record: &Record) -> Vec<i32> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(record.pid)
        .filter(|own| Some(own) != std::fs::read_link("/proc/self/ns/pid").ok().as_ref());
    let Some(own) = own else { return vec![record.pid] };
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| namespace(*pid).as_ref() == Some(&own))
        .collect();
    pids.sort_unstable();
    pids
}

fn open(record: &Record, verb: &str) -> Result<Cgroup, Error> {
    let path = record.cgroup.as_deref();
    let path = path.ok_or_else(|| Error::Conflict(format!("cannot {verb} a container without a cgroup")))?;
    Cgroup::open_in(&record.layout(), path).map_err(failed)
}
