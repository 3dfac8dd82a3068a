//! Loading a seccomp filter, seccomp(2), and supervising one, seccomp_unotify(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// A call that waits for an answer, `struct seccomp_notif`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Notification {
    /// Names the call in the answer.
    pub id: u64,
    /// The calling thread, as the receiver sees it.
    pub pid: u32,
    /// None are known.
    pub flags: u32,
    /// The call's number.
    pub number: i32,
    /// Its ABI, `AUDIT_ARCH_*`.
    pub architecture: u32,
    /// Where the calling instruction lies.
    pub instruction_pointer: u64,
    /// Its arguments. Memory that they point to may change at any time: nothing must be decided by it.
    pub arguments: [u64; 6],
}

/// What a waiting call is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This result, without the kernel's doing anything.
    Value(i64),
    /// This error.
    Error(Errno),
    /// The kernel is to do it after all (Linux 5.5).
    Continue,
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Waits for the next call of the processes behind a notify descriptor. `ENOENT`: its caller was killed meanwhile.
/// seccomp_unotify(2), Linux 5.0.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Notification, Errno> {
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    let mut notification = Notification::default();
    // SAFETY: the kernel writes one struct seccomp_notif, which `Notification` is laid out as, into the zeroed local.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), RECEIVE, &raw mut notification) })?;
    Ok(notification)
}

/// Answers a call that [`receive`] gave.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> Result<(), Errno> {
    const SEND: libc::c_ulong = 0xc018_2101;
    const CONTINUE: u32 = 1;
    let mut response = Response { id, value: 0, error: 0, flags: 0 };
    match answer {
        Answer::Value(value) => response.value = value,
        Answer::Error(errno) => response.error = -errno.raw_os_error(),
        Answer::Continue => response.flags = CONTINUE,
    }
    // SAFETY: the kernel reads one struct seccomp_notif_resp, which `Response` is laid out as, from the live local.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), SEND, &raw mut response) }).map(drop)
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
