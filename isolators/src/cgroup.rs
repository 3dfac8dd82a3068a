//! From the runtime-spec's `linux.resources` to what is written into which cgroup file, in which order.
//!
//! Each controller is translated for the version that has it on this host: on a hybrid host memory may go to version 1 and
//! huge pages to version 2 in one list. What can be known to fail is refused here with the place in the configuration; what
//! a version has no words for and changes nothing that protects somebody is listed in [`Translation::ignored`].
//!
//! | file | holds |
//! |---|---|
//! | [`path`] | `linux.cgroupsPath`: cleaned, or taken apart for systemd |
//! | [`v1`], [`v2`] | one function a controller |
//! | [`cpu_list`] | lists such as `0-3,7` |
//! | [`systemd`] | the same limits as properties of a unit |
//! | [`devices`], [`device_program`] | the device rules: one state, two ways to enforce it |
//!
//! Pure: the kernel is touched by `cofferdam_linux::cgroup`.

pub mod cpu_list;
pub mod device_program;
pub mod devices;
pub mod path;
pub mod systemd;
mod v1;
mod v2;

use std::collections::BTreeSet;

use cofferdam_plan::op::CgroupWrite;
use cofferdam_plan::{CgroupLayout, Refusal};
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use cpu_list::CpuList;

/// One write, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Controller whose version 1 hierarchy is meant; empty for the version 2 tree.
    pub controller: String,
    /// File name, such as `memory.max`.
    pub file: String,
    /// Text of one write(2).
    pub value: String,
    /// JSON pointer into the configuration.
    pub why: String,
    /// Go on where the kernel lacks the file.
    pub optional: bool,
}

impl From<&Write> for CgroupWrite {
    fn from(write: &Write) -> Self {
        Self {
            controller: write.controller.clone(),
            file: write.file.clone(),
            value: write.value.clone(),
            optional: write.optional,
        }
    }
}

/// Something that was asked for and means nothing on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// JSON pointer into the configuration.
    pub pointer: String,
    /// Why it is passed over.
    pub reason: &'static str,
}

/// Which controllers are where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controllers {
    /// Those with a version 1 hierarchy.
    pub v1: BTreeSet<String>,
    /// Those of the version 2 tree.
    pub v2: BTreeSet<String>,
}

/// Those that version 2 can have and a hybrid host may have left to it.
const LEFT_TO_V2: [&str; 8] = ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma"];

impl From<&CgroupLayout> for Controllers {
    /// On a hybrid host nobody has asked the version 2 tree yet: what version 1 lacks is looked for there, and the write
    /// says so where it is missing.
    fn from(layout: &CgroupLayout) -> Self {
        match layout {
            CgroupLayout::V2 { controllers, .. } => {
                Self { v1: BTreeSet::new(), v2: controllers.iter().cloned().collect() }
            }
            CgroupLayout::V1 { hierarchies, unified } => {
                let v1: BTreeSet<String> =
                    hierarchies.iter().flat_map(|hierarchy| hierarchy.controllers.iter().cloned()).collect();
                let on_v1 = |name: &str| v1.contains(if name == "io" { "blkio" } else { name });
                let left = LEFT_TO_V2.into_iter().filter(|name| unified.is_some() && !on_v1(name));
                Self { v2: left.map(str::to_owned).collect(), v1 }
            }
            CgroupLayout::None => Self::default(),
        }
    }
}

impl Controllers {
    /// Whether there is no version 1 hierarchy.
    fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }
}

/// What the translation has to know of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Which controllers are where.
    pub controllers: Controllers,
    /// Processors online; `None` where nobody asked.
    pub cpus: Option<CpuList>,
    /// Memory nodes online; `None` where nobody asked.
    pub memory_nodes: Option<CpuList>,
}

/// Whether the cgroup is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// It is: no limit is in force.
    Create,
    /// It has limits and processes.
    Update(Current),
}

/// Figures in force, where they are known. The kernel holds pairs of them in order at every moment: a raised pair must be
/// written from above, a lowered one from below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// `memory.memsw.limit_in_bytes` of version 1.
    pub memory_and_swap_bytes: Option<u64>,
    /// `cpu.rt_period_us` of version 1.
    pub realtime_period_us: Option<u64>,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// What to write, in order.
    pub writes: Vec<Write>,
    /// What is passed over.
    pub ignored: Vec<Ignored>,
    /// `memory.checkBeforeUpdate`: refuse the update if more than this is in use.
    pub usage_must_be_below_bytes: Option<u64>,
}

