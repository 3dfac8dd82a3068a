//! Reading a layer's archive: entries and their data, hashed as they pass.

use cofferdam_registry::{Algorithm, Digest, Hasher};
use tar_core::parse::{Limits as TarLimits, ParseError, ParseEvent, Parser};

use crate::entry::Entry;
use crate::error::LayerError;
use crate::limits::{Limits, METADATA_LIMIT_BYTES, PATH_LIMIT_BYTES, SPARSE_REGION_LIMIT};
use crate::recipe::{Rest, is_in_tree};
use crate::ring::{HEADROOM_BYTES, Supply};

/// The largest header with everything that belongs to it: PAX records, two long names, a sparse map, and their blocks.
const HEADER_LIMIT_BYTES: usize = 2 * METADATA_LIMIT_BYTES as usize;
const BLOCK_BYTES: u64 = 512;

/// An archive, entry by entry, for whatever makes something of them:
///
/// ```text
/// while let Some(entry) = tar.next()? { … entry … while let piece = tar.data()? … }
/// tar.finish()?
/// ```
pub(crate) struct TarReader<S: Supply> {
    supply: S,
    parser: Parser,
    hasher: Hasher,
    limits: Limits,
    /// The piece at hand; the end of the one before may lie in its headroom.
    buffer: Vec<u8>,
    /// A buffer to give back.
    spare: Option<Vec<u8>>,
    start: usize,
    end: usize,
    /// Data of the current entry that was not read yet.
    data: u64,
    /// Zeros that follow the data up to the next block.
    padding: u64,
    entries: u64,
    position: u64,
    /// Where everything goes that is not the data of a file in the tree.
    rest: Rest,
    /// The current entry's data belongs to it too.
    is_rest: bool,
    /// The stream holds nothing else.
    is_without_data: bool,
}

impl<S: Supply> TarReader<S> {
    /// `algorithm` is the DiffID's.
    pub(crate) fn new(supply: S, algorithm: Algorithm, limits: Limits) -> TarReader<S> {
        let mut parser = Parser::new(TarLimits {
            max_metadata_size: METADATA_LIMIT_BYTES,
            max_path_len: Some(PATH_LIMIT_BYTES),
            max_sparse_entries: SPARSE_REGION_LIMIT,
            ..TarLimits::default()
        });
        // Not leniency: the parser refuses negative times, so PAX values are checked by `Entry` instead.
        parser.set_ignore_pax_errors(true);
        TarReader {
            supply,
            parser,
            hasher: Hasher::new(algorithm),
            limits,
            buffer: Vec::new(),
            spare: None,
            start: 0,
            end: 0,
            data: 0,
            padding: 0,
            entries: 0,
            position: 0,
            rest: Rest::Dropped,
            is_rest: false,
            is_without_data: false,
        }
    }

    /// Has the archive's recipe written as it is read.
    pub(crate) fn recording(self, rest: Rest) -> TarReader<S> {
        TarReader { rest, ..self }
    }

    /// Reads a recipe: an archive without the data of the files in the tree.
    pub(crate) fn without_data(self, rest: Rest) -> TarReader<S> {
        TarReader { rest, is_without_data: true, ..self }
    }

    pub(crate) fn rest(&mut self) -> &mut Rest {
        &mut self.rest
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
        if self.is_rest {
            self.rest.add(&self.buffer[piece.clone()])?;
        }
        Ok(&self.buffer[piece])
    }

    /// Reads what follows the archive's end, and gives the tar's digest and size in bytes.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64), LayerError> {
        while self.pass()? {}
        self.rest.finish()?;
        Ok((self.hasher.finish(), self.position))
    }

    /// Passes over what is at hand, whatever it is; false at the end of the stream.
    pub(crate) fn pass(&mut self) -> Result<bool, LayerError> {
        self.rest.add(&self.buffer[self.start..self.end])?;
        self.start = self.end;
        self.fill(1)
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
        self.rest.add(&self.buffer[self.start..self.start + consumed])?;
        self.start += consumed;
        Ok(step)
    }

    fn begin(&mut self, entry: Entry) -> Result<Entry, LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::Limit {
                what: "the number of entries",
                limit: self.limits.entries,
                name: Some("entries"),
            });
        }
        self.is_rest = !is_in_tree(&entry);
        self.data = if self.is_without_data && !self.is_rest { 0 } else { entry.size };
        self.padding = entry.size.next_multiple_of(BLOCK_BYTES) - entry.size;
        Ok(entry)
    }

    /// An archive that ends in its last file's padding lacks what every reader throws away: umoci 0.4 writes such layers, and
    /// every peer takes them. The DiffID decides what is complete.
    fn skip_padding(&mut self) -> Result<(), LayerError> {
        let mut padding = std::mem::take(&mut self.padding) as usize;
        if self.end - self.start < padding && !self.fill(padding)? {
            padding = self.end - self.start;
        }
        self.rest.add(&self.buffer[self.start..self.start + padding])?;
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

    /// Makes at least `needed` bytes available in one run; false at the end of the stream.
    fn fill(&mut self, needed: usize) -> Result<bool, LayerError> {
        if needed > HEADER_LIMIT_BYTES {
            return Err(self.corrupt("a header is too large"));
        }
        while self.end - self.start < needed {
            let rest = self.start..self.end;
            // Kept aside if it fits before the next piece's data: nearly always, as headers are small.
            let mut kept = [0; HEADROOM_BYTES];
            let fits = rest.len() <= HEADROOM_BYTES;
            if fits {
                kept[..rest.len()].copy_from_slice(&self.buffer[rest.clone()]);
            }
            let Some(piece) = self.supply.next(self.spare.take())? else { return Ok(false) };
            let (mut bytes, end) = piece.into_parts();
            self.hasher.update(&bytes[HEADROOM_BYTES..end]);
            self.position += (end - HEADROOM_BYTES) as u64;
            if fits {
                let start = HEADROOM_BYTES - rest.len();
                bytes[start..HEADROOM_BYTES].copy_from_slice(&kept[..rest.len()]);
                let used = std::mem::replace(&mut self.buffer, bytes);
                self.spare = Some(used).filter(|used| !used.is_empty());
                (self.start, self.end) = (start, end);
            } else {
                self.buffer.truncate(rest.end);
                self.buffer.drain(..rest.start);
                self.buffer.extend_from_slice(&bytes[HEADROOM_BYTES..end]);
                self.spare = Some(bytes);
                (self.start, self.end) = (0, self.buffer.len());
            }
        }
        Ok(true)
    }

    fn parse_error(&self, error: ParseError) -> LayerError {
        match error {
            ParseError::TooManySparseEntries { limit, .. } => {
                LayerError::Limit { what: "the number of sparse regions", limit: limit as u64, name: None }
            }
            ParseError::MetadataTooLarge { limit, .. } => LayerError::Limit {
                what: "the size of an entry's metadata in bytes",
                limit: limit.into(),
                name: None,
            },
            ParseError::PathTooLong { limit, .. } => {
                LayerError::Limit { what: "the length of a path in bytes", limit: limit.into(), name: None }
            }
            other => self.corrupt(&other.to_string()),
        }
    }

    fn corrupt(&self, reason: &str) -> LayerError {
        let position = self.position - (self.end - self.start) as u64;
        LayerError::Tar { position, reason: reason.to_owned() }
    }
}

enum Step {
    Entry(Box<Entry>),
    End,
    Again,
    More(usize),
}

#[cfg(test)]
mod tests;
