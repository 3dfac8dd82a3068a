//! The container's cgroup: made, limited and joined before anything of the container runs.
//! runtime-spec config-linux.md, "Control groups".
//!
//! On version 2 it is made before the process, which is cloned straight into it. On version 1 one is made in each of a dozen
//! hierarchies, which takes as long as the mounts do: there the parent makes and limits them while the child, which is still
//! ours, builds its mounts, and the child waits for them before its cgroup namespace. A container without that namespace that
//! is shown its cgroup gets copies of the directories, so there they are made first as well.

use cofferdam_plan::{
    Barrier, Builder, CgroupLayout, ContainerId, HostFeatures, HostPath, Namespace, Op, Refusal, Stage,
};
use oci_spec::runtime::{LinuxResources, Process, Spec};

use crate::cgroup::cpu_list::CpuList;
use crate::cgroup::devices::{Defaults, DevicePolicy};
use crate::cgroup::path::CgroupPath;
use crate::cgroup::{self, Controllers, Occasion};
use crate::compile::{Context, pass};
use crate::container::Joining;
use crate::mounts;

/// The container's path below the root of every hierarchy: `linux.cgroupsPath`, or one of our own.
pub fn path(spec: &Spec, id: &ContainerId) -> Result<String, Refusal> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let given =
        given.map(|path| path.to_str().ok_or_else(|| Refusal::invalid("/linux/cgroupsPath", "not UTF-8")));
    let path = CgroupPath::cgroupfs(given.transpose()?, &format!("/cofferdam-{id}"))?;
    Ok(path.directory(""))
}

/// Makes the cgroup, sets its limits, attaches the child.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    oom_score(context.process(), context.host, builder);
    let resources = context.linux().and_then(|linux| linux.resources().as_ref());
    if !context.manages_cgroup() {
        if resources.is_some() {
            builder.warn("/linux/resources: cgroups are not managed, nothing is limited");
        }
        return Ok(());
    }
    let path = path(context.spec(), context.container.id)?;
    let shown = context.spec().mounts().iter().flatten().any(mounts::is_cgroup);
    let bound = shown && !context.membership.has(Namespace::Cgroup);
    let stage = if bound { Stage::Host } else { stage(context.host) };
    builder.step(stage, "/linux/cgroupsPath", Op::CreateCgroup { path });
    if let Some(resources) = resources {
        limits(context.host, resources, stage, builder)?;
    }
    devices(context, resources, stage, builder)?;
    if !context.host.cgroups.is_v2() {
        builder.step(Stage::Attach, "/linux/cgroupsPath", Op::AttachCgroup);
    }
    Ok(())
}

/// When the cgroup is made, or opened, and written to.
fn stage(host: &HostFeatures) -> Stage {
    if host.cgroups.is_v2() { Stage::Host } else { Stage::Attach }
}

/// What the translation has to know of the host.
pub(crate) fn translation_host(host: &HostFeatures) -> cgroup::Host {
    cgroup::Host {
        controllers: Controllers::from(&host.cgroups),
        cpus: CpuList::parse(&host.online_cpus).ok(),
        memory_nodes: CpuList::parse(&host.online_nodes).ok(),
    }
}

fn limits(
    host: &HostFeatures,
    resources: &LinuxResources,
    stage: Stage,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let translation = cgroup::translate(resources, &translation_host(host), Occasion::Create)?;
    for ignored in translation.ignored {
        builder.warn(format!("{}: {}", ignored.pointer, ignored.reason));
    }
    for write in &translation.writes {
        builder.step(stage, write.why.as_str(), Op::WriteCgroup(write.into()));
    }
    Ok(())
}

