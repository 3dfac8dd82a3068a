//! Waiting for `start`.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_linux::signal;
use cofferdam_linux::terminal::{DESCRIPTORS_MAX, send_descriptors};

use rustix::io::{Errno, read};
use rustix::net::{SocketFlags, accept_with};

/// What is lent to those who knock for it.
pub(super) type Lent = [Option<OwnedFd>; DESCRIPTORS_MAX];

/// Waits until somebody knocks and says go. A caller that dies between the two leaves the container created. Who asks for
/// the namespaces gets them: the gate is in a folder of the container's owner. Who is told to end meanwhile ends.
pub(super) fn wait(gate: BorrowedFd<'_>, lent: &Lent) -> Result<OwnedFd, Errno> {
    signal::end_when_told()?;
    loop {
        let knock = match accept_with(gate, SocketFlags::CLOEXEC) {
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            result => result?,
        };
        let mut word = [0];
        match read(&knock, &mut word) {
            Ok(1) if word[0] == crate::START => return Ok(knock),
            // Whoever asked has gone again, if it fails.
            Ok(1) if word[0] == crate::LEND => drop(lend(knock.as_fd(), lent)),
            _ => {}
        }
    }
}

fn lend(knock: BorrowedFd<'_>, lent: &Lent) -> Result<(), Errno> {
    let mut descriptors = [knock; DESCRIPTORS_MAX];
    let mut count = 0;
    for (place, descriptor) in descriptors.iter_mut().zip(lent.iter().flatten()) {
        *place = descriptor.as_fd();
        count += 1;
    }
    send_descriptors(knock, &[IoSlice::new(&[crate::LEND])], descriptors.get(..count).unwrap_or_default())
}
