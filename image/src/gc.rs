//! Removing what nobody needs: mark what images, snapshots and living operations use, sweep the rest into the trash.
//!
//! ```text
//! shared lock      read every record, list every folder ─▶ nothing to do? ─▶ done
//! exclusive lock   read the records that are new since, and the leases ─▶ rename what is still unneeded
//! no lock          delete what was renamed
//! ```
//! Only the second step keeps others waiting, and it takes time by what changes and goes, not by what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::Serialize;

use crate::error::Error;
use crate::image::ImageRecord;
use crate::layout::Layout;
use crate::lock::{Lock, Mode};
use crate::partial;
use crate::record;
use crate::snapshot::SnapshotRecord;
use crate::workspace;

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Layers and fix-up layers.
    pub layers: usize,
    /// Manifests, configurations and kept blobs.
    pub blobs: usize,
}

/// Where there may be something that nobody needs.
const SWEPT: [&str; 4] = ["layers", "fixups", "blobs/sha256", "blobs/sha512"];

/// Moves everything unreferenced to the trash.
pub(crate) fn collect(layout: &Layout) -> Result<Collected, Error> {
    partial::sweep(layout, false);
    let mut marks = Marks::default();
    let candidates = {
        let _store = Lock::wait(&layout.store_lock(), Mode::Shared)?;
        marks.mark(layout)?;
        candidates(layout, &marks.kept)?
    };
    if candidates.is_empty() && !workspace::any_dead(layout)? {
        // A pull that was killed before it came to anything leaves the locks it held.
        return sweep_locks(layout).map(|()| Collected::default());
    }
    let store = Lock::wait(&layout.store_lock(), Mode::Exclusive)?;
    // Leases first: whoever ends in between has written its record before it lets go of its lease.
    marks.kept.extend(workspace::reap(layout, &store)?);
    marks.mark(layout)?;
    let mut collected = Collected::default();
    for path in candidates.iter().filter(|path| !marks.kept.contains(*path)) {
        layout.discard(&layout.at(path))?;
        let is_blob = path.starts_with("blobs/");
        *(if is_blob { &mut collected.blobs } else { &mut collected.layers }) += 1;
    }
    sweep_locks(layout)?;
    Ok(collected)
}

/// What is needed, and which records say so.
#[derive(Default)]
struct Marks {
    /// Records that were read: a record is never written to, only replaced, and then it is another inode.
    read: BTreeMap<String, (u64, i64, i64)>,
    kept: BTreeSet<String>,
}

impl Marks {
    /// Reads the records that were not read yet. What a record that has gone meanwhile kept is kept once more.
    fn mark(&mut self, layout: &Layout) -> Result<(), Error> {
        for name in layout.list("images")? {
            let path = format!("images/{name}");
            if self.is_new(layout, &path) {
                let record = record::load::<ImageRecord>(&layout.at(&path))?;
                self.kept.extend(record.iter().flat_map(ImageRecord::keeps));
            }
        }
        for name in layout.list("snapshots")? {
            let path = format!("snapshots/{name}/snapshot.json");
            if self.is_new(layout, &path) {
                let record = record::load::<SnapshotRecord>(&layout.at(&path))?;
                self.kept.extend(record.iter().flat_map(SnapshotRecord::keeps));
            }
        }
        Ok(())
    }

    fn is_new(&mut self, layout: &Layout, path: &str) -> bool {
        let Ok(metadata) = fs::metadata(layout.at(path)) else { return false };
        let identity = (metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
        self.read.insert(path.to_owned(), identity) != Some(identity)
    }
}

fn candidates(layout: &Layout, kept: &BTreeSet<String>) -> Result<Vec<String>, Error> {
    let mut unneeded = Vec::new();
    for folder in SWEPT {
        let paths = layout.list(folder)?.into_iter().map(|name| format!("{folder}/{name}"));
        unneeded.extend(paths.filter(|path| !kept.contains(path)));
    }
    Ok(unneeded)
}

/// A lock file is removed while it is held, so that whoever waits for it sees that it is gone and opens a new one.
fn sweep_locks(layout: &Layout) -> Result<(), Error> {
    for name in layout.list("locks")? {
        let path = layout.lock(&name);
        if let Some(_held) = Lock::try_exclusive(&path)? {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}
