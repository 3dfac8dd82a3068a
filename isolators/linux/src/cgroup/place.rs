//! One cgroup in one hierarchy, held by descriptors: nothing here resolves a path twice.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::fs::{fstatfs, mkdirat, open, openat, openat2, unlinkat};
use rustix::io::Errno;

use super::Error;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Magic numbers of statfs(2): a mount point that is something else is not trusted.
const CGROUP_V1: u64 = 0x0027_e0eb;
const CGROUP_V2: u64 = 0x6367_7270;

/// Longest text that is read from one file. A `cgroup.procs` line is 11 bytes at most; 4 MiB is beyond every pid_max.
const TEXT_LIMIT_BYTES: usize = 4 << 20;

/// A cgroup's directory in one hierarchy.
#[derive(Debug)]
pub(super) struct Place {
    /// What is controlled here; empty on version 2, where files are found by name.
    pub(super) controllers: Vec<String>,
    /// Whether this is the version 2 tree.
    pub(super) unified: bool,
    /// For messages only.
    pub(super) path: PathBuf,
    /// The last component, below `parent`.
    name: CString,
    parent: OwnedFd,
    directory: OwnedFd,
}

/// Where a place is to be.
pub(super) struct Site<'a> {
    pub(super) controllers: Vec<String>,
    pub(super) unified: bool,
    pub(super) mount_point: &'a std::path::Path,
    /// Path components below the mount point, never empty, none of them `.` or `..`.
    pub(super) components: Vec<CString>,
}

impl Site<'_> {
    fn path(&self, depth: usize) -> PathBuf {
        let names = self.components.iter().take(depth).map(|name| name.to_string_lossy().into_owned());
        std::iter::once(self.mount_point.to_path_buf()).chain(names.map(PathBuf::from)).collect()
    }

    fn mount(&self) -> Result<OwnedFd, Error> {
        let failed = |errno| Error::call("open", self.mount_point, errno);
        let directory = open(self.mount_point, DIRECTORY, Mode::empty()).map_err(failed)?;
        let magic = u64::try_from(fstatfs(&directory).map_err(failed)?.f_type).unwrap_or(0);
        let expected = if self.unified { CGROUP_V2 } else { CGROUP_V1 };
        if magic == expected {
            Ok(directory)
        } else {
            Err(Error::NotCgroup { path: self.mount_point.into() })
        }
    }

    /// Makes the cgroup and what is missing above it. Gives `true` beside it where it was not there before.
    pub(super) fn make(&self) -> Result<(Place, bool), Error> {
        /// Somebody who removes empty parents may be faster; three times in a row is a bug of his.
        const ATTEMPTS: usize = 3;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.walk(true) {
                Err(error) if error.errno() == Errno::NOENT && attempt < ATTEMPTS => {}
                result => return result,
            }
        }
    }

    /// Opens the cgroup as it is.
    pub(super) fn open(&self) -> Result<Place, Error> {
        self.walk(false).map(|(place, _)| place)
    }

    /// Removes the cgroup where nobody is in it and nothing lies below it; gives whether it is gone.
    pub(super) fn remove_idle(&self) -> Result<bool, Error> {
        let Some((name, above)) = self.components.split_last() else { return Ok(false) };
        let mut parent = self.mount()?;
        for name in above {
            parent = match enter(parent.as_fd(), name) {
                Err(Errno::NOENT) => return Ok(true),
                result => {
                    result.map_err(|errno| Error::call("openat2", self.path(self.components.len()), errno))?
                }
            };
        }
        match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
            Err(errno) => Err(Error::call("rmdir", self.path(self.components.len()), errno)),
        }
    }

    fn walk(&self, make: bool) -> Result<(Place, bool), Error> {
        let mut parent = self.mount()?;
        let mut made = false;
        let last = self.components.len().saturating_sub(1);
        for (depth, name) in self.components.iter().enumerate() {
            if make {
                if self.unified {
                    enable_controllers(parent.as_fd());
                }
                made = match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => true,
                    Err(Errno::EXIST) => false,
                    Err(errno) => return Err(Error::call("mkdir", self.path(depth + 1), errno)),
                };
            }
            let directory = self.prepare(parent.as_fd(), name, make).map_err(|(operation, errno)| {
                if made {
                    // Nobody else knows of it yet.
                    let _ = unlinkat(&parent, name, AtFlags::REMOVEDIR);
                }
                Error::call(operation, self.path(depth + 1), errno)
            })?;
            if depth == last {
                let path = self.path(depth + 1);
                let (controllers, unified, name) = (self.controllers.clone(), self.unified, name.clone());
                return Ok((Place { controllers, unified, path, name, parent, directory }, made));
            }
            parent = directory;
        }
        Err(Error::call("open", self.mount_point, Errno::INVAL))
    }

    /// Opens a cgroup of the path; one that may be new is made fit for processes.
    fn prepare(
        &self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        make: bool,
    ) -> Result<OwnedFd, (&'static str, Errno)> {
        let directory = enter(parent, name).map_err(|errno| ("openat2", errno))?;
        if make && self.controllers.iter().any(|controller| controller == "cpuset") {
            inherit_cpuset(parent, directory.as_fd()).map_err(|errno| ("inherit cpuset", errno))?;
        }
        Ok(directory)
    }
}

