//! Blobs that are on their way: what has arrived of a large one is written down, so that a pull that dies goes on where it was.
//!
//! `partial/<algorithm>-<hex>.<boot>` holds a blob's beginning, exactly as long as what arrived. Its file lock belongs to the
//! one who fetches the blob. No hash is saved beside it: the decoder needs every byte again, so every byte is hashed again,
//! and a beginning that is not what was sent is found by the blob's digest. What the page cache holds survives any end of
//! this process but not of the machine, hence the boot in the name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cofferdam_registry::{BlobOptions, Client, Descriptor, Digest, ImageRef, RangePolicy, Tap};
use rustix::fs::FlockOperation;

use crate::error::Error;
use crate::layout::{Layout, make_private};
use crate::options::KeepBlobs;

const FOLDER: &str = "partial";
/// A blob below this is not written down while it comes fast: it is fetched again sooner than anybody notices.
const FROM_BYTES: u64 = 24 << 20;
/// A blob below this is never written down.
const SLOW_FROM_BYTES: u64 = 1 << 20;
/// What comes slowly is held in memory for so long, up to so much, until it is known to be slow.
const SLOW_AFTER: Duration = Duration::from_secs(1);
const HELD_BYTES: usize = 2 << 20;
/// What nobody has come back for in this time is removed.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The partial blobs of one pull.
pub(crate) struct Partials<'a> {
    layout: &'a Layout,
    boot: String,
    /// Whether anything was taken from an earlier pull.
    has_resumed: AtomicBool,
    paths: Mutex<Vec<(Digest, PathBuf)>>,
}

impl<'a> Partials<'a> {
    pub(crate) fn new(layout: &'a Layout) -> Partials<'a> {
        let boot = boot();
        Partials { layout, boot, has_resumed: AtomicBool::new(false), paths: Mutex::default() }
    }

    /// Whether a blob's beginning came from an earlier pull.
    pub(crate) fn has_resumed(&self) -> bool {
        self.has_resumed.load(Ordering::Relaxed)
    }

    /// Opens a blob: what there is of it first, the rest from the registry.
    pub(crate) fn open(
        &self,
        client: &Client,
        reference: &ImageRef,
        blob: &Descriptor,
        ranges: Option<RangePolicy>,
    ) -> Result<Box<dyn Read>, Error> {
        let may_write = self.layout.options().keep_blobs != KeepBlobs::Never && !self.boot.is_empty();
        let path = self.path(&blob.digest);
        let file = match may_write && (blob.size >= FROM_BYTES || path.exists()) {
            true => self.claim(&blob.digest)?,
            false => None,
        };
        let Some(mut file) = file else {
            let may_be_slow = may_write && (SLOW_FROM_BYTES..FROM_BYTES).contains(&blob.size);
            let tap = may_be_slow.then(|| self.slow_writer(&blob.digest)).transpose()?;
            let options = BlobOptions { ranges, tap, ..BlobOptions::default() };
            return Ok(Box::new(client.open_with(reference, blob, options)));
        };
        let io = |operation| Error::io(operation, &path);
        let mut known = file.metadata().map_err(io("examine"))?.len();
        if known > blob.size {
            file.set_len(0).map_err(io("truncate"))?;
            known = 0;
        }
        self.has_resumed.fetch_or(known > 0, Ordering::Relaxed);
        let beginning = File::open(&path).map_err(io("open"))?.take(known);
        file.seek(SeekFrom::Start(known)).map_err(io("seek"))?;
        let options = BlobOptions { from: known, ranges, tap: Some(writer(file)) };
        Ok(Box::new(beginning.chain(client.open_with(reference, blob, options))))
    }

    /// The blob's file, if nobody else is writing it.
    fn claim(&self, digest: &Digest) -> Result<Option<File>, Error> {
        let path = self.path(digest);
        make_private(&self.layout.at(FOLDER))?;
        let file = claim(&path)?;
        if file.is_some() {
            self.remember(digest, path);
        }
        Ok(file)
    }

    /// Writes a blob down that turns out to come slowly. One that comes fast costs nothing but a little memory.
    fn slow_writer(&self, digest: &Digest) -> Result<Tap, Error> {
        let path = self.path(digest);
        make_private(&self.layout.at(FOLDER))?;
        self.remember(digest, path.clone());
        let begun = Instant::now();
        let mut held = Some(Vec::new());
        let mut write: Option<Tap> = None;
        Ok(Box::new(move |piece: &[u8]| {
            if let Some(write) = &mut write {
                return write(piece);
            }
            let Some(bytes) = &mut held else { return };
            bytes.extend_from_slice(piece);
            if begun.elapsed() >= SLOW_AFTER {
                // A blob that cannot be written down is fetched anew after all.
                write = claim(&path).ok().flatten().map(writer);
                if let (Some(write), Some(bytes)) = (&mut write, held.take()) {
                    write(&bytes);
                }
            } else if bytes.len() > HELD_BYTES {
                held = None;
            }
        }))
    }

    fn remember(&self, digest: &Digest, path: PathBuf) {
        if let Ok(mut paths) = self.paths.lock() {
            paths.push((digest.clone(), path));
        }
    }

    /// Removes a blob that is no longer needed.
    pub(crate) fn discard(&self, digest: &Digest) {
        let Ok(mut paths) = self.paths.lock() else { return };
        paths.retain(|(own, path)| {
            if own == digest {
                // What cannot be removed now is swept later.
                drop(fs::remove_file(path));
            }
            own != digest
        });
    }

    /// Removes every blob of this pull.
    pub(crate) fn discard_all(&self) {
        let digests: Vec<Digest> = self
            .paths
            .lock()
            .map(|paths| paths.iter().map(|(own, _)| own.clone()).collect())
            .unwrap_or_default();
        digests.iter().for_each(|digest| self.discard(digest));
        self.has_resumed.store(false, Ordering::Relaxed);
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}.{}", digest.algorithm().as_str(), digest.hex(), self.boot);
        self.layout.at(FOLDER).join(name)
    }
}

/// Removes what other boots and forgotten pulls have left; with `all`, whatever nobody is writing.
pub(crate) fn sweep(layout: &Layout, all: bool) {
    let boot = boot();
    for entry in fs::read_dir(layout.at(FOLDER)).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap_or_default();
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEPT));
        if (all || is_old || !name.ends_with(&boot)) && claim(&path).is_ok_and(|claimed| claimed.is_some()) {
            // What cannot be removed now is swept the next time.
            drop(fs::remove_file(path));
        }
    }
}

/// Marks this boot in a file's name.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.trim().replace('-', "").chars().take(16).collect()
}

/// Opens a blob's file, if nobody else is writing it.
fn claim(path: &Path) -> Result<Option<File>, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path).map_err(Error::io("open", path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::io("lock", path)(error)),
    }
}

/// Writes what passes to the file, until that fails: then the rest passes unwritten, and the file is still a beginning.
fn writer(file: File) -> Tap {
    let mut file = Some(file);
    Box::new(move |piece: &[u8]| {
        let result = file.as_mut().map_or(Ok(()), |file| file.write_all(piece));
        if let Err(error) = result {
            let _: io::Error = error;
            file = None;
        }
    })
}
