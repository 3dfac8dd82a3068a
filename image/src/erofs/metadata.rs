//! Everything of the image but files' contents: directories, inodes, the superblock.
//!
//! Places are given out first, since a directory names its entries' places; then all is written in the same order.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound::{self, Excluded, Unbounded};

use rustix::fs::{FileType, Timespec, major, minor};

use super::data::{DataArea, Place};
use super::format::{BLOCK_BYTES, DIRENT_BYTES, DataLayout, Inode, SLOT_BYTES, Superblock};
use super::tree::{Content, Folder, Node, NodeId, ROOT, Tree};
use super::xattr;

/// Readers take inode 0 for "no inode", so the first place stays free.
const FIRST_OFFSET: u64 = 64;
/// `trusted.overlay.opaque`, as overlayfs reads it.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// Writes the rest of the image of `tree` behind its contents.
pub(super) fn write(tree: &Tree, mut data: DataArea, uuid: [u8; 16]) -> io::Result<()> {
    let order = tree.order();
    let places = Places::assign(tree, &order, data.next_block()?)?;
    for id in places.blocks.keys() {
        write_own_blocks(tree, *id, &places, &mut data)?;
    }
    let metadata_block = data.next_block()?;
    let mut position = 0;
    for (index, id) in order.iter().enumerate() {
        let bytes = encode(tree, *id, index, &places);
        let gap = places.offsets[*id] - position;
        data.append(&vec![0; gap as usize])?;
        data.append(&bytes)?;
        position = places.offsets[*id] + bytes.len() as u64;
    }
    data.align()?;
    let has_chunks = order.iter().any(|id| {
        matches!(&tree.node(*id).content, Content::File(file) if matches!(file.place, Place::Chunks { .. }))
    });
    let superblock = Superblock {
        root: (places.offsets[ROOT] / SLOT_BYTES) as u16,
        inodes: order.len() as u64,
        time: places.time,
        blocks: data.next_block()?,
        metadata_block,
        uuid,
        has_chunks,
    };
    data.finish(&superblock.block())
}

/// Where everything will be.
struct Places {
    /// The time of inodes that do not state one: the commonest, so that most are of the small form.
    time: Timespec,
    /// Of inodes, in bytes from the beginning of the metadata, by node.
    offsets: Vec<u64>,
    /// The first block of a directory or link that has its own, by node.
    blocks: BTreeMap<NodeId, u32>,
}

impl Places {
    fn assign(tree: &Tree, order: &[NodeId], first_block: u32) -> io::Result<Places> {
        let mut places = Places {
            time: commonest_time(tree, order),
            offsets: vec![0; tree.len()],
            blocks: BTreeMap::new(),
        };
        let mut offset = FIRST_OFFSET;
        for id in order {
            let shape = Shape::of(tree, *id, places.time);
            if shape.blocks > 0 {
                places.blocks.insert(*id, shape.blocks);
            }
            let block_bytes = BLOCK_BYTES as u64;
            if offset % block_bytes + shape.together as u64 > block_bytes {
                offset = offset.next_multiple_of(block_bytes);
            }
            places.offsets[*id] = offset;
            offset = (offset + shape.bytes as u64).next_multiple_of(SLOT_BYTES);
        }
        // In the order in which they are written.
        let mut next = first_block;
        for block in places.blocks.values_mut() {
            let count = std::mem::replace(block, next);
            next = next.checked_add(count).ok_or(io::ErrorKind::FileTooLarge)?;
        }
        Ok(places)
    }

    fn number(&self, id: NodeId) -> u64 {
        self.offsets[id] / SLOT_BYTES
    }
}

/// How much room a node's metadata takes.
struct Shape {
    inode: Inode,
    inode_bytes: usize,
    xattrs: Vec<u8>,
    /// Data behind the inode.
    inline_bytes: usize,
    /// Blocks of its own, of a directory or link.
    blocks: u32,
    /// What must not cross the end of a block.
    together: usize,
    /// Altogether.
    bytes: usize,
}

