//! Going on in another process of the same parent.

use std::ffi::c_char;
use std::sync::atomic::AtomicI32;

use rustix::io::Errno;

use crate::process::{CLONE_PARENT, exit_now};

const CLONE_PARENT_SETTID: u64 = 0x0010_0000;

/// The flags of the call, for whoever has to know whether a filter lets it pass.
pub const FLAGS: u64 = CLONE_PARENT | CLONE_PARENT_SETTID | libc::SIGCHLD as u64;

unsafe extern "C" {
    static environ: *const *mut c_char;
}

/// Overwrites the environment that this program was started with: what its caller's variables hold is nobody's whom the new
/// process may meet. Texts that lie elsewhere, put there later, stay. *Child-safe.*
fn forget_environment() {
    /// More than the kernel takes for arguments and environment together: 6 MiB.
    const ROOM: usize = 8 << 20;
    // The program's own path is the last of these texts on the stack.
    let top = rustix::param::linux_execfn().as_ptr().addr();
    // SAFETY: `environ` is null or an array of texts that ends with a null pointer. Those below `top` on the first stack
    // are the process's own writable copies, and this process, just cloned, has no other thread to read them.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            let text = *entry;
            if top.checked_sub(text.addr()).is_some_and(|distance| distance < ROOM) {
                text.write_bytes(0, libc::strlen(text));
            }
            entry = entry.add(1);
        }
    }
}

/// Goes on as another child of the caller's parent, in the pid namespace that was last joined: that one takes in children
/// only. The caller ends; only the new process returns, with the caller's memory but for its
/// environment, its descriptors and its confinement. Its pid, as
/// the caller sees it, is in `pid` before it runs: in memory that the parent shares, the parent learns who its child is now.
/// By clone(2): filters refuse clone3(2), into whose arguments they cannot look. *Child-safe.*
///
/// # Errors
/// Those of clone(2), `ENOSYS` or `EPERM` from a filter; then the caller has not ended.
pub fn go_on(pid: &AtomicI32) -> Result<(), Errno> {
    forget_environment();
    let stack = 0u64;
    // The order of the first two arguments is the architecture's, clone(2).
    let [first, second] = if cfg!(target_arch = "s390x") { [stack, FLAGS] } else { [FLAGS, stack] };
    // SAFETY: without CLONE_VM the new process has its own copy of this address space, and with a stack of 0 it goes on
    // on its own copy of this stack. The kernel writes to `pid`, a live i32 that only atomics touch; the last two
    // arguments belong to flags that are not set. The calling process is its only thread, as all that clone made here.
    let result = unsafe { libc::syscall(libc::SYS_clone, first, second, pid.as_ptr(), 0u64, 0u64) };
    match result {
        0 => Ok(()),
        1.. => exit_now(0),
        _ => {
            Err(Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::clone_noted;
    use crate::report::Report;
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid, waitpid};
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_the_caller_was_started_with_is_forgotten() {
        let report = Report::new(0).unwrap();
        let first = clone_noted(0, None, Some(report.pid()), || {
            let before = std::env::vars_os().count();
            forget_environment();
            // What is left has no name.
            i32::from(before == 0 || std::env::vars_os().next().is_some())
        })
        .unwrap();
        let status = waitid(WaitId::PidFd(first.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn the_parent_knows_and_reaps_the_process_that_goes_on() {
        let report = Report::new(0).unwrap();
        let first = clone_noted(0, None, Some(report.pid()), || {
            if go_on(report.pid()).is_err() {
                return 1;
            }
            7
        })
        .unwrap();
        let status = waitid(WaitId::PidFd(first.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        let pid = report.pid().load(Ordering::Acquire);
        assert_ne!(pid, first.pid);
        let (_, status) =
            waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7));
    }
}
