//! Copies of single files between trees of the store, with everything that belongs to them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::attributes::apply;
use crate::error::LayerError;
use crate::stack::{from_stat, read_attributes};

/// Bytes that one call copies at most.
const COPY_BYTES: usize = 16 << 20;

/// Where a file is: its directory, its name there, and what a stat says of it.
pub(crate) struct Original<'a> {
    pub(crate) folder: &'a OwnedFd,
    pub(crate) base: &'a [u8],
    pub(crate) stat: &'a Stat,
}

/// Makes `name` in `parent` a copy of anything but a directory. `label` is the name in messages.
pub(crate) fn copy(
    original: &Original<'_>,
    parent: &OwnedFd,
    name: &[u8],
    label: &[u8],
) -> Result<(), LayerError> {
    let failed = |operation| LayerError::entry_io(label, operation);
    let attributes = from_stat(original.stat);
    match FileType::from_raw_mode(original.stat.st_mode) {
        FileType::RegularFile => return copy_file(original, parent, name, label),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(original.folder, original.base, Vec::new());
            rustix::fs::symlinkat(target.map_err(failed("read"))?, parent, name).map_err(failed("create"))?;
        }
        kind => {
            let mode = Mode::from_raw_mode(attributes.mode);
            rustix::fs::mknodat(parent, name, kind, mode, original.stat.st_rdev).map_err(failed("create"))?;
        }
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(attributes.uid), rustix::fs::Gid::from_raw(attributes.gid));
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), nofollow).map_err(failed("set the owner of"))?;
    if FileType::from_raw_mode(original.stat.st_mode) != FileType::Symlink {
        // After the owner, who takes set-id bits away.
        let mode = Mode::from_raw_mode(attributes.mode);
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(failed("set the mode of"))?;
    }
    let times = rustix::fs::Timestamps { last_access: attributes.mtime, last_modification: attributes.mtime };
    rustix::fs::utimensat(parent, name, &times, nofollow).map_err(failed("set the time of"))
}

fn copy_file(original: &Original<'_>, parent: &OwnedFd, name: &[u8], label: &[u8]) -> Result<(), LayerError> {
    let failed = |operation| LayerError::entry_io(label, operation);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(original.folder, original.base, flags, Mode::empty());
    let source = source.map_err(failed("open"))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
    let target = target.map_err(failed("create"))?;
    // Shared blocks where the file system has them; else the data, and none of the holes.
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        copy_data(&source, &target, original.stat.st_size as u64).map_err(failed("copy"))?;
    }
    apply(&target, label, &read_attributes(&source, label)?)
}

fn copy_data(source: &impl AsFd, target: &impl AsFd, size: u64) -> rustix::io::Result<()> {
    rustix::fs::ftruncate(target, size)?;
    let mut offset = 0;
    loop {
        let start = match rustix::fs::seek(source, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        let (mut from, mut to) = (start, start);
        while from < end {
            let length = usize::try_from(end - from).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(Errno::INVAL | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    copy_by_hand(source, target, from..end)?;
                    from = end;
                }
                Err(error) => return Err(error),
            }
        }
        offset = end;
    }
}

fn copy_by_hand(
    source: &impl AsFd,
    target: &impl AsFd,
    range: std::ops::Range<u64>,
) -> rustix::io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = range.start;
    while offset < range.end {
        let length = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(buffer.len());
        let count = rustix::io::pread(source, &mut buffer[..length], offset)?;
        if count == 0 {
            return Ok(());
        }
        let mut written = 0;
        while written < count {
            written += rustix::io::pwrite(target, &buffer[written..count], offset + written as u64)?;
        }
        offset += count as u64;
    }
    Ok(())
}
