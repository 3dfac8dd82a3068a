//! update: other limits for a container that runs.

use std::path::Path;

use cofferdam_apply::{Fault, change};
use cofferdam_isolators::cgroup::Current;
use cofferdam_isolators::update::{ClassChange, Updating, compile_update};
use cofferdam_linux::cgroup::Cgroup;
use cofferdam_plan::op::UnitProperty;
use cofferdam_plan::{ContainerId, HostFeatures};
use oci_spec::runtime::LinuxResources;

use crate::error::Error;
use crate::runtime::Runtime;
use crate::state::Status;
use crate::systemd::Systemd;

/// What is to be different about a container's limits. Empty and absent values stay as they are, and so does what is zero,
/// but for the limit of processes.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Limits of its cgroup.
    pub resources: LinuxResources,
    /// How its class of service shares the last level of cache, as `L3:0=f`.
    pub l3_cache_schema: Option<String>,
    /// How it shares the memory's bandwidth, as `MB:0=50`.
    pub mem_bw_schema: Option<String>,
}

impl From<LinuxResources> for Change {
    fn from(resources: LinuxResources) -> Self {
        Self { resources, ..Self::default() }
    }
}

impl Runtime {
    /// Changes the limits of a container. All of it is in force afterwards and in the container's record, or nothing of it.
    /// What means nothing on this host comes back in words.
    pub fn update(&self, id: &ContainerId, change: &Change) -> Result<Vec<String>, Error> {
        self.update_with(id, change, None)
    }

    /// As [`Runtime::update`], with a step that is made to fail (the fault sweep).
    pub fn update_with(
        &self,
        id: &ContainerId,
        asked: &Change,
        fault: Option<Fault>,
    ) -> Result<Vec<String>, Error> {
        let (locked, mut record) = self.lock(id)?;
        match record.status(&locked.directory) {
            Status::Created | Status::Running | Status::Paused => {}
            status => return Err(Error::Conflict(format!("cannot update a container that is {status}"))),
        }
        let path = record.cgroup.clone();
        let path =
            path.ok_or_else(|| Error::Conflict("cannot update a container without a cgroup".into()))?;
        let cgroup = Cgroup::open_in(&record.layout(), &path)?;
        let current = Current {
            memory_and_swap_bytes: figure(&cgroup, "memory", "memory.memsw.limit_in_bytes"),
            realtime_period_us: figure(&cgroup, "cpu", "cpu.rt_period_us"),
        };
        let devices_list = cgroup.read("devices", "devices.list").ok();
        let schema = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (l3_cache, memory_bandwidth) = (schema(&asked.l3_cache_schema), schema(&asked.mem_bw_schema));
        let divides = l3_cache.is_some() || memory_bandwidth.is_some();
        let resctrl = || self.host().resctrl.clone().or_else(cofferdam_apply::probe::resctrl);
        let resctrl = divides.then(resctrl).flatten();
        check_class(resctrl.as_deref(), l3_cache.is_some(), memory_bandwidth.is_some())?;
        let updating = Updating {
            cgroup: &path,
            resources: record.spec.get()?.linux().as_ref().and_then(|linux| linux.resources().as_ref()),
            change: &asked.resources,
            current,
            devices_list: devices_list.as_deref(),
            class: Some(ClassChange {
                spec: record.spec.get()?,
                id: &record.id,
                l3_cache: l3_cache.as_deref(),
                memory_bandwidth: memory_bandwidth.as_deref(),
            }),
        };
        let mut systemd = record.unit.as_ref().map(|_| Systemd::connect()).transpose()?;
        let facts = systemd.as_mut().map(Systemd::facts).transpose()?;
        let host = HostFeatures { systemd: facts, resctrl, ..HostFeatures::clone(self.host()) };
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
        let changed = change(&update.plan, &record.layout(), fault).map_err(|failure| {
            let _ = tell(&update.properties.before);
            Error::Change(failure)
        })?;
        let keep = || {
            let spec = record.spec.change()?;
            let mut linux = spec.linux().clone().unwrap_or_default();
            linux.set_resources(Some(update.resources));
            if let Some(class) = update.class {
                linux.set_intel_rdt(Some(class));
            }
            spec.set_linux(Some(linux));
            record.store(&locked.directory)
        };
        keep().inspect_err(|_| drop(changed.undo()))?;
        Ok(update.plan.warnings)
    }
}

/// Refuses what this processor or kernel cannot divide, in the words that callers of runc know.
fn check_class(resctrl: Option<&str>, l3_cache: bool, memory_bandwidth: bool) -> Result<(), Error> {
    let divides = |resource| resctrl.is_some_and(|root| Path::new(root).join("info").join(resource).is_dir());
    let refuse = |words: &str| Err(Error::Unsupported(words.into()));
    match () {
        () if l3_cache && !divides("L3") => refuse("Intel RDT/CAT: l3 cache schema is not enabled"),
        () if memory_bandwidth && !divides("MB") => {
            refuse("Intel RDT/MBA: memory bandwidth schema is not enabled")
        }
        () => Ok(()),
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
