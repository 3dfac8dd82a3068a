//! The root file system: a directory of the bundle, or stacked layers, made a mount of its own and pivoted into.

use std::path::PathBuf;

use cofferdam_plan::{
    Builder, ContainerPath, HostPath, MountAttributes, Namespace, Op, Propagation, Refusal, Slot, Stage,
    Standing,
};

use crate::compile::Context;
use crate::container::Rootfs;
use crate::mounts;

mod stack;

use stack::Stacked;

/// Makes the root a mount of its own, in the container's mount namespace alone.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let shared = propagation(context)? == Some(Propagation::Shared);
    if context.membership.makes(Namespace::Mount) {
        // Nothing of the container ever propagates to the host; the host's unmounts reach the container.
        let propagation = Propagation::Slave;
        builder.step(Stage::Enter, "every container", Op::SetRootPropagation { propagation });
    }
    match context.container.rootfs {
        Rootfs::Host => Ok(()),
        // Its root is changed to where it lies, at the pivot's turn.
        Rootfs::Bundle if !context.has_root() => Ok(()),
        Rootfs::Bundle => {
            let path = bundle_root(context)?;
            let tree = context.root;
            builder.step(
                context.opening(),
                "/root/path",
                Op::CloneTree { source: path.clone(), recursive: true, no_follow: false, into: tree },
            );
            if !shared {
                builder.step(Stage::Enter, "/root/path", slave(tree));
            }
            attach(context, builder, tree, path);
            Ok(())
        }
        Rootfs::Overlay { lower, upper, work, onto, disk } => {
            stack::plan(context, builder, &Stacked { lower, upper, work, onto, disk: disk.as_deref() })
        }
        Rootfs::Directory(path) => {
            let path = HostPath::new(path, "/root/path")?;
            let tree = context.root;
            let op = Op::CloneTree { source: path.clone(), recursive: false, no_follow: true, into: tree };
            builder.step(context.opening(), "/root/path", op);
            if context.host.standing == Standing::Host
                && let Some(user) = mounts::idmap::own(context, builder, "/root/path")?
            {
                let op = Op::MapTree { tree, user, recursive: false };
                builder.step(Stage::Host, "/root/path", op);
            }
            // As over stacked layers: device nodes of an image are names without power.
            let set = MountAttributes::NO_DEV;
            let propagation = (!shared).then_some(Propagation::Slave);
            let attributes = MountAttributes { set, propagation, ..MountAttributes::default() };
            builder.step(Stage::Enter, "/root/path", Op::SetAttributes { tree, attributes });
            attach(context, builder, tree, path);
            Ok(())
        }
    }
}

fn slave(tree: Slot) -> Op {
    let attributes = MountAttributes {
        propagation: Some(Propagation::Slave),
        recursive: true,
        ..MountAttributes::default()
    };
    Op::SetAttributes { tree, attributes }
}

/// Where the root lies on the host, or is going to be mounted; `None` where the container has none of its own.
pub(crate) fn directory(context: &Context<'_>) -> Option<PathBuf> {
    match context.container.rootfs {
        Rootfs::Host => None,
        Rootfs::Overlay { onto, .. } | Rootfs::Directory(onto) => Some(onto.clone()),
        Rootfs::Bundle => {
            let root = context.spec().root().as_ref()?.path();
            (!root.as_os_str().is_empty()).then(|| context.container.bundle.join(root))
        }
    }
}

fn bundle_root(context: &Context<'_>) -> Result<HostPath, Refusal> {
    let path = directory(context)
        .ok_or_else(|| Refusal::invalid("/root/path", "the container has no root file system"))?;
    HostPath::new(path, "/root/path")
}

fn attach(context: &Context<'_>, builder: &mut Builder, tree: Slot, path: HostPath) {
    let onto = builder.slot("rootfs-directory");
    // The container's root may not be able to go where its rootfs lies; the caller can.
    let stage = if context.membership.makes(Namespace::Mount) { Stage::Reach } else { Stage::Enter };
    builder.step(stage, "/root/path", Op::OpenDirectory { path, into: onto });
    builder.step(Stage::Enter, "/root/path", Op::AttachRoot { tree, onto });
}

/// `linux.rootfsPropagation`, its r-forms meaning the same.
pub(crate) fn propagation(context: &Context<'_>) -> Result<Option<Propagation>, Refusal> {
    let word = context.linux().and_then(|linux| linux.rootfs_propagation().as_deref()).unwrap_or_default();
    Ok(match word {
        "" => None,
        "shared" | "rshared" => Some(Propagation::Shared),
        "slave" | "rslave" => Some(Propagation::Slave),
        "private" | "rprivate" => Some(Propagation::Private),
        "unbindable" | "runbindable" => Some(Propagation::Unbindable),
        other => {
            return Err(Refusal::invalid(
                "/linux/rootfsPropagation",
                format!("unknown propagation {other:?}"),
            ));
        }
    })
}

/// Pivots, then gives the new root its final attributes.
pub fn plan_pivot(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    if !context.has_root() {
        if *context.container.rootfs == Rootfs::Bundle {
            builder.step(Stage::Enter, "/root/path", Op::ChangeRoot { path: bundle_root(context)? });
        }
        return Ok(());
    }
    let root = context.root;
    let op = if context.container.no_pivot { Op::MoveRoot { root } } else { Op::Pivot { root } };
    builder.step(Stage::Enter, "every container", op);
    let read_only = read_only(context)?;
    let propagation = propagation(context)?;
    if let Some(propagation) = propagation {
        let recursive = propagation != Propagation::Unbindable;
        let attributes =
            MountAttributes { propagation: Some(propagation), recursive, ..MountAttributes::default() };
        builder.step(Stage::Enter, "/linux/rootfsPropagation", Op::SetRootAttributes { attributes });
    }
    if let Some(pointer) = read_only {
        let attributes = MountAttributes { set: MountAttributes::READ_ONLY, ..MountAttributes::default() };
        builder.step(Stage::Enter, pointer, Op::SetRootAttributes { attributes });
    }
    Ok(())
}

/// Where the configuration asks for a read-only root.
fn read_only(context: &Context<'_>) -> Result<Option<String>, Refusal> {
    if context.spec().root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
        return Ok(Some("/root/readonly".to_owned()));
    }
    let paths = context.linux().and_then(|linux| linux.readonly_paths().as_deref()).unwrap_or_default();
    for (index, path) in paths.iter().enumerate() {
        let pointer = format!("/linux/readonlyPaths/{index}");
        if ContainerPath::new(path, &pointer)?.as_bytes() == b"/" {
            return Ok(Some(pointer));
        }
    }
    Ok(None)
}
