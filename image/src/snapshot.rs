//! Snapshots: a writable place on top of an image, as paths for a mount that somebody else performs.

use std::fs;
use std::path::PathBuf;

use cofferdam_registry::Digest;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Error, LayerError};
use crate::extract::apply;
use crate::image::Image;
use crate::layer::{self, LayerRecord};
use crate::layout::{self, Layout, make_private};
use crate::pull::intact;
use crate::record::{self, Durable};
use crate::workspace::Workspace;
use crate::{fixup, image, merge};

/// The directories of an overlay mount. All are absolute and within the store; nothing is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What the snapshot was prepared under.
    pub key: String,
    /// The image's manifest digest.
    pub image: Digest,
    /// Read-only directories, uppermost first; never empty.
    pub lower: Vec<PathBuf>,
    /// The writable directory.
    pub upper: PathBuf,
    /// overlayfs's own directory beside it.
    pub work: PathBuf,
}

/// `snapshot.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) key: String,
    pub(crate) image: Digest,
    /// Relative to the store, uppermost first.
    pub(crate) lower: Vec<String>,
}

impl SnapshotRecord {
    /// What the garbage collector keeps for this snapshot: layers and fix-ups, not the trees in them.
    pub(crate) fn keeps(&self) -> impl Iterator<Item = String> {
        self.lower.iter().filter_map(|lower| lower.strip_suffix("/diff")).map(str::to_owned)
    }

    fn snapshot(self, layout: &Layout) -> Snapshot {
        let folder = layout.at(&layout::snapshot(&self.key));
        Snapshot {
            lower: self.lower.iter().map(|lower| layout.at(lower)).collect(),
            upper: folder.join("upper"),
            work: folder.join("work"),
            key: self.key,
            image: self.image,
        }
    }
}

/// Makes a snapshot of `image` under `key`.
pub(crate) fn prepare(layout: &Layout, key: &str, image: &Image) -> Result<Snapshot, Error> {
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
    let stage = workspace.path().join("snapshot");
    for folder in ["upper", "work"] {
        make_private(&stage.join(folder))?;
    }
    let record = SnapshotRecord {
        key: key.to_owned(),
        image: image.digest.clone(),
        lower: lower(&relative, &known.fixup, &layers, &stage)?,
    };
    dress_root(layout, &image.digest, &layers, &stage.join("upper"))?;
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
    stage: &std::path::Path,
) -> Result<Vec<String>, Error> {
    let mut lower: Vec<String> = fixup.iter().map(|folder| format!("{folder}/diff")).collect();
    lower.extend(merge::lower(layers));
    if lower.is_empty() {
        make_private(&stage.join("empty"))?;
        lower.push(format!("{relative}/empty"));
    }
    Ok(lower)
}

/// The mounted root shows the upper directory's attributes.
fn dress_root(
    layout: &Layout,
    image: &Digest,
    layers: &[LayerRecord],
    upper: &std::path::Path,
) -> Result<(), Error> {
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
