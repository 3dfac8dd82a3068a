//! The lock of a container: one operation at a time, across processes.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_plan::ContainerId;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::error::Error;
use crate::state::{file_error, not_found};

/// flock(2) has no deadline of its own, so it is tried again: soon at first, and then less often.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LONGEST: Duration = Duration::from_millis(50);

/// A container's directory, locked. The lock dies with its holder.
pub(crate) struct Locked {
    pub directory: PathBuf,
    file: OwnedFd,
}

impl Locked {
    /// Makes the directory of a container that is not there yet, and locks it. Between the two, `delete` may remove it, and
    /// another may make it anew: a directory with something in it is that one's container.
    pub(crate) fn make(directory: &Path, id: &ContainerId, limit: Duration) -> Result<Self, Error> {
        let exists = || Error::AlreadyExists { id: id.to_string() };
        std::fs::DirBuilder::new().mode(0o700).create(directory).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(),
            _ => file_error("making", directory, &error),
        })?;
        let locked = Self::open(directory, id.as_str(), limit)?;
        let mut entries =
            std::fs::read_dir(directory).map_err(|error| file_error("reading", directory, &error))?;
        if entries.next().is_some() { Err(exists()) } else { Ok(locked) }
    }

    /// Waits for the lock, at most `limit`.
    pub(crate) fn open(directory: &Path, id: &str, limit: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let locked = Self::open_unlocked(directory, id)?;
            locked.acquire(deadline, limit)?;
            // Whoever held the lock may have removed the directory meanwhile, and another may have made a new one.
            if locked.is_current() {
                return Ok(locked);
            }
        }
    }

    /// The directory without its lock, for `delete --force` when the holder hangs.
    pub(crate) fn open_unlocked(directory: &Path, id: &str) -> Result<Self, Error> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECTORY.bits().cast_signed() | OFlags::NOFOLLOW.bits().cast_signed())
            .open(directory)
            .map_err(|error| not_found(&error, directory, id))?;
        Ok(Self { directory: directory.to_owned(), file: file.into() })
    }

    fn acquire(&self, deadline: Instant, limit: Duration) -> Result<(), Error> {
        let mut pause = PAUSE_FIRST;
        loop {
            match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(pause);
                    pause = PAUSE_LONGEST.min(pause * 2);
                }
                Err(Errno::WOULDBLOCK) => {
                    let (path, holder) = (self.directory.clone(), self.holder());
                    return Err(Error::Locked { path, seconds: limit.as_secs_f32(), holder });
                }
                Err(errno) => return Err(file_error("locking", &self.directory, &errno.into())),
            }
        }
    }

    /// Whether the path still leads to the directory that is locked.
    pub(crate) fn is_current(&self) -> bool {
        let ours = rustix::fs::fstat(self.file.as_fd()).map(|stat| (stat.st_dev, stat.st_ino));
        let there = std::fs::symlink_metadata(&self.directory).map(|there| (there.dev(), there.ino()));
        matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
    }

    /// Removes the directory, unless it is another's by now. But for the folder of a socket it is flat: nothing below it
    /// is descended into, so that what somebody has mounted there stays as it is.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let failed = |error: &std::io::Error| file_error("removing", &self.directory, error);
        let gone = |result: std::io::Result<()>| match result {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| failed(&error)),
        };
        if !self.is_current() {
            return Ok(());
        }
        crate::readiness::remove_socket(&self.file);
        for entry in std::fs::read_dir(&self.directory).map_err(|error| failed(&error))? {
            let entry = entry.map_err(|error| failed(&error))?;
            gone(match entry.file_type() {
                Ok(kind) if kind.is_dir() => std::fs::remove_dir(entry.path()),
                _ => std::fs::remove_file(entry.path()),
            })?;
        }
        gone(std::fs::remove_dir(&self.directory))
    }

    /// Who holds the lock, proc_locks(5): `1: FLOCK  ADVISORY  WRITE 4711 00:1b:2345 0 EOF`.
    fn holder(&self) -> String {
        let inode = rustix::fs::fstat(self.file.as_fd()).map_or(0, |stat| stat.st_ino);
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let holder = locks.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, "FLOCK", _, _, pid, file, ..] = fields.as_slice() else { return None };
            (file.rsplit(':').next()?.parse() == Ok(inode)).then(|| (*pid).to_owned())
        });
        let Some(pid) = holder else { return "another process".into() };
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("process {pid} ({})", name.trim_end().escape_debug())
    }
}
