//! What a stack of layers is made of.

use std::fmt;

use crate::op::Slot;
use crate::path::{HostPath, Text};

/// How overlayfs is told its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OverlayForm {
    /// `lowerdir+` by descriptor (Linux 6.13).
    Descriptors,
    /// `lowerdir+` by name (Linux 6.7): the names are those of descriptors, so that no path is too long.
    Names,
    /// One string for mount(2), of such names too; mounted at this path in the child's own mount namespace.
    OptionString {
        /// An empty directory.
        at: HostPath,
    },
}

/// A directory that overlayfs is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Folder {
    /// By path.
    Path(HostPath),
    /// The root of a detached tree.
    Tree(Slot),
    /// A directory in the root of a detached tree.
    Within(Slot, Text),
}

/// A file system that lies in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A read-only layer.
    Erofs,
    /// A writable layer of limited size.
    Ext4,
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        })
    }
}
