//! Making durable what was stored without waiting for the disk.
//!
//! ```text
//! publish   rename, no sync; the record says: trust me in this boot          (`unsettled` is put down)
//! settle    syncfs ─▶ write records that say: durable ─▶ syncfs ─▶ rename them ─▶ syncfs
//! open      a record of another boot that does not say so is not trusted, what it describes is fetched again
//! ```
//! A crash of a process loses nothing of the page cache, so within one boot everything published can be trusted. Names,
//! records of container images and documents need no such fence: each is whole or not there, and refers to the rest by digest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::fixup::FixupRecord;
use crate::image::ImageRecord;
use crate::layer::{Fence, LayerRecord};
use crate::layout::Layout;
use crate::lock::Lock;
use crate::record;
use crate::workspace::Workspace;

const MARKER: &str = "unsettled";

/// Notes that there is something to settle.
pub(crate) fn expect(layout: &Layout) -> Result<(), Error> {
    let path = layout.at(MARKER);
    File::create(&path).map(drop).map_err(Error::io("create", &path))
}

/// Whether there may be something to settle.
pub(crate) fn is_expected(layout: &Layout) -> bool {
    layout.at(MARKER).exists()
}

/// Makes everything durable that was published before.
pub(crate) fn settle(layout: &Layout) -> Result<(), Error> {
    // Removed first: what is published from here on puts it down again.
    drop(fs::remove_file(layout.at(MARKER)));
    let settled = try_settle(layout);
    if settled.is_err() {
        expect(layout)?;
    }
    settled
}

fn try_settle(layout: &Layout) -> Result<(), Error> {
    let mut pending = unsettled::<LayerRecord>(layout, "layers", "layer.json")?;
    pending.extend(unsettled::<FixupRecord>(layout, "fixups", "fixup.json")?);
    pending.extend(unsettled::<ImageRecord>(layout, "images", "")?);
    // Names and documents are synced also where every layer was durable before.
    sync(layout)?;
    if pending.is_empty() {
        return Ok(());
    }
    let workspace = Workspace::create(layout)?;
    let mut staged = Vec::new();
    for pending in pending {
        // Somebody is about to rewrite this record, or has done it since: it is settled with the next.
        let held = Lock::try_exclusive(&layout.lock(&pending.lock))?;
        let is_same = fs::read(&pending.path).is_ok_and(|bytes| bytes == pending.bytes);
        match held {
            Some(held) if is_same => {
                let temporary = (pending.stage)(&pending.path, &workspace, &pending.bytes)?;
                staged.push((temporary, pending.path, held));
            }
            _ => expect(layout)?,
        }
    }
    sync(layout)?;
    for (temporary, path, _held) in &staged {
        fs::rename(temporary, path).map_err(Error::io("rename", path))?;
    }
    sync(layout)
}

/// A record with a fence.
pub(crate) trait Fenced: Serialize + DeserializeOwned {
    /// `None` if what it describes is fenced elsewhere.
    fn fence(&mut self) -> Option<&mut Fence>;
}

/// An artifact's blobs have no record of their own.
impl Fenced for ImageRecord {
    fn fence(&mut self) -> Option<&mut Fence> {
        self.artifact.as_mut().map(|artifact| &mut artifact.fence)
    }
}

impl Fenced for LayerRecord {
    fn fence(&mut self) -> Option<&mut Fence> {
        Some(&mut self.fence)
    }
}

impl Fenced for FixupRecord {
    fn fence(&mut self) -> Option<&mut Fence> {
        Some(&mut self.fence)
    }
}

/// A record that was not durable when it was read.
struct Pending {
    path: PathBuf,
    lock: String,
    bytes: Vec<u8>,
    stage: fn(&Path, &Workspace, &[u8]) -> Result<PathBuf, Error>,
}

/// The records of a folder that this boot wrote and that are not durable yet. `file` is empty where the folder holds the
/// records themselves.
fn unsettled<T: Fenced>(layout: &Layout, folder: &str, file: &str) -> Result<Vec<Pending>, Error> {
    let mut pending = Vec::new();
    for name in layout.list(folder)? {
        let entry = layout.at(folder).join(&name);
        let path = if file.is_empty() { entry } else { entry.join(file) };
        let Ok(bytes) = fs::read(&path) else { continue };
        let Ok(mut record) = serde_json::from_slice::<T>(&bytes) else { continue };
        if record.fence().is_some_and(|fence| !fence.durable && fence.holds()) {
            pending.push(Pending { path, lock: format!("{folder}-{name}"), bytes, stage: stage::<T> });
        }
    }
    Ok(pending)
}

/// Writes the same record as a durable one.
fn stage<T: Fenced>(path: &Path, workspace: &Workspace, bytes: &[u8]) -> Result<PathBuf, Error> {
    let refuse =
        |error: serde_json::Error| Error::Record { path: path.to_owned(), reason: error.to_string() };
    let mut record: T = serde_json::from_slice(bytes).map_err(refuse)?;
    if let Some(fence) = record.fence() {
        fence.durable = true;
    }
    record::stage(path, workspace.path(), &record)
}

fn sync(layout: &Layout) -> Result<(), Error> {
    let root = File::open(layout.root()).map_err(Error::io("open", layout.root()))?;
    rustix::fs::syncfs(&root).map_err(Error::io("sync", layout.root()))
}
