//! Idmapped mounts: owners shown through the maps of a user namespace. runtime-spec config.md, `uidMappings` and
//! `gidMappings` of a mount; mount_setattr(2), "ID-mapped mounts".

use cofferdam_plan::{Builder, IdMapping, Namespace, Op, Refusal, Slot, Stage, Standing};
use oci_spec::runtime::Mount;

use crate::compile::Context;
use crate::mount_options::{Bind, MountOptions};
use crate::namespaces::{mappings, own_maps};

/// First kernel that maps the owners of a mount.
pub(crate) const SINCE: (u32, u32) = (5, 12);

/// Whether a mount asks for a map, by its own lists or by an option.
pub(super) fn is_asked(mount: &Mount, options: &MountOptions) -> bool {
    let listed = |map: &Option<Vec<_>>| map.as_ref().is_some_and(|map| !map.is_empty());
    options.idmap.is_some() || listed(mount.uid_mappings()) || listed(mount.gid_mappings())
}

/// Maps the detached tree of a bind mount, while it is still the parent's: it takes rights over the file system's own
/// user namespace, which a container's root does not have. A tree that the child has made is mapped by the child, where it
/// is in no user namespace of its own.
pub(super) fn plan(
    context: &Context<'_>,
    builder: &mut Builder,
    mount: &Mount,
    options: &MountOptions,
    (tree, stage): (Slot, Stage),
    pointer: &str,
) -> Result<(), Refusal> {
    if !is_asked(mount, options) {
        return Ok(());
    }
    let unsupported = |problem: &str| Err(Refusal::unsupported(format!("{pointer}/uidMappings"), problem));
    if context.host.kernel < SINCE {
        return unsupported("idmapped mounts are from Linux 5.12");
    }
    if context.host.standing != Standing::Host {
        return unsupported("idmapped mounts need root");
    }
    if stage != Stage::Host && context.membership.has(Namespace::User) {
        return unsupported(
            "the source is in the container's own root, which only the container sees, and in a user namespace it cannot \
             map owners: name the source by where it is mounted from",
        );
    }
    let user = namespace(context, builder, mount, pointer)?;
    let recursive = options.idmap == Some(Bind::Tree);
    builder.step(stage, pointer, Op::MapTree { tree, user, recursive });
    Ok(())
}

/// The user namespace with the maps: the mount's own lists, or what the container has.
fn namespace(
    context: &Context<'_>,
    builder: &mut Builder,
    mount: &Mount,
    pointer: &str,
) -> Result<Slot, Refusal> {
    let (uids, gids) = (
        mount.uid_mappings().as_deref().unwrap_or_default(),
        mount.gid_mappings().as_deref().unwrap_or_default(),
    );
    if uids.is_empty() != gids.is_empty() {
        let problem = "uidMappings and gidMappings of a mount come together";
        return Err(Refusal::invalid(format!("{pointer}/uidMappings"), problem));
    }
    if !uids.is_empty() {
        let uids = mappings(uids, &format!("{pointer}/uidMappings"))?;
        let gids = mappings(gids, &format!("{pointer}/gidMappings"))?;
        return Ok(make(builder, uids, gids, pointer));
    }
    if let Some(user) = own(context, builder, pointer)? {
        return Ok(user);
    }
    let joined = builder.find(|op| match op {
        Op::OpenNamespace { kind: Namespace::User, into, .. } => Some(*into),
        _ => None,
    });
    joined.ok_or_else(|| {
        let problem = "needs uidMappings and gidMappings, or a user namespace of the container";
        Refusal::invalid(format!("{pointer}/options"), problem)
    })
}

/// A namespace with the maps of the container's own; `None` if it has none, or joins one without saying its maps.
pub(crate) fn own(
    context: &Context<'_>,
    builder: &mut Builder,
    pointer: &str,
) -> Result<Option<Slot>, Refusal> {
    let maps = own_maps(context.spec())?;
    Ok(maps.map(|(uids, gids)| make(builder, uids, gids, pointer)))
}

/// The same with a place for the host's root: overlayfs, mounted by it, makes things in its upper layer in that name, and
/// what has no id there cannot be made.
pub(crate) fn own_with_root(
    context: &Context<'_>,
    builder: &mut Builder,
    pointer: &str,
) -> Result<Option<Slot>, Refusal> {
    /// An id that no image has: the last but one that exists.
    const ROOT_AS: u32 = u32::MAX - 2;
    let with_root = |mut map: Vec<IdMapping>| {
        if map.iter().all(|line| line.outside != 0) {
            map.push(IdMapping { inside: ROOT_AS, outside: 0, count: 1 });
        }
        map
    };
    let maps = own_maps(context.spec())?;
    Ok(maps.map(|(uids, gids)| make(builder, with_root(uids), with_root(gids), pointer)))
}

/// One namespace for all mounts with these maps: an engine gives a dozen of a pod the same.
fn make(builder: &mut Builder, uids: Vec<IdMapping>, gids: Vec<IdMapping>, pointer: &str) -> Slot {
    let made = builder.find(|op| match op {
        Op::MakeUserNamespace { uids: u, gids: g, into } if (u, g) == (&uids, &gids) => Some(*into),
        _ => None,
    });
    made.unwrap_or_else(|| {
        let into = builder.slot("idmap");
        builder.step(Stage::Host, pointer, Op::MakeUserNamespace { uids, gids, into });
        into
    })
}
