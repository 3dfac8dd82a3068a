//! Removing trees that somebody else has made.
//!
//! std's removal calls itself for each level of a tree and holds a descriptor of each. A program makes a hundred thousand levels
//! in a second, and whoever removes them so runs out of stack, which ends the whole process. Here what lies deeper than some
//! levels is moved up and removed from there:
//!
//! ```text
//! top/1/2/ … /64/65/66/ …   ─▶   top/1/2/ … /64   top/lifted-1/66/ …
//! ```
//! Everything goes by descriptors, no link is followed, and nothing outside the tree is touched whatever becomes of its names.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Levels that are descended: more than trees of people have, and few descriptors and little stack.
const LEVELS: usize = 64;

/// Removes a file, or a directory with all that is in it. `ENOENT` if there is nothing of this name.
pub fn remove_tree(path: &Path) -> Result<(), Errno> {
    remove_tree_at(CWD, path.as_os_str().as_bytes())
}

/// As [`remove_tree`], of a name in a directory.
pub fn remove_tree_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    match unlinkat(parent, &name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    Removal { top: open(parent, &name)?, gone: 0 }.directory(parent, &name, 0)
}

/// A tree that is being removed.
struct Removal {
    top: OwnedFd,
    /// How much has been removed or moved up: a directory that is not empty after a pass that did nothing stays.
    gone: u64,
}

impl Removal {
    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<(), Errno> {
        loop {
            let before = self.gone;
            self.contents(open(parent, name)?, depth)?;
            match unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.gone != before => {}
                done => return done,
            }
        }
    }

    fn contents(&mut self, directory: OwnedFd, depth: usize) -> Result<(), Errno> {
        let mut entries = Dir::new(directory)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let within = entries.fd()?;
            self.gone += 1;
            if entry.file_type() != FileType::Directory {
                match unlinkat(within, name, AtFlags::empty()) {
                    // Not every file system says what its entries are.
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    done => {
                        done?;
                        continue;
                    }
                }
            }
            if depth < LEVELS {
                self.directory(within, name, depth + 1)?;
            } else {
                self.lift(within, name)?;
            }
        }
        Ok(())
    }

    /// Moves a directory to the top, under a name that is not taken there.
    fn lift(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.gone += 1;
            match renameat(parent, name, &self.top, format!("lifted-{}", self.gone)) {
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                done => return done,
            }
        }
    }
}

fn open(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;

    /// Directories one in the other, each with a file; the path of the first.
    fn deep(folder: &Path, levels: usize) -> std::path::PathBuf {
        let mut at = open(CWD, &CString::new(folder.as_os_str().as_bytes()).unwrap()).unwrap();
        for _ in 0..levels {
            mkdirat(&at, c"d", Mode::RWXU).unwrap();
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&at, c"f", flags, Mode::RUSR).unwrap();
            at = open(&at, c"d").unwrap();
        }
        folder.join("d")
    }

    #[test]
    fn a_tree_of_any_depth_is_removed_with_little_stack() {
        let folder = tempfile::tempdir().unwrap();
        let tree = deep(folder.path(), 2000);
        // What is moved up meets names that are there.
        for number in 0..200 {
            let taken = tree.join(format!("lifted-{number}"));
            match number % 3 {
                0 => std::fs::write(taken, "").unwrap(),
                1 => std::fs::create_dir(taken).unwrap(),
                _ => std::fs::create_dir_all(taken.join("full")).unwrap(),
            }
        }
        let small = std::thread::Builder::new().stack_size(128 << 10);
        small.spawn(move || remove_tree(&tree)).unwrap().join().unwrap().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the file beside it");
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, tree) = (folder.path().join("kept"), folder.path().join("tree"));
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "").unwrap();
        std::fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        std::os::unix::fs::symlink(&tree, folder.path().join("way")).unwrap();
        remove_tree(&folder.path().join("way")).unwrap();
        assert!(tree.join("link").symlink_metadata().is_ok());
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.join("file").exists());
        assert_eq!(remove_tree(&tree), Err(Errno::NOENT));
    }
}
