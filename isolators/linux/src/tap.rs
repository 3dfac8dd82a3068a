//! tap: links whose other end is a program. Documentation/networking/tuntap.rst of the kernel.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
const TUNSETOWNER: libc::Ioctl = 0x4004_54cc;
const TUNSETGROUP: libc::Ioctl = 0x4004_54ce;

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const NAME_BYTES: usize = 16;

/// A tap to make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tap {
    /// The user who may open it besides root; absent means everybody with CAP_NET_ADMIN.
    pub owner: Option<u32>,
    /// The group that may open it.
    pub group: Option<u32>,
    /// Whether several descriptors may share it.
    pub multi_queue: bool,
}

/// `struct ifreq` as TUNSETIFF reads it: a name and flags.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

impl Tap {
    /// Makes a tap in the calling thread's network namespace that stays without a program; it is down. Needs CAP_NET_ADMIN.
    ///
    /// A process that is killed in the middle leaves nothing: until its last step the link ends with the descriptor.
    pub fn create(&self, name: &str) -> Result<(), Errno> {
        let mut request = Request { name: [0; NAME_BYTES], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
        if name.is_empty() || name.len() >= NAME_BYTES {
            return Err(Errno::INVAL);
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        if self.multi_queue {
            request.flags |= IFF_MULTI_QUEUE;
        }
        let tun = open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // SAFETY: the descriptor is open, and `request` is a live `struct ifreq` of this frame that the kernel reads and
        // writes back within its 40 bytes.
        let result = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) };
        check(result)?;
        if let Some(owner) = self.owner {
            set(tun.as_fd(), TUNSETOWNER, owner)?;
        }
        if let Some(group) = self.group {
            set(tun.as_fd(), TUNSETGROUP, group)?;
        }
        set(tun.as_fd(), TUNSETPERSIST, 1)
    }
}

fn set(tun: BorrowedFd<'_>, operation: libc::Ioctl, value: u32) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, and these operations take their argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), operation, libc::c_ulong::from(value)) })
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
