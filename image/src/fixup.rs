//! The fix-up layer: what depends on how layers are stacked, kept out of the layers themselves.
//!
//! Three things in an image depend on lower layers. A layer that lists `tmp/foo` but not `tmp` leaves `/tmp` as it was, with
//! mode 1777, although overlayfs shows the attributes of the uppermost directory. A hard link may name a file of a lower
//! layer. And a deletion that hits nothing must not be seen in a listing. Layers are stored by DiffID and know nothing of
//! what lies below, so all that goes into one small layer on top, stored by ChainID, which most images do not need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::copy::{self, Original};
use crate::directory::open_beneath;
use crate::entry::Attributes;
use crate::error::{Error, LayerError};
use crate::extract::{apply, split};
use crate::identity::{ChainId, DiffId};
use crate::layer::{self, Fence, LayerRecord};
use crate::layout::{self, Layout, make_private};
use crate::lock::{Lock, Mode as LockMode};
use crate::path::EntryPath;
use crate::record::{self, Durable};
use crate::stack::{self, Agreement, Found, Stack};
use crate::workspace::Workspace;

/// `fixup.json`.
#[derive(Serialize, Deserialize)]
pub(crate) struct FixupRecord {
    #[serde(flatten)]
    pub(crate) fence: Fence,
}

/// A failure, and the layer that it is about.
#[derive(Debug)]
pub(crate) struct Blame {
    pub(crate) layer: Option<DiffId>,
    pub(crate) source: LayerError,
}

impl<E: Into<LayerError>> From<E> for Blame {
    fn from(error: E) -> Blame {
        Blame { layer: None, source: error.into() }
    }
}

/// What a stack needs on top.
#[derive(Default)]
struct Repairs {
    /// Directories, parents first.
    directories: BTreeMap<Vec<u8>, Attributes>,
    /// Hard links: name, and the layer and name of what it links to.
    links: Vec<(Vec<u8>, usize, Vec<u8>)>,
}

/// Makes sure that the fix-up layer of a stack of layers (lowest first) is stored. Returns its path relative to the store,
/// or `None` if the stack needs none.
pub(crate) fn ensure(
    layout: &Layout,
    workspace: &Workspace,
    layers: &[LayerRecord],
) -> Result<Option<String>, Blame> {
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let Some(chain) = ChainId::of(&diff_ids) else { return Ok(None) };
    let stack = Stack::open(layout, layers)?;
    let repairs = find_repairs(&stack)?;
    if repairs.directories.is_empty() && repairs.links.is_empty() {
        return Ok(None);
    }
    let relative = layout::fixup(&chain);
    let target = layout.at(&relative);
    let _lock = Lock::wait(&layout.lock(&relative.replace('/', "-")), LockMode::Exclusive)?;
    let stored: Option<FixupRecord> = record::load(&target.join("fixup.json"))?;
    if !stored.is_some_and(|record| record.fence.holds()) {
        let stage = workspace.path().join("fixup");
        make_private(&stage.join("diff"))?;
        build(&stack, &repairs, &stage.join("diff"))?;
        let record = FixupRecord { fence: Fence::new() };
        record::store(&stage.join("fixup.json"), workspace.path(), &record, Durable::Later)?;
        layout.discard(&target)?;
        fs::rename(&stage, &target).map_err(Error::io("publish", &target))?;
    }
    Ok(Some(relative))
}

/// The root's attributes in the mounted stack; a snapshot's upper directory gets them. Only the layer that tells them is opened:
/// opening one may be mounting it.
pub(crate) fn root_attributes(layout: &Layout, layers: &[LayerRecord]) -> Result<Attributes, LayerError> {
    let root = EntryPath::new(Vec::new());
    match stack::visible(layers).rev().find(|record| !record.implied.contains(&root)) {
        Some(record) => {
            let tree = layer::open_tree(layout, record)?;
            let opened =
                open_beneath(&tree, b"", OFlags::RDONLY).map_err(LayerError::entry_io(b"", "open"))?;
            stack::read_attributes(&opened, b"")
        }
        None => Ok(Attributes::implied()),
    }
}

fn find_repairs(stack: &Stack) -> Result<Repairs, Blame> {
    let mut repairs = Repairs::default();
    let mut seen = BTreeSet::new();
    for layer in &stack.layers {
        for path in layer.record.implied.iter().chain(&layer.record.marked).map(EntryPath::bytes) {
            // The root is the upper directory's, which gets its attributes when a snapshot is made.
            if !path.is_empty() && seen.insert(path.to_vec()) && needs_directory(stack, path)? {
                repairs.add_directories(stack, path)?;
            }
        }
    }
    for (index, layer) in stack.layers.iter().enumerate() {
        for (name, target) in &layer.record.links {
            if is_visible(stack, index, name.bytes())? {
                let blame = |source| Blame { layer: Some(layer.record.diff_id.clone()), source };
                let source = find_target(stack, index, name.bytes(), target.bytes()).map_err(blame)?;
                repairs.add_directories(stack, split(name.bytes()).0)?;
                repairs.links.push((name.bytes().to_vec(), source, target.bytes().to_vec()));
            }
        }
    }
    Ok(repairs)
}

