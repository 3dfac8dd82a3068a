//! Namespaces: which are made, which are joined, in which order. runtime-spec config-linux.md, "Namespaces".

use std::collections::BTreeMap;

use cofferdam_plan::{
    Barrier, Builder, HostFeatures, HostPath, IdMapping, Mapper, Namespace, Op, Refusal, Slot, Stage,
    Standing, Text,
};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::arrival::Arrival;
use crate::cgroups::Home;
use crate::compile::{Context, INIT, lent};
use crate::container::Joining;

/// How a container comes to one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It makes a new one.
    New,
    /// It joins the one at this path.
    Path(HostPath),
}

/// The namespaces of a container; what is not listed it shares with the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership(BTreeMap<Namespace, (Source, String)>);

impl Membership {
    /// Reads `linux.namespaces`.
    pub fn of(spec: &Spec) -> Result<Self, Refusal> {
        let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let mut members = BTreeMap::new();
        for (index, entry) in listed.into_iter().flatten().enumerate() {
            let pointer = format!("/linux/namespaces/{index}");
            let kind = kind_of(entry.typ());
            let source = match entry.path() {
                Some(path) if !path.as_os_str().is_empty() => {
                    Source::Path(HostPath::new(path, &format!("{pointer}/path"))?)
                }
                _ => Source::New,
            };
            if members.insert(kind, (source, pointer.clone())).is_some() {
                return Err(Refusal::invalid(
                    pointer,
                    format!("namespace {:?} is listed twice", kind.file()),
                ));
            }
        }
        Ok(Self(members))
    }

    /// Whether the container is in a namespace of this kind that is not the runtime's.
    pub fn has(&self, kind: Namespace) -> bool {
        self.0.contains_key(&kind)
    }

    /// The kinds that are not the runtime's, in the order in which they are joined.
    pub fn kinds(&self) -> impl Iterator<Item = Namespace> {
        Namespace::ALL.into_iter().filter(|kind| self.has(*kind))
    }

    /// How the container comes to a namespace of this kind; `None` where it shares the runtime's.
    pub fn source(&self, kind: Namespace) -> Option<&Source> {
        self.0.get(&kind).map(|(source, _)| source)
    }

    /// Whether the container makes this namespace.
    pub fn makes(&self, kind: Namespace) -> bool {
        matches!(self.0.get(&kind), Some((Source::New, _)))
    }

    /// Whether anything is joined by path.
    pub fn joins_any(&self) -> bool {
        self.0.values().any(|(source, _)| *source != Source::New)
    }

    fn joined(&self) -> impl Iterator<Item = (Namespace, &HostPath, &str)> {
        Namespace::ALL.into_iter().filter_map(|kind| match self.0.get(&kind) {
            Some((Source::Path(path), pointer)) => Some((kind, path, pointer.as_str())),
            _ => None,
        })
    }
}

fn kind_of(kind: LinuxNamespaceType) -> Namespace {
    match kind {
        LinuxNamespaceType::Mount => Namespace::Mount,
        LinuxNamespaceType::Cgroup => Namespace::Cgroup,
        LinuxNamespaceType::Uts => Namespace::Uts,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::User => Namespace::User,
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Network => Namespace::Network,
        LinuxNamespaceType::Time => Namespace::Time,
    }
}

