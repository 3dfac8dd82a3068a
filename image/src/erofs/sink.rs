//! Entries in, an image out: the same meaning of an archive as [`crate::extract`]'s, without a directory on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use crate::backend::{Contents, Deletion, Sink, deletion};
use crate::entry::{Attributes, Entry, Node as EntryNode};
use crate::error::LayerError;
use crate::extract::{Extracted, is_within, split};
use crate::identity::DiffId;
use crate::limits::{PATH_LIMIT_BYTES, WARNING_LIMIT};

use super::data::DataArea;
use super::metadata;
use super::tree::{Content, Missing, Node, NodeId, ROOT, Tree};
use super::xattr;

/// Bytes of memory for everything but files' contents: a million files with short names.
const INDEX_LIMIT_BYTES: u64 = 256 << 20;
/// What a node takes of it, beside its name and attributes.
const NODE_BYTES: usize = 192;

/// A layer's image in the making.
pub(crate) struct Writer {
    tree: Tree,
    data: DataArea,
    uuid: [u8; 16],
    /// Parents, unresolved, and names.
    deletions: Vec<(Vec<u8>, Deletion)>,
    /// Hard links to what this layer does not have, by real path.
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    index_bytes: u64,
    replaced: Option<Vec<u8>>,
    warnings: Vec<String>,
}

impl Writer {
    /// `file` is new and open for writing. The image's UUID comes of `diff_id`: overlayfs wants its layers told apart.
    pub(crate) fn new(file: OwnedFd, diff_id: &DiffId) -> Writer {
        let mut uuid = [0; 16];
        for (byte, digits) in uuid.iter_mut().zip(diff_id.digest().hex().as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
        }
        Writer {
            tree: Tree::new(),
            data: DataArea::new(file),
            uuid,
            deletions: Vec::new(),
            links: BTreeMap::new(),
            index_bytes: 0,
            replaced: None,
            warnings: Vec::new(),
        }
    }