/// Translates everything but the device rules, for which see [`devices::DevicePolicy`].
///
/// # Errors
/// A value that breaks the specification or the kernel's limits, or a controller that this host lacks.
pub fn translate(
    resources: &LinuxResources,
    host: &Host,
    occasion: Occasion,
) -> Result<Translation, Refusal> {
    let mut out = Writer { host, occasion, done: Translation::default() };
    if let Some(cpu) = resources.cpu() {
        out.in_world("cpu", v1::needs_cpu(cpu), "/cpu", |out| v1::cpu(out, cpu), |out| v2::cpu(out, cpu))?;
        let pinned = v1::needs_cpuset(cpu);
        out.in_world("cpuset", pinned, "/cpu", |out| v1::cpuset(out, cpu), |out| v2::cpuset(out, cpu))?;
    }
    if let Some(memory) = resources.memory() {
        check_memory(memory, occasion)?;
        let needed = v1::needs_memory(memory);
        out.in_world(
            "memory",
            needed,
            "/memory",
            |out| v1::memory(out, memory),
            |out| v2::memory(out, memory),
        )?;
        let check = memory.check_before_update() == Some(true) && occasion != Occasion::Create;
        out.done.usage_must_be_below_bytes = memory
            .limit()
            .filter(|_| check)
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|limit| *limit > 0);
    }
    if let Some(pids) = resources.pids() {
        let limit = pids.limit();
        let write = |controller: &'static str| {
            move |out: &mut Writer<'_>| {
                // No process at all cannot be kept to, and systemd knows no such limit: the smallest is meant, as with runc.
                let value = if limit < 0 { "max".to_owned() } else { limit.max(1).to_string() };
                out.put(controller, "pids.max", value, "/pids/limit");
                Ok(())
            }
        };
        out.in_world("pids", true, "/pids", write("pids"), write(""))?;
    }
    if let Some(io) = resources.block_io() {
        let needed = v1::needs_io(io);
        out.in_world("blkio", needed, "/blockIO", |out| v1::block_io(out, io), |out| v2::block_io(out, io))?;
    }
    let hugepages = resources.hugepage_limits().as_deref().unwrap_or_default();
    out.in_world(
        "hugetlb",
        !hugepages.is_empty(),
        "/hugepageLimits",
        |out| v1::hugepages(out, hugepages),
        |out| v2::hugepages(out, hugepages),
    )?;
    if let Some(network) = resources.network() {
        v1::network(&mut out, network)?;
    }
    if let Some(rdma) = resources.rdma().as_ref().filter(|rdma| !rdma.is_empty()) {
        out.in_world(
            "rdma",
            true,
            "/rdma",
            |out| v2::rdma(out, "rdma", rdma),
            |out| v2::rdma(out, "", rdma),
        )?;
    }
    if let Some(unified) = resources.unified().as_ref().filter(|unified| !unified.is_empty()) {
        v2::unified(&mut out, unified)?;
    }
    Ok(out.done)
}

/// Where every pointer of this module begins.
const BASE: &str = "/linux/resources";

fn at(pointer: &str) -> String {
    format!("{BASE}{pointer}")
}

fn invalid(pointer: &str, problem: impl Into<String>) -> Refusal {
    Refusal::invalid(at(pointer), problem)
}

fn unsupported(pointer: &str, problem: impl Into<String>) -> Refusal {
    Refusal::unsupported(at(pointer), problem)
}

/// Gathers writes.
struct Writer<'a> {
    host: &'a Host,
    occasion: Occasion,
    done: Translation,
}

impl Writer<'_> {
    fn put(&mut self, controller: &str, file: &str, value: impl ToString, pointer: &str) {
        self.push(controller, file, value.to_string(), pointer, false);
    }

    fn put_optional(&mut self, controller: &str, file: &str, value: impl ToString, pointer: &str) {
        self.push(controller, file, value.to_string(), pointer, true);
    }

    fn push(&mut self, controller: &str, file: &str, value: String, pointer: &str, optional: bool) {
        let (controller, file, why) = (controller.to_owned(), file.to_owned(), at(pointer));
        self.done.writes.push(Write { controller, file, value, why, optional });
    }

    fn ignore(&mut self, pointer: &str, reason: &'static str) {
        self.done.ignored.push(Ignored { pointer: at(pointer), reason });
    }

    /// Translates for the version that has `controller` (named as in version 1), if anything of it is `needed`.
    fn in_world(
        &mut self,
        controller: &str,
        needed: bool,
        pointer: &str,
        first: impl FnOnce(&mut Self) -> Result<(), Refusal>,
        second: impl FnOnce(&mut Self) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let modern = if controller == "blkio" { "io" } else { controller };
        if !needed {
            Ok(())
        } else if self.host.controllers.v1.contains(controller) {
            first(self)
        } else if self.host.controllers.v2.contains(modern) {
            second(self)
        } else {
            Err(unsupported(pointer, format!("this host has no {modern} controller")))
        }
    }
}

/// What holds for memory in both versions.
fn check_memory(memory: &LinuxMemory, occasion: Occasion) -> Result<(), Refusal> {
    for (name, value) in [
        ("limit", memory.limit()),
        ("reservation", memory.reservation()),
        ("swap", memory.swap()),
        ("kernelTCP", memory.kernel_tcp()),
    ] {
        if value.is_some_and(|value| value < -1) {
            return Err(invalid(&format!("/memory/{name}"), "is negative; -1 is no limit"));
        }
    }
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if swap > 0 && limit > 0 && swap < limit {
        let problem =
            format!("{swap} counts memory and swap together and is below the memory limit of {limit}");
        return Err(invalid("/memory/swap", problem));
    }
    if swap > 0 && limit == 0 && occasion == Occasion::Create {
        return Err(invalid("/memory/swap", "counts memory and swap together and needs a memory limit"));
    }
    if memory.swappiness().is_some_and(|swappiness| swappiness > 100) {
        return Err(invalid("/memory/swappiness", "is above 100"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
