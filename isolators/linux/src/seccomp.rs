//! Loading a seccomp filter, seccomp(2).

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::process::check;

/// One classic BPF instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // the kernel's own names
pub struct SockFilter {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    filter: *const SockFilter,
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: the filter's notify descriptor is returned.
pub const NEW_LISTENER: u32 = 8;

/// Loads a filter into the calling thread; the notify descriptor comes back when [`NEW_LISTENER`] is asked for. Needs
/// no-new-privileges, or CAP_SYS_ADMIN. *Child-safe.*
pub fn load(filter: &[SockFilter], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    let length = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, filter: filter.as_ptr() };
    // SAFETY: `program` describes a live slice of sock_filter; the kernel copies and checks it.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })?;
    // SAFETY: with NEW_LISTENER the result is a fresh descriptor that nobody else owns.
    Ok((flags & NEW_LISTENER != 0).then(|| unsafe { OwnedFd::from_raw_fd(result as i32) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD_NUMBER: SockFilter = SockFilter { code: 0x20, jt: 0, jf: 0, k: 0 };

    const fn answer(k: u32) -> SockFilter {
        SockFilter { code: 0x06, jt: 0, jf: 0, k }
    }

    /// A filter belongs to the thread, so each test spoils a thread of its own.
    fn in_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
        let body = || {
            rustix::thread::set_no_new_privs(true).unwrap();
            body()
        };
        std::thread::scope(|scope| scope.spawn(body).join().unwrap())
    }

    #[test]
    fn a_filter_holds_for_the_thread_that_loaded_it_only() {
        let inside = in_a_thread(|| {
            let getppid = u32::try_from(libc::SYS_getppid).unwrap();
            let refuse_getppid = [
                LOAD_NUMBER,
                SockFilter { code: 0x15, jt: 0, jf: 1, k: getppid },
                answer(0x0005_0000 | 77),
                answer(0x7fff_0000),
            ];
            assert!(load(&refuse_getppid, 0).unwrap().is_none());
            // SAFETY: getppid has no arguments and touches no memory.
            let result = unsafe { libc::syscall(libc::SYS_getppid) };
            (result, std::io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(inside, (-1, Some(77)));
        // SAFETY: as above.
        assert!(unsafe { libc::syscall(libc::SYS_getppid) } >= 0);
    }

    #[test]
    fn a_listener_comes_back_and_closes_on_exec() {
        let flags = in_a_thread(|| {
            let listener = load(&[answer(0x7fff_0000)], NEW_LISTENER).unwrap().unwrap();
            rustix::io::fcntl_getfd(&listener).unwrap()
        });
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_program_that_ends_nowhere_is_refused() {
        let refused = in_a_thread(|| load(&[LOAD_NUMBER], 0).map(drop));
        assert_eq!(refused, Err(Errno::INVAL));
        assert_eq!(in_a_thread(|| load(&[], 0).map(drop)), Err(Errno::INVAL));
    }
}
