//! Loading a seccomp filter, seccomp(2).

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::process::check;

/// One classic BPF instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // the kernel's own names
pub struct SockFilter {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    filter: *const SockFilter,
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: the filter's notify descriptor is returned.
pub const NEW_LISTENER: u32 = 8;

/// Loads a filter into the calling thread; the notify descriptor comes back when [`NEW_LISTENER`] is asked for. Needs
/// no-new-privileges, or CAP_SYS_ADMIN. *Child-safe.*
pub fn load(filter: &[SockFilter], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    let length = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, filter: filter.as_ptr() };
    // SAFETY: `program` describes a live slice of sock_filter; the kernel copies and checks it.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })?;
    // SAFETY: with NEW_LISTENER the result is a fresh descriptor that nobody else owns.
    Ok((flags & NEW_LISTENER != 0).then(|| unsafe { OwnedFd::from_raw_fd(result as i32) }))
}
