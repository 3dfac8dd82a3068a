//! File systems in files: mounted as they are where the kernel can, through a loop device where it wants one.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use crate::process::check;

/// How often another process may take the loop device that we were given.
const TRIES: u32 = 64;

/// Whether a file system may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// By nobody.
    ReadOnly,
    /// By whoever may.
    ReadWrite,
}

/// Mounts the file system in a file, detached: it is gone when its last descriptor and user are. `kind` is the kernel's name
/// for it, such as `erofs`. Needs CAP_SYS_ADMIN. Linux 5.2; without a loop device EROFS from 6.12 on.
pub fn mount(kind: &CStr, path: &CStr, access: Access) -> Result<OwnedFd, Errno> {
    let flags = match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let file = open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
    match mount_source(kind, &descriptor_path(file.as_fd()), access) {
        Err(Errno::NOTBLK) => {
            let device = attach_loop(file.as_fd(), access)?;
            mount_source(kind, &device.path, access)
        }
        result => result,
    }
}

/// fsconfig(2) takes strings of at most 255 bytes, and paths may be longer: the descriptor's name is not.
fn descriptor_path(file: BorrowedFd<'_>) -> Vec<u8> {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into_bytes()
}

fn mount_source(kind: &CStr, source: &[u8], access: Access) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"source", source)?;
    let mut attributes = MountAttrFlags::empty();
    if access == Access::ReadOnly {
        fsconfig_set_flag(&context, c"ro")?;
        attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A loop device that frees itself when it is closed and its file system is unmounted.
struct Loop {
    path: Vec<u8>,
    _device: OwnedFd,
}

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// loop(4), `LOOP_CONFIGURE` (Linux 5.8): file, flags and name at once, so that nobody sees a device half made.
fn attach_loop(file: BorrowedFd<'_>, access: Access) -> Result<Loop, Errno> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
    const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    let control = open(c"/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: all-zero bytes are a valid value of a struct of integers.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd().unsigned_abs();
    config.info.flags = AUTOCLEAR | if access == Access::ReadOnly { READ_ONLY } else { 0 };
    for _ in 0..TRIES {
        // SAFETY: the request takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }.into())?;
        let mut path = Vec::new();
        // Writing to a vector cannot fail.
        let _ = write!(path, "/dev/loop{number}");
        let device = open(path.as_slice(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // SAFETY: `config` is a live loop_config, which the kernel only reads.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into()) {
            Err(Errno::BUSY) => {}
            result => return result.map(|_| Loop { path, _device: device }),
        }
    }
    Err(Errno::BUSY)
}
