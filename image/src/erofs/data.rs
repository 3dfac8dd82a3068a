//! Files' contents, appended to the image as they come.

use std::os::fd::OwnedFd;

use crate::backend::Contents;
use crate::error::LayerError;

use super::format::{BLOCK_BYTES, EXTENDED_BYTES, NULL_BLOCK};

/// Bytes that are gathered for one write(2).
const BUFFER_BYTES: usize = 256 * 1024;
/// Bytes of files' ends kept in memory, to lie behind their inodes. Later files of a layer get a block for theirs.
const TAILS_LIMIT_BYTES: usize = 16 << 20;
/// Chunks that a sparse file is cut into at most.
const CHUNK_LIMIT: u64 = 4096;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where a file's contents are.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) size: u64,
    pub(super) place: Place,
}

/// How they are found.
#[derive(Debug)]
pub(super) enum Place {
    /// Consecutive blocks, and the rest if it is to lie behind the inode.
    Blocks { first: u32, tail: Vec<u8> },
    /// Chunks of `1 << bits` bytes; holes have no address.
    Chunks { bits: u32, addresses: Vec<u32> },
}

impl Place {
    /// Bytes of memory that it takes until the end.
    pub(super) fn index_bytes(&self) -> usize {
        match self {
            Place::Blocks { tail, .. } => tail.len(),
            Place::Chunks { addresses, .. } => 4 * addresses.len(),
        }
    }
}

/// The end of the file that is being written, always at a block between two pieces of work.
#[derive(Debug)]
pub(super) struct DataArea {
    file: OwnedFd,
    /// Where the buffer goes.
    position: u64,
    buffer: Vec<u8>,
    tails_bytes: usize,
}

impl DataArea {
    /// `file` is new. The first block stays free for the superblock.
    pub(super) fn new(file: OwnedFd) -> DataArea {
        DataArea {
            file,
            position: BLOCK,
            buffer: Vec::with_capacity(BUFFER_BYTES + BLOCK_BYTES),
            tails_bytes: 0,
        }
    }

    /// The first free block.
    pub(super) fn next_block(&self) -> std::io::Result<u32> {
        let block = (self.position + self.buffer.len() as u64).div_ceil(BLOCK);
        u32::try_from(block).map_err(|_| std::io::Error::from(std::io::ErrorKind::FileTooLarge))
    }

    /// Appends a file's contents. `xattr_bytes` lie behind its inode too.
    pub(super) fn write_file(
        &mut self,
        name: &[u8],
        xattr_bytes: usize,
        contents: &mut dyn Contents,
    ) -> Result<Data, LayerError> {
        let failed = || LayerError::entry_io(name, "write it");
        let first = self.next_block().map_err(failed())?;
        let mut size = 0;
        loop {
            let piece = contents.data()?;
            if piece.is_empty() {
                break;
            }
            size += piece.len() as u64;
            self.append(piece).map_err(failed())?;
        }
        let rest = (size % BLOCK) as usize;
        let inline = EXTENDED_BYTES + xattr_bytes + rest <= BLOCK_BYTES
            && self.tails_bytes + rest <= TAILS_LIMIT_BYTES;
        let tail = if inline { self.buffer.split_off(self.buffer.len() - rest) } else { Vec::new() };
        self.tails_bytes += tail.len();
        self.align().map_err(failed())?;
        Ok(Data { size, place: Place::Blocks { first, tail } })
    }

    /// Writes a sparse file's regions of data; what lies between them is a hole here too.
    pub(super) fn write_sparse(
        &mut self,
        name: &[u8],
        regions: &[(u64, u64)],
        size: u64,
        contents: &mut dyn Contents,
    ) -> Result<Data, LayerError> {
        let failed = || LayerError::entry_io(name, "write it");
        let chunk = size.div_ceil(CHUNK_LIMIT).next_power_of_two().max(BLOCK);
        let mut addresses = vec![NULL_BLOCK; usize::try_from(size.div_ceil(chunk)).unwrap_or(usize::MAX)];
        let mut regions = regions.iter().copied().filter(|(_, length)| *length > 0);
        let (mut offset, mut left) = regions.next().unwrap_or((0, 0));
        loop {
            let mut piece = contents.data()?;
            if piece.is_empty() {
                break;
            }
            while !piece.is_empty() {
                let within = offset % chunk;
                let room = (chunk - within).min(left);
                let count = piece.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                let address = &mut addresses[usize::try_from(offset / chunk).unwrap_or(usize::MAX)];
                if *address == NULL_BLOCK {
                    let bytes = chunk.min(size - (offset - within));
                    *address = self.reserve(bytes).map_err(failed())?;
                }
                let at = u64::from(*address) * BLOCK + within;
                write_at(&self.file, &piece[..count], at).map_err(failed())?;
                piece = &piece[count..];
                (offset, left) = (offset + count as u64, left - count as u64);
                if left == 0 {
                    (offset, left) = regions.next().unwrap_or((offset, u64::MAX));
                }
            }
        }
        Ok(Data { size, place: Place::Chunks { bits: chunk.trailing_zeros(), addresses } })
    }

    /// Leaves room of that many bytes, in whole blocks, as a hole of the image's file.
    fn reserve(&mut self, bytes: u64) -> std::io::Result<u32> {
        self.flush()?;
        let block = self.next_block()?;
        self.position += bytes.next_multiple_of(BLOCK);
        self.next_block()?;
        Ok(block)
    }

    /// Appends bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Fills the last block with zeros.
    pub(super) fn align(&mut self) -> std::io::Result<()> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_BYTES), 0);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes the whole blocks; what is left of a block stays, since it may be the end of a file.
    fn flush(&mut self) -> std::io::Result<()> {
        let whole = self.buffer.len() - self.buffer.len() % BLOCK_BYTES;
        write_at(&self.file, &self.buffer[..whole], self.position)?;
        self.position += whole as u64;
        self.buffer.drain(..whole);
        Ok(())
    }

    /// Writes everything, then the first block.
    pub(super) fn finish(mut self, first: &[u8]) -> std::io::Result<()> {
        self.align()?;
        self.flush()?;
        // A hole at the end has to be part of the file.
        rustix::fs::ftruncate(&self.file, self.position)?;
        write_at(&self.file, first, 0)
    }
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::pwrite(file, bytes, at)?;
        bytes = &bytes[count..];
        at += count as u64;
    }
    Ok(())
}
