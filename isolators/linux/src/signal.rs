//! Signal masks and dispositions. sigprocmask(2), sigaction(2).

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