/// The clone, the joins, the id maps and the clock offsets.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let members = &context.membership;
    if context.has_root() && !members.has(Namespace::Mount) {
        return Err(Refusal::invalid("/linux/namespaces", "stacked layers need a mount namespace"));
    }
    if context.host.standing == Standing::User && !members.has(Namespace::User) {
        let problem = "an ordinary user's container needs a user namespace: a configuration for it has one, and id \
                       mappings (`spec --rootless` writes it)";
        return Err(Refusal::unsupported("/linux/namespaces", problem));
    }
    let (mut user_namespace, mut pid_namespace) = (None, None);
    let (mut first, mut joins) = (Vec::new(), Vec::new());
    for (kind, path, pointer) in members.joined() {
        let slot = builder.slot(format!("{}-namespace", kind.file()));
        let foreign = crate::sysctl::changes(context, kind);
        builder.step(
            Stage::Host,
            pointer,
            Op::OpenNamespace { kind, path: path.clone(), foreign, into: slot },
        );
        match kind {
            Namespace::Pid => pid_namespace = Some(slot),
            // Whatever is made must belong to it, so it is joined before the clone.
            Namespace::User => user_namespace = Some(slot),
            // It may belong to another user namespace than the one that is joined: whoever has privilege over both goes
            // there before he gives that up. The mount namespace waits until host paths mean nothing more.
            kind if leaves_privilege(context) && kind != Namespace::Mount => first.push((kind, slot)),
            _ => joins.push((kind, slot, pointer)),
        }
    }
    // The cgroup namespace is made when the cgroup is joined, the time namespace when its offsets are set.
    let late = [Namespace::Cgroup, Namespace::Time];
    let new =
        Namespace::ALL.into_iter().filter(|kind| members.makes(*kind) && !late.contains(kind)).collect();
    let into_cgroup = context.home.as_ref().is_some_and(Home::is_cloned_into);
    builder.step(
        Stage::Clone,
        "/linux/namespaces",
        Op::Clone {
            namespaces: new,
            first,
            user_namespace,
            pid_namespace,
            between: user_namespace.is_some() || between(pid_namespace, context.host),
            into_cgroup,
        },
    );
    if let Some(process) = context.process() {
        crate::labels::plan(process, context.host, builder)?;
    }
    plan_user(context, builder)?;
    // The offsets are written through this process's own /proc entry, which must still be its own.
    plan_time(context, builder)?;
    if members.joins_any() {
        // Processes that are already there must not see into this one.
        builder.step(Stage::Enter, "/linux/namespaces", Op::ForbidDump);
    }
    if user_namespace.is_some() {
        builder.step(Stage::Enter, "/linux/namespaces", Op::BecomeRoot);
    }
    for (kind, from, pointer) in joins {
        builder.step(Stage::Enter, pointer, Op::Join { kind, from });
    }
    if members.makes(Namespace::Network) {
        builder.step(Stage::Enter, "/linux/namespaces", Op::RaiseLoopback);
    }
    Ok(())
}

/// Whether a user namespace is joined from one with privilege over it and whatever else there is to join.
fn leaves_privilege(context: &Context<'_>) -> bool {
    let joined = matches!(context.membership.source(Namespace::User), Some(Source::Path(_)));
    joined && context.host.standing != Standing::User
}

/// Pid namespaces are joined by children only. Root points his own children there and back; back to a namespace that is
/// not his own, nobody else may.
fn between(pid_namespace: Option<Slot>, host: &HostFeatures) -> bool {
    pid_namespace.is_some() && host.standing != Standing::Host
}

fn plan_user(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let linux = context.linux();
    let uids = linux.and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
    let gids = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
    if !context.membership.makes(Namespace::User) {
        if context.membership.has(Namespace::User) || (uids.is_empty() && gids.is_empty()) {
            return Ok(());
        }
        return Err(Refusal::invalid(
            "/linux/uidMappings",
            "id mappings need a user namespace in linux.namespaces",
        ));
    }
    let (uids, gids) = (mappings(uids, "/linux/uidMappings")?, mappings(gids, "/linux/gidMappings")?);
    let root = |map: &[IdMapping]| map.iter().any(|line| line.inside == 0);
    let becomes_root = root(&uids) && root(&gids);
    let (uid_mapper, gid_mapper) =
        (mapper(&uids, context.host.uid, context.host), mapper(&gids, context.host.gid, context.host));
    builder.step(Stage::Attach, "/linux/uidMappings", Op::MapIds { uids, uid_mapper, gids, gid_mapper });
    // With the maps the child may go where its caller may, by his id, and where the container's root may, by its
    // capabilities.
    builder.step(Stage::Attach, "/linux/uidMappings", Op::Release(Barrier::Mapped));
    builder.step(Stage::Reach, "/linux/uidMappings", Op::Pass(Barrier::Mapped));
    if becomes_root {
        builder.step(Stage::Enter, "/linux/uidMappings", Op::BecomeRoot);
    }
    Ok(())
}

/// Who may write a map: a caller with privilege; without it, anybody one line for himself, user_namespaces(7).
fn mapper(map: &[IdMapping], own: u32, host: &HostFeatures) -> Mapper {
    match map {
        _ if host.standing != Standing::User => Mapper::Caller,
        [IdMapping { outside, count: 1, .. }] if *outside == own => Mapper::Own,
        _ => Mapper::Helper,
    }
}

/// Maps of user and of group ids.
type Maps = (Vec<IdMapping>, Vec<IdMapping>);

