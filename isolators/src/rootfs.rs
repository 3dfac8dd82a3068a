//! The root file system: a directory of the bundle, or stacked layers, made a mount of its own and pivoted into.

use cofferdam_plan::{
    Builder, HostPath, MountAttributes, Namespace, Op, OverlayApi, Propagation, Refusal, Slot, Stage, Text,
};

use crate::compile::Context;
use crate::container::Rootfs;

/// mount(2) takes at most a page of options.
const OPTION_STRING_MAX: usize = 4095;

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
        Rootfs::Overlay { lower, upper, work, onto } => overlay(context, builder, lower, upper, work, onto),
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

fn bundle_root(context: &Context<'_>) -> Result<HostPath, Refusal> {
    let root = context.spec().root().as_ref();
    let path = root.map(|root| root.path().clone()).filter(|path| !path.as_os_str().is_empty());
    let path = path.ok_or_else(|| Refusal::invalid("/root/path", "the container has no root file system"))?;
    HostPath::new(context.container.bundle.join(path), "/root/path")
}

fn attach(context: &Context<'_>, builder: &mut Builder, tree: Slot, path: HostPath) {
    let onto = builder.slot("rootfs-directory");
    // The container's root may not be able to go where its rootfs lies; the caller can.
    let stage = if context.membership.makes(Namespace::Mount) { Stage::Reach } else { Stage::Enter };
    builder.step(stage, "/root/path", Op::OpenDirectory { path, into: onto });
    builder.step(Stage::Enter, "/root/path", Op::AttachRoot { tree, onto });
}

fn overlay(
    context: &Context<'_>,
    builder: &mut Builder,
    lower: &[std::path::PathBuf],
    upper: &std::path::Path,
    work: &std::path::Path,
    onto: &std::path::Path,
) -> Result<(), Refusal> {
    let path = |path: &std::path::Path| HostPath::new(path, "/root/path");
    let (upper, work, onto) = (path(upper)?, path(work)?, path(onto)?);
    let lower = lower.iter().map(|layer| path(layer)).collect::<Result<Vec<_>, _>>()?;
    let tree = context.root;
    if context.host.overlay == OverlayApi::Descriptors {
        builder.step(
            Stage::Enter,
            "/root/path",
            Op::Overlay { lower, upper, work, options: Vec::new(), into: tree },
        );
        attach(context, builder, tree, onto);
        return Ok(());
    }
    let layers = lower.iter().map(escaped).collect::<Vec<_>>().join(":");
    let data = format!("lowerdir={layers},upperdir={},workdir={}", escaped(&upper), escaped(&work));
    if data.len() > OPTION_STRING_MAX {
        let problem = format!(
            "{} layers make {} bytes of mount options, this kernel takes {OPTION_STRING_MAX}",
            lower.len(),
            data.len()
        );
        return Err(Refusal::unsupported("/root/path", problem));
    }
    let text = |text: &str| Text::new(text, "/root/path");
    let op = Op::MountClassic {
        kind: text("overlay")?,
        source: text("overlay")?,
        data: text(&data)?,
        at: onto,
        into: tree,
    };
    builder.step(Stage::Enter, "/root/path", op);
    Ok(())
}

/// Overlay's option parser splits at `,` and `:`; a backslash takes them literally.
fn escaped(path: &HostPath) -> String {
    let text = path.as_path().to_string_lossy();
    text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
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
    let read_only = context.spec().root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let propagation = propagation(context)?;
    if let Some(propagation) = propagation {
        let recursive = propagation != Propagation::Unbindable;
        let attributes =
            MountAttributes { propagation: Some(propagation), recursive, ..MountAttributes::default() };
        builder.step(Stage::Enter, "/linux/rootfsPropagation", Op::SetRootAttributes { attributes });
    }
    if read_only {
        let attributes = MountAttributes { set: MountAttributes::READ_ONLY, ..MountAttributes::default() };
        builder.step(Stage::Enter, "/root/readonly", Op::SetRootAttributes { attributes });
    }
    Ok(())
}
