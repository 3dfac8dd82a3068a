//! Session keyrings, keyctl(2).

use std::ffi::CStr;

use rustix::io::Errno;

use crate::process::check;

/// Joins a new session keyring called `name`, so that keys of the caller's session are out of reach. *Child-safe.*
pub fn join_new_session(name: &CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: u64 = 1;
    // SAFETY: `name` is NUL-terminated and live; the call changes credentials of this thread only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}