/// The maps of the container's user namespace, checked: of the one that it makes, or of one that it joins where the
/// configuration says them too, as engines do for the containers of a pod.
pub(crate) fn own_maps(spec: &Spec) -> Result<Option<Maps>, Refusal> {
    let members = Membership::of(spec)?;
    let linux = spec.linux().as_ref();
    let uids = linux.and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
    let gids = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
    let told = members.has(Namespace::User) && !(uids.is_empty() && gids.is_empty());
    if !members.makes(Namespace::User) && !told {
        return Ok(None);
    }
    Ok(Some((mappings(uids, "/linux/uidMappings")?, mappings(gids, "/linux/gidMappings")?)))
}

/// Whether an id of the container exists outside.
pub(crate) fn is_mapped(map: &[IdMapping], id: u32) -> bool {
    map.iter().any(|line| id.checked_sub(line.inside).is_some_and(|offset| offset < line.count))
}

/// Whether the container may have no supplementary groups: an ordinary user maps his own group only where they are
/// denied for good, or they would be a way to drop one that denies him something (CVE-2014-8989).
pub(crate) fn groups_denied(spec: &Spec, host: &HostFeatures) -> Result<bool, Refusal> {
    let makes = Membership::of(spec)?.makes(Namespace::User);
    Ok(makes && own_maps(spec)?.is_some_and(|(_, gids)| mapper(&gids, host.gid, host) == Mapper::Own))
}

/// Checks an id map: the kernel takes at most 340 lines, none empty, no overflow, user_namespaces(7).
pub(crate) fn mappings(lines: &[LinuxIdMapping], pointer: &str) -> Result<Vec<IdMapping>, Refusal> {
    const LINES_MAX: usize = 340;
    if lines.is_empty() || lines.len() > LINES_MAX {
        let problem = format!("a user namespace needs 1 to {LINES_MAX} mappings, there are {}", lines.len());
        return Err(Refusal::invalid(pointer, problem));
    }
    let line = |(index, line): (usize, &LinuxIdMapping)| {
        let mapping = IdMapping { inside: line.container_id(), outside: line.host_id(), count: line.size() };
        let fits = |first: u32| first.checked_add(mapping.count).is_some();
        if mapping.count == 0 || !fits(mapping.inside) || !fits(mapping.outside) {
            return Err(Refusal::invalid(format!("{pointer}/{index}"), "the mapping is empty or overflows"));
        }
        Ok(mapping)
    };
    let lines = lines.iter().enumerate().map(line).collect::<Result<Vec<_>, _>>()?;
    let meet = |a: u32, b: u32, one: &IdMapping, other: &IdMapping| a < b + other.count && b < a + one.count;
    for (index, one) in lines.iter().enumerate() {
        let clash = lines[..index].iter().any(|other| {
            meet(one.inside, other.inside, one, other) || meet(one.outside, other.outside, one, other)
        });
        if clash {
            return Err(Refusal::invalid(format!("{pointer}/{index}"), "the mapping overlaps another"));
        }
    }
    Ok(lines)
}

fn plan_time(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let offsets = context.linux().and_then(|linux| linux.time_offsets().as_ref());
    let makes = context.membership.makes(Namespace::Time);
    let mut text = String::new();
    for (clock, offset) in offsets.into_iter().flatten().collect::<BTreeMap<_, _>>() {
        let pointer = format!("/linux/timeOffsets/{clock}");
        if !makes {
            return Err(Refusal::invalid(
                pointer,
                "time offsets need a new time namespace in linux.namespaces",
            ));
        }
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(Refusal::invalid(pointer, "only monotonic and boottime can be offset"));
        }
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanoseconds >= 1_000_000_000 {
            return Err(Refusal::invalid(pointer, "nanosecs must be below 1000000000"));
        }
        text += &format!("{clock} {seconds} {nanoseconds}\n");
    }
    if makes {
        let offsets = Text::new(text, "/linux/timeOffsets")?;
        builder.step(Stage::Enter, "/linux/timeOffsets", Op::EnterTime { offsets });
    }
    Ok(())
}

/// Whoever joins a process must be allowed to look into it. Root always is; an ordinary user is not while the process is
/// still this program, which may not be looked into, or those who are in the container already could do so too. It opens its
/// namespaces itself, and lends them to those who knock.
pub(crate) fn plan_lent(context: &Context<'_>, builder: &mut Builder) -> Result<Vec<Slot>, Refusal> {
    // In a mount tree that was there before there may be no /proc, or another one.
    let strange = matches!(context.membership.source(Namespace::Mount), Some(Source::Path(_)));
    if context.host.standing != Standing::User || strange {
        return Ok(Vec::new());
    }
    let open = |kind: Namespace| {
        let into = builder.slot(format!("own-{}-namespace", kind.file()));
        let path = HostPath::new(format!("/proc/self/ns/{}", kind.file()), "exec")?;
        builder.step(Stage::Enter, "exec", Op::OpenNamespace { kind, path, foreign: false, into });
        Ok(into)
    };
    context.membership.kinds().map(open).collect()
}