    fn warn(&mut self, name: &[u8], text: &str) {
        if self.warnings.len() < WARNING_LIMIT {
            self.warnings.push(format!("{:?}: {text}", String::from_utf8_lossy(name)));
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.index_bytes += bytes as u64;
        if self.index_bytes > INDEX_LIMIT_BYTES {
            let what = "the size in bytes of an EROFS layer's index";
            return Err(LayerError::Limit { what, limit: INDEX_LIMIT_BYTES, name: None });
        }
        Ok(())
    }

    /// The last entry of a name counts.
    fn make_room(&mut self, parent: NodeId, base: &[u8]) {
        if self.tree.child(parent, base).is_some() {
            self.warn(&self.tree.path(parent, base), "listed more than once, the last entry counts");
            self.remove(parent, base);
        }
    }

    fn remove(&mut self, parent: NodeId, base: &[u8]) {
        let child = self.tree.child(parent, base).map(|child| &self.tree.node(child).content);
        if matches!(child, Some(Content::File(_) | Content::Directory(_))) {
            let path = self.tree.path(parent, base);
            self.replaced.get_or_insert(path);
        }
        self.tree.remove(parent, base);
    }

    fn make_directory(&mut self, parent: NodeId, base: &[u8], attributes: Attributes) {
        let existing = self.tree.child(parent, base).filter(|child| self.tree.folder(*child).is_some());
        let directory = match existing {
            Some(directory) => {
                if self.tree.folder(directory).is_some_and(|folder| folder.described) {
                    let path = self.tree.path(parent, base);
                    self.warn(&path, "listed more than once, the last entry counts");
                }
                directory
            }
            None => {
                self.make_room(parent, base);
                self.tree.add_directory(parent, base)
            }
        };
        self.describe(directory, attributes);
    }

    fn describe(&mut self, directory: NodeId, attributes: Attributes) {
        self.tree.node_mut(directory).attributes = attributes;
        if let Some(folder) = self.tree.folder_mut(directory) {
            folder.described = true;
        }
    }

    /// A target that this layer does not have may be a lower layer's, which is found when the image is put together.
    fn make_link(
        &mut self,
        parent: NodeId,
        base: &[u8],
        name: &[u8],
        target: &[u8],
    ) -> Result<(), LayerError> {
        let (target_parent, target_base) = split(target);
        let found = self.tree.directory(target_parent, Missing::Report)?;
        let Some(found) = found.and_then(|directory| self.tree.child(directory, target_base)) else {
            self.remove(parent, base);
            self.links.insert(self.tree.path(parent, base), target.to_vec());
            return Ok(());
        };
        if self.tree.folder(found).is_some() {
            return Err(LayerError::entry(name, "a hard link to a directory"));
        }
        if self.tree.child(parent, base) != Some(found) {
            self.make_room(parent, base);
            self.tree.link(parent, base, found);
        }
        Ok(())
    }

    fn contents(&mut self, entry: &Entry, contents: &mut dyn Contents) -> Result<Content, LayerError> {
        let name = &entry.name;
        Ok(match &entry.node {
            EntryNode::Sparse(regions, size) => {
                let data = self.data.write_sparse(name, regions, *size, contents)?;
                Content::File(data)
            }
            EntryNode::Symlink(target) if target.is_empty() || target.len() > PATH_LIMIT_BYTES as usize => {
                return Err(LayerError::entry(name, "a symbolic link's target has 1 to 4095 bytes"));
            }
            EntryNode::Symlink(target) => Content::Symlink(target.clone()),
            EntryNode::Character(device) => Content::Character(*device),
            EntryNode::Block(device) => Content::Block(*device),
            EntryNode::Fifo => Content::Fifo,
            _ => {
                let xattr_bytes = xattr::encode(entry.attributes.xattrs.iter()).len();
                Content::File(self.data.write_file(name, xattr_bytes, contents)?)
            }
        })
    }

    /// As overlayfs reads them. What this layer itself ships survives its own deletions, in whatever order they come.
    fn apply_deletions(&mut self) -> Result<(bool, BTreeSet<Vec<u8>>), LayerError> {
        let mut resolved = Vec::new();
        let is_deletion = |(_, deletion): &(Vec<u8>, Deletion)| *deletion != Deletion::Nothing;
        for (parent, deletion) in std::mem::take(&mut self.deletions).into_iter().filter(is_deletion) {
            // All of them first: a directory that one deletion needs may replace what another deletes.
            resolved.push((self.directory(&parent)?, deletion));
        }
        let mut opaque = BTreeSet::new();
        let mut deleted = Vec::new();
        for (parent, deletion) in resolved {
            match deletion {
                Deletion::Nothing => {}
                Deletion::Below => drop(opaque.insert(self.tree.path(parent, b""))),
                Deletion::Name(name) => match self.tree.child(parent, &name) {
                    Some(child) if self.tree.folder(child).is_some() => {
                        // It replaces the deleted one, so it has its own attributes even if no entry states them.
                        if let Some(folder) = self.tree.folder_mut(child) {
                            folder.described = true;
                        }
                        opaque.insert(self.tree.path(parent, &name));
                    }
                    _ => deleted.push((parent, name)),
                },
            }
        }
        let mut marked = BTreeSet::new();
        for (parent, name) in deleted {
            let path = self.tree.path(parent, b"");
            // Below an opaque directory nothing is left to delete, and overlayfs would list the mark itself.
            if !is_within(&path, &opaque) && self.tree.child(parent, &name).is_none() {
                let attributes = Attributes { mode: 0, ..Attributes::implied() };
                self.tree.add(parent, &name, Node { attributes, content: Content::Character(0), links: 0 });
                marked.insert(path);
            }
        }
        let opaque_root = opaque.remove(&Vec::new());
        for path in opaque {
            if let Some(folder) = self.tree.at(&path).and_then(|id| self.tree.folder_mut(id)) {
                folder.opaque = true;
            }
        }
        Ok((opaque_root, marked))
    }

    fn directory(&mut self, name: &[u8]) -> Result<NodeId, LayerError> {
        Ok(self.tree.directory(name, Missing::Make)?.unwrap_or(ROOT))
    }

    /// Paths of the directories that no entry describes.
    fn implied(&self) -> Vec<Vec<u8>> {
        let folders = self.tree.order().into_iter().filter_map(|id| Some((id, self.tree.folder(id)?)));
        folders.filter(|(_, folder)| !folder.described).map(|(id, _)| self.tree.path(id, b"")).collect()
    }
}

impl Sink for Writer {
    fn add(&mut self, mut entry: Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
        for name in &entry.dropped {
            self.warn(&entry.name, &format!("attribute {name} is left out"));
        }
        let (parent, base) = split(&entry.name);
        if let Some(deletion) = deletion(&entry)? {
            self.charge(NODE_BYTES + entry.name.len())?;
            self.deletions.push((parent.to_vec(), deletion));
            return Ok(());
        }
        let xattr_bytes: usize = entry.attributes.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        self.charge(NODE_BYTES + entry.name.len() + xattr_bytes)?;
        if matches!(entry.node, EntryNode::Symlink(_)) {
            // Linux gives a link no other mode, whatever the archive says; EROFS would show it.
            entry.attributes.mode = 0o777;
        }
        if !matches!(entry.node, EntryNode::Directory | EntryNode::File | EntryNode::Sparse(..)) {
            // The kernel has no user attributes on anything but files and directories.
            entry.attributes.xattrs.retain(|(name, _)| !name.starts_with(b"user."));
        }
        xattr::check(&entry.name, &entry.attributes.xattrs)?;
        if base.is_empty() {
            self.describe(ROOT, entry.attributes);
            return Ok(());
        }
        let parent = self.directory(parent)?;
        match &entry.node {
            EntryNode::Directory => self.make_directory(parent, base, entry.attributes),
            EntryNode::Hardlink(target) => self.make_link(parent, base, &entry.name, target)?,
            _ => {
                let content = self.contents(&entry, contents)?;
                self.charge(content.index_bytes())?;
                self.make_room(parent, base);
                self.tree.add(parent, base, Node { attributes: entry.attributes.clone(), content, links: 0 });
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Extracted, LayerError> {
        let (opaque_root, marked) = self.apply_deletions()?;
        let implied = self.implied();
        let tree = &self.tree;
        let links = self.links.into_iter().filter(|(name, _)| tree.at(name).is_none()).collect();
        metadata::write(tree, self.data, self.uuid).map_err(LayerError::entry_io(b"", "write the index"))?;
        let (replaced, warnings) = (self.replaced, self.warnings);
        Ok(Extracted { implied, links, opaque_root, marked, replaced, warnings })
    }
}
