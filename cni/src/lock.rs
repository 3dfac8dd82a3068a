//! Locks across processes: flock(2) on files of the state directory.
//!
//! The kernel drops a lock with its holder, so a crash leaves none. A container's lock file is removed by whoever held it;
//! a locker therefore checks that what it locked is still what the name leads to.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::Error;

/// The pause between two tries grows from the first to the second: operations take milliseconds, or hang.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Who else may hold the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nobody.
    Exclusive,
    /// Others that share.
    Shared,
}

/// A held lock, released on drop.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    remove: Option<PathBuf>,
}

impl Lock {
    /// Takes the lock at `path`, waiting at most `limit`. `what` names it for the message.
    pub(crate) fn take(path: &Path, sharing: Sharing, limit: Duration, what: &str) -> Result<Self, Error> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(file) = try_lock(path, sharing).map_err(Error::state("lock", path))? {
                return Ok(Self { _file: file, remove: None });
            }
            if started.elapsed() >= limit {
                return Err(Error::Locked {
                    what: what.into(),
                    holder: holder(path),
                    waited: started.elapsed(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Removes the file when the lock is released. Only for exclusive locks.
    pub(crate) fn removing(mut self, path: &Path) -> Self {
        self.remove = Some(path.into());
        self
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(path) = &self.remove {
            // A file that stays behind is only clutter.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn try_lock(path: &Path, sharing: Sharing) -> std::io::Result<Option<File>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let operation = match sharing {
        Sharing::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Sharing::Shared => FlockOperation::NonBlockingLockShared,
    };
    match flock(&file, operation) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let locked = file.metadata()?;
    let there = std::fs::metadata(path);
    if !there.is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino())) {
        return Ok(None);
    }
    Ok(Some(file))
}

/// The processes that hold the lock, by what the kernel lists of it.
fn holder(path: &Path) -> String {
    let Ok(meta) = std::fs::metadata(path) else { return "(unknown)".into() };
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let mut found = holders(&text, meta.ino());
    // The kernel writes the list in pieces: what came or went meanwhile can make an entry appear twice.
    found.dedup();
    if found.is_empty() { "(unknown)".into() } else { found.join(", ") }
}

/// Lines of proc_locks(5) are `1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`; of one that waits, the second word is `->`.
/// Only the inode is compared: overlays and btrfs show another device than stat(2). Two files of one inode number with
/// somebody waiting for one of them cost no more than a wrong name in a message.
fn holders(locks: &str, inode: u64) -> Vec<String> {
    let holds = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = words[..] else { return None };
        let (_, found) = place.rsplit_once(':')?;
        (found.parse() == Ok(inode)).then(|| pid.to_owned())
    };
    locks.lines().filter_map(holds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_lock_is_exclusive_names_its_holder_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let short = Duration::from_millis(20);
        let held = Lock::take(&path, Sharing::Exclusive, short, "a").unwrap().removing(&path);
        let error = Lock::take(&path, Sharing::Shared, short, "container c").unwrap_err().to_string();
        assert!(error.contains("container c") && error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        assert!(!path.exists());
        let one = Lock::take(&path, Sharing::Shared, short, "a").unwrap();
        let _two = Lock::take(&path, Sharing::Shared, short, "a").unwrap();
        assert!(Lock::take(&path, Sharing::Exclusive, short, "a").is_err());
        drop(one);
    }

    #[test]
    fn who_holds_a_lock_is_read_from_the_kernels_list() {
        let text = "1: FLOCK  ADVISORY  READ 12 fd:01:77 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 13 fd:01:77 0 EOF\n\
                    2: FLOCK  ADVISORY  READ 14 fd:01:77 0 EOF\n3: POSIX  ADVISORY  WRITE 15 fd:01:77 0 EOF\n";
        assert_eq!(holders(text, 77), ["12", "14"]);
        assert!(holders(text, 78).is_empty());
    }

    #[test]
    fn many_takers_of_a_lock_that_is_removed_each_time_never_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let limit = Duration::from_secs(20);
                        let _held =
                            Lock::take(&path, Sharing::Exclusive, limit, "x").unwrap().removing(&path);
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        assert_eq!(inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst), 1);
                    }
                });
            }
        });
    }
}
