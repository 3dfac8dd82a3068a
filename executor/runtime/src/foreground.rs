//! Waiting for a process in the foreground: our signals are forwarded to it, and our terminal is its.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_linux::signal::Watch;
pub use cofferdam_linux::signal::expect_children;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::terminal::Proxy;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

/// Waits until a child has ended, and forwards every signal that arrives meanwhile.
pub fn wait(child: BorrowedFd<'_>) -> Result<Ended, Errno> {
    let watch = Watch::all()?;
    loop {
        let mut descriptors =
            [PollFd::from_borrowed_fd(child, PollFlags::IN), PollFd::new(&watch, PollFlags::IN)];
        match poll(&mut descriptors, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let ended = !descriptors[0].revents().is_empty();
        while let Some(signal) = watch.next()? {
            forward(child, signal);
        }
        if ended {
            return reap(child);
        }
    }
}

/// As [`wait`], for a child on a terminal whose master this is: what is typed here goes there, what is written there
/// comes here, and its size follows ours.
pub fn wait_on_terminal(child: BorrowedFd<'_>, master: OwnedFd) -> Result<Ended, Errno> {
    let watch = Watch::all()?;
    let mut proxy = Proxy::new(master)?;
    loop {
        let [from_us, from_it, to_us] = proxy.interest(watch.as_fd());
        let mut descriptors = [
            PollFd::from_borrowed_fd(child, PollFlags::IN),
            PollFd::new(&watch, PollFlags::IN),
            from_us,
            from_it,
            to_us,
        ];
        match poll(&mut descriptors, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let [ended, _, ready @ ..] = descriptors.map(|descriptor| !descriptor.revents().is_empty());
        while let Some(signal) = watch.next()? {
            match signal == rustix::process::Signal::WINCH.as_raw() {
                true => proxy.resize(),
                false => forward(child, signal),
            }
        }
        proxy.copy(ready);
        if ended {
            proxy.drain();
            return reap(child);
        }
    }
}

fn forward(child: BorrowedFd<'_>, signal: i32) {
    // Its own signals about children and about lost pipes are this process's own business.
    if ![libc_sigchld(), libc_sigpipe()].contains(&signal) {
        let _ = cofferdam_linux::signal::send(child, signal);
    }
}

fn libc_sigchld() -> i32 {
    rustix::process::Signal::CHILD.as_raw()
}

fn libc_sigpipe() -> i32 {
    rustix::process::Signal::PIPE.as_raw()
}

/// Takes the status of a child that has ended.
pub fn reap(child: BorrowedFd<'_>) -> Result<Ended, Errno> {
    loop {
        match waitid(WaitId::PidFd(child), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(None) => return Err(Errno::CHILD),
            Ok(Some(status)) => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Exited(code),
                    (None, signal) => Ended::Signalled(signal.unwrap_or(0)),
                });
            }
        }
    }
}

/// A reader that has seen enough (`… ps | head`) ends this program quietly. The signal that does this for others
/// stays ignored here, because attached streams have sockets too; std's printing panics instead.
pub fn end_on_broken_pipe() {
    const BY_SIGPIPE: i32 = 128 + 13;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to std") && text.contains("Broken pipe") {
            std::process::exit(BY_SIGPIPE);
        }
        usual(panic);
    }));
}
