//! What a layer's archive says, as a tree in memory.
//!
//! Names are resolved as [`crate::directory`] resolves them on the disk: links of this layer are followed inside the root,
//! links of lower layers never, and a directory that an entry needs is made.

use std::collections::{BTreeMap, VecDeque};

use crate::directory::join;
use crate::entry::Attributes;
use crate::error::LayerError;
use crate::limits::SYMLINK_LIMIT;

use super::data::Data;

/// A node's place in the tree.
pub(super) type NodeId = usize;

/// The root's place.
pub(super) const ROOT: NodeId = 0;

/// An inode in the making.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) attributes: Attributes,
    pub(super) content: Content,
    /// Names that lead here; not counted for directories.
    pub(super) links: u32,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Content {
    Directory(Folder),
    File(Data),
    Symlink(Vec<u8>),
    Character(u64),
    Block(u64),
    Fifo,
}

impl Content {
    /// Bytes of memory that it takes beside the node.
    pub(super) fn index_bytes(&self) -> usize {
        match self {
            Content::Symlink(target) => target.len(),
            Content::File(file) => file.place.index_bytes(),
            _ => 0,
        }
    }
}

/// A directory.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) parent: NodeId,
    name: Vec<u8>,
    /// An entry states its attributes.
    pub(super) described: bool,
    /// It hides what lower layers have of its name.
    pub(super) opaque: bool,
    pub(super) children: BTreeMap<Vec<u8>, NodeId>,
}

/// What to do about a directory that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Report,
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// The directory that was found last, by the name that was asked for: the next entry's, usually.
    last: Option<(Vec<u8>, NodeId)>,
}

impl Tree {
    /// A root without attributes of its own.
    pub(super) fn new() -> Tree {
        Tree { nodes: vec![implied(ROOT, b"")], last: None }
    }

    /// How many nodes were ever made.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A node.
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// A node, to be changed.
    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id]
    }

    /// A directory; `None` for any other node.
    pub(super) fn folder(&self, id: NodeId) -> Option<&Folder> {
        match &self.nodes[id].content {
            Content::Directory(folder) => Some(folder),
            _ => None,
        }
    }

    /// A directory, to be changed.
    pub(super) fn folder_mut(&mut self, id: NodeId) -> Option<&mut Folder> {
        match &mut self.nodes[id].content {
            Content::Directory(folder) => Some(folder),
            _ => None,
        }
    }

    /// What has this name in a directory.
    pub(super) fn child(&self, directory: NodeId, base: &[u8]) -> Option<NodeId> {
        self.folder(directory)?.children.get(base).copied()
    }

    /// The real path of something in a directory.
    pub(super) fn path(&self, directory: NodeId, base: &[u8]) -> Vec<u8> {
        let mut names: Vec<&[u8]> = vec![base];
        let mut current = directory;
        while let Some(folder) = self.folder(current).filter(|_| current != ROOT) {
            names.push(&folder.name);
            current = folder.parent;
        }
        names.iter().rev().fold(Vec::new(), |path, name| join_nonempty(path, name))
    }

    /// What has the real path `path`.
    pub(super) fn at(&self, path: &[u8]) -> Option<NodeId> {
        let mut components = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        components.try_fold(ROOT, |directory, component| self.child(directory, component))
    }

    /// Makes a directory that no entry has described yet.
    pub(super) fn add_directory(&mut self, parent: NodeId, base: &[u8]) -> NodeId {
        let node = implied(parent, base);
        self.add(parent, base, node)
    }

    /// Gives a name in a directory to a new node; the name must be free.
    pub(super) fn add(&mut self, parent: NodeId, base: &[u8], node: Node) -> NodeId {
        let id = self.nodes.len();
        self.nodes.push(node);
        self.link(parent, base, id);
        id
    }

    /// Gives one more name to a node.
    pub(super) fn link(&mut self, parent: NodeId, base: &[u8], id: NodeId) {
        self.nodes[id].links += 1;
        if let Some(folder) = self.folder_mut(parent) {
            folder.children.insert(base.to_vec(), id);
        }
    }

    /// Takes a name out of a directory, with everything below it.
    pub(super) fn remove(&mut self, parent: NodeId, base: &[u8]) {
        self.last = None;
        let removed = self.folder_mut(parent).and_then(|folder| folder.children.remove(base));
        let mut pending: Vec<NodeId> = removed.into_iter().collect();
        while let Some(id) = pending.pop() {
            self.nodes[id].links -= 1;
            if let Some(folder) = self.folder_mut(id) {
                pending.extend(std::mem::take(&mut folder.children).into_values());
            }
        }
    }

    /// The directory that `name` leads to; with [`Missing::Make`] there always is one.
    pub(super) fn directory(&mut self, name: &[u8], missing: Missing) -> Result<Option<NodeId>, LayerError> {
        if let Some((_, found)) = self.last.as_ref().filter(|(asked, _)| asked == name) {
            return Ok(Some(*found));
        }
        let found = self.walk(name, missing)?;
        self.last = found.map(|found| (name.to_vec(), found));
        Ok(found)
    }

    fn walk(&mut self, name: &[u8], missing: Missing) -> Result<Option<NodeId>, LayerError> {
        let mut pending = components(name);
        let mut links = 0;
        let mut current = ROOT;
        while let Some(component) = pending.pop_front() {
            if component == b".." {
                current = self.folder(current).map_or(ROOT, |folder| folder.parent);
                continue;
            }
            let Some(child) = self.child(current, &component) else {
                if missing == Missing::Report {
                    return Ok(None);
                }
                current = self.add_directory(current, &component);
                continue;
            };
            match &self.nodes[child].content {
                Content::Directory(_) => current = child,
                Content::Symlink(target) => {
                    links += 1;
                    if links > SYMLINK_LIMIT {
                        return Err(LayerError::entry(name, "too many symbolic links lead to its directory"));
                    }
                    if target.starts_with(b"/") {
                        current = ROOT;
                    }
                    for component in components(target).into_iter().rev() {
                        pending.push_front(component);
                    }
                }
                _ if missing == Missing::Report => return Ok(None),
                _ => {
                    let rule = "it is a file, but another entry needs it as a directory";
                    return Err(LayerError::entry(name, rule));
                }
            }
        }
        Ok(Some(current))
    }

    /// Every node that has a name, parents first, children by name; each once.
    pub(super) fn order(&self) -> Vec<NodeId> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.nodes.len()];
        let mut pending = vec![ROOT];
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut seen[id], true) {
                continue;
            }
            order.push(id);
            pending.extend(self.folder(id).into_iter().flat_map(|folder| folder.children.values().rev()));
        }
        order
    }
}

fn implied(parent: NodeId, name: &[u8]) -> Node {
    let folder =
        Folder { parent, name: name.to_vec(), described: false, opaque: false, children: BTreeMap::new() };
    Node { attributes: Attributes::implied(), content: Content::Directory(folder), links: 0 }
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.map(<[u8]>::to_vec).collect()
}

fn join_nonempty(path: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if name.is_empty() { path } else { join(&path, name) }
}
