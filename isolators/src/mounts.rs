//! Mounts, masked and read-only paths. runtime-spec config.md, "Mounts"; config-linux.md, "Masked Paths".

use std::path::Path;

use cofferdam_plan::{
    Builder, ContainerPath, Create, HostPath, MountAttributes, Namespace, Op, Propagation, Refusal, Slot,
    Stage, Standing, Text,
};
use oci_spec::runtime::Mount;

use crate::compile::Context;
use crate::container::Rootfs;
use crate::devices::CHARACTER;
use crate::mount_options::{Bind, LOCKABLE, MountOptions, parse};
use crate::{labels, rootfs};

mod cgroup;
pub(crate) mod idmap;

/// Most mounts of one container.
const MOUNTS_MAX: usize = 1024;

/// The files of procfs that may be bound over, as lxcfs does; anything else below /proc is a way to fool whoever reads it.
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Every entry of `mounts`, in order.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let mounts = context.spec().mounts().as_deref().unwrap_or_default();
    if !context.has_root() {
        if mounts.is_empty() {
            return Ok(());
        }
        if *context.container.rootfs == Rootfs::Host {
            let problem = "a host command keeps the host's root and takes no mounts";
            return Err(Refusal::invalid("/mounts", problem));
        }
        builder.warn("/mounts: nothing is mounted without a mount namespace");
        return Ok(());
    }
    if mounts.len() > MOUNTS_MAX {
        return Err(Refusal::invalid("/mounts", format!("{} mounts, at most {MOUNTS_MAX}", mounts.len())));
    }
    for (index, mount) in mounts.iter().enumerate() {
        if !is_cgroup(mount) || !may_wait(context, mount) {
            plan_one(context, builder, mount, &format!("/mounts/{index}"))?;
        }
    }
    Ok(())
}

/// The cgroup mounts: last of all, because the child must be in its cgroup first, and being put there takes the parent as
/// long as everything else takes the child.
pub fn plan_cgroups(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let mounts = context.spec().mounts().as_deref().unwrap_or_default();
    for (index, mount) in mounts.iter().enumerate().filter(|_| context.has_root()) {
        if is_cgroup(mount) && may_wait(context, mount) {
            plan_one(context, builder, mount, &format!("/mounts/{index}"))?;
        }
    }
    Ok(())
}

