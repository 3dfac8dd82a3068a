//! Making a layer's tree in a staging directory, entry by entry, relative to descriptors.
//!
//! The tree that results is a function of the layer's tar alone. What overlayfs needs is written the way overlayfs reads it:
//! a deleted name is a character device 0:0, an opaque directory carries `trusted.overlay.opaque`. Both are made in the
//! last pass, so the order of entries in the archive does not matter; so are the directories' owners, modes and times, since
//! set-group-id bits and default ACLs must not leak into what is created below them.
//!
//! The staging directory is private (0700, root's), but the names come from the network: no path is ever handed to the
//! kernel that could leave the tree (see [`crate::directory`]).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::backend::{Contents, Sink};
use crate::directory::{Directory, Tree};
use crate::entry::{Attributes, Entry, Node};
use crate::error::LayerError;
use crate::limits::WARNING_LIMIT;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// aufs's own files, which no layer means to ship.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// A tree in the making.
pub(crate) struct Extractor {
    tree: Tree,
    /// Explicit attributes of directories, by their real path; implied ones are absent.
    directories: BTreeMap<Vec<u8>, Attributes>,
    /// Parent and name of every deletion, and parents with the empty name for opaque ones.
    whiteouts: Vec<(Vec<u8>, Vec<u8>)>,
    links: BTreeMap<Vec<u8>, Vec<u8>>,
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
    pub(crate) warnings: Vec<String>,
}