/// Below and on the same file system, through no link: in a delegated tree somebody else may have put one there.
fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match openat2(parent, name, DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Switches on, for the children of a version 2 cgroup, all that it has itself. What cannot be switched on (a level that
/// holds processes, say) stays off: the write that needs it will say so by name.
fn enable_controllers(directory: BorrowedFd<'_>) {
    let read = |file: &CStr| read_at(directory, file).unwrap_or_default();
    let enabled = read(c"cgroup.subtree_control");
    let available = read(c"cgroup.controllers");
    let missing: Vec<String> = available
        .split_whitespace()
        .filter(|controller| !enabled.split_whitespace().any(|on| on == *controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if missing.is_empty() || write_at(directory, c"cgroup.subtree_control", &missing.join(" ")).is_ok() {
        return;
    }
    for controller in missing {
        let _ = write_at(directory, c"cgroup.subtree_control", &controller);
    }
}

/// A new version 1 cpuset holds no processor and no memory node, and no process can enter it.
fn inherit_cpuset(parent: BorrowedFd<'_>, child: BorrowedFd<'_>) -> Result<(), Errno> {
    for file in [c"cpuset.cpus", c"cpuset.mems"] {
        if read_at(child, file)?.trim().is_empty() {
            let inherited = read_at(parent, file)?;
            write_at(child, file, inherited.trim())?;
        }
    }
    Ok(())
}

impl Place {
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn failed(&self, operation: &'static str, file: &str, errno: Errno) -> Error {
        Error::call(operation, self.path.join(file), errno)
    }

    pub(super) fn read(&self, file: &str) -> Result<String, Errno> {
        read_at(self.directory.as_fd(), &c_name(file)?)
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        write_at(self.directory.as_fd(), &c_name(file)?, value)
    }

    pub(super) fn open(&self, file: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(&self.directory, &c_name(file)?, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// The processes of this cgroup and of all below it.
    pub(super) fn processes(&self) -> Result<Vec<i32>, Errno> {
        let mut found = Vec::new();
        let read = |directory: BorrowedFd<'_>| {
            match read_at(directory, c"cgroup.procs") {
                Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                // Gone meanwhile, or a threaded cgroup, whose processes are listed above it.
                Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
            Ok(())
        };
        descend(self.directory.as_fd(), read, |_, _| Ok(()))?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Removes what lies below, deepest first, and then the cgroup itself. Gone already is well.
    pub(super) fn remove(&self) -> Result<(), Errno> {
        let remove = || match unlinkat(&self.parent, &*self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        };
        // Most have nothing below them: looking first would cost more than the removal.
        match remove() {
            Err(Errno::BUSY | Errno::NOTEMPTY) => {
                remove_children(self.directory.as_fd())?;
                remove()
            }
            result => result,
        }
    }

    /// Whether the cgroup is still there: its directory may be held open after it was removed.
    pub(super) fn exists(&self) -> bool {
        rustix::fs::statat(&self.parent, &*self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }
}

fn children(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    /// Links of a directory without directories in it: its name and its own dot.
    const LEAF_LINKS: u64 = 2;
    let mut names = Vec::new();
    if rustix::fs::fstat(directory)?.st_nlink <= LEAF_LINKS {
        return Ok(names); // most have none, and the list of their files is long
    }
    let entries = match Dir::read_from(directory) {
        Err(Errno::NOENT) => return Ok(names), // removed while we hold it
        entries => entries?,
    };
    for entry in entries {
        let entry = match entry {
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Visits a cgroup and all below it, parents first, and leaves each below it by its parent and name when nothing in it is left
/// to visit. Whoever has a delegated tree may have made it deeper than there are descriptors, so only one is held: the way
/// back is `..`, which stays what it was, since a cgroup cannot be moved to another parent.
fn descend(
    top: BorrowedFd<'_>,
    mut visit: impl FnMut(BorrowedFd<'_>) -> Result<(), Errno>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> Result<(), Errno>,
) -> Result<(), Errno> {
    visit(top)?;
    let mut pending = vec![children(top)?];
    let (mut names, mut below) = (Vec::new(), None::<OwnedFd>);
    while let Some(level) = pending.last_mut() {
        let here = below.as_ref().map_or(top, AsFd::as_fd);
        if let Some(name) = level.pop() {
            match enter(here, &name) {
                Ok(child) => {
                    visit(child.as_fd())?;
                    pending.push(children(child.as_fd())?);
                    names.push(name);
                    below = Some(child);
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
            continue;
        }
        pending.pop();
        let Some(name) = names.pop() else { break };
        let parent = match names.is_empty() {
            true => None,
            false => Some(openat(here, c"..", DIRECTORY, Mode::empty())?),
        };
        below = parent;
        leave(below.as_ref().map_or(top, AsFd::as_fd), &name)?;
    }
    Ok(())
}

fn remove_children(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let remove = |parent: BorrowedFd<'_>, name: &CStr| match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    };
    descend(directory, |_| Ok(()), remove)
}

fn c_name(file: &str) -> Result<CString, Errno> {
    if file.is_empty() || file.contains('/') {
        return Err(Errno::INVAL);
    }
    CString::new(file).map_err(|_| Errno::INVAL)
}

fn read_at(directory: BorrowedFd<'_>, file: &CStr) -> Result<String, Errno> {
    let file = openat(directory, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    read_all(file.as_fd())
}

/// Reads from the start to the end, whatever was read from this descriptor before.
pub(super) fn read_all(file: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        let mut chunk = [0; 4096];
        let offset = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match rustix::io::pread(file, &mut chunk, offset) {
            Ok(0) => break,
            Ok(_) if bytes.len() > TEXT_LIMIT_BYTES => return Err(Errno::FBIG),
            Ok(count) => {
                bytes.extend_from_slice(&chunk[..count]);
                if count < chunk.len() / 2 {
                    break; // these files fill what they are given, but for less than a line
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    String::from_utf8(bytes).map_err(|_| Errno::ILSEQ)
}

/// One write(2): the kernel takes each write to a cgroup file as one order.
fn write_at(directory: BorrowedFd<'_>, file: &CStr, value: &str) -> Result<(), Errno> {
    let file = openat(directory, file, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    loop {
        match rustix::io::write(&file, value.as_bytes()) {
            Ok(count) if count == value.len() => return Ok(()),
            Ok(_) => return Err(Errno::IO),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
