//! Locks between processes: flock(2) on files of the store. They end with their holder, however it ends.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::Error;

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until the lock is free.
    pub(crate) fn wait(path: &Path, mode: Mode) -> Result<Lock, Error> {
        loop {
            let file = open(path)?;
            let operation = match mode {
                Mode::Shared => FlockOperation::LockShared,
                Mode::Exclusive => FlockOperation::LockExclusive,
            };
            match rustix::fs::flock(&file, operation) {
                Ok(()) if is_current(&file, path) => return Ok(Lock { _file: file }),
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("lock", path)(error)),
            }
        }
    }

    /// Takes the lock exclusively if it is free now.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Lock>, Error> {
        let file = open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_current(&file, path) => Ok(Some(Lock { _file: file })),
            Ok(()) | Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::io("lock", path)(error)),
        }
    }

    /// Whether somebody holds the lock; a missing file is held by nobody.
    pub(crate) fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(Error::io("open", path))
}

/// A lock file may be removed by the garbage collector between opening and locking: then the lock is of a file that nobody
/// else will find.
fn is_current(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
