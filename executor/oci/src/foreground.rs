//! A process in the foreground: its status becomes ours, our signals and our terminal become its.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_runtime::foreground::{self, Ended};
use cofferdam_runtime::{Console, ConsoleSize, Process};

use crate::failed::Failed;

/// Where the terminal's master goes. A detached process with a terminal needs somebody to hold it; a socket without a
/// terminal, or in the foreground where we hold it ourselves, is a mistake.
pub(crate) fn console(terminal: bool, detached: bool, socket: Option<PathBuf>) -> Result<Console, Failed> {
    match (terminal, detached, socket) {
        (true, true, Some(socket)) => Ok(Console::Socket(socket)),
        (true, true, None) => {
            Err(Failed::new("cannot allocate tty if runc will detach without setting console socket"))
        }
        (_, _, Some(_)) => {
            Err(Failed::new("cannot use console socket if runc will not detach or allocate tty"))
        }
        (true, false, None) => Ok(Console::Front),
        (false, _, None) => Ok(Console::None),
    }
}

/// A terminal in front of ours has our size from the start, unless the configuration gives it one.
pub(crate) fn take_our_size(process: &mut Process) {
    if process.console_size().is_some() {
        return;
    }
    if let Ok(ours) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        let size = ConsoleSize::default().height(ours.ws_row).width(ours.ws_col);
        process.set_console_size(size.build().ok());
    }
}

/// A process to wait for.
pub(crate) struct Foreground<'a> {
    pub process: &'a OwnedFd,
    pub terminal: Option<OwnedFd>,
}

impl Foreground<'_> {
    /// Waits; the exit status, 128 + n for a signal.
    pub(crate) fn wait(self) -> Result<i32, Failed> {
        use std::os::fd::AsFd;
        let process = self.process.as_fd();
        let ended = match self.terminal {
            Some(master) => foreground::wait_on_terminal(process, master),
            None => foreground::wait(process),
        };
        match ended.map_err(|error| Failed::new(format!("waiting for the container: {error}")))? {
            Ended::Exited(status) => Ok(status),
            Ended::Signalled(signal) => Ok(128 + signal),
        }
    }
}