/// Whether it shows cgroups, as a mount of its own kind.
pub(crate) fn is_cgroup(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
        && !mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// Whether nothing else is mounted, masked or made read-only at or below this mount.
fn may_wait(context: &Context<'_>, mount: &Mount) -> bool {
    let at = mount.destination();
    let linux = context.linux();
    let paths =
        |list: Option<&Vec<String>>| list.into_iter().flatten().any(|path| Path::new(path).starts_with(at));
    let below =
        context.spec().mounts().iter().flatten().filter(|other| other.destination().starts_with(at)).count();
    below == 1
        && !paths(linux.and_then(|linux| linux.masked_paths().as_ref()))
        && !paths(linux.and_then(|linux| linux.readonly_paths().as_ref()))
}

fn plan_one(
    context: &Context<'_>,
    builder: &mut Builder,
    mount: &Mount,
    pointer: &str,
) -> Result<(), Refusal> {
    let options = parse(mount.options().as_deref().unwrap_or_default());
    let at = destination(context, mount, pointer)?;
    if mount.destination().is_relative() {
        builder.warn(format!("{pointer}/destination: is not absolute and is taken from the root, as {at}"));
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bound = options.bind.or((kind == "bind").then_some(Bind::One));
    check_destination(&at, kind, bound.is_some(), pointer)?;
    let locked = context.membership.has(Namespace::User) || context.host.standing != Standing::Host;
    let options = match bound {
        Some(_) if !options.remount => options.of_bind(locked),
        Some(_) => options,
        None => options.of_new(),
    };
    if bound.is_none() && idmap::is_asked(mount, &options) {
        return Err(Refusal::unsupported(format!("{pointer}/uidMappings"), "only bind mounts are idmapped"));
    }
    if options.copy_up && (bound.is_some() || kind != "tmpfs") {
        return Err(Refusal::invalid(format!("{pointer}/options"), "tmpcopyup is for a mount of type tmpfs"));
    }
    if options.fill_empty && bound.is_none() {
        return Err(Refusal::invalid(format!("{pointer}/options"), "copyup is for a bind mount"));
    }
    if options.remount && bound.is_none() {
        let attributes = options.attributes;
        builder.step(Stage::Enter, pointer, Op::SetAttributesAt { root: context.root, at, attributes });
        return Ok(());
    }
    match (bound, kind) {
        (Some(bind), _) => plan_bind(context, builder, mount, &options, bind, at, pointer),
        (None, "cgroup" | "cgroup2") => cgroup::plan(context, builder, mount, &options, &at, pointer),
        (None, "") => {
            Err(Refusal::invalid(format!("{pointer}/type"), "a mount needs a type, or the option bind"))
        }
        (None, kind) => plan_new(context, builder, mount, &options, kind, at, pointer),
    }
}

/// Where a mount goes. Some engines say it as the host sees it, below the container's root: that is taken off, as with runc.
fn destination(context: &Context<'_>, mount: &Mount, pointer: &str) -> Result<ContainerPath, Refusal> {
    let pointer = format!("{pointer}/destination");
    match inside(context, mount.destination(), &pointer)? {
        Some(at) => Ok(at),
        None => ContainerPath::new(mount.destination(), &pointer),
    }
}

/// A path of the host that lies in the container's root, as the container sees it.
fn inside(context: &Context<'_>, path: &Path, pointer: &str) -> Result<Option<ContainerPath>, Refusal> {
    let root = rootfs::directory(context).filter(|root| root != Path::new("/"));
    let below = root.as_deref().and_then(|root| path.strip_prefix(root).ok());
    below.map(|below| ContainerPath::new(below, pointer)).transpose()
}

fn check_destination(at: &ContainerPath, kind: &str, bound: bool, pointer: &str) -> Result<(), Refusal> {
    let pointer = format!("{pointer}/destination");
    if at.as_bytes() == b"/" {
        return Err(Refusal::invalid(pointer, "a mount cannot replace the container's root"));
    }
    let inside_proc = at.is_at_or_below("/proc") && at.as_bytes() != b"/proc";
    if inside_proc && !PROC_FILES.contains(&at.to_string().as_str()) {
        let problem = format!("{at} is inside /proc; only {} may be mounted there", PROC_FILES.join(" "));
        return Err(Refusal::invalid(pointer, problem));
    }
    if at.as_bytes() == b"/proc" && !bound && kind != "proc" {
        return Err(Refusal::invalid(pointer, format!("/proc takes a mount of type proc, not {kind:?}")));
    }
    Ok(())
}

/// Options of a volume that podman and buildah have followed themselves, and hand on all the same: labels, shared or private,
/// and the owner.
const DONE_BY_THE_ENGINE: &[&str] = &["z", "Z", "U"];

fn plan_bind(
    context: &Context<'_>,
    builder: &mut Builder,
    mount: &Mount,
    options: &MountOptions,
    bind: Bind,
    at: ContainerPath,
    pointer: &str,
) -> Result<(), Refusal> {
    let source = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty());
    let source =
        source.ok_or_else(|| Refusal::invalid(format!("{pointer}/source"), "a bind mount needs a source"))?;
    let source = context.container.bundle.join(source);
    if !options.data.is_empty() {
        let words = options.data.join(",");
        let text = format!("{pointer}/options: {words} means nothing to a bind mount and is dropped");
        if options.data.iter().all(|word| DONE_BY_THE_ENGINE.contains(&word.as_str())) {
            builder.remark(text);
        } else {
            builder.warn(text);
        }
    }
    let tree = builder.slot(format!("{at}"));
    let (recursive, no_follow) = (bind == Bind::Tree, options.source_no_follow || options.copy_symlink);
    let stage = match inside(context, &source, &format!("{pointer}/source"))? {
        // What earlier mounts put there is what is meant: it is there in the child only, and for the container's root to see.
        Some(source) => {
            let op = Op::CloneInside { root: context.root, source, recursive, no_follow, into: tree };
            builder.step(Stage::Enter, pointer, op);
            Stage::Enter
        }
        None => {
            let source = HostPath::new(source, &format!("{pointer}/source"))?;
            let op = Op::CloneTree { source, recursive, no_follow, into: tree };
            builder.step(clone_stage(context, mount, options), pointer, op);
            Stage::Host
        }
    };
    idmap::plan(context, builder, mount, options, (tree, stage), pointer)?;
    // Without a word about propagation a bind follows its source one way, and never the other.
    let (propagation, whole) = options.propagation.unwrap_or((Propagation::Slave, true));
    let attributes =
        MountAttributes { propagation: Some(propagation), recursive: whole, ..MountAttributes::default() };
    builder.step(Stage::Enter, pointer, Op::SetAttributes { tree, attributes });
    if options.fill_empty {
        builder.step(Stage::Enter, pointer, Op::FillEmpty { tree, root: context.root, at: at.clone() });
    }
    // What is said of the mount takes back what is not; what is said of the tree holds beside it.
    for attributes in [options.attributes, options.recursive] {
        if !attributes.is_empty() {
            // Copied by the parent, it has none of the locks that the container's user namespace stands for.
            let outside = stage == Stage::Host;
            let locks =
                outside && context.membership.has(Namespace::User) && attributes.clear & LOCKABLE != 0;
            let op = match locks {
                true => Op::SetUnlocked { tree, attributes },
                false => Op::SetAttributes { tree, attributes },
            };
            builder.step(Stage::Enter, pointer, op);
        }
    }
    let create = match (options.copy_symlink, options.destination_no_follow) {
        (true, _) => Create::LinkOrTree,
        (false, true) => Create::LikeTreeUnfollowed,
        (false, false) => Create::LikeTree,
    };
    builder.step(Stage::Enter, pointer, Op::Place { tree, root: context.root, at, create });
    Ok(())
}

/// The child clones the sources that it can reach, among everything else that it mounts: the kernel lists mounts by age, and
/// whoever reads the list takes it for the order of the configuration. The parent clones what the child cannot: sources
/// that another mount namespace or the ids of a user namespace hide, owners that are mapped, and those that must stay
/// peers of the host's own mount, which the child's copy has ceased to be.
fn clone_stage(context: &Context<'_>, mount: &Mount, options: &MountOptions) -> Stage {
    let hidden = !context.copies_mounts();
    let shared = Some(Propagation::Shared);
    let peer = options.propagation.map(|(propagation, _)| propagation) == shared
        && rootfs::propagation(context).ok().flatten() == shared;
    if hidden || peer || idmap::is_asked(mount, options) { context.opening() } else { Stage::Enter }
}

fn plan_new(
    context: &Context<'_>,
    builder: &mut Builder,
    mount: &Mount,
    options: &MountOptions,
    kind: &str,
    at: ContainerPath,
    pointer: &str,
) -> Result<(), Refusal> {
    let tree = if kind == "proc" && at.as_bytes() == b"/proc" {
        context.proc
    } else {
        builder.slot(format!("{at}"))
    };
    let create = match kind {
        "proc" | "sysfs" | "devpts" | "mqueue" => Create::RealDirectory,
        _ => Create::Directory,
    };
    let source = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty());
    let source = source
        .map(|source| Text::new(source.as_os_str().as_encoded_bytes(), &format!("{pointer}/source")))
        .transpose()?;
    let mut words = data(&options.data, pointer)?;
    words.extend(labels::mount_option(context.spec(), context.host, kind, builder)?);
    // What is filled first cannot be read-only yet.
    let late = if options.copy_up || is_filled(context, mount) {
        options.attributes.set & MountAttributes::READ_ONLY
    } else {
        0
    };
    let filesystem = Op::NewFilesystem {
        kind: Text::new(kind, &format!("{pointer}/type"))?,
        source,
        covers: takes_mode(kind, &options.data).then(|| (context.root, at.clone())),
        options: words,
        attributes: options.attributes.set & !late,
        into: tree,
    };
    builder.step(Stage::Enter, pointer, filesystem);
    if options.copy_up {
        builder.step(Stage::Enter, pointer, Op::CopyUp { tree, root: context.root, at: at.clone() });
    }
    if late != 0 && options.copy_up && !is_filled(context, mount) {
        let attributes = MountAttributes { set: late, ..MountAttributes::default() };
        builder.step(Stage::Enter, pointer, Op::SetAttributes { tree, attributes });
    }
    place(context, builder, options, tree, at, create, pointer);
    Ok(())
}

