//! Directories of a tree in the making, found by name without ever leaving the tree.
//!
//! A name that holds no symbolic link is opened in one call (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS). A name
//! that does is walked component by component, each opened with O_NOFOLLOW, links read and resolved against the tree's own
//! root as a chroot would do; so even a dangling or absolute link leads inside. Links of *lower* layers are never followed:
//! a directory that this layer needs hides them, which is how overlayfs reads the result.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use cofferdam_linux::removal::remove_tree_at;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::entry::Attributes;
use crate::error::LayerError;
use crate::extract::split;
use crate::limits::{SYMLINK_LIMIT, TREE_LIMIT_BYTES};

/// Open directories kept; a sorted archive hits nearly always.
const CACHE_LIMIT: usize = 64;
/// What a name costs beside its bytes, roughly: the map's nodes, the allocator's, the attributes.
const NAME_COST_BYTES: usize = 160;
/// The mode of directories that no entry has described yet.
const IMPLIED_MODE: u32 = 0o755;

/// An open directory and its real path within the tree.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) fd: OwnedFd,
    pub(crate) path: Vec<u8>,
}

impl Directory {
    /// The path of something in this directory.
    pub(crate) fn child(&self, base: &[u8]) -> Vec<u8> {
        join(&self.path, base)
    }
}

/// The tree: its root, the directories in it, and some of them open.
pub(crate) struct Tree {
    root: OwnedFd,
    /// By real path, the root's being empty.
    known: BTreeMap<Vec<u8>, DirectoryState>,
    /// About what `known`, and what the caller charged, take in memory.
    charged_bytes: usize,
    /// By the name that was asked for. Emptied whenever anything but a file is replaced (CVE-2025-47290).
    cache: HashMap<Vec<u8>, Rc<Directory>>,
}

/// What is known of a directory.
#[derive(Debug)]
pub(crate) struct DirectoryState {
    /// The mode that it was made with.
    pub(crate) made: u32,
    /// What the archive says of it.
    pub(crate) attributes: Option<Box<Attributes>>,
    /// Lower layers may say more of it.
    pub(crate) is_implied: bool,
}

impl DirectoryState {
    fn made(mode: u32) -> DirectoryState {
        DirectoryState { made: mode, attributes: None, is_implied: true }
    }
}

/// What to do about a directory that is not there.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Make,
    Report,
}

impl Tree {
    pub(crate) fn new(root: OwnedFd) -> Tree {
        let known = BTreeMap::from([(Vec::new(), DirectoryState::made(0o700))]);
        Tree { root, known, charged_bytes: 0, cache: HashMap::new() }
    }

    /// Opens the directory that `name` leads to, making what is missing.
    pub(crate) fn make_directories(&mut self, name: &[u8]) -> Result<Rc<Directory>, LayerError> {
        match self.lookup(name, Missing::Make)? {
            Some(directory) => Ok(directory),
            None => Err(LayerError::entry(name, "it vanished while it was unpacked")),
        }
    }

    /// Opens the directory that `name` leads to; `None` if there is none.
    pub(crate) fn find_directory(&mut self, name: &[u8]) -> Result<Option<Rc<Directory>>, LayerError> {
        self.lookup(name, Missing::Report)
    }

    /// Whether the real path `path` is a directory of this tree.
    pub(crate) fn is_directory(&self, path: &[u8]) -> bool {
        self.known.contains_key(path)
    }

    /// Whether anything has the real path `path`.
    pub(crate) fn exists(&self, path: &[u8]) -> bool {
        let (parent, base) = split(path);
        let parent = open_beneath(&self.root, parent, OFlags::PATH);
        parent.is_ok_and(|parent| rustix::fs::statat(parent, base, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    /// Counts something that is kept until the end and that a hostile archive could have millions of.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.charged_bytes += bytes + NAME_COST_BYTES;
        if self.charged_bytes > TREE_LIMIT_BYTES {
            let what = "the memory for directories, deletions and links, in bytes,";
            return Err(LayerError::Limit { what, limit: TREE_LIMIT_BYTES as u64, name: None });
        }
        Ok(())
    }

    /// Notes a directory that was just made.
    pub(crate) fn remember(&mut self, path: Vec<u8>, made: u32) -> Result<(), LayerError> {
        self.charge(path.len())?;
        self.known.insert(path, DirectoryState::made(made));
        Ok(())
    }

    /// Notes what the archive says of a directory; whether it had said something before.
    pub(crate) fn describe(&mut self, path: Vec<u8>, attributes: Attributes) -> Result<bool, LayerError> {
        let xattrs: usize = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.charge(xattrs)?;
        let Some(state) = self.known.get_mut(&path) else { return Ok(false) };
        state.is_implied = false;
        Ok(state.attributes.replace(Box::new(attributes)).is_some())
    }

    /// Says that lower layers have nothing to say of a directory.
    pub(crate) fn own(&mut self, path: &[u8]) {
        if let Some(state) = self.known.get_mut(path) {
            state.is_implied = false;
        }
    }

    /// All directories, parents first.
    pub(crate) fn take_directories(&mut self) -> BTreeMap<Vec<u8>, DirectoryState> {
        std::mem::take(&mut self.known)
    }

    /// Opens a directory by its real path, for changing its attributes.
    pub(crate) fn open(&self, path: &[u8]) -> Result<OwnedFd, LayerError> {
        open_beneath(&self.root, path, OFlags::RDONLY).map_err(LayerError::entry_io(path, "open it"))
    }

    /// Removes whatever has the name `base`, if anything has.
    pub(crate) fn remove(&mut self, parent: &Directory, base: &[u8]) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(&parent.fd, base, AtFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                remove_tree_at(parent.fd.as_fd(), base)?;
                self.forget(&parent.child(base));
            }
            other => other?,
        }
        self.cache.clear();
        Ok(())
    }

