//! Snapshots: a writable place on top of an image, as paths for a mount that somebody else performs.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cofferdam_registry::Digest;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Form};
use crate::error::{Error, LayerError};
use crate::extract::apply;
use crate::image::Image;
use crate::layer::{self, LayerRecord};
use crate::layout::{self, Layout, make_private};
use crate::pull::intact;
use crate::quota::{self, Way};
use crate::record::{self, Durable};
use crate::workspace::{self, Workspace};
use crate::{fixup, image, merge};

/// The file of a limited writable layer.
const DISK: &str = "writable.ext4";
/// The subvolume of one that is limited by its quota group.
const SUBVOLUME: &str = "writable";

/// What a container's tree is made of. All paths are absolute and within the store; nothing is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What the snapshot was prepared under.
    pub key: String,
    /// The image's manifest digest.
    pub image: Digest,
    /// Read-only layers, uppermost first, for overlayfs. Empty if `upper` is the whole tree (backend `copy`).
    pub lower: Vec<Lower>,
    /// The writable directory.
    pub upper: PathBuf,
    /// overlayfs's own directory beside it.
    pub work: PathBuf,
    /// A file with an ext4 file system of limited size. `upper` and `work` are directories of its root then.
    pub disk: Option<PathBuf>,
}

impl Snapshot {
    /// Every layer that can be looked into while the snapshot is mounted or not, uppermost first. A limited writable layer
    /// is not among them.
    pub fn layers(&self) -> impl Iterator<Item = Lower> {
        let upper = self.disk.is_none().then(|| Lower::Directory(self.upper.clone()));
        upper.into_iter().chain(self.lower.iter().cloned())
    }
}

/// A read-only layer of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lower {
    /// A directory.
    Directory(PathBuf),
    /// A file with an EROFS image, to be mounted first.
    Erofs(PathBuf),
}

impl Lower {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Lower::Directory(path) | Lower::Erofs(path) => path,
        }
    }

    /// Its root directory, for looking into; an image is mounted for it, but nowhere, and goes with the descriptor.
    pub fn open(&self) -> Result<OwnedFd, Error> {
        match self {
            Lower::Directory(path) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io("open", path))
            }
            Lower::Erofs(path) => crate::erofs::open(path),
        }
    }

    fn of(layout: &Layout, relative: &str) -> Lower {
        match Form::of_path(relative) {
            Some((Form::Erofs, _)) => Lower::Erofs(layout.at(relative)),
            _ => Lower::Directory(layout.at(relative)),
        }
    }
}

/// How a snapshot is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// What its writable layer may hold, in bytes; at least [`SMALLEST_BYTES`](crate::quota::SMALLEST_BYTES). Needs a
    /// btrfs with quotas, or mkfs.ext4 and loop devices.
    pub writable_bytes: Option<u64>,
}

/// `snapshot.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) key: String,
    pub(crate) image: Digest,
    /// Relative to the store, uppermost first.
    pub(crate) lower: Vec<String>,
    /// The writable layer has a file system of its own.
    #[serde(default)]
    pub(crate) limited: bool,
    /// The folder of the writable layer within the snapshot's; empty for that itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) writable: String,
}

impl SnapshotRecord {
    /// What the garbage collector keeps for this snapshot: layers and fix-ups, not the trees in them.
    pub(crate) fn keeps(&self) -> impl Iterator<Item = String> {
        self.lower.iter().filter_map(|lower| Form::of_path(lower)).map(|(_, folder)| folder.to_owned())
    }

    fn snapshot(self, layout: &Layout) -> Snapshot {
        let folder = layout.at(&layout::snapshot(&self.key));
        let disk = self.limited.then(|| folder.join(DISK));
        let base = match self.writable.as_str() {
            _ if self.limited => PathBuf::new(),
            "" => folder,
            writable => folder.join(writable),
        };
        Snapshot {
            lower: self.lower.iter().map(|lower| Lower::of(layout, lower)).collect(),
            upper: base.join("upper"),
            work: base.join("work"),
            disk,
            key: self.key,
            image: self.image,
        }
    }
}

