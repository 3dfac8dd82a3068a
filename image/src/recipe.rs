//! A layer's tar without its files' data: with the unpacked tree beside it, the tar can be given back byte by byte.
//!
//! The recipe is every byte of the archive (headers, long names, padding, what follows the end) but the data of files that
//! the tree has, compressed by zstd: some 60 bytes a file. It costs nothing to verify: the tar that results has the DiffID,
//! or the tree is not what was unpacked. Reading it back is the same parser over the same bytes, with the data put in.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use cofferdam_registry::{Algorithm, Hasher};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use zstd::stream::write::Encoder;

use crate::decode::{Expected, TarStream};
use crate::entry::{Entry, Node};
use crate::error::{Error, LayerError};
use crate::extract::split;
use crate::identity::DiffId;
use crate::limits::Limits;
use crate::tar::TarReader;

/// Fast: a recipe is made while a layer is unpacked, and headers compress to a tenth at any level.
const LEVEL: i32 = 1;
/// Bytes that are sent to the recipe's writer at once, and how many such pieces wait for it at most.
const SENT_BYTES: usize = 64 * 1024;
const SENT_PIECES: usize = 4;
/// Data is read from files in pieces of this many bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// Where the bytes of an archive go that are not a file's data in the tree.
pub(crate) enum Rest {
    /// Nowhere.
    Dropped,
    /// To the thread that writes the recipe: the one that reads the archive sees no file but the tree's.
    Sent { pending: Vec<u8>, writer: SyncSender<Vec<u8>> },
    /// Into memory, for whoever puts the archive together again.
    Held(Vec<u8>),
}

/// Somebody else's end of [`Rest::Sent`].
pub(crate) struct Writer(Receiver<Vec<u8>>);

