//! Small files, made on one thread and filled on another.
//!
//! Of what a small file costs, half is to make its name and half to write, date and close it. Names are made in the archive's
//! order by the thread that reads it, so that it alone decides what replaces what; the rest follows by descriptor, for which
//! it does not matter what becomes of the name meanwhile:
//!
//! ```text
//! archive ─▶ open ─▶ batch (descriptor, attributes, data) ─▶ write ─▶ owner, mode, time ─▶ close
//!            this thread                                     the filler's
//! ```
//! The thread is started by a confined one when the first batch is full, and is confined as that one is: it shares its
//! descriptors, and inherits the rest. A layer of few small files starts none.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::attributes::Maker;
use crate::backend::Contents;
use crate::contents;
use crate::entry::{Attributes, Entry, Node};
use crate::error::LayerError;

/// A file up to this size is small, in bytes: beyond it, copying its data costs more than the second thread gains.
const SMALL_BYTES: u64 = 16 * 1024;
/// Files of one batch: enough that handing it over costs nothing beside them, and few enough open descriptors.
const BATCH_FILES: usize = 32;
/// Bytes of one batch's data, after which it is full.
const BATCH_BYTES: usize = 64 * 1024;
/// Batches that wait. With the one at hand and the one in work, a layer has 128 files open and holds 320 KiB.
const BATCHES: usize = 2;

/// Where new files go with their data.
pub(crate) struct Filler {
    maker: Maker,
    batch: Batch,
    thread: Option<Thread>,
}

struct Thread {
    full: SyncSender<Batch>,
    empty: Receiver<Batch>,
    handle: JoinHandle<Result<(), LayerError>>,
}

/// Files, and the data of all of them.
#[derive(Default)]
struct Batch {
    files: Vec<Made>,
    data: Vec<u8>,
}

/// A file that has its name and nothing else.
struct Made {
    file: OwnedFd,
    name: Vec<u8>,
    attributes: Attributes,
    /// The mode that it was made with.
    mode: u32,
    /// Where its data ends in the batch.
    end: usize,
}

impl Filler {
    pub(crate) fn new(maker: Maker) -> Filler {
        Filler { maker, batch: Batch::default(), thread: None }
    }

    /// Takes a file that was just made with the mode `mode`: now, or with others like it.
    pub(crate) fn fill(
        &mut self,
        file: OwnedFd,
        entry: Entry,
        mode: u32,
        contents: &mut dyn Contents,
    ) -> Result<(), LayerError> {
        if entry.node != Node::File || entry.size > SMALL_BYTES {
            contents::write(&file, &entry, contents)?;
            return self.maker.finish(&file, &entry.name, &entry.attributes, mode);
        }
        let data = &mut self.batch.data;
        loop {
            let piece = contents.data()?;
            if piece.is_empty() {
                break;
            }
            data.extend_from_slice(piece);
        }
        let end = data.len();
        self.batch.files.push(Made { file, name: entry.name, attributes: entry.attributes, mode, end });
        if self.batch.files.len() == BATCH_FILES || end >= BATCH_BYTES { self.send() } else { Ok(()) }
    }

    /// Waits until every file is complete.
    pub(crate) fn finish(&mut self) -> Result<(), LayerError> {
        self.batch.complete(self.maker)?;
        self.thread.take().map_or(Ok(()), Thread::join)
    }

    fn send(&mut self) -> Result<(), LayerError> {
        let thread = match &mut self.thread {
            Some(thread) => thread,
            None => self.thread.insert(Thread::start(self.maker)?),
        };
        let next = thread.empty.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.batch, next);
        if thread.full.send(full).is_ok() {
            return Ok(());
        }
        // It ended early: it knows why.
        self.thread
            .take()
            .map_or(Err(LayerError::Cancelled), |thread| thread.join().and(Err(LayerError::Cancelled)))
    }
}

/// Whatever fails, nothing of a layer is at work when it is given up.
impl Drop for Filler {
    fn drop(&mut self) {
        // The first failure is known already.
        drop(self.thread.take().map(Thread::join));
    }
}