/// A joining process enters every namespace that the container does not share with the runtime, by one pidfd or by what is
/// lent to it.
pub(crate) fn plan_joining(
    joining: &Joining<'_>,
    host: &HostFeatures,
    arrival: Arrival,
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let members = Membership::of(joining.spec)?;
    let lent: BTreeMap<_, _> = if joining.lent { lent(&members).collect() } else { BTreeMap::new() };
    let from = |kind: Namespace| lent.get(&kind).copied().unwrap_or(INIT);
    let by_clone = members.has(Namespace::Pid) && arrival == Arrival::First;
    let pid_namespace = by_clone.then(|| from(Namespace::Pid));
    // Without privilege the pid namespace opens only to whoever is in the user namespace already.
    let inside = host.standing == Standing::User && members.has(Namespace::User);
    let user_namespace = inside.then(|| from(Namespace::User));
    let into_cgroup = joining.cgroup.is_some() && host.cgroups.has_v2();
    let between = user_namespace.is_some() || between(pid_namespace, host);
    let (namespaces, first) = (Vec::new(), Vec::new());
    let clone = Op::Clone { namespaces, first, user_namespace, pid_namespace, between, into_cgroup };
    builder.step(Stage::Clone, "exec", clone);
    crate::labels::plan(joining.process, host, builder)?;
    builder.step(Stage::Enter, "exec", Op::ForbidDump);
    // Joining a pid namespace changes nothing but where children go.
    let mut kinds: Vec<_> = members.kinds().filter(|kind| *kind != Namespace::Pid || !by_clone).collect();
    if !inside {
        // The user namespace last: some of the others may belong to another one, to which its capabilities mean nothing.
        kinds.sort_by_key(|kind| *kind == Namespace::User);
    }
    for kind in kinds {
        if kind != Namespace::User || !inside {
            builder.step(Stage::Enter, "/linux/namespaces", Op::Join { kind, from: from(kind) });
        }
        if kind == Namespace::User {
            builder.step(Stage::Enter, "/linux/namespaces", Op::BecomeRoot);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(u32, u32, u32)]) -> Result<Vec<IdMapping>, Refusal> {
        let line = |(inside, outside, size): &(u32, u32, u32)| {
            serde_json::from_value(
                serde_json::json!({ "containerID": inside, "hostID": outside, "size": size }),
            )
            .expect("a mapping")
        };
        mappings(&lines.iter().map(line).collect::<Vec<_>>(), "/linux/uidMappings")
    }

    /// user_namespaces(7): the maps that the kernel takes.
    #[test]
    fn a_map_is_injective_and_stays_in_range() {
        for good in [
            &[(0, 1000, 1)][..],
            &[(0, 1000, 1), (1, 100_000, 65_536)],
            &[(10, 20, 10), (0, 10, 10), (20, 0, 10)],
            &[(0, 0, u32::MAX)],
        ] {
            assert_eq!(map(good).map(|lines| lines.len()), Ok(good.len()), "{good:?}");
        }
        for bad in [
            &[][..],
            &[(0, 1000, 0)],
            &[(0, u32::MAX, 1)],
            &[(1, 0, u32::MAX)],
            &[(0, 1000, 2), (1, 2000, 2)],
            &[(0, 1000, 2), (2, 1001, 2)],
            &[(5, 50, 5), (0, 1000, 6)],
        ] {
            assert!(map(bad).is_err(), "{bad:?}");
        }
        assert!(map(&[(0, 0, 1); 341]).is_err());
    }

    #[test]
    fn an_ordinary_user_writes_one_line_of_his_own_and_has_the_rest_written() {
        let user = HostFeatures::sample_user();
        let line = |outside, count| IdMapping { inside: 0, outside, count };
        assert_eq!(mapper(&[line(1000, 1)], 1000, &user), Mapper::Own);
        assert_eq!(mapper(&[line(1001, 1)], 1000, &user), Mapper::Helper);
        assert_eq!(mapper(&[line(1000, 2)], 1000, &user), Mapper::Helper);
        assert_eq!(mapper(&[line(1000, 1), line(5, 1)], 1000, &user), Mapper::Helper);
        assert_eq!(mapper(&[line(5, 9)], 0, &HostFeatures::sample()), Mapper::Caller);
    }
}
