//! Small JSON records: the store's only metadata.
//!
//! A record carries its version and is replaced by write-temp, fsync, rename, so that a reader sees the old or the new one
//! whole, also after a loss of power. One that is new is not always synced: it may then be missing or torn after a loss of
//! power, and whoever reads it takes both for the same. Temporaries live in the writer's workspace and go when it does.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The version that this code writes; it reads this one and the one before.
pub(crate) const VERSION: u32 = 1;
/// The largest record, in bytes: a layer may imply and link many names.
const RECORD_LIMIT_BYTES: u64 = 256 << 20;

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// How much a write must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// Loss of power.
    Now,
    /// The end of this process. A loss of power before the store is settled may lose it, as if it had never been written:
    /// what was there before stays whole until then.
    Later,
}

/// Reads a record; `None` if there is none or it is torn. A record of a newer version is an error.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > RECORD_LIMIT_BYTES => return Ok(None),
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    match serde_json::from_slice::<Version>(&bytes) {
        Ok(Version { version }) if version > VERSION => Err(Error::Record {
            path: path.to_owned(),
            reason: format!("it has version {version}, this program reads up to {VERSION}"),
        }),
        Ok(_) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(_) => Ok(None),
    }
}

/// Writes a record in `scratch` and moves it to `path`, replacing what is there.
pub(crate) fn store<T: Serialize>(
    path: &Path,
    scratch: &Path,
    body: &T,
    durable: Durable,
) -> Result<(), Error> {
    publish(path, scratch, &encode(path, body)?, durable)
}

/// Writes bytes in `scratch` and moves them to `path`. Nothing is done if they are there already.
pub(crate) fn publish(path: &Path, scratch: &Path, bytes: &[u8], durable: Durable) -> Result<(), Error> {
    if durable == Durable::Later && fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let temporary = scratch.join(format!("record-{}", unique()));
    let mut file = File::create_new(&temporary).map_err(Error::io("create", &temporary))?;
    file.write_all(bytes).map_err(Error::io("write", &temporary))?;
    // A file that is renamed over another before its bytes are on disk may be empty after a loss of power, and the other gone.
    if durable == Durable::Now || path.exists() {
        file.sync_all().map_err(Error::io("sync", &temporary))?;
    }
    fs::rename(&temporary, path).map_err(Error::io("rename", path))?;
    if durable == Durable::Now
        && let Some(folder) = path.parent()
    {
        sync_folder(folder)?;
    }
    Ok(())
}

/// Writes a record in `scratch` that somebody else syncs and then moves to `path`.
pub(crate) fn stage<T: Serialize>(path: &Path, scratch: &Path, body: &T) -> Result<PathBuf, Error> {
    let temporary = scratch.join(format!("record-{}", unique()));
    fs::write(&temporary, encode(path, body)?).map_err(Error::io("write", &temporary))?;
    Ok(temporary)
}

fn encode<T: Serialize>(path: &Path, body: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(&Written { version: VERSION, body })
        .map_err(|error| Error::Record { path: path.to_owned(), reason: error.to_string() })
}

/// Makes renames in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}

/// A name that nobody else uses: 64 random bits in hexadecimal.
pub(crate) fn unique() -> String {
    let mut bytes = [0u8; 8];
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        // Only before the kernel's generator is seeded; the process and the time then tell names apart.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = (now.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(48)).to_ne_bytes();
    }
    format!("{:016x}", u64::from_ne_bytes(bytes))
}
