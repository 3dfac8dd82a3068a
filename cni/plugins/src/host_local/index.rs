//! Who holds which address, remembered between calls of one process.
//!
//! The files are the truth and the index is a hint: an address is given out, and a lease is released, only after a look at
//! its file. What the index spares is reading every file of a large network to find that an attachment has no lease.
//!
//! It is valid as long as the directory's modification time is what it was when we let go of the lock. A kernel before 6.13
//! counts that time in steps of up to 10 ms: what somebody else changes within the same step as we goes unseen, which is why
//! an index of which that could be true is not asked whether there is nothing.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::store::Lease;

/// Networks that are remembered at a time; a process that deals with more reads their files again.
const NETWORKS: usize = 64;
/// The coarsest step of a kernel's clock for files, `HZ=100`.
const CLOCK_STEP: Duration = Duration::from_millis(10);
/// A lease is two short lines.
const LEASE_BYTES: usize = 1024;
/// From so many files on they are read by two threads.
const MANY: usize = 2048;

static INDEXES: Mutex<Option<HashMap<PathBuf, Index>>> = Mutex::new(None);

/// The leases of one network.
#[derive(Debug, Default)]
pub(super) struct Index {
    holders: HashMap<IpAddr, Lease>,
    by_container: HashMap<String, Vec<IpAddr>>,
    /// Modification time of the directory in nanoseconds since 1970.
    modified: i128,
    /// Whether somebody else may have changed something without changing that time.
    is_doubtful: bool,
}

impl Index {
    /// What is remembered of the directory, if it is still true. Whoever takes it holds the directory's lock.
    pub(super) fn take(directory: &Path, handle: &File) -> Option<Self> {
        let mut all = INDEXES.lock().unwrap_or_else(PoisonError::into_inner);
        let index = all.as_mut()?.remove(directory)?;
        (modified(handle).ok()? == index.modified).then_some(index)
    }

    /// Remembers it, before the lock goes.
    pub(super) fn put_back(mut self, directory: &Path, handle: &File) {
        let Ok(modified) = modified(handle) else { return };
        self.modified = modified;
        let now = clock_gettime(ClockId::Realtime);
        let now = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        self.is_doubtful = (now - modified).unsigned_abs() < CLOCK_STEP.as_nanos();
        let mut all = INDEXES.lock().unwrap_or_else(PoisonError::into_inner);
        let all = all.get_or_insert_default();
        if all.len() >= NETWORKS {
            all.clear();
        }
        all.insert(directory.to_owned(), self);
    }

    /// Reads every lease of the directory.
    pub(super) fn read(directory: &File) -> Result<Self, Errno> {
        let mut addresses = Vec::new();
        for entry in rustix::fs::Dir::read_from(directory)? {
            let name = entry?.file_name().to_owned();
            addresses.extend(name.to_str().ok().and_then(|text| text.parse::<IpAddr>().ok()));
        }
        let (one, other) = addresses.split_at(if addresses.len() < MANY { 0 } else { addresses.len() / 2 });
        let leases = std::thread::scope(|scope| {
            let helper = (!one.is_empty()).then(|| scope.spawn(|| read_all(directory, one)));
            let mut leases = read_all(directory, other);
            let helped =
                helper.map(|helper| helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            leases.extend(helped.into_iter().flatten());
            leases
        });
        let mut index = Self::default();
        for (address, lease) in leases {
            index.insert(address, lease);
        }
        Ok(index)
    }

    pub(super) fn insert(&mut self, address: IpAddr, lease: Lease) {
        self.by_container.entry(lease.container.clone()).or_default().push(address);
        self.holders.insert(address, lease);
    }

    pub(super) fn remove(&mut self, address: IpAddr) {
        let Some(lease) = self.holders.remove(&address) else { return };
        if let Some(addresses) = self.by_container.get_mut(&lease.container) {
            addresses.retain(|other| *other != address);
            if addresses.is_empty() {
                self.by_container.remove(&lease.container);
            }
        }
    }

    /// The addresses of a container that `wanted` holds for.
    pub(super) fn of(&self, container: &str, wanted: impl Fn(&Lease) -> bool) -> Vec<IpAddr> {
        let all = self.by_container.get(container).into_iter().flatten();
        all.copied().filter(|address| self.holders.get(address).is_some_and(&wanted)).collect()
    }

    /// Every lease.
    pub(super) fn all(&self) -> impl Iterator<Item = (IpAddr, &Lease)> {
        self.holders.iter().map(|(address, lease)| (*address, lease))
    }

    /// Who holds an address.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Lease> {
        self.holders.get(&address)
    }

    /// Whether it must not be believed that there is nothing.
    pub(super) fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }
}

fn modified(handle: &File) -> Result<i128, Errno> {
    let stat = fstat(handle)?;
    Ok(i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec))
}

fn read_all(directory: &File, addresses: &[IpAddr]) -> Vec<(IpAddr, Lease)> {
    addresses.iter().filter_map(|address| Some((*address, read_one(directory, *address)?))).collect()
}

/// Reads one lease with three system calls; an empty one is nobody's, as a crash of the reference plugin leaves it.
pub(super) fn read_one(directory: &File, address: IpAddr) -> Option<Lease> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let name = address.to_string();
    let file = openat(directory.as_fd(), OsStr::new(&name), flags, Mode::empty()).ok()?;
    let mut buffer = [0; LEASE_BYTES];
    let length = rustix::io::read(&file, &mut buffer[..]).ok()?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    if text.trim().is_empty() { None } else { Some(Lease::parse(&text)) }
}
