//! The container's cgroup after create: processes, freezing, killing, limits, statistics.

use cofferdam_linux::cgroup::Cgroup;

use crate::error::Error;
use crate::state::Record;

pub(crate) fn frozen(_cgroup: &str) -> bool {
    false
}

pub(crate) fn thaw(_record: &Record) -> Result<(), Error> {
    Ok(())
}

pub(crate) fn signal_all(_cgroup: &str, _signal: i32) -> Result<(), Error> {
    Ok(())
}

pub(crate) fn kill(_cgroup: &str) -> Result<(), Error> {
    Ok(())
}

pub(crate) fn remove(cgroup: &str) -> Result<(), Error> {
    let failed = |error: cofferdam_linux::cgroup::Error| Error::System {
        operation: error.to_string(),
        errno: error.errno(),
    };
    Cgroup::open(cgroup).map_err(failed)?.remove().map_err(failed)
}

impl crate::Runtime {
    /// Freezes every process of a container.
    pub fn pause(&self, _id: &cofferdam_plan::ContainerId) -> Result<(), Error> {
        Ok(())
    }

    /// Thaws a paused container.
    pub fn resume(&self, _id: &cofferdam_plan::ContainerId) -> Result<(), Error> {
        Ok(())
    }

    /// The processes of a container, by pid as the caller sees them.
    pub fn pids(&self, _id: &cofferdam_plan::ContainerId) -> Result<Vec<i32>, Error> {
        Ok(Vec::new())
    }
}
