//! The container's cgroup: made, limited and joined before anything of the container runs.
//! runtime-spec config-linux.md, "Control groups".
//!
//! On version 2 it is made before the process, which is cloned straight into it. On version 1 one is made in each of a dozen
//! hierarchies, which takes as long as the mounts do: there the parent makes and limits them while the child, which is still
//! ours, builds its mounts. Before its cgroup namespace the child waits for them and moves itself into each, since moving
//! somebody else makes the kernel wait for all processors. A container without that namespace that is shown its cgroup gets
//! copies of the directories: where the parent has to make those, the cgroups are made first as well.

use cofferdam_plan::{
    Barrier, Builder, CgroupLayout, ContainerId, Hierarchies, HostFeatures, HostPath, IdMapping, Namespace,
    Op, Refusal, Stage, Standing,
};
use oci_spec::runtime::{LinuxResources, Process, Spec};

use crate::cgroup::cpu_list::CpuList;
use crate::cgroup::devices::{Defaults, DevicePolicy};
use crate::cgroup::path::CgroupPath;
use crate::cgroup::systemd::{Scope, properties};
use crate::cgroup::{self, Controllers, Occasion};
use crate::compile::{Context, pass};
use crate::container::{CgroupManager, Joining};
use crate::mounts;
use crate::namespaces::{self, Membership};

/// Where a container's cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The path below the root of every hierarchy; without a leading `/`, below our own cgroup in it.
    pub path: String,
    /// The hierarchies that have it.
    pub layout: CgroupLayout,
    /// Whether these are only the ones that are delegated to the caller.
    pub delegated: bool,
    /// The scope that it belongs to, where systemd makes it.
    pub scope: Option<Scope>,
}

impl Home {
    /// Whether the child moves into it, and has to wait for that: only one that is there before it, and in the version 2
    /// hierarchy alone, can be cloned into. A scope is made with the process in it.
    pub fn is_attached(&self) -> bool {
        !self.layout.is_v2() || self.scope.is_some()
    }

    /// Whether the child is cloned into what of it is in the version 2 hierarchy.
    pub fn is_cloned_into(&self) -> bool {
        self.scope.is_none() && self.layout.has_v2()
    }

    /// When it is made and written to.
    fn stage(&self) -> Stage {
        if self.is_attached() { Stage::Attach } else { Stage::Host }
    }
}

/// The cgroup of a container: `linux.cgroupsPath`, or one of our own. Without privilege over the host it is one in what
/// the host has delegated, and `None` where that is nothing; a path that the configuration names must work.
pub fn home(spec: &Spec, id: &ContainerId, host: &HostFeatures) -> Result<Option<Home>, Refusal> {
    let given = given_path(spec)?;
    let delegated = given.is_none() && host.spares_cgroups;
    let layout = if delegated { host.cgroups.delegated() } else { host.cgroups.clone() };
    if delegated && layout == CgroupLayout::None {
        return Ok(None);
    }
    let own = match &layout {
        _ if !delegated || host.standing == Standing::Host => format!("/cofferdam-{id}"),
        // Beside our own, which has processes and so cannot give controllers to what is below it.
        CgroupLayout::V2 { own_path, .. } => {
            format!("{}/cofferdam-{id}", own_path.rsplit_once('/').map_or("", |(above, _)| above))
        }
        CgroupLayout::V1 { .. } | CgroupLayout::None => format!("cofferdam-{id}"),
    };
    let path = CgroupPath::cgroupfs(given, &own)?.directory("");
    Ok(Some(Home { path, layout, delegated, scope: None }))
}

/// The cgroup of a container as a scope of systemd's: `linux.cgroupsPath` is `slice:prefix:name`. A user's manager makes it
/// in what is delegated to that user.
pub fn home_of_scope(spec: &Spec, id: &ContainerId, host: &HostFeatures) -> Result<Option<Home>, Refusal> {
    let missing = || {
        let problem = "systemd, which is asked to make it, cannot be reached";
        Refusal::unsupported("/linux/cgroupsPath", problem)
    };
    let scope = Scope::new(given_path(spec)?, id, host.systemd.as_ref().ok_or_else(missing)?)?;
    let delegated = host.standing != Standing::Host;
    let layout = if delegated { host.cgroups.delegated() } else { host.cgroups.clone() };
    Ok((layout != CgroupLayout::None).then(|| Home {
        path: scope.cgroup.clone(),
        layout,
        delegated,
        scope: Some(scope),
    }))
}

