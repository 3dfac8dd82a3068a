//! A handle on a container's root: the only way to open a path inside it. openat2(2).
//!
//! Every path is resolved by the kernel as if the handle were `/` (`RESOLVE_IN_ROOT`), and never through a magic link, so
//! neither a symbolic link nor a rename that races with us leads outside. What is missing is made component by component
//! on held descriptors. Everything here is *child-safe*.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat2, readlinkat_raw, statat};
use rustix::io::Errno;

/// A borrowed handle on the root directory of a container.
#[derive(Debug, Clone, Copy)]
pub struct Rootfs<'fd>(BorrowedFd<'fd>);

/// What to make when a path is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Nothing: fail with `ENOENT`.
    Fail,
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Links that lead to where nothing is, one behind the other, path_resolution(7).
const LINKS_MAX: usize = 8;

/// Room for a path with its NUL.
const PATH_MAX: usize = 4096;

impl<'fd> Rootfs<'fd> {
    /// Makes a handle of a directory descriptor.
    pub fn new(directory: BorrowedFd<'fd>) -> Self {
        Self(directory)
    }

    /// Opens `path` (absolute or relative, always taken from the root).
    pub fn open(&self, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // The kernel gave up on a rename or mount that raced with the walk (openat2(2), EAGAIN).
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Opens `path` as a handle (`O_PATH`), making what is missing: directories on the way 0755, the last component as
    /// `missing` says.
    pub fn open_or_make(
        &self,
        path: &CStr,
        missing: Missing,
        resolve: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH, resolve) {
            Err(Errno::NOENT) if missing != Missing::Fail => self.make(path, missing, resolve, LINKS_MAX),
            result => result,
        }
    }

    /// The handle of the directory that holds `path`, made if missing, and the last component of `path`.
    pub fn parent<'p>(&self, path: &'p CStr, resolve: ResolveFlags) -> Result<(OwnedFd, &'p CStr), Errno> {
        let bytes = path.to_bytes_with_nul();
        let cut = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let name = CStr::from_bytes_with_nul(&bytes[cut..]).map_err(|_| Errno::INVAL)?;
        if name.is_empty() {
            return Err(Errno::INVAL);
        }
        let mut buffer = [0u8; PATH_MAX];
        let parent = prefix(&bytes[..cut], &mut buffer)?;
        Ok((self.open_or_make(parent, Missing::Directory, resolve)?, name))
    }

    fn make(
        &self,
        path: &CStr,
        missing: Missing,
        resolve: ResolveFlags,
        links: usize,
    ) -> Result<OwnedFd, Errno> {
        let bytes = path.to_bytes();
        let mut buffer = [0u8; PATH_MAX];
        let (mut here, mut start) = self.deepest(bytes, resolve)?;
        while start < bytes.len() {
            let end = bytes[start..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(bytes.len(), |slash| start + slash);
            if end > start {
                let name = prefix(&bytes[start..end], &mut buffer)?;
                let last = bytes[end..].iter().all(|byte| *byte == b'/');
                let missing = if last { missing } else { Missing::Directory };
                make_one(here.as_fd(), name, missing)?;
                let mut buffer = [0u8; PATH_MAX];
                here = match self.open(prefix(&bytes[..end], &mut buffer)?, OFlags::PATH, resolve) {
                    // It was there already, and leads to where nothing is.
                    Err(Errno::NOENT) => {
                        self.make_behind(here.as_fd(), name, &bytes[..start], missing, resolve, links)?
                    }
                    result => result?,
                };
            }
            start = end + 1;
        }
        Ok(here)
    }

    /// The deepest directory above the last component of `path` that is there, and where in `path` what is missing below it
    /// begins. Looked for from the end: most often that is the last component alone.
    fn deepest(&self, path: &[u8], resolve: ResolveFlags) -> Result<(OwnedFd, usize), Errno> {
        let mut buffer = [0u8; PATH_MAX];
        let mut end = path.len();
        loop {
            let last = path[..end].iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
            let cut = path[..last].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
            match self.open(prefix(&path[..cut], &mut buffer)?, OFlags::PATH | OFlags::DIRECTORY, resolve) {
                Err(Errno::NOENT) if cut > 0 => end = cut,
                result => return result.map(|here| (here, cut)),
            }
        }
    }

    /// Makes what the link `name` in `directory`, whose path is `way`, leads to: inside, like everything here.
    fn make_behind(
        &self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        way: &[u8],
        missing: Missing,
        resolve: ResolveFlags,
        links: usize,
    ) -> Result<OwnedFd, Errno> {
        if links == 0 {
            return Err(Errno::LOOP);
        }
        let mut path = [0u8; PATH_MAX];
        let mut target = [0u8; PATH_MAX];
        let length = readlinkat_raw(directory, name, &mut target)?;
        let way = if target.starts_with(b"/") { &b""[..] } else { way };
        // The way, a slash, the target, and a NUL.
        let (slash, end) = (way.len(), way.len() + 1 + length);
        if end >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        path[..slash].copy_from_slice(way);
        path[slash] = b'/';
        path[slash + 1..end].copy_from_slice(&target[..length]);
        let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::INVAL)?;
        self.make(path, missing, resolve, links - 1)
    }

    /// What is at `path`, symbolic links not followed for the last component.
    pub fn kind(&self, path: &CStr) -> Result<FileType, Errno> {
        let fd = self.open(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::empty())?;
        let stat = statat(&fd, c"", AtFlags::EMPTY_PATH)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }
}

