//! Waiting for `start`.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, read};
use rustix::net::{SocketFlags, accept_with};

/// Waits until somebody knocks and says go. A caller that dies between the two leaves the container created.
pub(super) fn wait(gate: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    loop {
        let knock = match accept_with(gate, SocketFlags::CLOEXEC) {
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            result => result?,
        };
        let mut word = [0];
        match read(&knock, &mut word) {
            Ok(1) if word[0] == b's' => return Ok(knock),
            _ => {}
        }
    }
}
