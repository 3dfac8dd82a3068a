//! Making a layer's tree in a staging directory, entry by entry, relative to descriptors.
//!
//! The tree that results is a function of the layer's tar alone. What overlayfs needs is written the way overlayfs reads it:
//! a deleted name is a character device 0:0, an opaque directory carries `trusted.overlay.opaque`. Both are made in the
//! last pass, so the order of entries in the archive does not matter; so are the directories' owners, modes and times, since
//! set-group-id bits and default ACLs must not leak into what is created below them.
//!
//! The staging directory is private (0700, root's), but the names come from the network: no path is ever handed to the
//! kernel that could leave the tree (see [`crate::directory`]). All this runs on a thread that could not reach anything else
//! (see [`crate::unpack`]), whose file mode mask is 0 and whose working directory is its own.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::attributes::Maker;
pub(crate) use crate::attributes::apply;
use crate::backend::{Contents, Deletion, Sink, deletion};
use crate::directory::{Directory, Tree, join};
use crate::entry::{Attributes, Entry, Node};
use crate::error::LayerError;
use crate::filler::Filler;
use crate::limits::WARNING_LIMIT;

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// A tree in the making.
pub(crate) struct Extractor {
    tree: Tree,
    maker: Maker,
    filler: Filler,
    /// Parent and name of every deletion, and parents with the empty name for opaque ones.
    whiteouts: Vec<(Vec<u8>, Vec<u8>)>,
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    replaced: Option<Vec<u8>>,
    warnings: Vec<String>,
}

impl Sink for Extractor {
    fn add(&mut self, entry: Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
        self.make(entry, contents)
    }

    fn finish(self: Box<Self>) -> Result<Extracted, LayerError> {
        self.complete()
    }
}

/// What a finished tree cannot say about itself.
#[derive(Debug, Default)]
pub(crate) struct Extracted {
    /// Directories that the layer uses but does not describe, by path; the root is the empty path.
    pub(crate) implied: Vec<Vec<u8>>,
    /// Hard links to files of lower layers: name and target.
    pub(crate) links: Vec<(Vec<u8>, Vec<u8>)>,
    /// The layer hides everything below it. overlayfs does not read this from a layer's root.
    pub(crate) opaque_root: bool,
    /// Directories that hold marks of deleted names.
    pub(crate) marked: BTreeSet<Vec<u8>>,
    /// The first name that an entry took away from an earlier one, whose data the tree has no more.
    pub(crate) replaced: Option<Vec<u8>>,
    pub(crate) warnings: Vec<String>,
}

impl Extractor {
    /// `root` is an empty directory.
    pub(crate) fn new(root: OwnedFd) -> Result<Extractor, LayerError> {
        let maker = Maker::at(&root).map_err(LayerError::entry_io(b"", "prepare the root"))?;
        Ok(Extractor {
            tree: Tree::new(root),
            maker,
            filler: Filler::new(maker),
            whiteouts: Vec::new(),
            links: BTreeMap::new(),
            replaced: None,
            warnings: Vec::new(),
        })
    }

    /// Makes one entry, reading its data from `contents`.
    fn make(&mut self, entry: Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
        for name in &entry.dropped {
            self.warn(&entry.name, &format!("attribute {name} is left out"));
        }
        let (parent, base) = split(&entry.name);
        match deletion(&entry)? {
            None => {}
            Some(Deletion::Nothing) => return Ok(()),
            Some(Deletion::Below) => return self.remember_whiteout(parent, b""),
            Some(Deletion::Name(name)) => return self.remember_whiteout(parent, &name),
        }
        if base.is_empty() {
            return self.tree.describe(Vec::new(), entry.attributes).map(drop);
        }
        let parent = self.tree.make_directories(parent)?;
        match &entry.node {
            Node::Directory => self.make_directory(&parent, base, entry.attributes),
            Node::File | Node::Sparse(..) => self.make_file(&parent, entry, contents),
            Node::Hardlink(target) => self.make_link(&parent, base, &entry.name, target),
            Node::Symlink(target) => {
                self.replace(&parent, base, &entry.name, |dir| {
                    rustix::fs::symlinkat(target.as_slice(), dir, base)
                })?;
                self.maker.finish_node(&parent.fd, base, &entry, false)
            }
            Node::Character(device) => {
                self.make_node(&parent, base, &entry, FileType::CharacterDevice, *device)
            }
            Node::Block(device) => self.make_node(&parent, base, &entry, FileType::BlockDevice, *device),
            Node::Fifo => self.make_node(&parent, base, &entry, FileType::Fifo, 0),
        }
    }