/// Whether more is put into a mount after it is placed: the nodes of /dev, or other mounts. A read-only one becomes that
/// when everything is in it.
fn is_filled(context: &Context<'_>, mount: &Mount) -> bool {
    let at = mount.destination();
    let below = |other: &Mount| other.destination() != at && other.destination().starts_with(at);
    // Every other kind of file system has its directories already.
    (mount.typ().as_deref() == Some("tmpfs") || is_cgroup(mount))
        && (at == Path::new("/dev") || context.spec().mounts().iter().flatten().any(below))
}

/// Makes read-only what had to be written to until now.
pub fn plan_read_only(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let mounts = context.spec().mounts().as_deref().unwrap_or_default();
    for (index, mount) in mounts.iter().enumerate().filter(|_| context.has_root()) {
        let kind = mount.typ().as_deref().unwrap_or_default();
        let options = parse(mount.options().as_deref().unwrap_or_default());
        let new = kind != "bind" && options.bind.is_none() && !options.remount;
        let set = options.of_new().attributes.set & MountAttributes::READ_ONLY;
        if new && set != 0 && is_filled(context, mount) {
            let pointer = format!("/mounts/{index}");
            let at = destination(context, mount, &pointer)?;
            let attributes = MountAttributes { set, ..MountAttributes::default() };
            builder.step(Stage::Enter, pointer, Op::SetAttributesAt { root: context.root, at, attributes });
        }
    }
    Ok(())
}