impl Extractor {
    /// `root` is an empty directory.
    pub(crate) fn new(root: OwnedFd) -> Extractor {
        Extractor {
            tree: Tree::new(root),
            directories: BTreeMap::new(),
            whiteouts: Vec::new(),
            links: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Makes one entry, reading its data from `contents`.
    fn make(&mut self, entry: Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
        for name in &entry.dropped {
            self.warn(&entry.name, &format!("attribute {name} is left out"));
        }
        let (parent, base) = split(&entry.name);
        if base.starts_with(WHITEOUT_PREFIX) {
            return self.remember_whiteout(&entry, parent, base);
        }
        if base.is_empty() {
            self.directories.insert(Vec::new(), entry.attributes);
            return Ok(());
        }
        let parent = self.tree.make_directories(parent)?;
        match &entry.node {
            Node::Directory => self.make_directory(&parent, base, entry.attributes),
            Node::File | Node::Sparse(..) => self.make_file(&parent, base, &entry, contents),
            Node::Hardlink(target) => self.make_link(&parent, base, &entry.name, target),
            Node::Symlink(target) => {
                self.replace(&parent, base, &entry.name, |dir| {
                    rustix::fs::symlinkat(target.as_slice(), dir, base)
                })?;
                finish_node(&parent.fd, base, &entry, true)
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
        let (opaque_root, marked) = self.apply_whiteouts()?;
        let mut implied = Vec::new();
        for path in self.tree.directories() {
            let attributes = self.directories.get(&path).cloned();
            if attributes.is_none() {
                implied.push(path.clone());
            }
            let directory = self.tree.open(&path)?;
            apply(&directory, &path, &attributes.unwrap_or_else(Attributes::implied))?;
        }
        let links = std::mem::take(&mut self.links);
        let links = links.into_iter().filter(|(name, _)| !self.tree.exists(name)).collect();
        Ok(Extracted { implied, links, opaque_root, marked, warnings: self.warnings })
    }

    fn warn(&mut self, name: &[u8], text: &str) {
        if self.warnings.len() < WARNING_LIMIT {
            self.warnings.push(format!("{:?}: {text}", String::from_utf8_lossy(name)));
        }
    }

    fn remember_whiteout(&mut self, entry: &Entry, parent: &[u8], base: &[u8]) -> Result<(), LayerError> {
        if !matches!(entry.node, Node::File) {
            return Err(LayerError::entry(&entry.name, "names that begin with .wh. are for deletions only"));
        }
        let name = match base {
            OPAQUE_MARKER => &[],
            aufs if aufs.starts_with(AUFS_PREFIX) => return Ok(()),
            _ => &base[WHITEOUT_PREFIX.len()..],
        };
        if base != OPAQUE_MARKER && matches!(name, b"" | b"." | b"..") {
            return Err(LayerError::entry(&entry.name, "it deletes no name"));
        }
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
            self.replace(parent, base, &path, |dir| rustix::fs::mkdirat(dir, base, Mode::RWXU))?;
            self.tree.remember(path.clone());
        } else if self.directories.contains_key(&path) {
            self.warn(&path, "listed more than once, the last entry counts");
        }
        self.directories.insert(path, attributes);
        Ok(())
    }

    fn make_file(
        &mut self,
        parent: &Directory,
        base: &[u8],
        entry: &Entry,
        contents: &mut dyn Contents,
    ) -> Result<(), LayerError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.replace(parent, base, &entry.name, |dir| {
            rustix::fs::openat(dir, base, flags, Mode::RUSR | Mode::WUSR)
        })?;
        match &entry.node {
            Node::Sparse(regions, size) => write_sparse(&file, entry, regions, *size, contents)?,
            _ => write_all(&file, entry, contents)?,
        }
        apply(&file, &entry.name, &entry.attributes)
    }

    fn make_node(
        &mut self,
        parent: &Directory,
        base: &[u8],
        entry: &Entry,
        kind: FileType,
        device: u64,
    ) -> Result<(), LayerError> {
        let mode = Mode::RUSR | Mode::WUSR;
        self.replace(parent, base, &entry.name, |dir| rustix::fs::mknodat(dir, base, kind, mode, device))?;
        finish_node(&parent.fd, base, entry, false)
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
        self.tree.remove(parent, base).map_err(LayerError::entry_io(name, "replace it"))?;
        let below: Vec<Vec<u8>> =
            self.directories.range(path.clone()..).map(|(key, _)| key.clone()).collect();
        for key in below.into_iter().take_while(|key| key.starts_with(&path)) {
            if key.len() == path.len() || key[path.len()] == b'/' {
                self.directories.remove(&key);
            }
        }
        Ok(())
    }

    /// What this layer itself ships survives its own deletions, in whatever order they come; a directory that it ships in
    /// place of a deleted one shows nothing of the old. Returns whether the root is opaque, and where deletions are marked.
    fn apply_whiteouts(&mut self) -> Result<(bool, BTreeSet<Vec<u8>>), LayerError> {
        let mut whiteouts = Vec::new();
        for (parent, name) in std::mem::take(&mut self.whiteouts) {
            // All of them first: a directory that one deletion needs may replace what another deletes.
            whiteouts.push((self.tree.make_directories(&parent)?, name));
        }
        let mut opaque: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut deleted: Vec<(Rc<Directory>, Vec<u8>)> = Vec::new();
        for (parent, name) in whiteouts {
            let path = parent.child(&name);
            if name.is_empty() {
                opaque.insert(parent.path.clone());
            } else if self.tree.is_directory(&path) {
                // It replaces the deleted one, so it has its own attributes even if no entry states them.
                self.directories.entry(path.clone()).or_insert_with(Attributes::implied);
                opaque.insert(path);
            } else {
                deleted.push((parent, name));
            }
        }
        let mut marked = BTreeSet::new();
        for (parent, name) in deleted {
            // Below an opaque directory nothing is left to delete, and overlayfs would list the mark itself.
            if is_within(&parent.path, &opaque) {
                continue;
            }
            let kind = FileType::CharacterDevice;
            match rustix::fs::mknodat(&parent.fd, name.as_slice(), kind, Mode::empty(), 0) {
                Ok(()) => drop(marked.insert(parent.path.clone())),
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

/// Whether a directory, or one above it, is in the set.
fn is_within(path: &[u8], set: &BTreeSet<Vec<u8>>) -> bool {
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

fn write_all(file: &OwnedFd, entry: &Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
    loop {
        let piece = contents.data()?;
        if piece.is_empty() {
            return Ok(());
        }
        let mut rest = piece;
        while !rest.is_empty() {
            let count =
                rustix::io::write(file, rest).map_err(LayerError::entry_io(&entry.name, "write it"))?;
            rest = &rest[count..];
        }
    }
}

fn write_sparse(
    file: &OwnedFd,
    entry: &Entry,
    regions: &[(u64, u64)],
    size: u64,
    contents: &mut dyn Contents,
) -> Result<(), LayerError> {
    rustix::fs::ftruncate(file, size).map_err(LayerError::entry_io(&entry.name, "set its size"))?;
    let mut regions = regions.iter().copied().filter(|(_, length)| *length > 0);
    let (mut offset, mut left) = regions.next().unwrap_or((0, 0));
    loop {
        let mut piece = contents.data()?;
        if piece.is_empty() {
            return Ok(());
        }
        while !piece.is_empty() {
            let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = rustix::io::pwrite(file, &piece[..count], offset)
                .map_err(LayerError::entry_io(&entry.name, "write it"))?;
            piece = &piece[count..];
            (offset, left) = (offset + count as u64, left - count as u64);
            if left == 0 {
                (offset, left) = regions.next().unwrap_or((offset, u64::MAX));
            }
        }
    }
}

/// Owner, then attributes (chown drops file capabilities), then mode (chown drops set-user-id), then time.
pub(crate) fn apply(file: &impl AsFd, name: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
    let (uid, gid) = owner(attributes);
    rustix::fs::fchown(file, uid, gid).map_err(LayerError::entry_io(name, "set its owner"))?;
    for (key, value) in &attributes.xattrs {
        ignore_unsupported(rustix::fs::fsetxattr(file, key.as_slice(), value, XattrFlags::empty()))
            .map_err(LayerError::entry_io(name, "set an attribute"))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))
        .map_err(LayerError::entry_io(name, "set its mode"))?;
    rustix::fs::futimens(file, &times(attributes)).map_err(LayerError::entry_io(name, "set its time"))
}

/// The same for what cannot be opened without side effects. It was made a moment ago in a directory that is ours alone.
fn finish_node(parent: &OwnedFd, base: &[u8], entry: &Entry, symlink: bool) -> Result<(), LayerError> {
    use std::os::fd::AsRawFd;
    let attributes = &entry.attributes;
    let (uid, gid) = owner(attributes);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, base, uid, gid, nofollow)
        .map_err(LayerError::entry_io(&entry.name, "set its owner"))?;
    for (key, value) in &attributes.xattrs {
        let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), base].concat();
        let result = rustix::fs::lsetxattr(path.as_slice(), key.as_slice(), value, XattrFlags::empty());
        // The kernel has no user attributes on anything but files and directories.
        if result != Err(Errno::PERM) || !key.starts_with(b"user.") {
            ignore_unsupported(result).map_err(LayerError::entry_io(&entry.name, "set an attribute"))?;
        }
    }
    if !symlink {
        let mode = Mode::from_raw_mode(attributes.mode);
        rustix::fs::chmodat(parent, base, mode, AtFlags::empty())
            .map_err(LayerError::entry_io(&entry.name, "set its mode"))?;
    }
    rustix::fs::utimensat(parent, base, &times(attributes), nofollow)
        .map_err(LayerError::entry_io(&entry.name, "set its time"))
}

/// A store on a file system without extended attributes still runs most images.
fn ignore_unsupported(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if result == Err(Errno::OPNOTSUPP) { Ok(()) } else { result }
}

fn owner(attributes: &Attributes) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (Some(rustix::fs::Uid::from_raw(attributes.uid)), Some(rustix::fs::Gid::from_raw(attributes.gid)))
}

fn times(attributes: &Attributes) -> Timestamps {
    let mtime: Timespec = attributes.mtime;
    Timestamps { last_access: mtime, last_modification: mtime }
}
