//! The container's cgroup: made and limited before the process exists, joined before anything of the container runs.
//! runtime-spec config-linux.md, "Control groups".

use cofferdam_plan::{
    Barrier, Builder, CgroupLayout, ContainerId, HostFeatures, HostPath, Namespace, Op, Refusal, Stage,
};
use oci_spec::runtime::Spec;

use crate::compile::{Context, pass};
use crate::container::Joining;

/// The container's path below the root of every hierarchy: `linux.cgroupsPath`, or one of our own.
pub fn path(spec: &Spec, id: &ContainerId) -> Result<String, Refusal> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let Some(given) = given.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(format!("/cofferdam-{id}"));
    };
    let pointer = "/linux/cgroupsPath";
    let text = given.to_str().ok_or_else(|| Refusal::invalid(pointer, "not UTF-8"))?;
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.iter().any(|part| *part == ".." || part.contains(['\n', '\0'])) || parts.is_empty() {
        return Err(Refusal::invalid(pointer, format!("{text:?} is not a path below the cgroup root")));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Makes the cgroup, sets its limits, attaches the child.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    oom_score(context, builder);
    if !context.manages_cgroup() {
        return Ok(());
    }
    let path = path(context.spec(), context.container.id)?;
    builder.step(Stage::Host, "/linux/cgroupsPath", Op::CreateCgroup { path });
    if !context.host.cgroups.is_v2() {
        builder.step(Stage::Attach, "/linux/cgroupsPath", Op::AttachCgroup);
    }
    Ok(())
}

/// Lower scores than the caller's own need CAP_SYS_RESOURCE.
fn oom_score(context: &Context<'_>, builder: &mut Builder) {
    const SYS_RESOURCE: u32 = 24;
    let host = context.host;
    let Some(wanted) = context.process().and_then(|process| process.oom_score_adj()) else { return };
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

/// The container's directory in a hierarchy of the host, for containers without a cgroup namespace.
pub fn host_directory(context: &Context<'_>, mount_point: &str) -> Result<HostPath, Refusal> {
    let path = path(context.spec(), context.container.id)?;
    HostPath::new(format!("{mount_point}{path}"), "/linux/cgroupsPath")
}

/// A joining process is put into the container's cgroup.
pub fn plan_joining(
    joining: &Joining<'_>,
    host: &HostFeatures,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let Some(path) = joining.cgroup else { return Ok(()) };
    builder.step(Stage::Host, "exec", Op::OpenCgroup { path: path.to_owned() });
    if matches!(host.cgroups, CgroupLayout::V1 { .. }) {
        builder.step(Stage::Attach, "exec", Op::AttachCgroup);
        pass(builder, "exec", Barrier::Attached);
    }
    Ok(())
}
