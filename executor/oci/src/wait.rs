//! Waiting for a foreground process: its status becomes ours, our signals become its.

use std::os::fd::{AsFd, OwnedFd};

use cofferdam_runtime::foreground::{self, Ended};

/// Waits for `pidfd`, forwarding signals; the exit status, 128 + n for a signal.
pub(crate) fn foreground(pidfd: &OwnedFd) -> Result<i32, String> {
    match foreground::wait(pidfd.as_fd()).map_err(|error| format!("waiting for the container: {error}"))? {
        Ended::Exited(status) => Ok(status),
        Ended::Signalled(signal) => Ok(128 + signal),
    }
}
