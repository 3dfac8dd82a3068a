//! Cache and memory bandwidth: classes of service and monitoring groups of resctrl. runtime-spec config-linux.md, "IntelRdt".
//!
//! ```text
//! /sys/fs/resctrl                  the default class, closID "/"
//! /sys/fs/resctrl/CLOSID           a class with a name: shared, so its limits are compared and never changed, and it stays
//! /sys/fs/resctrl/CONTAINER-ID     without closID: the container's own, which goes with it
//!   …/mon_groups/CONTAINER-ID      enableMonitoring: goes with the container
//! ```
//!
//! Where resctrl is not mounted it is refused by name: a container that was to be kept out of somebody's cache must not run
//! in it.

use cofferdam_plan::{Barrier, Builder, HostFeatures, HostPath, Op, Refusal, Stage, Standing, Text};
use oci_spec::runtime::{LinuxIntelRdt, Spec};

use crate::compile::{Context, pass};
use crate::container::Joining;

const WHY: &str = "/linux/intelRdt";

/// The container's class and its monitoring group, and the process in both.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let Some(groups) = Groups::of(context.spec(), context.container.id.as_str(), context.host)? else {
        return Ok(());
    };
    let rdt = groups.asked;
    let schemata = schemata(rdt)?;
    if groups.class != groups.root || !schemata.is_empty() {
        // A name without limits is one that somebody else has prepared.
        let make = rdt.clos_id().is_none() || !schemata.is_empty();
        let (root, class, own) = (groups.root.clone(), groups.class.clone(), rdt.clos_id().is_none());
        builder.step(Stage::Host, WHY, Op::EnterClass { root, class, own, make, schemata });
    }
    if let Some(group) = &groups.monitor {
        builder.step(
            Stage::Host,
            format!("{WHY}/enableMonitoring"),
            Op::MakeMonitor { group: group.clone() },
        );
    }
    let outdated = rdt.enable_cmt().is_some() || rdt.enable_mbm().is_some();
    if outdated {
        builder
            .warn("/linux/intelRdt: enableCMT and enableMBM are ignored, enableMonitoring is what they were");
    }
    builder.step(Stage::Attach, WHY, groups.attach());
    pass(builder, WHY, Barrier::Allocated);
    Ok(())
}

/// Puts a joining process into the groups of the container; tells whether it has any.
pub(crate) fn plan_joining(
    joining: &Joining<'_>,
    host: &HostFeatures,
    builder: &mut Builder,
) -> Result<bool, Refusal> {
    let groups = Groups::of(joining.spec, joining.id.as_str(), host)?;
    if let Some(groups) = &groups {
        builder.step(Stage::Attach, "exec", groups.attach());
    }
    Ok(groups.is_some())
}

/// Other limits for the class of a container that runs, as `runc update` gives them: those of a class with a name change for
/// everybody in it, which is what the caller asks for.
pub(crate) fn plan_update(
    change: &ClassChange<'_>,
    host: &HostFeatures,
    builder: &mut Builder,
) -> Result<Option<LinuxIntelRdt>, Refusal> {
    if change.l3_cache.is_none() && change.memory_bandwidth.is_none() {
        return Ok(None);
    }
    let Some(groups) = Groups::of(change.spec, change.id, host)? else {
        let problem = "updating a non-existent Intel RDT configuration is not supported";
        return Err(Refusal::unsupported(WHY, problem));
    };
    let mut change_only = LinuxIntelRdt::default();
    change_only
        .set_l3_cache_schema(change.l3_cache.map(str::to_owned))
        .set_mem_bw_schema(change.memory_bandwidth.map(str::to_owned));
    let schemata = schemata(&change_only)?;
    builder.step(Stage::Host, WHY, Op::ChangeClass { root: groups.root, class: groups.class, schemata });
    let mut merged = groups.asked.clone();
    if change.l3_cache.is_some() {
        merged.set_l3_cache_schema(change_only.l3_cache_schema().clone());
    }
    if change.memory_bandwidth.is_some() {
        merged.set_mem_bw_schema(change_only.mem_bw_schema().clone());
    }
    Ok(Some(merged))
}

/// What is to become of a container's class of service.
#[derive(Debug, Clone)]
pub struct ClassChange<'a> {
    /// The container's configuration.
    pub spec: &'a Spec,
    /// Its id, which its own class is named after.
    pub id: &'a str,
    /// A line of `L3:`, if the cache is to be divided otherwise.
    pub l3_cache: Option<&'a str>,
    /// A line of `MB:`, if the bandwidth is.
    pub memory_bandwidth: Option<&'a str>,
}

/// Where a container's processes belong.
struct Groups<'a> {
    asked: &'a LinuxIntelRdt,
    root: HostPath,
    class: HostPath,
    monitor: Option<HostPath>,
}

impl<'a> Groups<'a> {
    fn of(spec: &'a Spec, id: &str, host: &HostFeatures) -> Result<Option<Self>, Refusal> {
        let Some(asked) = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref()) else {
            return Ok(None);
        };
        if host.standing != Standing::Host {
            return Err(Refusal::unsupported(WHY, "classes of service of resctrl are root's to give"));
        }
        let Some(mount_point) = &host.resctrl else {
            let problem = "cache and memory bandwidth allocation: resctrl is not mounted on this host";
            return Err(Refusal::unsupported(WHY, problem));
        };
        let root = HostPath::new(mount_point, WHY)?;
        let class = match asked.clos_id().as_deref() {
            Some("/") => root.clone(),
            named => HostPath::new(format!("{mount_point}/{}", class_name(named.unwrap_or(id))?), WHY)?,
        };
        let monitor = asked.enable_monitoring().unwrap_or(false);
        let monitor = monitor.then(|| HostPath::new(format!("{class}/mon_groups/{id}"), WHY)).transpose()?;
        Ok(Some(Self { asked, root, class, monitor }))
    }

    fn attach(&self) -> Op {
        let groups = std::iter::once(&self.class).chain(&self.monitor).cloned().collect();
        Op::AttachClass { root: self.root.clone(), groups }
    }
}

/// A name of one component that is no file of resctrl's own.
fn class_name(name: &str) -> Result<&str, Refusal> {
    const TAKEN: [&str; 6] = ["", ".", "..", "info", "mon_data", "mon_groups"];
    if TAKEN.contains(&name) || name.contains(['/', '\n']) {
        return Err(Refusal::invalid(format!("{WHY}/closID"), format!("{name:?} cannot name a class")));
    }
    Ok(name)
}

/// The lines of limits, each for one resource.
fn schemata(rdt: &LinuxIntelRdt) -> Result<Vec<Text>, Refusal> {
    let one = |key: &str, text: &Option<String>, resource: &str| {
        let lines = text.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty());
        let line = |line: &str| {
            let pointer = format!("{WHY}/{key}");
            if !line.starts_with(resource) {
                return Err(Refusal::invalid(pointer, format!("{line:?} is not a line of {resource}")));
            }
            Text::new(line, &pointer)
        };
        lines.map(line).collect::<Result<Vec<_>, _>>()
    };
    let mut lines = one("l3CacheSchema", rdt.l3_cache_schema(), "L3")?;
    lines.extend(one("memBwSchema", rdt.mem_bw_schema(), "MB")?);
    for (index, line) in rdt.schemata().iter().flatten().enumerate() {
        let pointer = format!("{WHY}/schemata/{index}");
        if line.contains('\n') {
            return Err(Refusal::invalid(pointer, "an element is one line"));
        }
        lines.push(Text::new(line.as_str(), &pointer)?);
    }
    Ok(lines)
}