/// Whether a directory would show wrong attributes, or the mark of a deleted name: overlayfs leaves those out only where it
/// merges several directories, so one that stands alone gets an empty one on top.
fn needs_directory(stack: &Stack, path: &[u8]) -> Result<bool, LayerError> {
    let key = EntryPath::new(path.to_vec());
    let alone = match stack.merged(path)?[..] {
        [] => return Ok(false),
        [index] => stack.layers[index].record.marked.contains(&key),
        _ => false,
    };
    Ok(alone || matches!(stack.directory(path)?, Some((_, Agreement::Differs))))
}

impl Repairs {
    /// Adds a directory and those above it, all with the attributes that they are to show.
    fn add_directories(&mut self, stack: &Stack, path: &[u8]) -> Result<(), LayerError> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]).filter(|end| *end > 0) {
            let directory = &path[..end];
            if !self.directories.contains_key(directory) {
                let found = stack.directory(directory)?;
                let attributes = found.map_or_else(Attributes::implied, |(attributes, _)| attributes);
                self.directories.insert(directory.to_vec(), attributes);
            }
        }
        Ok(())
    }
}

/// Whether no layer above `index` says anything about `name`.
fn is_visible(stack: &Stack, index: usize, name: &[u8]) -> Result<bool, LayerError> {
    for above in index + 1..stack.layers.len() {
        if !matches!(stack.find(above, name)?, Found::Absent) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The layer below `index` that has the target of a hard link.
fn find_target(stack: &Stack, index: usize, name: &[u8], target: &[u8]) -> Result<usize, LayerError> {
    let missing = || {
        let target = String::from_utf8_lossy(target).into_owned();
        LayerError::entry(
            name,
            format!("a hard link to {target:?}, which neither its layer nor a lower one has"),
        )
    };
    for below in (0..index).rev() {
        match stack.find(below, target)? {
            Found::Node(..) => return Ok(below),
            Found::Directory(_) => return Err(LayerError::entry(name, "a hard link to a directory")),
            Found::Hidden => return Err(missing()),
            Found::Absent => {}
        }
    }
    Err(missing())
}

fn build(stack: &Stack, repairs: &Repairs, tree: &std::path::Path) -> Result<(), LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(tree, flags, Mode::empty()).map_err(Error::io("open", tree))?;
    for path in repairs.directories.keys() {
        let (parent, base) = split(path);
        let parent = open_beneath(&root, parent, OFlags::PATH).map_err(LayerError::entry_io(path, "open"))?;
        rustix::fs::mkdirat(&parent, base, Mode::RWXU).map_err(LayerError::entry_io(path, "create"))?;
    }
    let mut copies: BTreeMap<(usize, &[u8]), &[u8]> = BTreeMap::new();
    for (name, layer, target) in &repairs.links {
        match copies.get(&(*layer, target.as_slice())) {
            Some(copy) => link(&root, copy, name)?,
            None => {
                copy(stack, *layer, target, &root, name)?;
                copies.insert((*layer, target), name);
            }
        }
    }
    for (path, attributes) in &repairs.directories {
        let directory =
            open_beneath(&root, path, OFlags::RDONLY).map_err(LayerError::entry_io(path, "open"))?;
        apply(&directory, path, attributes)?;
    }
    let attributes = stack.directory(b"")?.map_or_else(Attributes::implied, |(attributes, _)| attributes);
    apply(&root, b"", &attributes)
}

fn link(root: &OwnedFd, from: &[u8], to: &[u8]) -> Result<(), LayerError> {
    let open = |path: &[u8]| open_beneath(root, split(path).0, OFlags::PATH);
    let failed = |operation| LayerError::entry_io(to, operation);
    let (source, target) = (open(from).map_err(failed("open"))?, open(to).map_err(failed("open"))?);
    rustix::fs::linkat(source, split(from).1, target, split(to).1, AtFlags::empty()).map_err(failed("link"))
}

/// Copies a file of a lower layer with everything that belongs to it.
fn copy(stack: &Stack, layer: usize, from: &[u8], root: &OwnedFd, to: &[u8]) -> Result<(), LayerError> {
    let Found::Node(folder, base, stat) = stack.find(layer, from)? else {
        return Err(LayerError::entry(to, "its target vanished"));
    };
    let (parent, name) = split(to);
    let parent = open_beneath(root, parent, OFlags::PATH).map_err(LayerError::entry_io(to, "open"))?;
    copy::copy(&Original { folder: &folder, base: &base, stat: &stat }, &parent, name, to)
}
