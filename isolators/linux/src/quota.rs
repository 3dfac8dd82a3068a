//! Limits of what a directory may hold: quota groups of btrfs (ioctl_btrfs(2), btrfs-quota(5)) and project quotas
//! (quotactl(2)).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::process::check;

const SUBVOLUME_CREATE: libc::Ioctl = 0x5000_940e_u32 as libc::Ioctl;
const GROUP_LIMIT: libc::Ioctl = 0x8030_942b_u32 as libc::Ioctl;
/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
#[derive(Default)]
struct LimitArguments {
    group: u64,
    flags: u64,
    referenced_bytes: u64,
    exclusive_bytes: u64,
    reserved: [u64; 2],
}

/// Whether the btrfs that `folder` is on keeps count of its subvolumes. Needs CAP_SYS_ADMIN; changes nothing.
pub fn has_groups(folder: BorrowedFd<'_>) -> Result<bool, Errno> {
    // A group of the highest level and number, which nobody has: it is looked up only where there are quotas.
    let nobodys = LimitArguments { group: u64::MAX, ..LimitArguments::default() };
    match limit_group(folder, &nobodys) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTCONN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes the subvolume `name` in the directory `parent`.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let mut arguments = VolumeArguments { fd: 0, name: [0; 4088] };
    if name.is_empty() || name.len() > 255 {
        return Err(Errno::INVAL);
    }
    arguments.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: `arguments` is a live structure of the kind that the request reads, its name ends with a zero.
    let made =
        unsafe { libc::syscall(libc::SYS_ioctl, parent.as_raw_fd(), SUBVOLUME_CREATE, &raw const arguments) };
    check(made).map(drop)
}

/// Lets a subvolume, given by a directory in it, hold at most so many bytes; more fail with `EDQUOT`. Needs CAP_SYS_ADMIN.
pub fn limit_subvolume(subvolume: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
    const REFERENCED: u64 = 1;
    // Group 0 is the directory's own.
    let limit = LimitArguments { flags: REFERENCED, referenced_bytes: bytes, ..LimitArguments::default() };
    limit_group(subvolume, &limit)
}

fn limit_group(folder: BorrowedFd<'_>, limit: &LimitArguments) -> Result<(), Errno> {
    // SAFETY: `limit` is a live structure of the kind that the request reads.
    check(unsafe {
        libc::syscall(libc::SYS_ioctl, folder.as_raw_fd(), GROUP_LIMIT, std::ptr::from_ref(limit))
    })
    .map(drop)
}

/// Whether the file system of `folder` counts by project, as the kernel says: `ENOSYS` where it was built without quotas or the
/// file system has none, `ESRCH` where they are off. Linux 5.14; changes nothing.
pub fn has_projects(folder: BorrowedFd<'_>) -> Result<(), Errno> {
    const GET_INFORMATION: libc::c_uint = 0x0080_0005;
    const PROJECT: libc::c_uint = 2;
    /// `struct if_dqinfo` is 24 bytes long.
    const INFORMATION_WORDS: usize = 3;
    let mut information = [0u64; INFORMATION_WORDS];
    let command = GET_INFORMATION << 8 | PROJECT;
    // SAFETY: the kernel writes a `struct if_dqinfo` into `information`, which is live, as long and aligned for it.
    check(unsafe {
        libc::syscall(libc::SYS_quotactl_fd, folder.as_raw_fd(), command, 0u32, information.as_mut_ptr())
    })
    .map(drop)
}
