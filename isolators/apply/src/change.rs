//! Changing the limits of a container that runs: all of a plan, or nothing.
//!
//! Before each write the file is read; when a later step fails, what was there is written again, in reverse.

use cofferdam_linux::cgroup::{Cgroup, Layout};
use cofferdam_plan::op::{CgroupWrite, DeviceChange};
use cofferdam_plan::{HostPath, Op, Plan, Step};
use rustix::io::Errno;

use crate::applied::Fault;
use crate::error::Failure;
use crate::host::{Outcome, cgroup_words};
use crate::resctrl;

/// A plan that was carried out, and can still be taken back.
#[derive(Debug)]
pub struct Changed {
    cgroup: Option<Cgroup>,
    back: Vec<Back>,
}

/// How one step is taken back.
#[derive(Debug)]
enum Back {
    /// The value that was held, and what has the same effect where the kernel does not take that.
    Write(CgroupWrite, Option<String>),
    Devices(DeviceChange),
    /// The lines that a class of service had.
    Class {
        root: HostPath,
        class: HostPath,
        schemata: Vec<String>,
    },
}

impl Changed {
    /// Takes everything back. What could not be is named.
    pub fn undo(self) -> Vec<String> {
        let Some(cgroup) = &self.cgroup else { return Vec::new() };
        let back = |back: Back| {
            let result = match &back {
                Back::Write(write, instead) => put(cgroup, write).or_else(|error| match instead {
                    Some(value) => put(cgroup, &CgroupWrite { value: value.clone(), ..write.clone() }),
                    None => Err(error),
                }),
                Back::Devices(change) => replace(cgroup, change),
                Back::Class { root, class, schemata } => resctrl::limit(root, class, schemata),
            };
            result.err().map(|(errno, words)| words.unwrap_or_else(|| errno.to_string()))
        };
        self.back.into_iter().rev().filter_map(back).collect()
    }
}

/// Carries out a plan of the host stage that changes a cgroup.
pub fn change(plan: &Plan, cgroups: &Layout, fault: Option<Fault>) -> Result<Changed, Box<Failure>> {
    let mut changed = Changed { cgroup: None, back: Vec::new() };
    for (index, step) in plan.steps.iter().enumerate() {
        let result = match fault.filter(|fault| fault.step == index) {
            Some(fault) => Err((fault.errno, Some("injected".into()))),
            None => changed.step(cgroups, step),
        };
        if let Err((errno, detail)) = result {
            let mut failure = Box::new(Failure::new(plan, index, errno, detail));
            failure.left_behind = changed.undo();
            return Err(failure);
        }
    }
    Ok(changed)
}

impl Changed {
    fn step(&mut self, cgroups: &Layout, step: &Step) -> Outcome {
        if let Op::OpenCgroup { path, .. } = &step.op {
            self.cgroup = Some(Cgroup::open_in(cgroups, path).map_err(cgroup_words)?);
            return Ok(());
        }
        let cgroup = self.cgroup.as_ref().ok_or((Errno::INVAL, None))?;
        match &step.op {
            Op::ChangeCgroup(write) => {
                // A file that cannot be read is one that cannot be written either, or one that this kernel lacks.
                let held = cgroup.read(&write.controller, &write.file).ok();
                let instead = inherited(cgroup, write, held.as_deref());
                put(cgroup, write)?;
                let value = held.and_then(|held| previous(&write.file, &write.value, &held));
                self.back
                    .extend(value.map(|value| Back::Write(CgroupWrite { value, ..write.clone() }, instead)));
                Ok(())
            }
            Op::ChangeClass { root, class, schemata } => {
                let held = resctrl::limits(root, class)?;
                // Intent first: some lines may be written when one fails.
                self.back.push(Back::Class { root: root.clone(), class: class.clone(), schemata: held });
                resctrl::limit(root, class, schemata)
            }
            Op::ReplaceDevices(change) => {
                // Intent first: of a list, some lines may be written when one fails.
                self.back.push(Back::Devices(change.reversed()));
                replace(cgroup, change)
            }
            _ => Err((Errno::NOSYS, Some("not an operation that changes a container".into()))),
        }
    }
}

