//! What takes how much: images, what they share, tasks' own files, and what nobody needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cofferdam_registry::{Digest, ImageRef};
use serde::Serialize;

use crate::error::Error;
use crate::image::{self, ImageRecord};
use crate::layout::Layout;
use crate::{prune, snapshot};

/// What a store takes on disk, in bytes of blocks. Stable JSON: fields are added, never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Each image.
    pub images: Vec<ImageUsage>,
    /// Everything that tasks wrote, by the key of their snapshot.
    pub snapshots: BTreeMap<String, u64>,
    /// Layers, documents and kept blobs of all images, each counted once.
    pub images_bytes: u64,
    /// What images alone need that no snapshot uses: what `prune` of all gives back.
    pub reclaimable_bytes: u64,
    /// What no image needs: half-made, discarded, or left behind.
    pub loose_bytes: u64,
}

/// What an image takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageUsage {
    /// Its manifest digest.
    pub digest: Digest,
    /// Its names.
    pub names: Vec<ImageRef>,
    /// Everything that it needs.
    pub bytes: u64,
    /// What no other image needs.
    pub own_bytes: u64,
    /// Snapshots of it.
    pub snapshots: usize,
    /// When it was last pulled or used, in seconds since 1970.
    pub used_at: u64,
}

/// Walks the whole store.
pub(crate) fn usage(layout: &Layout) -> Result<Usage, Error> {
    let mut sizes = BTreeMap::new();
    let mut usage = Usage::default();
    for folder in ["layers", "fixups", "blobs/sha256", "blobs/sha512"] {
        for name in layout.list(folder)? {
            let path = format!("{folder}/{name}");
            let bytes = disk_bytes(&layout.at(&path));
            sizes.insert(path, bytes);
        }
    }
    for folder in ["tmp", "trash", "partial"] {
        usage.loose_bytes += disk_bytes(&layout.at(folder));
    }
    let snapshots = snapshot::records(layout)?;
    for record in &snapshots {
        let folder = layout.at(&crate::layout::snapshot(&record.key));
        usage.snapshots.insert(record.key.clone(), disk_bytes(&folder));
    }
    let in_use: BTreeSet<String> = snapshots.iter().flat_map(|record| record.keeps()).collect();
    let records = image::records(layout)?;
    let needed: Vec<BTreeSet<String>> =
        records.iter().map(|record| record.keeps().into_iter().collect()).collect();
    let mut users: BTreeMap<&str, usize> = BTreeMap::new();
    for path in needed.iter().flatten() {
        *users.entry(path).or_default() += 1;
    }
    let names = image::names(layout)?;
    for (record, paths) in records.iter().zip(&needed) {
        let size = |path: &&String| sizes.get(*path).copied().unwrap_or(0);
        usage.images.push(ImageUsage {
            digest: record.manifest.clone(),
            names: names_of(&names, record),
            bytes: paths.iter().map(|path| size(&path)).sum(),
            own_bytes: paths.iter().filter(|path| users[path.as_str()] == 1).map(|path| size(&path)).sum(),
            snapshots: snapshots.iter().filter(|snapshot| snapshot.image == record.manifest).count(),
            used_at: prune::used_at(layout, &record.manifest),
        });
    }
    let used: BTreeSet<&Digest> = snapshots.iter().map(|record| &record.image).collect();
    let kept: BTreeSet<&String> = records
        .iter()
        .zip(&needed)
        .filter(|(record, _)| used.contains(&record.manifest))
        .flat_map(|(_, paths)| paths)
        .chain(&in_use)
        .collect();
    for (path, bytes) in &sizes {
        let is_needed = users.contains_key(path.as_str());
        *(if is_needed { &mut usage.images_bytes } else { &mut usage.loose_bytes }) += bytes;
        if is_needed && !kept.contains(path) {
            usage.reclaimable_bytes += bytes;
        }
    }
    Ok(usage)
}

fn names_of(names: &BTreeMap<Digest, Vec<image::NameRecord>>, record: &ImageRecord) -> Vec<ImageRef> {
    names.get(&record.manifest).into_iter().flatten().map(|name| name.name.clone()).collect()
}

/// Blocks of a file or tree, hard links counted once. What goes meanwhile counts nothing.
fn disk_bytes(path: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut pending = vec![path.to_owned()];
    let mut bytes = 0;
    while let Some(path) = pending.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    bytes
}
