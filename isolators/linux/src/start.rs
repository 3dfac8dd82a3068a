//! The start of a program that leaves out std's own.
//!
//! std looks for the stack's guard page in `/proc/self/maps`, makes a second stack and installs two signal handlers, all so that a
//! stack that overflows is told in words: twenty system calls in a program that makes some hundreds and lives for milliseconds.
//! Without them it ends by SIGSEGV just the same. [`crate::main`] makes a program that starts this way.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::stdio::{stderr, stdin, stdout};

/// Makes the function the program's entry from the C library, in the place of std's. For a crate with `#![no_main]`.
#[macro_export]
macro_rules! main {
    ($function:path) => {
        /// What the C library calls.
        #[unsafe(no_mangle)]
        extern "C" fn main(_count: i32, _arguments: *const *const u8) -> i32 {
            $crate::start::begin();
            $function();
            0
        }
    };
}

/// What of std's start a program cannot do without: standard descriptors that the caller has closed lead to `/dev/null`, or the
/// first files that are opened would be taken for them; and a lost pipe is an error, not the end.
pub fn begin() {
    let (stdin, stdout, stderr) = (stdin(), stdout(), stderr());
    let mut descriptors = [stdin, stdout, stderr].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::empty()));
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut descriptors, Some(&now)).is_ok() {
        let closed = descriptors.iter().filter(|descriptor| descriptor.revents().contains(PollFlags::NVAL));
        for _ in closed {
            match open(c"/dev/null", OFlags::RDWR, Mode::empty()) {
                // The lowest number that is free: the one that was closed.
                Ok(null) => std::mem::forget(null),
                Err(_) => std::process::abort(),
            }
        }
    }
    crate::signal::ignore_lost_pipes();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{clone_child, close_descriptor};
    use rustix::fs::{fstat, major, minor};
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::{AsFd, BorrowedFd};

    #[test]
    fn closed_standard_descriptors_lead_to_the_null_device() {
        let child = clone_child(0, None, || {
            close_descriptor(0);
            close_descriptor(2);
            begin();
            let null = |fd: BorrowedFd<'_>| {
                fstat(fd).is_ok_and(|stat| (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3))
            };
            i32::from(!(null(stdin()) && null(stderr())))
        });
        let child = child.unwrap();
        let ended = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(ended.exit_status(), Some(0));
    }
}
