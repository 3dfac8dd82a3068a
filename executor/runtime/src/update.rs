//! update: other limits for a container that runs.

use cofferdam_apply::{Fault, change};
use cofferdam_isolators::update::{Updating, compile_update};
use cofferdam_linux::cgroup::Cgroup;
use cofferdam_plan::op::UnitProperty;
use cofferdam_plan::{ContainerId, HostFeatures};
use oci_spec::runtime::LinuxResources;

use crate::error::Error;
use crate::runtime::Runtime;
use crate::state::Status;
use crate::systemd::Systemd;

impl Runtime {
    /// Changes the limits of a container to what `resources` says of them; zero, empty and absent values stay as they are.
    /// All of it is in force afterwards and in the container's record, or nothing of it. What means nothing on this host
    /// comes back in words.
    pub fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<Vec<String>, Error> {
        self.update_with(id, resources, None)
    }

    /// As [`Runtime::update`], with a step that is made to fail (the fault sweep).
    pub fn update_with(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
        fault: Option<Fault>,
    ) -> Result<Vec<String>, Error> {
        let (locked, mut record) = self.lock(id)?;
        match record.status(&locked.directory, &self.cgroups) {
            Status::Created | Status::Running | Status::Paused => {}
            status => return Err(Error::Conflict(format!("cannot update a container that is {status}"))),
        }
        let path = record.cgroup.clone();
        let path =
            path.ok_or_else(|| Error::Conflict("cannot update a container without a cgroup".into()))?;
        let cgroup = Cgroup::open_in(&self.cgroups, &path)?;
        let memory_and_swap_bytes = figure(&cgroup, "memory", "memory.memsw.limit_in_bytes");
        let devices_list = cgroup.read("devices", "devices.list").ok();
        let updating = Updating {
            cgroup: &path,
            resources: record.spec.get()?.linux().as_ref().and_then(|linux| linux.resources().as_ref()),
            change: resources,
            memory_and_swap_bytes,
            devices_list: devices_list.as_deref(),
        };
        let mut systemd = record.unit.as_ref().map(|_| Systemd::connect()).transpose()?;
        let facts = systemd.as_mut().map(Systemd::facts).transpose()?;
        let host = HostFeatures { systemd: facts, ..HostFeatures::clone(self.host()) };
        let update = compile_update(&updating, &host)?;
        if let Some(limit) = update.usage_must_be_below_bytes {
            refuse_excess(&cgroup, limit)?;
        }
        // systemd first: it writes the files too, and less exactly.
        let mut tell = |properties: &[UnitProperty]| match (&mut systemd, &record.unit) {
            (Some(systemd), Some(unit)) if !properties.is_empty() => systemd.set(unit, properties),
            _ => Ok(()),
        };
        tell(&update.properties.now)?;
        let changed = change(&update.plan, &self.cgroups, fault).map_err(|failure| {
            let _ = tell(&update.properties.before);
            Error::Change(failure)
        })?;
        let keep = || {
            let spec = record.spec.change()?;
            let mut linux = spec.linux().clone().unwrap_or_default();
            linux.set_resources(Some(update.resources));
            spec.set_linux(Some(linux));
            record.store(&locked.directory)
        };
        keep().inspect_err(|_| drop(changed.undo()))?;
        Ok(update.plan.warnings)
    }
}

/// A file with one number; `None` where there is none.
fn figure(cgroup: &Cgroup, controller: &str, file: &str) -> Option<u64> {
    cgroup.read(controller, file).ok()?.trim().parse().ok()
}

/// `memory.checkBeforeUpdate`, runtime-spec config-linux.md, "Memory".
fn refuse_excess(cgroup: &Cgroup, limit: u64) -> Result<(), Error> {
    let usage =
        figure(cgroup, "memory", "memory.usage_in_bytes").or_else(|| figure(cgroup, "", "memory.current"));
    match usage {
        Some(usage) if usage > limit => {
            let words = format!("unable to set memory limit to {limit} (current usage: {usage})");
            Err(Error::Conflict(words))
        }
        _ => Ok(()),
    }
}
