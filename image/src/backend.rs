//! Backends: in which form layers are kept, and how a container's tree is made of them.
//!
//! | backend       | a layer is              | a snapshot is                               | needs |
//! |---------------|-------------------------|---------------------------------------------|-------|
//! | `overlay-dir` | a directory             | layers under a writable directory           | overlayfs |
//! | `erofs`       | a file, an EROFS image  | layers, mounted, under a writable directory | overlayfs, EROFS on files (Linux 6.12) |
//! | `copy`        | a directory             | a directory: everything copied into it      | nothing |
//!
//! One contract for all three (`tests/backends.rs`): the same image gives the same tree. A layer's record says its form, so
//! a store may hold both, and an image whose layers were unpacked at different times is stacked of what is there.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Node};
use crate::erofs;
use crate::error::{Error, LayerError};
use crate::extract::{Extracted, Extractor, split};
use crate::identity::DiffId;
use crate::ring::Supply;
use crate::tar::TarReader;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// aufs's own files, which no layer means to ship.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// How layers that come in from now on are kept, and how snapshots are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Layers are directories that overlayfs stacks.
    #[default]
    OverlayDir,
    /// Layers are EROFS images that overlayfs stacks: one file each, written and removed in no time.
    Erofs,
    /// Layers are directories; a snapshot is a copy of everything. For file systems that overlayfs refuses.
    Copy,
}

impl Backend {
    /// Every backend, the usual one first.
    pub const ALL: [Backend; 3] = [Backend::OverlayDir, Backend::Erofs, Backend::Copy];

    /// Its name, as in records and on command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::OverlayDir => "overlay-dir",
            Backend::Erofs => "erofs",
            Backend::Copy => "copy",
        }
    }

    /// Whether this host can keep layers in this form in a folder. Stacking them is the host's part, and not asked here.
    pub fn is_supported(self, folder: &Path) -> Result<(), Unavailable> {
        match self {
            Backend::Erofs => erofs::is_supported(folder),
            Backend::OverlayDir | Backend::Copy => Ok(()),
        }
    }

    /// The form of its layers.
    pub(crate) fn form(self) -> Form {
        match self {
            Backend::OverlayDir | Backend::Copy => Form::Directory,
            Backend::Erofs => Form::Erofs,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Backend, String> {
        let found = Backend::ALL.into_iter().find(|backend| backend.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not one of overlay-dir, erofs, copy"))
    }
}

/// Why a host cannot have a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// In words.
    pub reason: String,
}

/// What a layer is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Form {
    #[default]
    Directory,
    Erofs,
}

/// An image's name in its folder.
const IMAGE: &str = "layer.erofs";

impl Form {
    /// The folder within the layer's that it is made in, by a thread that sees nothing else.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Form::Directory => "diff",
            Form::Erofs => "image",
        }
    }

    /// What is mounted or stacked, within the layer's folder.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Form::Directory => "diff",
            Form::Erofs => "image/layer.erofs",
        }
    }

    /// The form of what has such a path.
    pub(crate) fn of_path(path: &str) -> Option<(Form, &str)> {
        let forms = [Form::Directory, Form::Erofs];
        forms.into_iter().find_map(|form| {
            let folder = path.strip_suffix(form.path())?.strip_suffix('/')?;
            Some((form, folder))
        })
    }

    /// Begins a layer in its empty folder.
    pub(crate) fn begin(self, root: OwnedFd, diff_id: &DiffId) -> Result<Box<dyn Sink>, LayerError> {
        match self {
            Form::Directory => Ok(Box::new(Extractor::new(root)?)),
            Form::Erofs => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&root, IMAGE, flags, Mode::RUSR | Mode::WUSR);
                let file = file.map_err(LayerError::entry_io(b"", "create the image"))?;
                Ok(Box::new(erofs::Writer::new(file, diff_id)))
            }
        }
    }

    /// The root directory of a layer in that folder, for looking into.
    pub(crate) fn open(self, folder: &Path) -> Result<OwnedFd, Error> {
        let path = folder.join(self.path());
        match self {
            Form::Directory => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(&path, flags, Mode::empty()).map_err(Error::io("open", &path))
            }
            Form::Erofs => erofs::open(&path),
        }
    }
}

/// Where the entries of a layer's archive go, in the archive's order. Every backend makes the same tree of them.
pub(crate) trait Sink {
    /// Takes one entry, reading its data from `contents`.
    fn add(&mut self, entry: Entry, contents: &mut dyn Contents) -> Result<(), LayerError>;

    /// After the last entry: deletions, directories' attributes, and whatever the form needs to be read.
    fn finish(self: Box<Self>) -> Result<Extracted, LayerError>;
}

/// The data of the entry that is being added.
pub(crate) trait Contents {
    /// The next piece; empty at the end.
    fn data(&mut self) -> Result<&[u8], LayerError>;
}

impl<S: Supply> Contents for TarReader<S> {
    fn data(&mut self) -> Result<&[u8], LayerError> {
        TarReader::data(self)
    }
}

/// What an entry takes away from lower layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// One name.
    Name(Vec<u8>),
    /// Everything in the directory.
    Below,
    /// Nothing at all: one of aufs's own files.
    Nothing,
}

/// What an entry deletes; `None` for one that is there to be made.
pub(crate) fn deletion(entry: &Entry) -> Result<Option<Deletion>, LayerError> {
    let (_, base) = split(&entry.name);
    let Some(name) = base.strip_prefix(WHITEOUT_PREFIX) else { return Ok(None) };
    if !matches!(entry.node, Node::File) {
        return Err(LayerError::entry(&entry.name, "names that begin with .wh. are for deletions only"));
    }
    match (base, name) {
        (OPAQUE_MARKER, _) => Ok(Some(Deletion::Below)),
        (base, _) if base.starts_with(AUFS_PREFIX) => Ok(Some(Deletion::Nothing)),
        (_, b"" | b"." | b"..") => Err(LayerError::entry(&entry.name, "it deletes no name")),
        (_, name) => Ok(Some(Deletion::Name(name.to_vec()))),
    }
}
