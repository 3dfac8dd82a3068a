//! A layer as one file: an EROFS image that the kernel mounts.
//!
//! ```text
//! block 0         superblock at byte 1024, written last
//! blocks 1 …      files' data, in the archive's order, as it streams past
//!                 then the blocks of large directories
//! last blocks     inodes with their attributes, small directories and the ends of files
//! ```
//!
//! Written in one pass over the archive, without a system call for an entry: data is appended, everything else is kept in
//! memory until the end. The same archive gives the same bytes. Nothing is compressed, since the blob was decompressed to be
//! verified and the page cache wants it so. A deletion is a character device 0:0 and an opaque directory carries
//! `trusted.overlay.opaque`, as in the tree of a directory: what lies on the disk means the same to overlayfs.
//!
//! Format: Linux's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h; of it, what every kernel since 5.15 reads.
//! Read first: `tree` (what the archive says), `data` (where contents go), `metadata` (the rest of the file), `sink` (entries
//! in), `image` (how it is opened).

mod data;
mod format;
mod image;
mod metadata;
mod sink;
mod tree;
mod xattr;

pub(crate) use image::{is_supported, open};
pub(crate) use sink::Writer;
