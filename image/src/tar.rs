//! Reading a layer's archive: entries and their data, hashed as they pass.

use std::io::Read;

use cofferdam_registry::{Algorithm, Digest, Hasher};
use tar_core::parse::{Limits as TarLimits, ParseError, ParseEvent, Parser};

use crate::decode::TarStream;
use crate::entry::Entry;
use crate::error::LayerError;
use crate::limits::{Limits, METADATA_LIMIT_BYTES, PATH_LIMIT_BYTES, SPARSE_REGION_LIMIT};

/// The buffer between decoder and parser, in bytes; file data is written from it in pieces of up to this size.
const BUFFER_BYTES: usize = 256 * 1024;
/// The largest header with everything that belongs to it: PAX records, two long names, a sparse map, and their blocks.
const HEADER_LIMIT_BYTES: usize = 2 * METADATA_LIMIT_BYTES as usize;
const BLOCK_BYTES: u64 = 512;

/// An archive, entry by entry.
pub(crate) struct TarReader<R: Read> {
    stream: TarStream<R>,
    parser: Parser,
    hasher: Hasher,
    limits: Limits,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Data of the current entry that was not read yet.
    data: u64,
    /// Zeros that follow the data up to the next block.
    padding: u64,
    entries: u64,
    position: u64,
}

impl<R: Read> TarReader<R> {
    /// `algorithm` is the DiffID's.
    pub(crate) fn new(stream: TarStream<R>, algorithm: Algorithm, limits: Limits) -> TarReader<R> {
        let mut parser = Parser::new(TarLimits {
            max_metadata_size: METADATA_LIMIT_BYTES,
            max_path_len: Some(PATH_LIMIT_BYTES),
            max_sparse_entries: SPARSE_REGION_LIMIT,
            ..TarLimits::default()
        });
        // Not leniency: the parser refuses negative times, so PAX values are checked by `Entry` instead.
        parser.set_ignore_pax_errors(true);
        TarReader {
            stream,
            parser,
            hasher: Hasher::new(algorithm),
            limits,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            data: 0,
            padding: 0,
            entries: 0,
            position: 0,
        }
    }

