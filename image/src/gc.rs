//! Removing what nobody needs: mark what images, snapshots and living operations use, sweep the rest into the trash.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::layout::Layout;
use crate::lock::{Lock, Mode};
use crate::{image, snapshot, workspace};

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers and fix-up layers.
    pub layers: usize,
    /// Manifests and configurations.
    pub blobs: usize,
}

/// Moves everything unreferenced to the trash. The store's lock is held exclusively meanwhile; only renames happen under it.
pub(crate) fn collect(layout: &Layout) -> Result<Collected, Error> {
    let store = Lock::wait(&layout.store_lock(), Mode::Exclusive)?;
    let mut kept = workspace::reap(layout, &store)?;
    for record in image::records(layout)? {
        kept.extend(record.keeps());
    }
    for record in snapshot::records(layout)? {
        kept.extend(record.keeps());
    }
    let mut collected = Collected::default();
    for folder in ["layers", "fixups"] {
        collected.layers += sweep(layout, folder, &kept)?;
    }
    for folder in ["blobs/sha256", "blobs/sha512"] {
        collected.blobs += sweep(layout, folder, &kept)?;
    }
    sweep_locks(layout)?;
    Ok(collected)
}

fn sweep(layout: &Layout, folder: &str, kept: &BTreeSet<String>) -> Result<usize, Error> {
    let mut count = 0;
    for name in layout.list(folder)? {
        let path = format!("{folder}/{name}");
        if !kept.contains(&path) {
            layout.discard(&layout.at(&path))?;
            count += 1;
        }
    }
    Ok(count)
}

/// A lock file is removed while it is held, so that whoever waits for it sees that it is gone and opens a new one.
fn sweep_locks(layout: &Layout) -> Result<(), Error> {
    for name in layout.list("locks")? {
        let path = layout.lock(&name);
        if let Some(_held) = Lock::try_exclusive(&path)? {
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}