    /// The last pass: deletions, then the directories' attributes.
    fn complete(mut self) -> Result<Extracted, LayerError> {
        self.filler.finish()?;
        let (opaque_root, marked) = self.apply_whiteouts()?;
        let mut implied = Vec::new();
        for (path, state) in self.tree.take_directories() {
            let directory = self.tree.open(&path)?;
            let attributes = state.attributes.unwrap_or_else(|| Box::new(Attributes::implied()));
            self.maker.finish(&directory, &path, &attributes, state.made)?;
            if state.is_implied {
                implied.push(path);
            }
        }
        let links = std::mem::take(&mut self.links);
        let links = links.into_iter().filter(|(name, _)| !self.tree.exists(name)).collect();
        let (replaced, warnings) = (self.replaced, self.warnings);
        Ok(Extracted { implied, links, opaque_root, marked, replaced, warnings })
    }

    fn warn(&mut self, name: &[u8], text: &str) {
        if self.warnings.len() < WARNING_LIMIT {
            self.warnings.push(format!("{:?}: {text}", String::from_utf8_lossy(name)));
        }
    }

    fn remember_whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), LayerError> {
        self.tree.charge(name.len() + parent.len())?;
        self.whiteouts.push((parent.to_vec(), name.to_vec()));
        Ok(())
    }

    fn make_directory(
        &mut self,
        parent: &Directory,
        base: &[u8],
        attributes: Attributes,
    ) -> Result<(), LayerError> {
        let path = parent.child(base);
        if !self.tree.is_directory(&path) {
            let made = first_mode(&attributes);
            let mode = Mode::from_raw_mode(made);
            self.replace(parent, base, &path, |dir| rustix::fs::mkdirat(dir, base, mode))?;
            self.tree.remember(path.clone(), made)?;
        }
        if self.tree.describe(path.clone(), attributes)? {
            self.warn(&path, "listed more than once, the last entry counts");
        }
        Ok(())
    }

    fn make_file(
        &mut self,
        parent: &Directory,
        entry: Entry,
        contents: &mut dyn Contents,
    ) -> Result<(), LayerError> {
        let (_, base) = split(&entry.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = entry.attributes.mode & 0o777;
        let file = self.replace(parent, base, &entry.name, |dir| {
            rustix::fs::openat(dir, base, flags, Mode::from_raw_mode(made))
        })?;
        self.filler.fill(file, entry, made, contents)
    }

    fn make_node(
        &mut self,
        parent: &Directory,
        base: &[u8],
        entry: &Entry,
        kind: FileType,
        device: u64,
    ) -> Result<(), LayerError> {
        let mode = Mode::from_raw_mode(entry.attributes.mode & 0o777);
        self.replace(parent, base, &entry.name, |dir| rustix::fs::mknodat(dir, base, kind, mode, device))?;
        self.maker.finish_node(&parent.fd, base, entry, true)
    }

    /// Links never follow a symbolic link in the last component (CVE-2021-32760). A target that this layer does not have may
    /// be a lower layer's, which is found when the image is put together.
    fn make_link(
        &mut self,
        parent: &Directory,
        base: &[u8],
        name: &[u8],
        target: &[u8],
    ) -> Result<(), LayerError> {
        let (target_parent, target_base) = split(target);
        let from = self.tree.find_directory(target_parent)?;
        let stat =
            from.as_ref().map(|from| rustix::fs::statat(&from.fd, target_base, AtFlags::SYMLINK_NOFOLLOW));
        let (Some(from), Some(Ok(stat))) = (from, stat) else {
            self.remove(parent, base, name)?;
            self.tree.charge(name.len() + target.len())?;
            self.links.insert(parent.child(base), target.to_vec());
            return Ok(());
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(LayerError::entry(name, "a hard link to a directory"));
        }
        if let Ok(existing) = rustix::fs::statat(&parent.fd, base, AtFlags::SYMLINK_NOFOLLOW)
            && (existing.st_ino, existing.st_dev) == (stat.st_ino, stat.st_dev)
        {
            return Ok(());
        }
        self.replace(parent, base, name, |dir| {
            rustix::fs::linkat(&from.fd, target_base, dir, base, AtFlags::empty())
        })
    }

    /// Creates a name; if it is taken, by an earlier entry of this layer, that one goes first: the last entry counts.
    fn replace<T>(
        &mut self,
        parent: &Directory,
        base: &[u8],
        name: &[u8],
        create: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Result<T, LayerError> {
        match create(&parent.fd) {
            Err(Errno::EXIST) => {
                self.warn(name, "listed more than once, the last entry counts");
                self.remove(parent, base, name)?;
                create(&parent.fd).map_err(LayerError::entry_io(name, "create it"))
            }
            other => other.map_err(LayerError::entry_io(name, "create it")),
        }
    }

    fn remove(&mut self, parent: &Directory, base: &[u8], name: &[u8]) -> Result<(), LayerError> {
        let path = parent.child(base);
        self.links.remove(&path);
        let stat = rustix::fs::statat(&parent.fd, base, AtFlags::SYMLINK_NOFOLLOW);
        let kind = stat.map(|stat| FileType::from_raw_mode(stat.st_mode));
        if matches!(kind, Ok(FileType::RegularFile | FileType::Directory)) {
            self.replaced.get_or_insert(path);
        }
        self.tree.remove(parent, base).map_err(LayerError::entry_io(name, "replace it"))
    }

    /// What this layer itself ships survives its own deletions, in whatever order they come; a directory that it ships in
    /// place of a deleted one shows nothing of the old. Returns whether the root is opaque, and where deletions are marked.
    fn apply_whiteouts(&mut self) -> Result<(bool, BTreeSet<Vec<u8>>), LayerError> {
        let mut whiteouts = Vec::new();
        for (parent, name) in std::mem::take(&mut self.whiteouts) {
            // All of them first: a directory that one deletion needs may replace what another deletes. Real paths, not
            // descriptors: there may be more directories than a process may open.
            whiteouts.push((self.tree.make_directories(&parent)?.path.clone(), name));
        }
        let mut opaque: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut deleted: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (parent, name) in whiteouts {
            let path = join(&parent, &name);
            if name.is_empty() {
                opaque.insert(parent);
            } else if self.tree.is_directory(&path) {
                // It replaces the deleted one, so it has its own attributes even if no entry states them.
                self.tree.own(&path);
                opaque.insert(path);
            } else {
                deleted.push((parent, name));
            }
        }
        let mut marked = BTreeSet::new();
        for (parent, name) in deleted {
            // Below an opaque directory nothing is left to delete, and overlayfs would list the mark itself.
            if is_within(&parent, &opaque) {
                continue;
            }
            let directory = self.tree.make_directories(&parent)?;
            let kind = FileType::CharacterDevice;
            match rustix::fs::mknodat(&directory.fd, name.as_slice(), kind, Mode::empty(), 0) {
                Ok(()) => drop(marked.insert(parent)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(LayerError::entry_io(&name, "mark it as deleted")(error)),
            }
        }
        let opaque_root = opaque.remove(&Vec::new());
        for path in opaque {
            let directory = self.tree.open(&path)?;
            rustix::fs::fsetxattr(&directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
                .map_err(LayerError::entry_io(&path, "mark it as opaque"))?;
        }
        Ok((opaque_root, marked))
    }
}

/// The mode of a directory while its contents are made: open to us even without root's privileges, and nothing in it inherits.
fn first_mode(attributes: &Attributes) -> u32 {
    attributes.mode & 0o777 | 0o700
}

/// Whether a directory, or one above it, is in the set.
pub(crate) fn is_within(path: &[u8], set: &BTreeSet<Vec<u8>>) -> bool {
    let mut current = path;
    loop {
        if set.contains(current) {
            return true;
        }
        if current.is_empty() {
            return false;
        }
        current = split(current).0;
    }
}

/// Parent and last component.
pub(crate) fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&name[..slash], &name[slash + 1..]),
        None => (&[], name),
    }
}