/// Makes a snapshot of `image` under `key`.
pub(crate) fn prepare(
    layout: &Layout,
    key: &str,
    image: &Image,
    options: &SnapshotOptions,
) -> Result<Snapshot, Error> {
    if key.is_empty() || key.len() > 1024 {
        let (input, reason) = (key.chars().take(64).collect(), "expected 1 to 1024 bytes".to_owned());
        return Err(Error::InvalidInput { what: "snapshot key", input, reason });
    }
    let relative = layout::snapshot(key);
    let target = layout.at(&relative);
    if target.exists() {
        return Err(Error::SnapshotExists { key: key.to_owned() });
    }
    let workspace = Workspace::create(layout)?;
    let unknown = || Error::UnknownImage { name: image.digest.to_string() };
    let known = image::load_record(layout, &image.digest)?.ok_or_else(unknown)?;
    workspace.lease(layout, known.keeps())?;
    // Looked at again under the lease: the collector may have been faster.
    let known = intact(layout, &image.digest)?.ok_or_else(unknown)?;
    let mut layers = Vec::new();
    for layer in &known.layers {
        layers.push(layer::load(layout, &layer.diff_id)?.ok_or_else(unknown)?);
    }
    let copies = layout.options().layers == Backend::Copy;
    let stage =
        if copies { workspace::make_stage(workspace.path())? } else { workspace.path().join("snapshot") };
    let limit = match options.writable_bytes {
        Some(bytes) => Some((quota::choose(layout.root(), bytes)?, bytes)),
        None => None,
    };
    make_private(&stage)?;
    let seed = match limit {
        Some((Way::Disk, _)) => workspace.path().join("seed"),
        Some((Way::Subvolume, bytes)) => {
            quota::make_subvolume(&stage.join(SUBVOLUME), bytes)?;
            stage.join(SUBVOLUME)
        }
        None => stage.clone(),
    };
    for folder in ["upper", "work"] {
        make_private(&seed.join(folder))?;
    }
    let mut record = SnapshotRecord {
        key: key.to_owned(),
        image: image.digest.clone(),
        lower: lower(&relative, &known.fixup, &layers, &stage)?,
        limited: matches!(limit, Some((Way::Disk, _))),
        writable: seed.strip_prefix(&stage).map(|base| base.display().to_string()).unwrap_or_default(),
    };
    if copies {
        record.lower.clear();
        copy_layers(layout, &image.digest, &layers, &seed.join("upper"), options)?;
    }
    dress_root(layout, &image.digest, &layers, &seed.join("upper"))?;
    if let Some((Way::Disk, bytes)) = limit {
        quota::make_disk(&stage.join(DISK), bytes, &seed)?;
    }
    record::store(&stage.join("snapshot.json"), workspace.path(), &record, Durable::Later)?;
    match fs::rename(&stage, &target) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            Err(Error::SnapshotExists { key: key.to_owned() })
        }
        Err(error) => Err(Error::io("publish", &target)(error)),
        Ok(()) => Ok(record.snapshot(layout)),
    }
}

/// The lower directories, uppermost first. overlayfs wants at least one, so an image without layers gets an empty one of
/// its own.
fn lower(
    relative: &str,
    fixup: &Option<String>,
    layers: &[LayerRecord],
    stage: &Path,
) -> Result<Vec<String>, Error> {
    let fixup = fixup.iter().map(|folder| format!("{folder}/{}", Form::Directory.path()));
    let mut lower: Vec<String> = fixup.chain(merge::lower(layers)).collect();
    if lower.is_empty() {
        make_private(&stage.join("empty"))?;
        lower.push(format!("{relative}/empty"));
    }
    Ok(lower)
}

/// Makes the whole tree in the directory `target`.
fn copy_layers(
    layout: &Layout,
    image: &Digest,
    layers: &[LayerRecord],
    target: &Path,
    options: &SnapshotOptions,
) -> Result<(), Error> {
    if let Some(bytes) = options.writable_bytes {
        let reason = "the backend copy has no writable layer of its own".to_owned();
        return Err(Error::QuotaUnavailable { bytes, reason });
    }
    merge::flatten_all(layout, layers, target).map_err(|source| match source {
        LayerError::Store(error) => *error,
        source => Error::Layer { image: image.to_string(), layer: "copy".to_owned(), source: source.into() },
    })
}

/// The mounted root shows the upper directory's attributes.
fn dress_root(layout: &Layout, image: &Digest, layers: &[LayerRecord], upper: &Path) -> Result<(), Error> {
    let failed = |source: LayerError| match source {
        LayerError::Store(error) => *error,
        source => Error::Layer { image: image.to_string(), layer: "root".to_owned(), source: source.into() },
    };
    let attributes = fixup::root_attributes(layout, layers).map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(upper, flags, Mode::empty()).map_err(Error::io("open", upper))?;
    apply(&directory, b"", &attributes).map_err(failed)
}

/// The snapshot of that key, if there is one.
pub(crate) fn load(layout: &Layout, key: &str) -> Result<Option<Snapshot>, Error> {
    let path = layout.at(&layout::snapshot(key)).join("snapshot.json");
    Ok(record::load::<SnapshotRecord>(&path)?.map(|record| record.snapshot(layout)))
}

/// Every snapshot's record.
pub(crate) fn records(layout: &Layout) -> Result<Vec<SnapshotRecord>, Error> {
    let mut records = Vec::new();
    for folder in layout.list("snapshots")? {
        records.extend(record::load::<SnapshotRecord>(
            &layout.at("snapshots").join(folder).join("snapshot.json"),
        )?);
    }
    Ok(records)
}

/// Every snapshot.
pub(crate) fn all(layout: &Layout) -> Result<Vec<Snapshot>, Error> {
    Ok(records(layout)?.into_iter().map(|record| record.snapshot(layout)).collect())
}

/// Removes the snapshot of that key. Whether there was one is returned. It must not be mounted any more.
pub(crate) fn remove(layout: &Layout, key: &str) -> Result<bool, Error> {
    let path = layout.at(&layout::snapshot(key));
    let existed = path.exists();
    layout.discard(&path)?;
    Ok(existed)
}
