//! Files that are either old or new, never half: written beside their place, synced, renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest record that is read back. A status or a task specification is some KiB; anything near this size was
/// not written by us.
pub const RECORD_LIMIT_BYTES: u64 = 4 << 20;

/// What a written file must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Death of any process: renamed into place, not synced. For state that means nothing after a reboot.
    Process,
    /// Loss of power: file and directory are synced.
    Power,
}

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A system call on the file failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is there but is not what we wrote.
    #[error("{} is not usable: {problem}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl RecordError {
    /// Whether the file simply is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RecordError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Replaces the file at `path` by `bytes`, mode 0600. Readers see the old or the new content.
pub fn store_bytes(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), RecordError> {
    let failed = |operation| move |source| RecordError::Io { operation, path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = write_new(&temporary, bytes, durability).and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = written {
        // The file we could not finish is useless; that it may stay is the lesser of two errors.
        let _ = fs::remove_file(&temporary);
        return Err(failed("write")(source));
    }
    if durability == Durability::Power {
        sync_parent(path).map_err(failed("sync the directory of"))?;
    }
    Ok(())
}

/// Stores `value` as JSON; see [`store_bytes`].
pub fn store<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), RecordError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| RecordError::Broken { path: path.to_owned(), problem: error.to_string() })?;
    store_bytes(path, &bytes, durability)
}

/// Reads a record that this user owns: a regular file of at most [`RECORD_LIMIT_BYTES`], never through a link.
pub fn load_bytes(path: &Path) -> Result<Vec<u8>, RecordError> {
    let failed = |source| RecordError::Io { operation: "read", path: path.to_owned(), source };
    let broken = |problem: &str| RecordError::Broken { path: path.to_owned(), problem: problem.to_owned() };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(broken("it is not a regular file"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(broken("it belongs to another user"));
    }
    let mut bytes = Vec::with_capacity(meta.len().min(RECORD_LIMIT_BYTES) as usize);
    file.take(RECORD_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > RECORD_LIMIT_BYTES {
        return Err(broken("it is larger than any record we write"));
    }
    Ok(bytes)
}

/// Reads back what [`store`] wrote.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let bytes = load_bytes(path)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| RecordError::Broken { path: path.to_owned(), problem: error.to_string() })
}

/// Makes the renames and new entries of a directory survive loss of power.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

fn write_new(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if durability == Durability::Power { file.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_stored_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        store(&path, &vec![1, 2, 3], Durability::Power).unwrap();
        store(&path, &vec![4], Durability::Process).unwrap();
        assert_eq!(load::<Vec<i32>>(&path).unwrap(), vec![4]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_fifos_and_torn_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::write(&real, b"{\"half\":").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(load::<serde_json::Value>(&real).unwrap_err().to_string().contains("not usable"));
        assert!(load::<serde_json::Value>(&link).is_err());
        assert!(load::<serde_json::Value>(&dir.path().join("none")).unwrap_err().is_not_found());
        assert!(load_bytes(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    }
}