impl Thread {
    fn start(maker: Maker) -> Result<Thread, LayerError> {
        let (full, batches) = sync_channel::<Batch>(BATCHES);
        let (used, empty): (Sender<Batch>, _) = channel();
        let work = move || {
            for mut batch in batches {
                batch.complete(maker)?;
                // Nobody takes back the last ones.
                drop(used.send(batch));
            }
            Ok(())
        };
        let handle = Builder::new().name("cofferdam-fill".to_owned()).spawn(work);
        Ok(Thread { full, empty, handle: handle.map_err(LayerError::entry_io(b"", "start a thread"))? })
    }

    fn join(self) -> Result<(), LayerError> {
        drop(self.full);
        let failed = || LayerError::Read(std::io::Error::other("the thread that fills files panicked"));
        self.handle.join().unwrap_or_else(|_| Err(failed()))
    }
}

impl Batch {
    /// Completes its files, and empties it.
    fn complete(&mut self, maker: Maker) -> Result<(), LayerError> {
        let mut start = 0;
        for made in self.files.drain(..) {
            contents::write_at(&made.file, &made.name, &self.data[start..made.end], 0)?;
            maker.finish(&made.file, &made.name, &made.attributes, made.mode)?;
            start = made.end;
        }
        self.data.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::fs::File;
    use std::path::Path;

    /// One piece, and the end.
    struct Piece(Option<Vec<u8>>, Vec<u8>);

    impl Contents for Piece {
        fn data(&mut self) -> Result<&[u8], LayerError> {
            self.1 = self.0.take().unwrap_or_default();
            Ok(&self.1)
        }
    }

    fn entry(name: &str, size: usize) -> Entry {
        let mut attributes = Attributes::implied();
        (attributes.uid, attributes.gid) =
            (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        attributes.mode = 0o640;
        attributes.mtime.tv_sec = 1_000_000_000;
        Entry { name: name.into(), node: Node::File, attributes, size: size as u64, dropped: Vec::new() }
    }

    fn filler(folder: &Path) -> Filler {
        Filler::new(Maker::at(&File::open(folder).unwrap().into()).unwrap())
    }

    #[test]
    fn every_file_has_its_own_data_whatever_becomes_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut filler = filler(folder.path());
        let bytes =
            |number: usize| vec![number as u8; number * 37 % 3000 + usize::from(number == 77) * 100_000];
        for number in 0..200 {
            let (name, data) = (number.to_string(), bytes(number));
            let path = folder.path().join(&name);
            let file = File::create_new(&path).unwrap();
            filler
                .fill(file.into(), entry(&name, data.len()), 0o644, &mut Piece(Some(data), Vec::new()))
                .unwrap();
            if number % 50 == 1 {
                fs::rename(&path, folder.path().join(format!("moved-{number}"))).unwrap();
            }
        }
        filler.finish().unwrap();
        for number in 0..200 {
            let name = if number % 50 == 1 { format!("moved-{number}") } else { number.to_string() };
            let path = folder.path().join(name);
            assert_eq!(fs::read(&path).unwrap(), bytes(number), "{number}");
            let metadata = path.metadata().unwrap();
            assert_eq!(
                metadata.modified().unwrap().elapsed().map(|age| age.as_secs() > 1000).ok(),
                Some(true)
            );
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777, 0o640);
        }
    }

    #[test]
    fn a_file_that_cannot_be_filled_is_named_by_the_time_all_are_complete() {
        let folder = tempfile::tempdir().unwrap();
        let mut filler = filler(folder.path());
        fs::write(folder.path().join("read-only"), "").unwrap();
        let result = (0..500).try_for_each(|number| {
            let path = folder.path().join("read-only");
            let file = if number == 100 { File::open(path) } else { File::create(path) }.unwrap();
            let name = format!("file-{number}");
            filler.fill(file.into(), entry(&name, 1), 0o644, &mut Piece(Some(vec![1]), Vec::new()))
        });
        let error = result.and_then(|()| filler.finish()).unwrap_err().to_string();
        assert!(error.contains("file-100"), "{error}");
    }
}