    /// The next entry; `None` at the end of the archive. What was not read of the last entry's data is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        while !self.data()?.is_empty() {}
        self.skip_padding()?;
        loop {
            let needed = match self.parse()? {
                Step::Entry(entry) => return self.begin(*entry).map(Some),
                Step::End => return Ok(None),
                Step::Again => continue,
                Step::More(needed) => needed,
            };
            if !self.fill(needed)? {
                return self.end_early();
            }
        }
    }

    /// The next piece of the current entry's data; empty at its end.
    pub(crate) fn data(&mut self) -> Result<&[u8], LayerError> {
        if self.data == 0 {
            return Ok(&[]);
        }
        if self.start == self.end && !self.fill(1)? {
            return Err(self.corrupt("it ends in the middle of a file"));
        }
        let count = (self.end - self.start).min(usize::try_from(self.data).unwrap_or(usize::MAX));
        let piece = self.start..self.start + count;
        self.start += count;
        self.data -= count as u64;
        Ok(&self.buffer[piece])
    }

    /// Reads to the end of the blob, checks it, and gives the tar's digest and size with the blob's.
    pub(crate) fn finish(mut self) -> Result<Finished, LayerError> {
        self.start = 0;
        self.end = 0;
        while self.fill(1)? {
            self.end = 0;
        }
        let (blob, blob_bytes) = self.stream.finish()?;
        Ok(Finished { tar: self.hasher.finish(), tar_bytes: self.position, blob, blob_bytes })
    }

    /// After a failure: if the contents are to blame, reads the rest of the blob, to tell a damaged transfer from a bad
    /// archive. Gives the better reason.
    pub(crate) fn explain(self, error: LayerError) -> LayerError {
        if !matches!(
            error,
            LayerError::Compression { .. } | LayerError::Tar { .. } | LayerError::Entry { .. }
        ) {
            return error;
        }
        match self.stream.settle() {
            Err(cause @ (LayerError::BlobDigest { .. } | LayerError::BlobSize { .. })) => cause,
            _ => error,
        }
    }

    fn parse(&mut self) -> Result<Step, LayerError> {
        let event = match self.parser.parse(&self.buffer[self.start..self.end]) {
            Ok(event) => event,
            Err(error) => return Err(self.parse_error(error)),
        };
        let (consumed, step) = match event {
            ParseEvent::NeedData { min_bytes } => (0, Step::More(min_bytes)),
            ParseEvent::Entry { consumed, entry } => {
                (consumed, Step::Entry(Box::new(Entry::check(&entry, None, &self.limits)?)))
            }
            ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                let entry = Entry::check(&entry, Some((sparse_map, real_size)), &self.limits)?;
                (consumed, Step::Entry(Box::new(entry)))
            }
            // Global records are defaults for fields that every entry here must state itself.
            ParseEvent::GlobalExtensions { consumed, .. } => (consumed, Step::Again),
            ParseEvent::End { consumed } => (consumed, Step::End),
        };
        self.start += consumed;
        Ok(step)
    }

    fn begin(&mut self, entry: Entry) -> Result<Entry, LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::Limit { what: "the number of entries", limit: self.limits.entries });
        }
        self.data = entry.size;
        self.padding = entry.size.next_multiple_of(BLOCK_BYTES) - entry.size;
        Ok(entry)
    }

    fn skip_padding(&mut self) -> Result<(), LayerError> {
        let padding = std::mem::take(&mut self.padding) as usize;
        if self.end - self.start < padding && !self.fill(padding)? {
            return Err(self.corrupt("it ends in the middle of a file's padding"));
        }
        self.start += padding;
        Ok(())
    }

    /// Archives without the two closing blocks are accepted, as every peer does; the DiffID decides what is complete.
    fn end_early(&self) -> Result<Option<Entry>, LayerError> {
        if self.buffer[self.start..self.end].iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        Err(self.corrupt("it ends in the middle of a header"))
    }

    /// Makes at least `needed` bytes available; false at the end of the stream.
    fn fill(&mut self, needed: usize) -> Result<bool, LayerError> {
        if needed > HEADER_LIMIT_BYTES {
            return Err(self.corrupt("a header is too large"));
        }
        while self.end - self.start < needed {
            if self.start + needed.max(BLOCK_BYTES as usize) > self.buffer.len() || self.start == self.end {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.buffer.len() < needed {
                // Twice what is asked for, so that a header that grows bit by bit is not parsed again for each bit.
                self.buffer.resize(needed * 2, 0);
            }
            let count = self.stream.read(&mut self.buffer[self.end..])?;
            if count == 0 {
                return Ok(false);
            }
            self.hasher.update(&self.buffer[self.end..self.end + count]);
            self.end += count;
            self.position += count as u64;
        }
        Ok(true)
    }

    fn parse_error(&self, error: ParseError) -> LayerError {
        match error {
            ParseError::TooManySparseEntries { limit, .. } => {
                LayerError::Limit { what: "the number of sparse regions", limit: limit as u64 }
            }
            ParseError::MetadataTooLarge { limit, .. } => {
                LayerError::Limit { what: "the size of an entry's metadata in bytes", limit: limit.into() }
            }
            ParseError::PathTooLong { limit, .. } => {
                LayerError::Limit { what: "the length of a path in bytes", limit: limit.into() }
            }
            other => self.corrupt(&other.to_string()),
        }
    }

    fn corrupt(&self, reason: &str) -> LayerError {
        let position = self.position - (self.end - self.start) as u64;
        LayerError::Tar { position, reason: reason.to_owned() }
    }
}

/// What a blob turned out to be.
pub(crate) struct Finished {
    pub(crate) tar: Digest,
    pub(crate) tar_bytes: u64,
    pub(crate) blob: Digest,
    pub(crate) blob_bytes: u64,
}

enum Step {
    Entry(Box<Entry>),
    End,
    Again,
    More(usize),
}
