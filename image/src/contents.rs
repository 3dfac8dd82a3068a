//! A file's data, from the archive to the disk: in large writes, and with holes where it is zero.

use std::os::fd::OwnedFd;

use crate::backend::Contents;
use crate::entry::{Entry, Node};
use crate::error::LayerError;
use crate::limits::HOLE_BYTES;

static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// Writes the data of `entry`, which `contents` gives, to a new file.
pub(crate) fn write(file: &OwnedFd, entry: &Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
    match &entry.node {
        Node::Sparse(regions, size) => write_sparse(file, entry, regions, *size, contents),
        _ => write_all(file, entry, contents),
    }
}

fn write_all(file: &OwnedFd, entry: &Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
    let mut offset = 0;
    let mut ends_in_a_hole = false;
    loop {
        let piece = contents.data()?;
        if piece.is_empty() {
            break;
        }
        ends_in_a_hole = write_with_holes(file, entry, piece, offset)?;
        offset += piece.len() as u64;
    }
    if ends_in_a_hole {
        rustix::fs::ftruncate(file, offset).map_err(LayerError::entry_io(&entry.name, "set its size"))?;
    }
    Ok(())
}

/// Passes over whole blocks of zeros; whether the last block was one.
fn write_with_holes(file: &OwnedFd, entry: &Entry, piece: &[u8], offset: u64) -> Result<bool, LayerError> {
    if piece.len() < HOLE_BYTES {
        write_at(file, &entry.name, piece, offset)?;
        return Ok(false);
    }
    let (mut from, mut at) = (0, 0);
    let mut is_hole = false;
    for block in piece.chunks(HOLE_BYTES) {
        is_hole = block == &ZEROS[..block.len()] && block.len() == HOLE_BYTES;
        if is_hole {
            write_at(file, &entry.name, &piece[from..at], offset + from as u64)?;
            from = at + block.len();
        }
        at += block.len();
    }
    write_at(file, &entry.name, &piece[from..], offset + from as u64)?;
    Ok(is_hole)
}

/// Writes all of `data` to the file of that name.
pub(crate) fn write_at(
    file: &OwnedFd,
    name: &[u8],
    mut data: &[u8],
    mut offset: u64,
) -> Result<(), LayerError> {
    while !data.is_empty() {
        let count = rustix::io::pwrite(file, data, offset).map_err(LayerError::entry_io(name, "write it"))?;
        data = &data[count..];
        offset += count as u64;
    }
    Ok(())
}

fn write_sparse(
    file: &OwnedFd,
    entry: &Entry,
    regions: &[(u64, u64)],
    size: u64,
    contents: &mut dyn Contents,
) -> Result<(), LayerError> {
    rustix::fs::ftruncate(file, size).map_err(LayerError::entry_io(&entry.name, "set its size"))?;
    let mut regions = regions.iter().copied().filter(|(_, length)| *length > 0);
    let (mut offset, mut left) = regions.next().unwrap_or((0, 0));
    loop {
        let mut piece = contents.data()?;
        if piece.is_empty() {
            return Ok(());
        }
        while !piece.is_empty() {
            let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            write_at(file, &entry.name, &piece[..count], offset)?;
            piece = &piece[count..];
            (offset, left) = (offset + count as u64, left - count as u64);
            if left == 0 {
                (offset, left) = regions.next().unwrap_or((offset, u64::MAX));
            }
        }
    }
}