    /// Forgets a directory and those below it.
    fn forget(&mut self, path: &[u8]) {
        self.known.remove(path);
        // Of all that sorts behind it, what is below begins with a slash; `0` is the byte after that.
        let (from, to) = ([path, b"/"].concat(), [path, b"0"].concat());
        let below: Vec<Vec<u8>> = self.known.range(from..to).map(|(path, _)| path.clone()).collect();
        for path in below {
            self.known.remove(&path);
        }
    }

    fn lookup(&mut self, name: &[u8], missing: Missing) -> Result<Option<Rc<Directory>>, LayerError> {
        if let Some(directory) = self.cache.get(name) {
            return Ok(Some(Rc::clone(directory)));
        }
        let directory = match open_beneath(&self.root, name, OFlags::PATH) {
            Ok(fd) => Some(Directory { fd, path: name.to_vec() }),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(name, missing)?,
            Err(error) => return Err(LayerError::entry_io(name, "open its directory")(error)),
        };
        let Some(directory) = directory.map(Rc::new) else { return Ok(None) };
        if self.cache.len() >= CACHE_LIMIT {
            self.cache.clear();
        }
        self.cache.insert(name.to_vec(), Rc::clone(&directory));
        Ok(Some(directory))
    }

    fn walk(&mut self, name: &[u8], missing: Missing) -> Result<Option<Directory>, LayerError> {
        let failed = |operation| LayerError::entry_io(name, operation);
        let mut pending: VecDeque<Vec<u8>> = components(name);
        let mut links = 0;
        let mut current = self.open_root().map_err(failed("open the root"))?;
        while let Some(component) = pending.pop_front() {
            if component == b".." {
                let (parent, _) = split(&current.path);
                let path = parent.to_vec();
                let fd =
                    open_beneath(&self.root, &path, OFlags::PATH).map_err(failed("open its directory"))?;
                current = Directory { fd, path };
                continue;
            }
            let path = current.child(&component);
            let stat = rustix::fs::statat(&current.fd, component.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
            let kind = match stat {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) if missing == Missing::Report => return Ok(None),
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&current.fd, component.as_slice(), Mode::from_raw_mode(IMPLIED_MODE))
                        .map_err(failed("create its directory"))?;
                    self.remember(path.clone(), IMPLIED_MODE)?;
                    FileType::Directory
                }
                Err(error) => return Err(failed("examine its directory")(error)),
            };
            match kind {
                FileType::Directory => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let fd = rustix::fs::openat(&current.fd, component.as_slice(), flags, Mode::empty());
                    current = Directory { fd: fd.map_err(failed("open its directory"))?, path };
                }
                FileType::Symlink => {
                    links += 1;
                    if links > SYMLINK_LIMIT {
                        return Err(LayerError::entry(name, "too many symbolic links lead to its directory"));
                    }
                    let target = rustix::fs::readlinkat(&current.fd, component.as_slice(), Vec::new())
                        .map_err(failed("read a link to its directory"))?;
                    if target.as_bytes().starts_with(b"/") {
                        current = self.open_root().map_err(failed("open the root"))?;
                    }
                    for component in components(target.as_bytes()).into_iter().rev() {
                        pending.push_front(component);
                    }
                }
                _ if missing == Missing::Report => return Ok(None),
                _ => {
                    return Err(LayerError::entry(
                        name,
                        "it is a file, but another entry needs it as a directory",
                    ));
                }
            }
        }
        Ok(Some(current))
    }

    fn open_root(&self) -> rustix::io::Result<Directory> {
        Ok(Directory { fd: open_beneath(&self.root, b"", OFlags::PATH)?, path: Vec::new() })
    }
}

/// Opens a directory by its real path: no link is followed, no mount is crossed.
pub(crate) fn open_beneath(root: &OwnedFd, path: &[u8], access: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.map(<[u8]>::to_vec).collect()
}

pub(crate) fn join(parent: &[u8], base: &[u8]) -> Vec<u8> {
    if parent.is_empty() { base.to_vec() } else { [parent, b"/", base].concat() }
}
