//! A running operation's place in the store: staging, temporaries, and the lease on what it needs.
//!
//! The workspace is a folder under `tmp/` whose `lock` its owner holds. When the owner dies, at whatever point, the lock
//! is free, and the next [`reap`] discards the folder with everything half-made in it. The lease lists what the owner
//! relies on, so that the garbage collector keeps it although no image names it yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cofferdam_linux::removal;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::layout::{Layout, make_private};
use crate::lock::{Lock, Mode};
use crate::record::{self, Durable};

/// An operation's folder; dropping it discards what was not published.
#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    _lock: Lock,
}

#[derive(Serialize, Deserialize)]
struct Lease {
    keeps: Vec<String>,
}

impl Workspace {
    pub(crate) fn create(layout: &Layout) -> Result<Workspace, Error> {
        // Reaping holds this lock exclusively, so it never sees a folder whose lock is not taken yet.
        let _store = Lock::wait(&layout.store_lock(), Mode::Shared)?;
        let path = layout.tmp().join(record::unique());
        make_private(&path)?;
        let lock = Lock::wait(&path.join("lock"), Mode::Exclusive)?;
        Ok(Workspace { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps `paths` from the garbage collector from now on, whether they exist already or not.
    pub(crate) fn lease(
        &self,
        layout: &Layout,
        paths: impl IntoIterator<Item = String>,
    ) -> Result<(), Error> {
        let _store = Lock::wait(&layout.store_lock(), Mode::Shared)?;
        let lease = Lease { keeps: paths.into_iter().collect() };
        record::store(&self.path.join("lease.json"), &self.path, &lease, Durable::Later)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What cannot be deleted now is reaped later.
        let _ = removal::remove_tree(&self.path);
    }
}

/// Whether there is a workspace whose owner is dead; or one that is only being made, which [`reap`] then tells apart.
pub(crate) fn any_dead(layout: &Layout) -> Result<bool, Error> {
    let names = layout.list("tmp")?;
    Ok(names.iter().any(|name| !Lock::is_held(&layout.tmp().join(name).join("lock"))))
}

/// Discards the workspaces of dead owners and returns what the living ones lease. The caller holds the store's lock
/// exclusively.
pub(crate) fn reap(layout: &Layout, _store: &Lock) -> Result<BTreeSet<String>, Error> {
    let mut kept = BTreeSet::new();
    for name in layout.list("tmp")? {
        let path = layout.tmp().join(name);
        if !Lock::is_held(&path.join("lock")) {
            layout.discard(&path)?;
        } else if let Some(lease) = record::load::<Lease>(&path.join("lease.json"))? {
            kept.extend(lease.keeps);
        }
    }
    Ok(kept)
}