impl Shape {
    fn of(tree: &Tree, id: NodeId, time: Timespec) -> Shape {
        let node = tree.node(id);
        let xattrs = encode_xattrs(node);
        let mut inode = Inode {
            layout: DataLayout::Plain,
            xattr_bytes: xattrs.len(),
            mode: node.attributes.mode | kind(&node.content).as_raw_mode(),
            size: 0,
            union: 0,
            number: 0,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime: node.attributes.mtime,
            links: node.links,
        };
        let (mut inline_bytes, mut blocks, mut map_bytes) = (0, 0, 0);
        match &node.content {
            Content::Directory(folder) => {
                let sizes = directory_blocks(folder);
                let last = sizes.last().copied().unwrap_or(0);
                inode.size = ((sizes.len().max(1) - 1) * BLOCK_BYTES + last) as u64;
                let subdirectories = folder.children.values().filter(|child| tree.folder(**child).is_some());
                inode.links = 2 + subdirectories.count() as u32;
                inline_bytes = last;
                blocks = sizes.len().max(1) as u32 - 1;
            }
            Content::Symlink(target) => {
                inode.size = target.len() as u64;
                inline_bytes = target.len();
            }
            Content::File(file) => {
                inode.size = file.size;
                match &file.place {
                    Place::Blocks { first, tail } => (inode.union, inline_bytes) = (*first, tail.len()),
                    Place::Chunks { bits, addresses } => {
                        inode.layout = DataLayout::Chunks;
                        inode.union = bits - BLOCK_BYTES.trailing_zeros();
                        map_bytes = 4 * addresses.len();
                    }
                }
            }
            Content::Character(device) | Content::Block(device) => inode.union = encode_device(*device),
            Content::Fifo => {}
        }
        let inode_bytes = inode.bytes(time);
        let head = inode_bytes + xattrs.len();
        if inline_bytes > 0 && head + inline_bytes > BLOCK_BYTES {
            // It gets a block of its own.
            (inline_bytes, blocks) = (0, blocks + 1);
        }
        if inline_bytes > 0 {
            inode.layout = DataLayout::Inline;
        }
        let together = if inline_bytes > 0 { head + inline_bytes } else { inode_bytes };
        Shape {
            inode,
            inode_bytes,
            xattrs,
            inline_bytes,
            blocks,
            together,
            bytes: head + inline_bytes + map_bytes,
        }
    }
}

/// A node's inode and what lies behind it.
fn encode(tree: &Tree, id: NodeId, index: usize, places: &Places) -> Vec<u8> {
    let node = tree.node(id);
    let Shape { mut inode, inode_bytes, xattrs, inline_bytes, .. } = Shape::of(tree, id, places.time);
    inode.number = index as u32 + 1;
    if let Some(block) = places.blocks.get(&id) {
        inode.union = *block;
    }
    let mut bytes = Vec::new();
    inode.encode(inode_bytes, &mut bytes);
    bytes.extend_from_slice(&xattrs);
    match &node.content {
        Content::Directory(folder) if inline_bytes > 0 => {
            let last = directory_blocks(folder).len() - 1;
            bytes.extend(encode_directory(folder, id, tree, places).nth(last).unwrap_or_default());
        }
        Content::Symlink(target) if inline_bytes > 0 => bytes.extend_from_slice(target),
        Content::File(file) => match &file.place {
            Place::Blocks { tail, .. } => bytes.extend_from_slice(tail),
            Place::Chunks { addresses, .. } => {
                bytes.extend(addresses.iter().flat_map(|address| address.to_le_bytes()));
            }
        },
        _ => {}
    }
    bytes
}

/// The blocks of a directory or link that do not lie behind its inode.
fn write_own_blocks(tree: &Tree, id: NodeId, places: &Places, data: &mut DataArea) -> io::Result<()> {
    match &tree.node(id).content {
        Content::Directory(folder) => {
            let count = Shape::of(tree, id, places.time).blocks as usize;
            for block in encode_directory(folder, id, tree, places).take(count) {
                data.append(&block)?;
                data.align()?;
            }
            Ok(())
        }
        Content::Symlink(target) => {
            data.append(target)?;
            data.align()
        }
        _ => Ok(()),
    }
}