fn given_path(spec: &Spec) -> Result<Option<&str>, Refusal> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let given = given.filter(|path| !path.as_os_str().is_empty());
    given
        .map(|path| path.to_str().ok_or_else(|| Refusal::invalid("/linux/cgroupsPath", "not UTF-8")))
        .transpose()
}

/// Makes the cgroup, sets its limits, attaches the child.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let joined = context.membership.has(Namespace::User) && !context.membership.makes(Namespace::User);
    oom_score(context.process(), joined, context.host, builder);
    let resources = context.linux().and_then(|linux| linux.resources().as_ref());
    let Some(home) = &context.home else {
        return match resources {
            Some(resources) if context.container.cgroup_manager != CgroupManager::Disabled => {
                without_home(context.host, resources, builder)
            }
            Some(_) => {
                builder.warn("/linux/resources: cgroups are not managed, nothing is limited");
                Ok(())
            }
            None => Ok(()),
        };
    };
    let (path, delegated) = (home.path.clone(), home.delegated);
    let shown = context.spec().mounts().iter().flatten().any(mounts::is_cgroup);
    let bound = shown && !context.membership.has(Namespace::Cgroup) && !context.copies_mounts();
    let made = if bound { Stage::Host } else { home.stage() };
    let split = made == Stage::Attach && home.is_cloned_into();
    if split {
        let first = Op::CreateCgroup { path: path.clone(), delegated, within: Hierarchies::Unified };
        builder.step(Stage::Host, "/linux/cgroupsPath", first);
    }
    let within = if split { Hierarchies::Legacy } else { Hierarchies::All };
    builder.step(made, "/linux/cgroupsPath", Op::CreateCgroup { path, delegated, within });
    let stage = match &home.scope {
        // Before the limits: it writes its own into the files first.
        Some(scope) => {
            start_scope(context, scope, resources, builder)?;
            Stage::Attach
        }
        None => made,
    };
    if let Some(resources) = resources {
        limits((context.host, &home.layout), resources, stage, builder)?;
    }
    devices(context, resources, stage, builder)?;
    if let Some((uid, gid)) = delegate(context, home)? {
        builder.step(stage, "/linux/namespaces", Op::DelegateCgroup { uid, gid });
    }
    if home.is_attached() {
        builder.step(Stage::Attach, "/linux/cgroupsPath", Op::AttachCgroup);
    }
    Ok(())
}

/// systemd makes a scope with the child in it; in hierarchies that it leaves alone the child is still to be attached.
fn start_scope(
    context: &Context<'_>,
    scope: &Scope,
    resources: Option<&LinuxResources>,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let Some(systemd) = &context.host.systemd else { return Ok(()) };
    let annotations = context.spec().annotations().as_ref();
    let world = (systemd, &context.host.cgroups);
    let policy = device_policy(resources)?;
    let properties = properties(scope, context.container.id, resources, annotations, &policy, world)?;
    let op = Op::StartUnit { unit: scope.unit.clone(), properties };
    builder.step(Stage::Attach, "/linux/cgroupsPath", op);
    Ok(())
}

/// Whom the cgroup is given to: the root of a container that has its own user and cgroup namespaces and is shown its cgroup
/// writable, as runc does. On version 1 nothing can be given away safely.
fn delegate(context: &Context<'_>, home: &Home) -> Result<Option<(u32, u32)>, Refusal> {
    let members = &context.membership;
    let mounts = context.spec().mounts().iter().flatten().filter(|mount| mounts::is_cgroup(mount));
    let read_only = |mount: &oci_spec::runtime::Mount| {
        mount.options().iter().flatten().any(|option| option == "ro" || option == "rro")
    };
    let writable = mounts.into_iter().any(|mount| !read_only(mount));
    let own = members.makes(Namespace::User) && members.makes(Namespace::Cgroup);
    if !writable || !own || !home.layout.is_v2() || context.host.standing == Standing::User {
        return Ok(None);
    }
    let maps = namespaces::own_maps(context.spec())?;
    let root = |map: &[IdMapping]| map.iter().find(|line| line.inside == 0).map(|line| line.outside);
    Ok(maps.and_then(|(uids, gids)| root(&uids).zip(root(&gids))))
}

/// A container without a cgroup runs if nothing was asked of it: a limit that does not hold is worse than no container.
fn without_home(
    host: &HostFeatures,
    resources: &LinuxResources,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let translation = cgroup::translate(resources, &translation_host(host, &host.cgroups), Occasion::Create)?;
    match translation.writes.iter().find(|write| !write.optional) {
        Some(write) => Err(Refusal::unsupported(
            write.why.as_str(),
            format!(
                "cannot set {}: this user may make no cgroup here, permission denied; without the limit, or in a \
                 session to which cgroups are delegated, the container can run",
                write.file
            ),
        )),
        None => {
            let text = "/linux/resources: this user may make no cgroup: nothing is limited, nor can be later";
            // Every container of such a user is told this, and most ask for nothing.
            if translation.writes.is_empty() {
                builder.remark(text);
            } else {
                builder.warn(text);
            }
            Ok(())
        }
    }
}

