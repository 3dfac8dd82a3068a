//! Copying a directory of the rootfs into a new file system, `tmpcopyup`, or into a volume. Everything here is *child-safe*: entries are
//! read into buffers on the stack, and the depth is bounded.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, chmodat, chownat, fchmod,
    fchown, fstat, mkdirat, mknodat, openat, sendfile, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::mounts::{LINK_MAX_BYTES, read_link};

/// Directories within directories that are copied; what lies deeper fails with `ELOOP`.
const DEPTH_MAX: usize = 64;
/// Room for directory entries, in bytes, once a level.
const ENTRIES_BYTES: usize = 4096;
/// Bytes that one call moves between files.
const CHUNK_BYTES: usize = 1 << 20;

/// Copies what is in `from` to `to`, which becomes as `from` is: mode, owner, times.
pub(super) fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    level(from, to, DEPTH_MAX)
}

/// Whether a directory has nothing in it.
pub(super) fn is_empty(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    let readable =
        openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut room = [MaybeUninit::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(readable, &mut room);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

fn level(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    if depth == 0 {
        return Err(Errno::LOOP);
    }
    let mut room = [MaybeUninit::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(from, &mut room);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            one(from, to, name, depth)?;
        }
    }
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let (kind, mode) = (FileType::from_raw_mode(stat.st_mode), Mode::from_raw_mode(stat.st_mode));
    match kind {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = openat(from, name, flags, Mode::empty())?;
            let made = openat(to, name, flags, Mode::empty())?;
            return level(inner.as_fd(), made.as_fd(), depth - 1);
        }
        FileType::Symlink => {
            let mut target = [0; LINK_MAX_BYTES];
            symlinkat(read_link(from, name, &mut target)?, to, name)?;
        }
        FileType::RegularFile => file(from, to, name)?,
        _ => mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        chmodat(to, name, mode, AtFlags::empty())?;
    }
    utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let source = openat(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    while sendfile(&copy, &source, None, CHUNK_BYTES)? > 0 {}
    Ok(())
}

#[allow(clippy::unnecessary_cast, reason = "the widths of these fields differ between architectures")]
fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime as i64, stat.st_atime_nsec as u64),
        last_modification: time(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
    }
}
