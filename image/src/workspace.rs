//! A running operation's place in the store: staging, temporaries, and the lease on what it needs.
//!
//! The workspace is a folder under `tmp/` whose `lock` its owner holds. When the owner dies, at whatever point, the lock
//! is free, and the next [`reap`] discards the folder with everything half-made in it. The lease lists what the owner
//! relies on, so that the garbage collector keeps it although no image names it yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cofferdam_linux::removal;
use rustix::fs::{IFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::layout::{Layout, make_private};
use crate::lock::{self, Lock};
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
        let _store = Lock::wait(&layout.store_lock(), lock::Mode::Shared)?;
        let path = layout.tmp().join(record::unique());
        make_private(&path)?;
        let lock = Lock::wait(&path.join("lock"), lock::Mode::Exclusive)?;
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
        let _store = Lock::wait(&layout.store_lock(), lock::Mode::Shared)?;
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

/// Makes a folder in a workspace for a tree of files, on a part of the disk that it does not share with other trees.
///
/// ext4 puts a folder near its parent, and with it everything that is unpacked into it. Without a journal it gives the
/// inode of a removed file to nobody for minutes and passes by each of them whenever it looks for a free one: after
/// a few images came and went a file costs twenty times as much. Below a folder with this flag (`chattr +T`) it
/// spreads the folders over the disk by their names.
pub(crate) fn make_stage(workspace: &Path) -> Result<PathBuf, Error> {
    // Other file systems refuse the flag, and place files by rules of their own.
    let _ = spread_children(workspace);
    let stage = workspace.join(record::unique());
    make_private(&stage)?;
    Ok(stage)
}

fn spread_children(folder: &Path) -> rustix::io::Result<()> {
    let folder =
        rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = rustix::fs::ioctl_getflags(&folder)?;
    rustix::fs::ioctl_setflags(&folder, flags | IFlags::TOPDIR)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As statfs(2) names it.
    const EXT4: i64 = 0xEF53;

    #[test]
    fn a79_trees_are_spread_over_the_disk() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let stage = make_stage(folder.path()).unwrap();
        assert_eq!(stage.parent(), Some(folder.path()));
        assert_ne!(
            make_stage(folder.path()).unwrap(),
            stage,
            "trees of one name would come to the same place"
        );
        if rustix::fs::statfs(folder.path()).unwrap().f_type == EXT4 {
            let flags = rustix::fs::ioctl_getflags(std::fs::File::open(folder.path()).unwrap()).unwrap();
            assert!(flags.contains(IFlags::TOPDIR));
        } else {
            println!("skipped: not on ext4");
        }
    }
}
