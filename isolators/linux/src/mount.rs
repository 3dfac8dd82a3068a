//! Mounts as objects: made detached, changed by descriptor, attached once. mount_setattr(2); the rest of the mount API
//! (`fsopen`, `fsconfig`, `fsmount`, `open_tree`, `move_mount`) is rustix's.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::process::check;

/// `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `MOUNT_ATTR_IDMAP`.
pub const IDMAP: u64 = 0x10_0000;

/// Changes the attributes of the mount that `tree` is the root of, recursively if asked. `propagation` is an `MS_*` bit or
/// 0; `user` is the user namespace of an idmapped mount. Linux 5.12. *Child-safe.*
pub fn set_attributes(
    tree: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
    user: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    set_attributes_at(tree, c"", set, clear, propagation, recursive, user)
}

/// As [`set_attributes`], of the mount at `path` below `directory`.
pub fn set_attributes_at(
    directory: BorrowedFd<'_>,
    path: &CStr,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
    user: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    const AT_EMPTY_PATH: u32 = 0x1000;
    const AT_RECURSIVE: u32 = 0x8000;
    let attr = MountAttr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: user.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated and `attr` is a live mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Classic `mount(2)`, for the file systems that old kernels cannot make any other way. *Child-safe.*
pub fn mount_classic(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: u64,
    data: &CStr,
) -> Result<(), Errno> {
    // SAFETY: all four strings are NUL-terminated and live.
    check(unsafe {
        libc::syscall(libc::SYS_mount, source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr())
    })
    .map(drop)
}
