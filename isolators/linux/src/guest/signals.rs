//! Signals for a process 1: block them, wait for them, pass them on, reap.
//!
//! A process 1 gets only the signals that it handles or waits for (pid_namespaces(7)), so an init that blocks every signal
//! and takes them one by one with sigwait(3) sees all of them, and needs no handler.
#![allow(unsafe_code)] // repeated from lib.rs for the second compilation, see guest.rs

use std::ffi::c_int;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// A signal's number on this architecture.
pub type Signal = c_int;

/// A child stopped, continued or ended.
pub const SIGCHLD: Signal = 17;
const SIGTTIN: Signal = 21;
const SIGTTOU: Signal = 22;
/// Raised by the program's own faults; blocking one would turn a crash into a silent kill by the kernel.
const FAULTS: [Signal; 7] = [4, 5, 6, 7, 8, 11, 31];

const SIG_SETMASK: c_int = 2;
const WNOHANG: c_int = 1;

/// glibc's and musl's `sigset_t`: 1,024 bits.
#[repr(C)]
#[derive(Clone, Copy)]
struct SignalSet([usize; 128 / size_of::<usize>()]);

unsafe extern "C" {
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn sigdelset(set: *mut SignalSet, signal: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn sigwait(set: *const SignalSet, signal: *mut c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn tcsetpgrp(fd: c_int, group: c_int) -> c_int;
    fn getpid() -> c_int;
}

/// Every signal but the fault signals, blocked for the calling thread for as long as it lives.
pub struct Blocked {
    set: SignalSet,
    previous: SignalSet,
}

impl Blocked {
    /// Blocks the signals. Call it before any other thread starts, so that none of them takes a signal away.
    pub fn new() -> io::Result<Blocked> {
        // SAFETY: a signal set is plain integers, for which all zeroes is a value.
        let mut blocked = unsafe { Blocked { set: zeroed(), previous: zeroed() } };
        // SAFETY: both pointers are to live sets of the C library's size, which nobody else can see.
        let failed = unsafe {
            sigfillset(&mut blocked.set);
            for fault in FAULTS {
                sigdelset(&mut blocked.set, fault);
            }
            pthread_sigmask(SIG_SETMASK, &blocked.set, &mut blocked.previous)
        };
        if failed == 0 { Ok(blocked) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    /// Waits for the next signal.
    pub fn wait(&self) -> io::Result<Signal> {
        let mut signal = 0;
        // SAFETY: the set outlives the call, which writes one integer to `signal`.
        let failed = unsafe { sigwait(&self.set, &mut signal) };
        if failed == 0 { Ok(signal) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    /// Starts `command` with the mask as it was before, in a process group of its own that owns the terminal, if there is one.
    ///
    /// A key such as ^C then reaches the command's group only: an init in the same group would get it too, and forward it
    /// a second time.
    pub fn spawn_foreground(&self, command: &mut Command) -> io::Result<Child> {
        let previous = self.previous;
        command.process_group(0);
        // SAFETY: the closure runs in the forked child and makes two or three async-signal-safe calls on a copied set; it
        // neither allocates nor takes a lock. tcsetpgrp fails harmlessly where there is no terminal, and SIGTTOU,
        // which it would raise, is still blocked.
        unsafe {
            command.pre_exec(move || {
                tcsetpgrp(0, getpid());
                match pthread_sigmask(SIG_SETMASK, &previous, std::ptr::null_mut()) {
                    0 => Ok(()),
                    failed => Err(io::Error::from_raw_os_error(failed)),
                }
            });
        }
        command.spawn()
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: `previous` is the set that the C library filled in when the signals were blocked.
        unsafe { pthread_sigmask(SIG_SETMASK, &self.previous, std::ptr::null_mut()) };
    }
}

/// Whether an init passes this signal to its child: all but those that concern the init's own place at the terminal.
pub fn is_forwarded(signal: Signal) -> bool {
    !matches!(signal, SIGCHLD | SIGTTIN | SIGTTOU)
}

/// Sends `signal` to the process `pid`. A process that is gone is no error to an init, so the result says only whether it went.
pub fn send(pid: u32, signal: Signal) -> bool {
    let Ok(pid) = c_int::try_from(pid) else { return false };
    // SAFETY: no memory is involved. `pid` is positive: never a group, never everybody.
    pid > 0 && unsafe { kill(pid, signal) } == 0
}

/// How a process ended, as a shell reports it: its exit code, or 128 and the signal's number.
pub type ShellStatus = u8;

/// Reaps one ended child, if there is one: its process id and how it ended.
pub fn reap() -> Option<(u32, ShellStatus)> {
    let mut status = 0;
    // SAFETY: the call writes one integer to `status`.
    let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
    if pid <= 0 {
        return None;
    }
    Some((pid.unsigned_abs(), shell_status(status)))
}

/// Splits wait(2)'s word: the low seven bits are the signal, the next byte is the exit code.
fn shell_status(status: c_int) -> ShellStatus {
    let signal = (status & 0x7f) as u8;
    if signal == 0 { ((status >> 8) & 0xff) as u8 } else { 128 | signal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_becomes_what_a_shell_says() {
        assert_eq!(shell_status(0), 0);
        assert_eq!(shell_status(3 << 8), 3);
        assert_eq!(shell_status(9), 137);
        assert_eq!(shell_status(11 | 0x80), 139, "a core dump sets bit seven");
    }

    #[test]
    fn a_blocked_signal_is_taken_by_wait() {
        unsafe extern "C" {
            fn raise(signal: c_int) -> c_int;
        }
        const SIGUSR1: Signal = 10;
        let blocked = Blocked::new().expect("block");
        // SAFETY: no memory is involved. The signal goes to this thread, which blocks it, so it stays pending.
        assert_eq!(unsafe { raise(SIGUSR1) }, 0);
        assert_eq!(blocked.wait().expect("wait"), SIGUSR1);
    }

    #[test]
    fn a_group_is_never_signalled_by_accident() {
        assert!(!send(0, 0));
        assert!(!send(u32::MAX, 0));
    }
}
