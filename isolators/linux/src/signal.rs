//! Signal masks and dispositions. sigprocmask(2), sigaction(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// A saved signal mask.
pub struct Mask(libc::sigset_t);

/// Blocks every signal in the calling thread and returns the mask as it was.
pub fn block_all() -> Mask {
    // SAFETY: both sets are live; sigfillset initialises the first, pthread_sigmask fills in the second.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut old = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
        Mask(old)
    }
}

/// Puts a saved mask back.
pub fn restore(mask: &Mask) {
    // SAFETY: the set was filled in by pthread_sigmask.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut());
    }
}

/// Sends a signal by number, real-time ones included, to the process that a pidfd names. pidfd_send_signal(2).
pub fn send(process: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: integers and a null pointer, which asks for the siginfo that kill(2) would send.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, 0) };
    crate::process::check(result).map(drop)
}

/// Signals as they arrive, on a descriptor. signalfd(2).
#[derive(Debug)]
pub struct Watch(std::os::fd::OwnedFd);

impl Watch {
    /// Blocks every signal that can be blocked in the calling thread (and in what it spawns) and watches them all.
    pub fn all() -> Result<Self, Errno> {
        use std::os::fd::FromRawFd;
        block_all();
        // SAFETY: the set is live and initialised; the descriptor that comes back is ours alone.
        let fd = unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            crate::process::check(libc::c_long::from(libc::signalfd(-1, &raw const all, flags)))?
        };
        // SAFETY: as above.
        Ok(Self(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// The next signal that has arrived, if any.
    pub fn next(&self) -> Result<Option<i32>, Errno> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut record) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno),
            // ssi_signo is the first field, 32 bits.
            Ok(_) => Ok(Some(i32::from_ne_bytes([record[0], record[1], record[2], record[3]]))),
        }
    }
}

impl std::os::fd::AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Puts SIGCHLD back to its default: whoever inherits it ignored never learns how a child ended. For programs, at their
/// start; a library leaves its caller's dispositions alone.
pub fn expect_children() {
    // SAFETY: SIG_DFL is a valid disposition of SIGCHLD, and installs no code.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// A write to a pipe that nobody reads is an error from now on, as std has it.
pub(crate) fn ignore_lost_pipes() {
    // SAFETY: SIG_IGN is a valid disposition of SIGPIPE, and installs no code.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// The dispositions a program expects at its start: whatever an ancestor has set to be ignored is put back to its default
/// (Rust itself ignores SIGPIPE), and nothing is blocked. Of all 64, by the raw call: the C library refuses to touch the
/// two that it keeps for itself, 32 and 33, and a program with another C library expects them at their default too.
/// *Child-safe.*
pub fn reset_to_defaults() -> Result<(), Errno> {
    /// `struct sigaction` of the kernel, whose size is the same on all architectures with the generic layout.
    #[repr(C)]
    #[derive(Default)]
    struct Action {
        handler: usize,
        flags: usize,
        restorer: usize,
        mask: u64,
    }
    const LAST: i32 = 64;
    const SET_BYTES: usize = size_of::<u64>();
    let default = Action::default();
    for signal in (1..=LAST).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: `default` is a live kernel sigaction that installs no code (SIG_DFL is 0); the old one is not asked for.
        let result = unsafe {
            let old = std::ptr::null_mut::<Action>();
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, old, SET_BYTES)
        };
        crate::process::check(result)?;
    }
    let none = 0u64;
    // SAFETY: the set is live and of the size given; the old one is not asked for.
    let result = unsafe {
        let old = std::ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, old, SET_BYTES)
    };
    crate::process::check(result).map(drop)
}

/// What the kernel and other people end a process by, apart from SIGKILL.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// From now on the calling process ends, with 128 and the signal's number, at what usually ends a process. The kernel keeps
/// these from process 1 of a pid namespace as long as it has no handler for them (pid_namespaces(7)). For a process that
/// waits: execve(2) and [`reset_to_defaults`] take it back. *Child-safe.*
pub fn end_when_told() -> Result<(), Errno> {
    extern "C" fn end(signal: i32) {
        // SAFETY: an integer; the call does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, 128 + signal) };
    }
    // SAFETY: the action and the set are live and initialised; the handler makes one system call, of those that a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = end as extern "C" fn(i32) as usize;
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in ENDING {
            crate::process::check(i64::from(libc::sigaction(
                signal,
                &raw const action,
                std::ptr::null_mut(),
            )))?;
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Vector, clone_child, exec};
    use std::os::fd::AsFd;

    #[test]
    fn a_program_starts_with_no_signal_ignored_or_blocked() {
        let child = clone_child(0, None, || {
            for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
                let ignore = [libc::SIG_IGN, 0, 0, 0];
                // SAFETY: a live kernel sigaction of four words; only this child's dispositions change.
                unsafe {
                    let old = std::ptr::null_mut::<usize>();
                    libc::syscall(libc::SYS_rt_sigaction, signal, ignore.as_ptr(), old, 8);
                }
            }
            if reset_to_defaults().is_err() {
                return 2;
            }
            let script = c"! grep -E '^Sig(Blk|Ign):.*[1-9a-f]' /proc/self/status";
            let _ = exec(c"/bin/sh", &Vector::new([c"sh", c"-c", script]), &Vector::new([c"PATH=/bin"]));
            3
        });
        let pidfd = child.unwrap().pidfd;
        let status = rustix::process::waitid(
            rustix::process::WaitId::PidFd(pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
        assert_eq!(status.unwrap().unwrap().exit_status(), Some(0));
    }
}