fn put(cgroup: &Cgroup, write: &CgroupWrite) -> Outcome {
    cgroup.write(&write.controller, &write.file, &write.value, write.optional).map_err(cgroup_words)
}

fn replace(cgroup: &Cgroup, change: &DeviceChange) -> Outcome {
    match change {
        DeviceChange::Program { now, .. } => cgroup.filter_devices(now).map_err(cgroup_words),
        DeviceChange::List { now, .. } => now.iter().try_for_each(|write| put(cgroup, write)),
    }
}

/// What a cgroup without processors or memory nodes of its own has from its parent.
///
/// Linux 6.1 does not let a populated cgroup go back to an empty list; the list that was in effect is as good.
fn inherited(cgroup: &Cgroup, write: &CgroupWrite, held: Option<&str>) -> Option<String> {
    if !write.file.starts_with("cpuset.") || !held?.trim().is_empty() {
        return None;
    }
    let effective = cgroup.read(&write.controller, &format!("{}.effective", write.file)).ok()?;
    Some(effective.trim_end().to_owned())
}

/// What brings a file back to what it `held` before `value` was written: the whole of a file with one figure, or the line
/// with the same key of one that has a line for each device.
fn previous(file: &str, value: &str, held: &str) -> Option<String> {
    let line = |key: &str| {
        held.lines().find(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(' ')))
    };
    let key = value.split(' ').next().unwrap_or_default();
    if key.contains(':') || file.ends_with(".ifpriomap") || file == "rdma.max" {
        return line(key).map(str::to_owned).or_else(|| absent(file, key));
    }
    match file {
        "memory.oom_control" => {
            line("oom_kill_disable").and_then(|line| line.split(' ').nth(1)).map(str::to_owned)
        }
        _ if held.starts_with("default ") => line("default").map(str::to_owned),
        // An empty list of processors is one: the parent's. Writing nothing would be no write.
        _ if held.trim().is_empty() => Some("\n".to_owned()),
        _ => Some(held.trim_end().to_owned()),
    }
}

/// What a device without a line is told to be without one again.
fn absent(file: &str, key: &str) -> Option<String> {
    Some(match file {
        "io.max" => format!("{key} rbps=max wbps=max riops=max wiops=max"),
        "rdma.max" => format!("{key} hca_handle=max hca_object=max"),
        "io.weight" | "io.bfq.weight" => format!("{key} default"),
        file if file.starts_with("blkio.") => format!("{key} 0"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_held_is_written_again() {
        for (file, value, held, expected) in [
            ("pids.max", "20", "max\n", Some("max")),
            ("cpu.max", "1000 2000", "max 100000\n", Some("max 100000")),
            ("cpuset.cpus", "0", "\n", Some("\n")),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", Some("0")),
            ("io.weight", "200", "default 100\n8:0 50\n", Some("default 100")),
            ("io.weight", "8:0 70", "default 100\n8:0 50\n", Some("8:0 50")),
            ("io.weight", "8:1 70", "default 100\n8:0 50\n8:16 1\n", Some("8:1 default")),
            (
                "io.max",
                "8:0 rbps=5",
                "8:0 rbps=1 wbps=max riops=max wiops=max\n",
                Some("8:0 rbps=1 wbps=max riops=max wiops=max"),
            ),
            ("io.max", "8:0 rbps=5", "", Some("8:0 rbps=max wbps=max riops=max wiops=max")),
            ("blkio.throttle.read_bps_device", "8:0 5", "8:0 7\n", Some("8:0 7")),
            ("blkio.throttle.read_bps_device", "8:0 5", "8:00 7\n", Some("8:0 0")),
            ("net_prio.ifpriomap", "lo 3", "lo 0\neth0 1\n", Some("lo 0")),
            ("rdma.max", "m hca_handle=1 hca_object=max", "", Some("m hca_handle=max hca_object=max")),
        ] {
            assert_eq!(previous(file, value, held).as_deref(), expected, "{file} {value:?} over {held:?}");
        }
    }
}
