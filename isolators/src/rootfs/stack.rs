//! Stacked layers: what is mounted beforehand, in which way overlayfs is told, and whose owners are shown.
//!
//! ```text
//! directory ────────────┐              idmapped, if the container has a user namespace:
//! EROFS image ─ mounted ┼─▶ lower ─┐   its root's files are then root's in every layer, and
//! ext4 file ─── mounted ┼─▶ upper ─┼─▶ overlay, nodev     one copy on the disk serves every map
//! directory ────────────┘   work  ─┘
//! ```
//!
//! Where the kernel takes layers by descriptor, everything stays detached and the host's mount table shows nothing. An older
//! kernel wants images attached: over the folders that they lie in, in the container's own mount namespace.

use std::path::Path;

use cofferdam_plan::{
    Builder, Folder, HostPath, ImageKind, Namespace, Op, OverlayApi, OverlayForm, Refusal, Slot, Stage,
    Standing, Text,
};

use crate::compile::Context;
use crate::container::Layer;
use crate::mounts::idmap;

const WHY: &str = "/root/path";

/// What a stack is made of; see [`crate::container::Rootfs::Overlay`].
pub(super) struct Stacked<'a> {
    pub(super) lower: &'a [Layer],
    pub(super) upper: &'a Path,
    pub(super) work: &'a Path,
    pub(super) onto: &'a Path,
    pub(super) disk: Option<&'a Path>,
}

pub(super) fn plan(context: &Context<'_>, builder: &mut Builder, of: &Stacked<'_>) -> Result<(), Refusal> {
    let user = user_namespace(context, builder, idmap::own)?;
    let mut planner = Planner { context, builder, user };
    let lower = of.lower.iter().map(|layer| planner.lower(layer)).collect::<Result<_, _>>()?;
    planner.user = user_namespace(context, planner.builder, idmap::own_with_root)?;
    let (upper, work) = planner.writable(of)?;
    let onto = HostPath::new(of.onto, WHY)?;
    let tree = context.root;
    let form = match context.host.overlay {
        OverlayApi::Descriptors => OverlayForm::Descriptors,
        OverlayApi::Names => OverlayForm::Names,
        OverlayApi::OptionString => OverlayForm::OptionString { at: onto.clone() },
    };
    let attached = matches!(form, OverlayForm::OptionString { .. });
    // In a user namespace overlayfs could not read its own attributes of the layers: the parent mounts it.
    let stage = if user.is_some() { Stage::Host } else { Stage::Enter };
    builder.step(stage, WHY, Op::Overlay { form, lower, upper, work, into: tree });
    if !attached {
        super::attach(context, builder, tree, onto);
    }
    Ok(())
}

/// The user namespace through which owners are shown: of a container that has one, if we are root of the host.
fn user_namespace(
    context: &Context<'_>,
    builder: &mut Builder,
    make: fn(&Context<'_>, &mut Builder, &str) -> Result<Option<Slot>, Refusal>,
) -> Result<Option<Slot>, Refusal> {
    let host = context.host;
    let can = host.standing == Standing::Host
        && host.overlay == OverlayApi::Descriptors
        && host.kernel >= idmap::SINCE;
    if can { make(context, builder, WHY) } else { Ok(None) }
}

struct Planner<'a, 'b> {
    context: &'a Context<'b>,
    builder: &'a mut Builder,
    user: Option<Slot>,
}

impl Planner<'_, '_> {
    fn lower(&mut self, layer: &Layer) -> Result<Folder, Refusal> {
        match layer {
            Layer::Directory(path) if self.user.is_some() => {
                self.clone_tree(HostPath::new(path, WHY)?).map(Folder::Tree)
            }
            Layer::Directory(path) => HostPath::new(path, WHY).map(Folder::Path),
            Layer::Erofs(path) => match self.image(ImageKind::Erofs, path)? {
                Base::Tree(tree) => Ok(Folder::Tree(tree)),
                Base::Path(path) => Ok(Folder::Path(path)),
            },
        }
    }

    fn writable(&mut self, of: &Stacked<'_>) -> Result<(Folder, Folder), Refusal> {
        if let Some(disk) = of.disk {
            return match self.image(ImageKind::Ext4, disk)? {
                Base::Tree(tree) => Ok((within(tree, of.upper)?, within(tree, of.work)?)),
                Base::Path(base) => {
                    let path = |name| HostPath::new(base.as_path().join(name), WHY).map(Folder::Path);
                    Ok((path(of.upper)?, path(of.work)?))
                }
            };
        }
        let (upper, work) = (HostPath::new(of.upper, WHY)?, HostPath::new(of.work, WHY)?);
        // Both have to be on one mount, so the folder that holds them is mapped.
        match (self.user, of.upper.parent().filter(|parent| of.work.parent() == Some(parent))) {
            (None, _) => Ok((Folder::Path(upper), Folder::Path(work))),
            (Some(_), Some(parent)) => {
                let tree = self.clone_tree(HostPath::new(parent, WHY)?)?;
                Ok((within(tree, of.upper)?, within(tree, of.work)?))
            }
            (Some(_), None) => Err(Refusal::invalid(WHY, "upper and work are not in one folder")),
        }
    }

    /// Mounts a file system that lies in a file.
    fn image(&mut self, kind: ImageKind, path: &Path) -> Result<Base, Refusal> {
        if self.context.host.standing != Standing::Host {
            let problem =
                format!("{} is an {kind} image, which only the host's root may mount", path.display());
            return Err(Refusal::unsupported(WHY, problem));
        }
        let tree = self.builder.slot("layer");
        let op = Op::MountImage { kind, path: HostPath::new(path, WHY)?, into: tree };
        self.builder.step(Stage::Host, WHY, op);
        if self.context.host.overlay == OverlayApi::Descriptors {
            self.map(tree);
            return Ok(Base::Tree(tree));
        }
        if !self.context.membership.makes(Namespace::Mount) {
            return Err(Refusal::unsupported(
                WHY,
                "layers' images need a mount namespace of the container's own",
            ));
        }
        let folder = HostPath::new(path.parent().unwrap_or(path), WHY)?;
        let onto = self.builder.slot("layer-folder");
        self.builder.step(Stage::Reach, WHY, Op::OpenDirectory { path: folder.clone(), into: onto });
        self.builder.step(Stage::Enter, WHY, Op::AttachRoot { tree, onto });
        Ok(Base::Path(folder))
    }

    fn clone_tree(&mut self, source: HostPath) -> Result<Slot, Refusal> {
        let into = self.builder.slot("layer");
        let op = Op::CloneTree { source, recursive: false, no_follow: true, into };
        self.builder.step(Stage::Host, WHY, op);
        self.map(into);
        Ok(into)
    }

    fn map(&mut self, tree: Slot) {
        if let Some(user) = self.user {
            self.builder.step(Stage::Host, WHY, Op::MapTree { tree, user, recursive: false });
        }
    }
}

/// Where a mounted file system is.
enum Base {
    Tree(Slot),
    Path(HostPath),
}

fn within(tree: Slot, path: &Path) -> Result<Folder, Refusal> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Text::new(name.into_owned(), WHY).map(|name| Folder::Within(tree, name))
}
