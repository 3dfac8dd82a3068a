//! Making room: images that nobody uses, the least recently used first.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use cofferdam_registry::{Digest, ImageRef};
use serde::Serialize;

use crate::error::Error;
use crate::gc::{self, Collected};
use crate::image::{self, ImageRecord};
use crate::layout::{self, Layout};
use crate::options::Watermarks;
use crate::partial;
use crate::snapshot;

/// An image that was pulled or used so recently is not removed to make room: somebody may be about to start from it.
const RECENT: Duration = Duration::from_secs(10 * 60);

/// Which images go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneOptions {
    /// Which of those that no snapshot uses.
    pub which: Unused,
    /// Only those that were neither pulled nor used for so long.
    pub idle: Option<Duration>,
    /// Nothing is removed, only told.
    pub dry_run: bool,
}

/// Which of the images that no snapshot uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unused {
    /// Those without a name.
    #[default]
    Unnamed,
    /// All.
    All,
}

/// What was removed. Stable JSON: fields are added, never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// The images' manifest digests.
    pub images: Vec<Digest>,
    /// Names that stand for nothing any more.
    pub untagged: Vec<ImageRef>,
    /// What went with them.
    pub collected: Collected,
    /// Bytes of the tars of layers that only these images had, and of artifacts' blobs: about what becomes free.
    pub bytes: u64,
}

/// Notes that an image is used now.
pub(crate) fn touch(layout: &Layout, image: &Digest) {
    let path = layout.at(&layout::image(image));
    // Where it cannot be noted the image only counts as used longer ago than it was.
    drop(fs::File::open(path).and_then(|record| record.set_modified(SystemTime::now())));
}

/// When an image was last pulled or used, in seconds since 1970.
pub(crate) fn used_at(layout: &Layout, image: &Digest) -> u64 {
    let metadata = fs::metadata(layout.at(&layout::image(image)));
    metadata.map_or(0, |metadata| u64::try_from(metadata.mtime()).unwrap_or(0))
}

/// Removes what `options` say, and everything that nobody needs.
pub(crate) fn prune(layout: &Layout, options: &PruneOptions) -> Result<Pruned, Error> {
    let named = image::names(layout)?;
    let mut going = unused(layout)?;
    going.retain(|record| options.which == Unused::All || !named.contains_key(&record.manifest));
    if let Some(idle) = options.idle {
        going.retain(|record| is_idle(layout, &record.manifest, idle));
    }
    let mut pruned = Pruned { bytes: own_bytes(layout, &going)?, ..Pruned::default() };
    for record in going {
        let names = named.get(&record.manifest).into_iter().flatten().map(|name| name.name.clone());
        pruned.untagged.extend(names);
        pruned.images.push(record.manifest);
    }
    if !options.dry_run {
        remove(layout, &pruned.images, &pruned.untagged)?;
        // Whoever wants everything gone that nobody uses has no pull in mind that is to go on.
        partial::sweep(layout, options.which == Unused::All && options.idle.is_none());
        pruned.collected = gc::collect(layout)?;
    }
    Ok(pruned)
}

/// Removes images until the file system is less full than the low mark, if it is fuller than the high one.
pub(crate) fn make_room(layout: &Layout, marks: Watermarks) -> Result<Vec<Digest>, Error> {
    let mut gone = Vec::new();
    if fullness(layout)? <= marks.high_percent {
        return Ok(gone);
    }
    gc::collect(layout)?;
    layout.empty_trash()?;
    let mut candidates = unused(layout)?;
    candidates.retain(|record| is_idle(layout, &record.manifest, RECENT));
    let named = image::names(layout)?;
    for record in candidates {
        if fullness(layout)? <= marks.low_percent {
            break;
        }
        let names: Vec<ImageRef> =
            named.get(&record.manifest).into_iter().flatten().map(|name| name.name.clone()).collect();
        remove(layout, std::slice::from_ref(&record.manifest), &names)?;
        gc::collect(layout)?;
        layout.empty_trash()?;
        gone.push(record.manifest);
    }
    Ok(gone)
}

/// Images that no snapshot uses, the least recently used first.
fn unused(layout: &Layout) -> Result<Vec<ImageRecord>, Error> {
    let used: BTreeSet<Digest> = snapshot::records(layout)?.into_iter().map(|record| record.image).collect();
    let mut records = image::records(layout)?;
    records.retain(|record| !used.contains(&record.manifest));
    records.sort_by_key(|record| used_at(layout, &record.manifest));
    Ok(records)
}

/// A time in the future, where the clock was set back, is now.
fn is_idle(layout: &Layout, image: &Digest, least: Duration) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_sub(used_at(layout, image)) >= least.as_secs()
}

fn own_bytes(layout: &Layout, going: &[ImageRecord]) -> Result<u64, Error> {
    let goes = |record: &ImageRecord| going.iter().any(|gone| gone.manifest == record.manifest);
    let others = image::records(layout)?.into_iter().filter(|record| !goes(record));
    let kept: BTreeSet<_> = others.flat_map(|record| record.layers).map(|layer| layer.diff_id).collect();
    let mut own = BTreeSet::new();
    let layers = going.iter().flat_map(|record| &record.layers);
    let fresh = layers.filter(|layer| !kept.contains(&layer.diff_id) && own.insert(layer.diff_id.clone()));
    let contents = going.iter().flat_map(|record| record.contents()).map(|blob| blob.size);
    Ok(fresh.map(|layer| layer.unpacked_bytes).chain(contents).sum())
}

fn remove(layout: &Layout, images: &[Digest], names: &[ImageRef]) -> Result<(), Error> {
    for name in names {
        layout.discard(&layout.at(&layout::name(&name.to_string())))?;
    }
    for image in images {
        layout.discard(&layout.at(&layout::image(image)))?;
    }
    Ok(())
}

/// How full the store's file system is, in per cent, as df says it.
fn fullness(layout: &Layout) -> Result<u8, Error> {
    let stat = rustix::fs::statvfs(layout.root()).map_err(Error::io("examine", layout.root()))?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let all = used + stat.f_bavail;
    Ok(if all == 0 { 0 } else { (used * 100).div_ceil(all).min(100) as u8 })
}