/// A tmpfs without a mode of its own has that of the directory under it, as with runc: /run stays 0755.
fn takes_mode(kind: &str, options: &[String]) -> bool {
    kind == "tmpfs" && !options.iter().any(|option| option.starts_with("mode="))
}

fn place(
    context: &Context<'_>,
    builder: &mut Builder,
    options: &MountOptions,
    tree: Slot,
    at: ContainerPath,
    create: Create,
    pointer: &str,
) {
    if let Some((propagation, recursive)) = options.propagation {
        let attributes =
            MountAttributes { propagation: Some(propagation), recursive, ..MountAttributes::default() };
        builder.step(Stage::Enter, pointer, Op::SetAttributes { tree, attributes });
    }
    builder.step(Stage::Enter, pointer, Op::Place { tree, root: context.root, at, create });
}

fn data(words: &[String], pointer: &str) -> Result<Vec<(Text, Option<Text>)>, Refusal> {
    let pointer = format!("{pointer}/options");
    let option = |word: &String| {
        let (key, value) =
            word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value)));
        Ok((Text::new(key, &pointer)?, value.map(|value| Text::new(value, &pointer)).transpose()?))
    };
    words.iter().map(option).collect()
}

/// Masked and read-only paths.
pub fn plan_masks(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let linux = context.linux();
    let masked = linux.and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default();
    let read_only = linux.and_then(|linux| linux.readonly_paths().as_deref()).unwrap_or_default();
    if !context.has_root() {
        let unmet = !masked.is_empty() || !read_only.is_empty();
        if unmet && *context.container.rootfs == Rootfs::Bundle {
            builder.warn("/linux: nothing is masked or made read-only without a mount namespace");
        }
        return Ok(());
    }
    let root = context.root;
    for (index, path) in unique(read_only) {
        let pointer = format!("/linux/readonlyPaths/{index}");
        let at = ContainerPath::new(path, &pointer)?;
        if at.as_bytes() == b"/" {
            continue; // a mount on top of the root would be beside the container's way: see `rootfs::plan_pivot`
        }
        builder.step(Stage::Enter, pointer, Op::MakeReadOnly { root, at });
    }
    if masked.is_empty() {
        return Ok(());
    }
    let (directory, file) = (builder.slot("empty"), builder.slot("null"));
    let mut words = data(&["nr_blocks=1".into(), "nr_inodes=1".into()], "/linux/maskedPaths")?;
    words.extend(labels::mount_option(context.spec(), context.host, "tmpfs", builder)?);
    let empty = Op::NewFilesystem {
        kind: Text::new("tmpfs", "/linux/maskedPaths")?,
        source: Some(Text::new("tmpfs", "/linux/maskedPaths")?),
        covers: None,
        options: words,
        attributes: MountAttributes::READ_ONLY
            | MountAttributes::NO_SUID
            | MountAttributes::NO_DEV
            | MountAttributes::NO_EXEC,
        into: directory,
    };
    builder.step(Stage::Enter, "/linux/maskedPaths", empty);
    let null = HostPath::new("/dev/null", "/linux/maskedPaths")?;
    builder.step(
        Stage::Enter,
        "/linux/maskedPaths",
        Op::OpenDevice { path: null, kind: CHARACTER, major: 1, minor: 3, into: file },
    );
    for (index, path) in unique(masked) {
        let pointer = format!("/linux/maskedPaths/{index}");
        let at = ContainerPath::new(path, &pointer)?;
        if at.as_bytes() == b"/" {
            return Err(Refusal::invalid(pointer, "the root itself cannot be masked"));
        }
        builder.step(Stage::Enter, pointer, Op::Mask { root, at, directory, file });
    }
    Ok(())
}

/// The entries of a list with their index, a repeated one once.
fn unique(paths: &[String]) -> impl Iterator<Item = (usize, &String)> {
    paths.iter().enumerate().filter(|(index, path)| !paths[..*index].contains(path))
}
