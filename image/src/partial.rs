//! Blobs that are on their way: what has arrived of a large one is written down, so that a pull that dies goes on where it was.
//!
//! `partial/<algorithm>-<hex>.<boot>` holds a blob's beginning, exactly as long as what arrived. Its file lock belongs to the
//! one who fetches the blob. No hash is saved beside it: the decoder needs every byte again, so every byte is hashed again,
//! and a beginning that is not what was sent is found by the blob's digest. What the page cache holds survives any end of
//! this process but not of the machine, hence the boot in the name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_registry::{BlobOptions, Client, Descriptor, Digest, ImageRef, RangePolicy, Tap};
use rustix::fs::FlockOperation;

use crate::error::Error;
use crate::layout::{Layout, make_private};
use crate::options::KeepBlobs;

const FOLDER: &str = "partial";
/// A blob below this is not written down: it is fetched again sooner than anybody notices.
const FROM_BYTES: u64 = 24 << 20;
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
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim().replace('-', "").chars().take(16).collect();
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
        let file = match may_write && blob.size >= FROM_BYTES {
            true => self.claim(&blob.digest)?,
            false => None,
        };
        let Some(mut file) = file else {
            let options = BlobOptions { ranges, ..BlobOptions::default() };
            return Ok(Box::new(client.open_with(reference, blob, options)));
        };
        let path = self.path(&blob.digest);
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
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(Error::io("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(Error::io("lock", &path)(error)),
        }
        if let Ok(mut paths) = self.paths.lock() {
            paths.push((digest.clone(), path));
        }
        Ok(Some(file))
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

    /// Removes what other boots and forgotten pulls have left.
    pub(crate) fn sweep(&self) {
        let entries = fs::read_dir(self.layout.at(FOLDER)).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().into_string().unwrap_or_default();
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let is_old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEPT));
            if is_old || !name.ends_with(&self.boot) {
                // A writer that is alive keeps its file, which then only loses its name.
                drop(fs::remove_file(entry.path()));
            }
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}.{}", digest.algorithm().as_str(), digest.hex(), self.boot);
        self.layout.at(FOLDER).join(name)
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
