//! Locks between processes: flock(2) on files of the store. They end with their holder, however it ends.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::Error;

/// How often somebody who may be cancelled looks whether a lock is free: first and at last. The kernel wakes a waiter
/// itself, but no other thread can call it off.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_LAST: Duration = Duration::from_millis(20);

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
    /// Waits until the lock is free. For locks that are only ever held for moments.
    pub(crate) fn wait(path: &Path, mode: Mode) -> Result<Lock, Error> {
        wait(path, mode, open)
    }

    /// Waits until nobody else holds a folder that is there: a lock that leaves no file, however its holder ends.
    pub(crate) fn wait_for_folder(path: &Path) -> Result<Lock, Error> {
        wait(path, Mode::Exclusive, |path| File::open(path).map_err(Error::io("open", path)))
    }

    /// Waits until the lock can be had exclusively, or the caller is called off. For locks that are held as long as a
    /// download takes: whoever waits takes over when the holder ends, whether it finished or died.
    pub(crate) fn wait_unless(path: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<Lock, Error> {
        let mut pause = LOOK_FIRST;
        loop {
            if is_cancelled() {
                return Err(Error::Cancelled);
            }
            if let Some(lock) = Lock::try_exclusive(path)? {
                return Ok(lock);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// Takes the lock exclusively if it is free now.
    pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Lock>, Error> {
        let file = open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_current(&file, path) => Ok(Some(Lock { _file: file })),
            Ok(()) | Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(Error::io("lock", path)(error)),
        }
    }

    /// Whether somebody holds the lock; a missing file is held by nobody.
    pub(crate) fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    }
}

fn wait(path: &Path, mode: Mode, open: impl Fn(&Path) -> Result<File, Error>) -> Result<Lock, Error> {
    let operation = match mode {
        Mode::Shared => FlockOperation::LockShared,
        Mode::Exclusive => FlockOperation::LockExclusive,
    };
    loop {
        let file = open(path)?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) if is_current(&file, path) => return Ok(Lock { _file: file }),
            Ok(()) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("lock", path)(error)),
        }
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
