//! Owner, mode, times and extended attributes, set with as few system calls as the file at hand needs.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Attributes, Entry};
use crate::error::LayerError;

/// Bits that open(2) and mkdir(2) do not set, or that writing and chown(2) clear.
const SPECIAL_BITS: u32 = 0o7000;
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Who owns what this thread makes in a tree, so that nobody has to be told who is the owner already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maker {
    /// `None` where the file system has rules of its own.
    owner: Option<(u32, u32)>,
}

impl Maker {
    /// Takes from a tree's root what would be inherited below it, and learns what is left.
    pub(crate) fn at(root: &OwnedFd) -> rustix::io::Result<Maker> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(root, ".", flags, Mode::empty())?;
        rustix::fs::fchmod(&root, Mode::RWXU)?;
        match rustix::fs::fremovexattr(&root, DEFAULT_ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let stat = rustix::fs::fstat(&root)?;
        Ok(Maker { owner: Some(own).filter(|own| *own == (stat.st_uid, stat.st_gid)) })
    }

    fn is_owner(&self, attributes: &Attributes) -> bool {
        self.owner == Some((attributes.uid, attributes.gid))
    }

    /// For a file or directory that was just made with the mode `made`, by this thread: only what is still missing.
    pub(crate) fn finish(
        &self,
        file: &impl AsFd,
        name: &[u8],
        attributes: &Attributes,
        made: u32,
    ) -> Result<(), LayerError> {
        if !self.is_owner(attributes) {
            set_owner(file, name, attributes)?;
        }
        set_xattrs(file, name, attributes)?;
        // An access control list changes the mode, and the mode the list: the archive's mode has the last word.
        let has_acl = attributes.xattrs.iter().any(|(key, _)| key.starts_with(b"system."));
        if made != attributes.mode || attributes.mode & SPECIAL_BITS != 0 || has_acl {
            set_mode(file, name, attributes)?;
        }
        set_time(file, name, attributes)
    }

    /// The same for what cannot be opened without side effects. It was made a moment ago in a directory that is ours alone.
    pub(crate) fn finish_node(
        &self,
        parent: &OwnedFd,
        base: &[u8],
        entry: &Entry,
        has_mode: bool,
    ) -> Result<(), LayerError> {
        let attributes = &entry.attributes;
        let failed = |operation| LayerError::entry_io(&entry.name, operation);
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if !self.is_owner(attributes) {
            let (uid, gid) = owner(attributes);
            rustix::fs::chownat(parent, base, uid, gid, nofollow).map_err(failed("set its owner"))?;
        }
        if !attributes.xattrs.is_empty() {
            // There is no call yet that takes a folder's descriptor; the working directory is this thread's own.
            rustix::process::fchdir(parent).map_err(failed("enter its directory"))?;
        }
        for (key, value) in &attributes.xattrs {
            let result = rustix::fs::lsetxattr(base, key.as_slice(), value, XattrFlags::empty());
            // The kernel has no user attributes on anything but files and directories.
            if result != Err(Errno::PERM) || !key.starts_with(b"user.") {
                ignore_unsupported(result).map_err(failed("set an attribute"))?;
            }
        }
        if has_mode && attributes.mode & SPECIAL_BITS != 0 {
            let mode = Mode::from_raw_mode(attributes.mode);
            rustix::fs::chmodat(parent, base, mode, AtFlags::empty()).map_err(failed("set its mode"))?;
        }
        rustix::fs::utimensat(parent, base, &times(attributes), nofollow).map_err(failed("set its time"))
    }
}

/// Attributes up to this size, in bytes, fit into what every file system keeps of a file; a full disk is one for them too.
const SMALL_XATTR_BYTES: usize = 2048;

/// Everything, whatever the file has now.
pub(crate) fn apply(file: &impl AsFd, name: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
    // Owner, then attributes (chown drops file capabilities), then mode (chown drops set-user-id), then time.
    set_owner(file, name, attributes)?;
    set_xattrs(file, name, attributes)?;
    set_mode(file, name, attributes)?;
    set_time(file, name, attributes)
}

fn set_owner(file: &impl AsFd, name: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
    let (uid, gid) = owner(attributes);
    rustix::fs::fchown(file, uid, gid).map_err(LayerError::entry_io(name, "set its owner"))
}

fn set_xattrs(file: &impl AsFd, name: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
    for (key, value) in &attributes.xattrs {
        let result = rustix::fs::fsetxattr(file, key.as_slice(), value, XattrFlags::empty());
        // No prune makes room for it: ext4 keeps a block of attributes a file.
        if result == Err(Errno::NOSPC) && value.len() > SMALL_XATTR_BYTES {
            let key = String::from_utf8_lossy(key);
            let rule =
                format!("the store's file system has no room for attribute {key} of {} bytes", value.len());
            return Err(LayerError::entry(name, rule));
        }
        ignore_unsupported(result).map_err(LayerError::entry_io(name, "set an attribute"))?;
    }
    Ok(())
}

fn set_mode(file: &impl AsFd, name: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
    let mode = Mode::from_raw_mode(attributes.mode);
    rustix::fs::fchmod(file, mode).map_err(LayerError::entry_io(name, "set its mode"))
}

fn set_time(file: &impl AsFd, name: &[u8], attributes: &Attributes) -> Result<(), LayerError> {
    rustix::fs::futimens(file, &times(attributes)).map_err(LayerError::entry_io(name, "set its time"))
}

/// A store on a file system without extended attributes still runs most images.
fn ignore_unsupported(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if result == Err(Errno::OPNOTSUPP) { Ok(()) } else { result }
}

fn owner(attributes: &Attributes) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (Some(rustix::fs::Uid::from_raw(attributes.uid)), Some(rustix::fs::Gid::from_raw(attributes.gid)))
}

fn times(attributes: &Attributes) -> Timestamps {
    let mtime: Timespec = attributes.mtime;
    Timestamps { last_access: mtime, last_modification: mtime }
}