impl Rest {
    /// What is read, and who writes it.
    pub(crate) fn sent() -> (Rest, Writer) {
        let (writer, pieces) = sync_channel(SENT_PIECES);
        (Rest::Sent { pending: Vec::with_capacity(SENT_BYTES), writer }, Writer(pieces))
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        match self {
            Rest::Dropped => Ok(()),
            Rest::Sent { pending, writer } => {
                pending.extend_from_slice(bytes);
                if pending.len() < SENT_BYTES {
                    return Ok(());
                }
                let piece = std::mem::replace(pending, Vec::with_capacity(SENT_BYTES));
                // A writer that is gone knows better why.
                writer.send(piece).map_err(|_| LayerError::Cancelled)
            }
            Rest::Held(held) => {
                held.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    pub(crate) fn finish(self) -> Result<(), LayerError> {
        match self {
            Rest::Sent { pending, writer } => writer.send(pending).map_err(|_| LayerError::Cancelled),
            Rest::Dropped | Rest::Held(_) => Ok(()),
        }
    }
}

impl Writer {
    /// Writes the recipe until the archive ends, or whoever reads it fails.
    pub(crate) fn write(self, path: &Path) -> Result<(), Error> {
        let file = File::create_new(path).map_err(Error::io("create", path))?;
        let mut encoder = Encoder::new(file, LEVEL).map_err(Error::io("compress", path))?;
        for piece in self.0 {
            encoder.write_all(&piece).map_err(Error::io("write", path))?;
        }
        encoder.finish().map(drop).map_err(Error::io("write", path))
    }
}

/// Whether the tree has this entry's data. Deletions have none in the tree, even if the archive has some.
pub(crate) fn is_in_tree(entry: &Entry) -> bool {
    matches!(entry.node, Node::File | Node::Sparse(..)) && !split(&entry.name).1.starts_with(b".wh.")
}

/// A layer's tar, put together again as it is read.
pub(crate) struct LayerTar {
    reader: TarReader<TarStream<File>>,
    tree: OwnedFd,
    /// Bytes that are ready, and how many of them were given out.
    ready: (Vec<u8>, usize),
    data: Option<Data>,
    phase: Phase,
    seen: Seen,
}

/// How far the archive was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Entries,
    /// What follows the last entry: at least the two closing blocks.
    End,
    Over,
}

/// What a reader wants to know of each entry.
pub(crate) type Visit = Box<dyn FnMut(&Entry) -> Result<(), LayerError> + Send>;

struct Seen {
    visit: Option<Visit>,
    /// Files that were listed, by name: of a name that is listed twice, the tree has one alone.
    names: BTreeSet<Vec<u8>>,
}

/// The data of the file that is being read.
struct Data {
    name: Vec<u8>,
    file: File,
    /// Regions that are still to come, the next one last.
    regions: Vec<(u64, u64)>,
}

impl LayerTar {
    /// `tree` is the layer's unpacked tree.
    pub(crate) fn open(recipe: &Path, tree: OwnedFd) -> Result<LayerTar, LayerError> {
        let file = File::open(recipe).map_err(Error::io("open", recipe))?;
        let limits = Limits::NONE;
        let stream = TarStream::open(file, Expected::default(), limits)?;
        let reader = TarReader::new(stream, Algorithm::Sha256, limits).without_data(Rest::Held(Vec::new()));
        let seen = Seen { visit: None, names: BTreeSet::new() };
        Ok(LayerTar { reader, tree, ready: (Vec::new(), 0), data: None, phase: Phase::Entries, seen })
    }

    /// Has `visit` see each entry, before its data is read.
    pub(crate) fn visiting(mut self, visit: Visit) -> LayerTar {
        self.seen.visit = Some(visit);
        self
    }

    /// The archive's entries alone, in their order.
    pub(crate) fn entries(mut self) -> Result<Vec<Entry>, LayerError> {
        let mut entries = Vec::new();
        while let Some(entry) = self.reader.next()? {
            if let Rest::Held(held) = self.reader.rest() {
                held.clear();
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Fills `buffer` from its start; 0 at the end.
    pub(crate) fn next_piece(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        loop {
            let (bytes, given) = &mut self.ready;
            if *given < bytes.len() {
                let count = (bytes.len() - *given).min(buffer.len());
                buffer[..count].copy_from_slice(&bytes[*given..*given + count]);
                *given += count;
                return Ok(count);
            }
            if let Some(data) = &mut self.data {
                match data.read(buffer)? {
                    0 => self.data = None,
                    count => return Ok(count),
                }
            } else if self.phase == Phase::Over {
                return Ok(0);
            } else {
                self.advance()?;
            }
        }
    }

    fn advance(&mut self) -> Result<(), LayerError> {
        let entry = if self.phase == Phase::Entries { self.reader.next()? } else { None };
        match entry {
            Some(entry) => {
                if let Some(visit) = &mut self.seen.visit {
                    visit(&entry)?;
                }
                if is_in_tree(&entry) && entry.size > 0 {
                    self.begin(entry)?;
                }
            }
            None => self.phase = if self.reader.pass()? { Phase::End } else { Phase::Over },
        }
        if let Rest::Held(held) = self.reader.rest() {
            self.ready = (std::mem::take(held), 0);
        }
        Ok(())
    }

    fn begin(&mut self, entry: Entry) -> Result<(), LayerError> {
        if !self.seen.names.insert(entry.name.clone()) {
            return Err(LayerError::ListedTwice { path: String::from_utf8_lossy(&entry.name).into_owned() });
        }
        let mut regions = match entry.node {
            Node::Sparse(regions, _) => regions,
            _ => vec![(0, entry.size)],
        };
        regions.retain(|(_, length)| *length > 0);
        regions.reverse();
        let file = open_file(&self.tree, &entry.name).map_err(LayerError::entry_io(&entry.name, "open"))?;
        self.data = Some(Data { name: entry.name, file, regions });
        Ok(())
    }
}

/// Opens an entry's file as it was made: a link on the way leads within the tree, whatever it says.
pub(crate) fn open_file(tree: &OwnedFd, name: &[u8]) -> rustix::io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat2(tree, name, flags, Mode::empty(), resolve).map(File::from)
}

impl Data {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let Some((offset, length)) = self.regions.last_mut() else { return Ok(0) };
        let limit = buffer.len().min(usize::try_from(*length).unwrap_or(usize::MAX)).min(PIECE_BYTES);
        let count = self
            .file
            .read_at(&mut buffer[..limit], *offset)
            .map_err(LayerError::entry_io(&self.name, "read"))?;
        if count == 0 {
            return Err(LayerError::entry(&self.name, "the stored file is shorter than the archive says"));
        }
        *offset += count as u64;
        *length -= count as u64;
        if *length == 0 {
            self.regions.pop();
        }
        Ok(count)
    }
}

impl Read for LayerTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next_piece(buffer).map_err(io::Error::other)
    }
}

/// Reads a layer's tar to its end and says whether it is the one that it should be. `write` is given every piece.
pub(crate) fn replay(
    mut tar: LayerTar,
    diff_id: &DiffId,
    write: &mut dyn FnMut(&[u8]) -> Result<(), LayerError>,
) -> Result<u64, LayerError> {
    let mut hasher = Hasher::new(diff_id.digest().algorithm());
    let mut buffer = vec![0; PIECE_BYTES];
    let mut total = 0;
    loop {
        match tar.next_piece(&mut buffer)? {
            0 => break,
            count => {
                hasher.update(&buffer[..count]);
                write(&buffer[..count])?;
                total += count as u64;
            }
        }
    }
    let actual = hasher.finish();
    if actual == *diff_id.digest() {
        return Ok(total);
    }
    Err(LayerError::DiffId { expected: diff_id.digest().clone(), actual })
}
