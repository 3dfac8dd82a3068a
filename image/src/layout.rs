//! Where things are in a store.
//!
//! ```text
//! version                        the format; a program that does not know it leaves the store alone
//! store.lock                     held exclusively for the short moments of sweeping and reaping
//! unsettled                      there if something may not survive a loss of power yet
//! blobs/<algorithm>/<hex>        manifests, configurations and kept blobs, as an OCI layout has them
//! layers/<algorithm>-<hex>/      one a DiffID: diff/ (a directory) or image/layer.erofs, layer.json and recipe (its tar)
//! fixups/<algorithm>-<hex>/      one a ChainID that needs it: diff/ and fixup.json
//! images/<algorithm>-<hex>.json  one a manifest; an artifact's blobs are under blobs/
//! names/<hex>.json               one a reference; the file name is the reference's SHA-256
//! snapshots/<hex>/               one a key: upper/, work/, snapshot.json
//! locks/<name>                   one a layer or fix-up, and one for emptying the trash
//! tmp/<random>/                  one a running operation: lock (held while it lives), lease.json, staging
//! partial/<blob>.<boot>          beginnings of large blobs, each locked by who fetches it
//! trash/<random>                 what is to be deleted
//! ```

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cofferdam_registry::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::identity::{ChainId, DiffId};
use crate::lock::{Lock, Mode};
use crate::options::StoreOptions;
use crate::record::{self, Durable};
use crate::trash;

const FOLDERS: [&str; 9] =
    ["blobs/sha256", "blobs/sha512", "layers", "fixups", "images", "names", "snapshots", "locks", "tmp"];

/// The format that this code makes, and the oldest that it reads. Records have versions of their own; this one rises when a
/// store that an older program would misread is made.
const FORMAT: u32 = 1;
const OLDEST_FORMAT: u32 = 1;

/// The paths of one store, and how it is operated.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    options: StoreOptions,
}

/// `version`.
#[derive(Serialize, Deserialize)]
struct Format {
    /// Stores of the first format do not say it.
    #[serde(default = "oldest_format")]
    format: u32,
}

fn oldest_format() -> u32 {
    OLDEST_FORMAT
}

impl Layout {
    /// Makes the folders that are missing, all for root alone: an image's set-user-id files must not be reachable by other
    /// users of the host (CVE-2021-41103).
    pub(crate) fn create(root: &Path, options: StoreOptions) -> Result<Layout, Error> {
        make_private(root)?;
        // Paths go into mount options and records, where a later change of directory must not change their meaning.
        let root = fs::canonicalize(root).map_err(Error::io("resolve", root))?;
        require_private(&root)?;
        let layout = Layout { root, options };
        // Before anything is made: a store of another format is left alone.
        layout.check_format()?;
        for folder in FOLDERS.iter().chain(&["trash"]) {
            make_private(&layout.root.join(folder))?;
        }
        layout.store_format()?;
        Ok(layout)
    }

    fn check_format(&self) -> Result<(), Error> {
        let Some(Format { format: found }) = record::load::<Format>(&self.root.join("version"))? else {
            return Ok(());
        };
        if (OLDEST_FORMAT..=FORMAT).contains(&found) {
            return Ok(());
        }
        let root = self.root.clone();
        Err(Error::Format { root, found, oldest: OLDEST_FORMAT, newest: FORMAT })
    }

    fn store_format(&self) -> Result<(), Error> {
        let path = self.root.join("version");
        if record::load::<Format>(&path)?.is_some() {
            return Ok(());
        }
        // Shared with whoever else opens the store for the first time; reaping waits.
        let _store = Lock::wait(&self.store_lock(), Mode::Shared)?;
        record::store(&path, &self.tmp(), &Format { format: FORMAT }, Durable::Later)
    }

    pub(crate) fn options(&self) -> &StoreOptions {
        &self.options
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The absolute path of a path within the store.
    pub(crate) fn at(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    pub(crate) fn store_lock(&self) -> PathBuf {
        self.at("store.lock")
    }

    pub(crate) fn lock(&self, name: &str) -> PathBuf {
        self.at("locks").join(name)
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.at("tmp")
    }

    /// Moves something out of sight at once; deleting it may take longer and may be interrupted.
    pub(crate) fn discard(&self, path: &Path) -> Result<(), Error> {
        match fs::rename(path, self.at("trash").join(record::unique())) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("discard", path)(error)),
            _ => Ok(()),
        }
    }

    /// Deletes what was discarded, by this process or by one that died before it could. One process does it at a time; what
    /// resists keeps the rest from nothing.
    pub(crate) fn empty_trash(&self) -> Result<(), Error> {
        let trash = self.at("trash");
        if self.list("trash")?.is_empty() {
            return Ok(());
        }
        let _held = Lock::wait_for_folder(&trash)?;
        trash::empty(&trash)
    }

    /// File names in a folder of the store.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.at(folder);
        let entries = fs::read_dir(&path).map_err(Error::io("read", &path))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}

/// Paths relative to the store's root, as records and leases write them.
pub(crate) fn blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

pub(crate) fn layer(diff_id: &DiffId) -> String {
    format!("layers/{}", file_name(diff_id.digest()))
}

pub(crate) fn fixup(chain: &ChainId) -> String {
    format!("fixups/{}", file_name(chain.digest()))
}

pub(crate) fn image(manifest: &Digest) -> String {
    format!("images/{}.json", file_name(manifest))
}

pub(crate) fn name(reference: &str) -> String {
    format!("names/{}.json", Digest::of(reference.as_bytes()).hex())
}

pub(crate) fn snapshot(key: &str) -> String {
    format!("snapshots/{}", Digest::of(key.as_bytes()).hex())
}

fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

/// Makes a directory, and its parents, with mode 0700. One that is there is left as it is.
pub(crate) fn make_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("create", path))
}

/// Takes the store's root away from other users, who could otherwise reach set-user-id files in it.
fn require_private(root: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(root).map_err(Error::io("examine", root))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        let reason = format!("it belongs to user {}, who could change what is in it", metadata.uid());
        return Err(Error::Record { path: root.to_owned(), reason });
    }
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(Error::io("close to others", root))
}
