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

/// The dispositions a program expects at its start: those that an ancestor may have set to be ignored are put back to
/// their default (Rust itself ignores SIGPIPE), and nothing is blocked. *Child-safe.*
pub fn reset_to_defaults() -> Result<(), Errno> {
    const INHERITED: [i32; 9] = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGTERM,
        libc::SIGCHLD,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    for signal in INHERITED {
        // SAFETY: SIG_DFL is a valid disposition of each of these signals, and installs no code.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(Errno::INVAL);
        }
    }
    // SAFETY: the set is live and initialised by sigemptyset.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    Ok(())
}