/// Makes one component in a held directory; somebody else having made it meanwhile is fine.
fn make_one(directory: BorrowedFd<'_>, name: &CStr, missing: Missing) -> Result<(), Errno> {
    let made = if missing == Missing::File {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    } else {
        mkdirat(directory, name, Mode::from_raw_mode(0o755))
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Copies `bytes` into `buffer` with a NUL; the empty prefix is the root.
fn prefix<'b>(bytes: &[u8], buffer: &'b mut [u8; PATH_MAX]) -> Result<&'b CStr, Errno> {
    if bytes.is_empty() {
        return Ok(c"/");
    }
    buffer.get_mut(..bytes.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
    *buffer.get_mut(bytes.len()).ok_or(Errno::NAMETOOLONG)? = 0;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(directory.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (directory, fd)
    }

    #[test]
    fn missing_directories_and_files_are_made_inside() {
        let (directory, fd) = root();
        let rootfs = Rootfs::new(fd.as_fd());
        rootfs.open_or_make(c"/a/b/c", Missing::Directory, ResolveFlags::empty()).unwrap();
        rootfs.open_or_make(c"a/b/f", Missing::File, ResolveFlags::empty()).unwrap();
        assert!(directory.path().join("a/b/c").is_dir());
        assert!(directory.path().join("a/b/f").is_file());
        assert!(rootfs.open_or_make(c"/missing", Missing::Fail, ResolveFlags::empty()).is_err());
    }

    #[test]
    fn no_link_leads_outside() {
        let (directory, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), directory.path().join("absolute")).unwrap();
        symlink("../../../../../../..", directory.path().join("up")).unwrap();
        let rootfs = Rootfs::new(fd.as_fd());
        let _ = rootfs.open_or_make(c"/absolute/x", Missing::Directory, ResolveFlags::empty());
        rootfs.open_or_make(c"/up/y", Missing::Directory, ResolveFlags::empty()).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(directory.path().join("y").is_dir(), "`..` above the root stays at the root");
    }

    #[test]
    fn what_a_link_leads_to_is_made_inside() {
        let (directory, fd) = root();
        std::fs::create_dir(directory.path().join("a")).unwrap();
        for (link, target) in
            [("absolute", "/../../made/one"), ("a/relative", "../made/two"), ("loop", "loop")]
        {
            symlink(target, directory.path().join(link)).unwrap();
        }
        let rootfs = Rootfs::new(fd.as_fd());
        rootfs.open_or_make(c"/absolute/x", Missing::Directory, ResolveFlags::empty()).unwrap();
        rootfs.open_or_make(c"/a/relative", Missing::File, ResolveFlags::empty()).unwrap();
        assert!(directory.path().join("made/one/x").is_dir());
        assert!(directory.path().join("made/two").is_file());
        let looped = rootfs.open_or_make(c"/loop/x", Missing::Directory, ResolveFlags::empty());
        assert_eq!(looped.unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn a_link_is_refused_where_links_are_not_allowed() {
        let (directory, fd) = root();
        std::fs::create_dir(directory.path().join("real")).unwrap();
        symlink("real", directory.path().join("proc")).unwrap();
        let result =
            Rootfs::new(fd.as_fd()).open_or_make(c"/proc", Missing::Directory, ResolveFlags::NO_SYMLINKS);
        assert_eq!(result.unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn the_parent_of_a_path_is_made_and_its_name_returned() {
        let (directory, fd) = root();
        let rootfs = Rootfs::new(fd.as_fd());
        let (_parent, name) = rootfs.parent(c"/dev/null", ResolveFlags::empty()).unwrap();
        assert_eq!(name, c"null");
        assert!(directory.path().join("dev").is_dir());
    }
}
