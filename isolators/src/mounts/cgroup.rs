//! Mounts of type cgroup. runtime-spec config-linux.md, "Control groups"; cgroup_namespaces(7).

use cofferdam_plan::op::FilesystemOption;
use cofferdam_plan::{
    Builder, CgroupLayout, ContainerPath, Create, HostPath, MountAttributes, Namespace, Op, Propagation,
    Refusal, Slot, Stage, Text, V1Hierarchy,
};
use oci_spec::runtime::Mount;

use super::{data, place};
use crate::cgroups;
use crate::compile::Context;
use crate::mount_options::MountOptions;

/// The container's own view, in its cgroup namespace where it has one.
pub(super) fn plan(
    context: &Context<'_>,
    builder: &mut Builder,
    mount: &Mount,
    options: &MountOptions,
    at: &ContainerPath,
    pointer: &str,
) -> Result<(), Refusal> {
    cgroups::plan_namespace(context, builder)?;
    // Engines say "cgroup" for whatever the host has; who says "cgroup2" means that.
    let second = mount.typ().as_deref() == Some("cgroup2");
    match &context.host.cgroups {
        CgroupLayout::V2 { mount_point, own_path, .. }
        | CgroupLayout::V1 { unified: Some(V1Hierarchy { mount_point, own_path, .. }), .. }
            if second || context.host.cgroups.is_v2() =>
        {
            let tree = builder.slot(format!("{at}"));
            hierarchy(
                context,
                builder,
                options,
                ("cgroup2", Vec::new()),
                (mount_point, own_path),
                tree,
                pointer,
            )?;
            place(context, builder, options, tree, at.clone(), Create::RealDirectory, pointer);
            Ok(())
        }
        CgroupLayout::V1 { .. } if second => {
            Err(Refusal::unsupported(pointer, "this host mounts no hierarchy of cgroup version 2"))
        }
        CgroupLayout::V1 { hierarchies, .. } => {
            let filled = super::is_filled(context, mount);
            plan_v1(context, builder, options, (hierarchies, filled), at, pointer)
        }
        CgroupLayout::V2 { .. } | CgroupLayout::None => {
            Err(Refusal::unsupported(pointer, "this host mounts no cgroup hierarchy"))
        }
    }
}

/// Version 1: a tmpfs with one mount a hierarchy, and links for controllers that share one.
fn plan_v1(
    context: &Context<'_>,
    builder: &mut Builder,
    options: &MountOptions,
    (hierarchies, filled): (&[V1Hierarchy], bool),
    at: &ContainerPath,
    pointer: &str,
) -> Result<(), Refusal> {
    let base = builder.slot(format!("{at}"));
    let tmpfs = Op::NewFilesystem {
        kind: Text::new("tmpfs", pointer)?,
        source: Some(Text::new("tmpfs", pointer)?),
        covers: None,
        options: data(&["mode=755".into()], pointer)?,
        attributes: MountAttributes::NO_SUID | MountAttributes::NO_DEV | MountAttributes::NO_EXEC,
        into: base,
    };
    builder.step(Stage::Enter, pointer, tmpfs);
    place(context, builder, options, base, at.clone(), Create::RealDirectory, pointer);
    for V1Hierarchy { controllers, mount_point, own_path, .. } in hierarchies {
        let joined = controllers.join(",");
        let name = joined.trim_start_matches("name=");
        let tree = builder.slot(format!("{at}/{name}"));
        let words = data(&v1_words(controllers), pointer)?;
        hierarchy(context, builder, options, ("cgroup", words), (mount_point, own_path), tree, pointer)?;
        let path = ContainerPath::new(format!("{at}/{name}"), pointer)?;
        let op = Op::Place { tree, root: context.root, at: path, create: Create::RealDirectory };
        builder.step(Stage::Enter, pointer, op);
        for controller in controllers.iter().filter(|_| controllers.len() > 1) {
            let link = ContainerPath::new(format!("{at}/{controller}"), pointer)?;
            let target = Text::new(joined.as_str(), pointer)?;
            builder.step(Stage::Enter, pointer, Op::MakeSymlink { root: context.root, target, at: link });
        }
    }
    // What is mounted in it later may need a directory: see `mounts::plan_read_only`.
    if !filled && options.attributes.set & MountAttributes::READ_ONLY != 0 {
        let attributes = MountAttributes { set: MountAttributes::READ_ONLY, ..MountAttributes::default() };
        builder.step(Stage::Enter, pointer, Op::SetAttributes { tree: base, attributes });
    }
    Ok(())
}

/// One hierarchy as a detached tree: in a cgroup namespace a mount of its own, otherwise a copy of the container's
/// directory on the host.
fn hierarchy(
    context: &Context<'_>,
    builder: &mut Builder,
    options: &MountOptions,
    (kind, words): (&str, Vec<FilesystemOption>),
    (mount_point, own_path): (&str, &str),
    tree: Slot,
    pointer: &str,
) -> Result<(), Refusal> {
    if context.membership.has(Namespace::Cgroup) {
        return new(builder, kind, words, options.attributes.set, tree, pointer);
    }
    let mut attributes = options.attributes;
    let source = match cgroups::host_directory(context, mount_point, own_path)? {
        Some(directory) => directory,
        None => {
            // It is the caller's own: never to be written from inside (CVE-2023-25809).
            attributes.set |= MountAttributes::READ_ONLY;
            HostPath::new(format!("{mount_point}{}", own_path.trim_end_matches('/')), pointer)?
        }
    };
    let clone = Op::CloneTree { source, recursive: false, no_follow: true, into: tree };
    // Where the child can, after it has waited for the directory: see `cgroups::plan`.
    let stage = if context.copies_mounts() { Stage::Enter } else { context.opening() };
    builder.step(stage, pointer, clone);
    let attributes = MountAttributes { propagation: Some(Propagation::Private), ..attributes };
    builder.step(Stage::Enter, pointer, Op::SetAttributes { tree, attributes });
    Ok(())
}

/// The options that pick an existing v1 hierarchy, cgroups(7).
fn v1_words(controllers: &[String]) -> Vec<String> {
    let named = |controller: &String| controller.starts_with("name=");
    let mut words: Vec<String> = controllers.to_vec();
    if controllers.iter().all(named) {
        words.push("none".into());
    }
    words
}

fn new(
    builder: &mut Builder,
    kind: &str,
    options: Vec<(Text, Option<Text>)>,
    attributes: u64,
    into: Slot,
    pointer: &str,
) -> Result<(), Refusal> {
    let kind = Text::new(kind, pointer)?;
    let source = Some(Text::new("cgroup", pointer)?);
    let covers = None;
    builder.step(
        Stage::Enter,
        pointer,
        Op::NewFilesystem { kind, source, covers, options, attributes, into },
    );
    Ok(())
}