/// How the entries of a directory fall into blocks: the bytes used of each. Its own and its parent's name sort among the
/// others.
fn directory_blocks(folder: &Folder) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut used = 0;
    for length in names(folder).map(<[u8]>::len) {
        if used + DIRENT_BYTES + length > BLOCK_BYTES {
            sizes.push(std::mem::take(&mut used));
        }
        used += DIRENT_BYTES + length;
    }
    sizes.push(used);
    sizes
}

/// All names in a directory, sorted by bytes.
fn names(folder: &Folder) -> impl Iterator<Item = &[u8]> {
    let (this, parent) = (b".".as_slice(), b"..".as_slice());
    let range = |from, to| {
        folder
            .children
            .range::<[u8], (Bound<&[u8]>, Bound<&[u8]>)>((from, to))
            .map(|(name, _)| name.as_slice())
    };
    range(Unbounded, Excluded(this))
        .chain([this])
        .chain(range(Excluded(this), Excluded(parent)))
        .chain([parent])
        .chain(range(Excluded(parent), Unbounded))
}

/// A directory's blocks, without the zeros at their ends.
fn encode_directory(
    folder: &Folder,
    id: NodeId,
    tree: &Tree,
    places: &Places,
) -> impl Iterator<Item = Vec<u8>> {
    let mut names = names(folder).peekable();
    std::iter::from_fn(move || {
        let mut block_names: Vec<&[u8]> = Vec::new();
        let mut used = 0;
        while let Some(name) = names.next_if(|name| used + DIRENT_BYTES + name.len() <= BLOCK_BYTES) {
            used += DIRENT_BYTES + name.len();
            block_names.push(name);
        }
        if block_names.is_empty() {
            return None;
        }
        let mut block = Vec::with_capacity(used);
        let mut name_offset = DIRENT_BYTES * block_names.len();
        for name in &block_names {
            let entry = match *name {
                b"." => id,
                b".." => folder.parent,
                name => folder.children.get(name).copied().unwrap_or(id),
            };
            block.extend(places.number(entry).to_le_bytes());
            block.extend((name_offset as u16).to_le_bytes());
            block.extend([file_type(&tree.node(entry).content), 0]);
            name_offset += name.len();
        }
        block.extend(block_names.concat());
        Some(block)
    })
}

fn encode_xattrs(node: &Node) -> Vec<u8> {
    let opaque = matches!(&node.content, Content::Directory(folder) if folder.opaque);
    let mark = opaque.then(|| (OPAQUE.0.to_vec(), OPAQUE.1.to_vec()));
    xattr::encode(node.attributes.xattrs.iter().chain(&mark))
}

fn kind(content: &Content) -> FileType {
    match content {
        Content::Directory(_) => FileType::Directory,
        Content::File(_) => FileType::RegularFile,
        Content::Symlink(_) => FileType::Symlink,
        Content::Character(_) => FileType::CharacterDevice,
        Content::Block(_) => FileType::BlockDevice,
        Content::Fifo => FileType::Fifo,
    }
}

/// `FT_*` of a directory's entry.
fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::Character(_) => 3,
        Content::Block(_) => 4,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    }
}

/// The kernel's `new_encode_dev`.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (major(device), minor(device));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// Of equally common ones the earliest; the beginning of 1970 for an image without inodes that state one.
fn commonest_time(tree: &Tree, order: &[NodeId]) -> Timespec {
    let mut counts: BTreeMap<(i64, i64), usize> = BTreeMap::new();
    for id in order {
        let time = tree.node(*id).attributes.mtime;
        *counts.entry((time.tv_sec, time.tv_nsec)).or_default() += 1;
    }
    let commonest =
        counts.into_iter().rev().filter(|((seconds, _), _)| *seconds >= 0).max_by_key(|(_, count)| *count);
    let ((tv_sec, tv_nsec), _) = commonest.unwrap_or_default();
    Timespec { tv_sec, tv_nsec }
}