/// Everything is denied but the listed devices and the default ones.
fn devices(
    context: &Context<'_>,
    resources: Option<&LinuxResources>,
    stage: Stage,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    const WHY: &str = "/linux/resources/devices";
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let policy = DevicePolicy::new(rules, Defaults::Compatible)?;
    match &context.host.cgroups {
        CgroupLayout::V2 { .. } => {
            builder.step(stage, WHY, Op::FilterDevices { program: policy.program() });
        }
        CgroupLayout::V1 { .. } => {
            for write in &policy.v1_writes() {
                builder.step(stage, WHY, Op::WriteCgroup(write.into()));
            }
        }
        CgroupLayout::None => {}
    }
    Ok(())
}

/// Lower scores than the caller's own need CAP_SYS_RESOURCE.
fn oom_score(process: Option<&Process>, host: &HostFeatures, builder: &mut Builder) {
    const SYS_RESOURCE: u32 = 24;
    let Some(wanted) = process.and_then(|process| process.oom_score_adj()) else { return };
    let value = if wanted < host.oom_score_adj && !host.holds(SYS_RESOURCE) {
        builder.warn(format!(
            "/process/oomScoreAdj: {wanted} is below this process's own {}, and lowering it needs CAP_SYS_RESOURCE: {} is used",
            host.oom_score_adj, host.oom_score_adj
        ));
        host.oom_score_adj
    } else {
        wanted
    };
    if value != host.oom_score_adj {
        builder.step(Stage::Attach, "/process/oomScoreAdj", Op::AdjustOomScore { value });
    }
}

/// The child waits until it is in its cgroup, and makes its cgroup namespace there. Called by whoever needs that first:
/// a cgroup mount, or else the end of the mounts; it adds its steps once.
pub fn plan_namespace(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    const WHY: &str = "/linux/cgroupsPath";
    if builder.marked(WHY) {
        return Ok(());
    }
    if context.manages_cgroup() && !context.host.cgroups.is_v2() {
        pass(builder, WHY, Barrier::Attached);
    }
    if context.membership.makes(Namespace::Cgroup) {
        builder.step(Stage::Enter, "/linux/namespaces", Op::Unshare { kind: Namespace::Cgroup });
    }
    Ok(())
}

/// The container's directory in a hierarchy of the host, for containers without a cgroup namespace. A path that does not
/// begin with `/` lies below our own cgroup.
pub fn host_directory(context: &Context<'_>, mount_point: &str, own_path: &str) -> Result<HostPath, Refusal> {
    let path = path(context.spec(), context.container.id)?;
    let below =
        if path.starts_with('/') { path } else { format!("{}/{path}", own_path.trim_end_matches('/')) };
    HostPath::new(format!("{mount_point}{below}"), "/linux/cgroupsPath")
}

/// A joining process is put into the container's cgroup.
pub fn plan_joining(
    joining: &Joining<'_>,
    host: &HostFeatures,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    // A process that says nothing has the score of the container's own.
    let own = joining.process.oom_score_adj().is_some();
    let scored = if own { Some(joining.process) } else { joining.spec.process().as_ref() };
    oom_score(scored, host, builder);
    let mut waits = builder.contains(|op| matches!(op, Op::AdjustOomScore { .. }));
    if let Some(path) = joining.cgroup {
        let below = joining.below.iter().map(|below| one_below(below)).collect::<Result<_, _>>()?;
        builder.step(stage(host), "exec", Op::OpenCgroup { path: path.to_owned(), below });
        if !host.cgroups.is_v2() {
            builder.step(Stage::Attach, "exec", Op::AttachCgroup);
            waits = true;
        }
    }
    if waits {
        pass(builder, "exec", Barrier::Attached);
    }
    Ok(())
}

/// A cgroup below the container's: the controller, empty for all of them, and the path. It must not lead out again.
fn one_below(text: &str) -> Result<(String, String), Refusal> {
    let (controller, path) = text.split_once(':').unwrap_or(("", text));
    let path = path.trim_matches('/');
    if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Refusal::invalid(
            "--cgroup",
            format!("{text:?} is not [CONTROLLER:]PATH below the container's"),
        ));
    }
    Ok((controller.to_owned(), path.to_owned()))
}