/// What the translation has to know of the host.
pub(crate) fn translation_host(host: &HostFeatures, layout: &CgroupLayout) -> cgroup::Host {
    cgroup::Host {
        controllers: Controllers::from(layout),
        cpus: CpuList::parse(&host.online_cpus).ok(),
        memory_nodes: CpuList::parse(&host.online_nodes).ok(),
    }
}

fn limits(
    (host, layout): (&HostFeatures, &CgroupLayout),
    resources: &LinuxResources,
    stage: Stage,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let translation = cgroup::translate(resources, &translation_host(host, layout), Occasion::Create)?;
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
    let policy = device_policy(resources)?;
    if context.host.standing != Standing::Host {
        // Only root filters devices. Without him a container has no device that its caller could not open anyway.
        return Ok(());
    }
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

fn device_policy(resources: Option<&LinuxResources>) -> Result<DevicePolicy, Refusal> {
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    DevicePolicy::new(rules, Defaults::Compatible)
}

/// Lower scores than the caller's own need CAP_SYS_RESOURCE. A process that is `hidden` from those in the user namespace
/// which it joins is so from an ordinary user as well.
fn oom_score(process: Option<&Process>, hidden: bool, host: &HostFeatures, builder: &mut Builder) {
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
    if value != host.oom_score_adj && hidden && host.standing == Standing::User {
        builder.warn(
            "/process/oomScoreAdj: an ordinary user cannot give one to a process that joins a user namespace",
        );
    } else if value != host.oom_score_adj {
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
    let scored = builder.contains(|op| matches!(op, Op::AdjustOomScore { .. }));
    if scored || context.home.as_ref().is_some_and(Home::is_attached) {
        pass(builder, WHY, Barrier::Attached);
    }
    if context.membership.makes(Namespace::Cgroup) {
        builder.step(Stage::Enter, "/linux/namespaces", Op::Unshare { kind: Namespace::Cgroup });
    }
    Ok(())
}

/// The container's directory in a hierarchy of the host, for containers without a cgroup namespace. A path that does not
/// begin with `/` lies below our own cgroup. Without a cgroup of its own there the container sees ours: `None`.
pub fn host_directory(
    context: &Context<'_>,
    mount_point: &str,
    own_path: &str,
) -> Result<Option<HostPath>, Refusal> {
    let Some(home) = context.home.as_ref().filter(|home| home.layout.mounts(mount_point)) else {
        return Ok(None);
    };
    let below = match home.path.strip_prefix('/') {
        Some(path) => format!("/{path}"),
        None => format!("{}/{}", own_path.trim_end_matches('/'), home.path),
    };
    HostPath::new(format!("{mount_point}{below}"), "/linux/cgroupsPath").map(Some)
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
    let hidden = Membership::of(joining.spec)?.has(Namespace::User);
    oom_score(scored, hidden, host, builder);
    let mut waits = builder.contains(|op| matches!(op, Op::AdjustOomScore { .. }));
    waits |= crate::intel_rdt::plan_joining(joining, host, builder)?;
    if let Some(path) = joining.cgroup {
        let below = joining.below.iter().map(|below| ones_below(below)).collect::<Result<Vec<_>, _>>()?;
        builder.step(Stage::Host, "exec", Op::OpenCgroup { path: path.to_owned(), below: below.concat() });
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

/// Where `exec --cgroup [CONTROLLER[,CONTROLLER…]:]PATH` puts a process, a controller at a time, empty for all of them. The
/// path does not lead out of the container's cgroup; `/` is that itself.
fn ones_below(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let (controllers, path) = text.split_once(':').map_or((None, text), |(list, path)| (Some(list), path));
    let path = path.trim_matches('/');
    let leads_out = !path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | ".."));
    let unnamed = controllers.is_some_and(|list| list.split(',').any(str::is_empty));
    if text.is_empty() || leads_out || unnamed {
        return Err(Refusal::invalid(
            "--cgroup",
            format!("bad sub cgroup path: {text:?} is not [CONTROLLER:]PATH below the container's"),
        ));
    }
    Ok(controllers.unwrap_or("").split(',').map(|one| (one.to_owned(), path.to_owned())).collect())
}
