//! Making a process, joining namespaces, becoming another program. clone(2), setns(2), execve(2).

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::Errno;

/// A process that was just cloned: its pid in our namespace and a descriptor that names it for good.
#[derive(Debug)]
pub struct Child {
    /// Process id as the caller sees it.
    pub pid: i32,
    /// `pidfd`, close-on-exec.
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of clone3(2), version 2 (Linux 5.7).
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// The child becomes the caller's sibling, clone(2).
pub const CLONE_PARENT: u64 = 0x8000;
pub(crate) const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT_SETTID: u64 = 0x0010_0000;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones a child with the namespaces in `flags` (`CLONE_NEW*`), straight into the v2 cgroup `cgroup` when given, and
/// runs `body` in it; what `body` returns is the child's exit status. The child starts with every signal blocked and no
/// handler of ours.
///
/// With `CLONE_PARENT` in `flags` the child is the caller's sibling: the caller's parent reaps it, and the caller's pidfd of
/// it goes with the caller.
///
/// `body` must be child-safe: the caller may have threads, and a lock held by one of them at this moment stays locked for
/// ever in the child. Linux 5.7.
pub fn clone_child(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> Result<Child, Errno> {
    clone_noted(flags, cgroup, None, body)
}

/// As [`clone_child`], and the child's pid as the caller sees it is in `pid` before the child runs: in memory that both
/// share, the child can tell others who it is.
pub fn clone_noted(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    pid: Option<&std::sync::atomic::AtomicI32>,
    body: impl FnOnce() -> i32,
) -> Result<Child, Errno> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        // With CLONE_PARENT the kernel takes the caller's own and accepts no other.
        exit_signal: if flags & CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    if let Some(pid) = pid {
        args.flags |= CLONE_PARENT_SETTID;
        args.parent_tid = pid.as_ptr() as u64;
    }
    let mask = crate::signal::block_all();
    // SAFETY: `args` is a valid, live clone_args of the size given, and `pidfd` and `pid`, an i32 that only atomics touch,
    // outlive the call. Without CLONE_VM the
    // child has its own copy of this address space and returns here on its own copy of this stack.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    if result == 0 {
        // A panic must not unwind into the parent's frames, of which the child holds a copy.
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
        exit_now(status);
    }
    let failed = (result < 0).then(last_errno);
    crate::signal::restore(&mask);
    match failed {
        Some(errno) => Err(errno),
        // SAFETY: the kernel stored a fresh descriptor for us in `pidfd`, as CLONE_PIDFD promises on success.
        None => Ok(Child { pid: result as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// The namespaces that a process is cloned from.
#[derive(Debug, Clone, Copy)]
pub struct Outer<'a> {
    /// Namespaces that are joined before all others, with their `CLONE_NEW*`: those that `user` need not own.
    pub first: &'a [(OwnedFd, u64)],
    /// The user namespace.
    pub user: Option<BorrowedFd<'a>>,
    /// The pid namespace.
    pub pid: Option<BorrowedFd<'a>>,
}

/// As [`clone_noted`], but from inside other namespaces, so that those in `flags` belong to their user namespace. A process
/// with threads cannot join a user namespace: an intermediate one does, clones the child for us with CLONE_PARENT, and ends.
/// `noted` must be memory that survives a clone as shared. Nobody in those namespaces may look into either.
pub fn clone_noted_inside(
    outer: &Outer<'_>,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    noted: &std::sync::atomic::AtomicI32,
    body: impl FnOnce() -> i32,
) -> Result<Child, Errno> {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let ends = [ours.as_raw_fd(), theirs.as_raw_fd()];
    let between = clone_child(0, cgroup, || {
        let enter = || {
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
            outer.first.iter().try_for_each(|(namespace, kind)| set_namespace(namespace.as_fd(), *kind))?;
            outer.user.map_or(Ok(()), |user| set_namespace(user, CLONE_NEWUSER))?;
            outer.pid.map_or(Ok(()), |pid| set_namespace(pid, CLONE_NEWPID))
        };
        let cloned = enter().and_then(|()| {
            clone_noted(flags | CLONE_PARENT, None, Some(noted), || {
                ends.into_iter().for_each(close_descriptor);
                body()
            })
        });
        let told = match cloned {
            Ok(child) => crate::terminal::send_descriptor(theirs.as_fd(), b"p", child.pidfd.as_fd()),
            Err(errno) => rustix::io::write(&theirs, &errno.raw_os_error().to_ne_bytes()).map(drop),
        };
        i32::from(told.is_err())
    })?;
    drop(theirs);
    let mut word = [0; 4];
    let received = crate::terminal::receive_descriptor(ours.as_fd(), &mut word);
    loop {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        match waitid(WaitId::PidFd(between.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            _ => break,
        }
    }
    match received? {
        // The intermediate one lives among our pids: what it was told is what we would be.
        (_, Some(pidfd)) => Ok(Child { pid: noted.load(std::sync::atomic::Ordering::Acquire), pidfd }),
        (4, None) => Err(Errno::from_raw_os_error(i32::from_ne_bytes(word))),
        _ => Err(Errno::CHILD),
    }
}

/// Waits for the end of a child by its descriptor and takes its status, waitid(2).
///
/// # Errors
/// `ECHILD`: it is no child of this process, or somebody has taken its status.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<ExitStatus, Errno> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    loop {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(status) => {
                let status = status.ok_or(Errno::CHILD)?;
                let code = status.exit_status().unwrap_or_default() << 8;
                return Ok(ExitStatus::from_raw(status.terminating_signal().unwrap_or(code)));
            }
        }
    }
}

/// `_exit(2)` of the whole process, running nothing of ours. *Child-safe.*
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes any status and does not return; nothing of ours is left half done that another process sees.
    unsafe { libc::_exit(status) }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Turns the result of a libc call into ours. *Child-safe* (the child owns its copy of `errno`).
pub(crate) fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// As [`check`] for a call whose result is the kernel's own: a negative number is the error.
pub(crate) fn check_raw(result: isize) -> Result<isize, Errno> {
    if result < 0 { Err(Errno::from_raw_os_error(-(result as i32))) } else { Ok(result) }
}

/// A copy of a descriptor, by number, with a number of at least `least`. *Child-safe.*
pub(crate) fn duplicate_from(descriptor: i32, least: i32) -> Result<i32, Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_fcntl, descriptor, libc::F_DUPFD, least) }).map(|fd| fd as i32)
}

/// Makes `target` a copy of another descriptor, by number, that exec leaves open. *Child-safe.*
pub(crate) fn duplicate_onto(descriptor: i32, target: i32) -> Result<(), Errno> {
    // SAFETY: integers only; called in the child, where no value owns `target`.
    check(unsafe { libc::syscall(libc::SYS_dup3, descriptor, target, 0) }).map(drop)
}

/// Joins the namespaces in `flags` that `fd` names: a namespace file, or a pidfd (Linux 5.8). *Child-safe.*
pub fn set_namespace(fd: BorrowedFd<'_>, flags: u64) -> Result<(), Errno> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags) }).map(drop)
}

/// Leaves the namespaces in `flags` for new ones. *Child-safe.*
pub fn unshare(flags: u64) -> Result<(), Errno> {
    // SAFETY: unshare takes integers only. CLONE_FILES, which could surprise std, is not among the flags we pass.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// Gives the calling thread a root and a working directory of its own, so that it may join a mount namespace.
pub fn unshare_directory() -> Result<(), Errno> {
    const CLONE_FS: u64 = 0x200;
    unshare(CLONE_FS)
}

/// The `CLONE_NEW*` kind of a namespace file, `NS_GET_NSTYPE` of ioctl_nsfs(2). Fails with `ENOTTY` when `fd` is none.
pub fn namespace_kind(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: NS_GET_NSTYPE takes no argument and returns an integer.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), NS_GET_NSTYPE) }).map(|kind| kind as u64)
}

/// Room for a text that is known after the clone only, in bytes with its NUL: a variable that holds a path.
pub const LATE_TEXT_MAX_BYTES: usize = 4096 + 8;

/// Whether our mount namespace belongs to our user namespace: then CAP_SYS_ADMIN here is good for mounts.
/// `NS_GET_USERNS` of ioctl_nsfs(2).
pub fn owns_mounts() -> Result<bool, Errno> {
    use rustix::fs::{Mode, OFlags, fstat, open, stat};
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    let mounts = open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: NS_GET_USERNS takes no argument and returns a fresh descriptor.
    let owner = check(unsafe { libc::syscall(libc::SYS_ioctl, mounts.as_raw_fd(), NS_GET_USERNS) });
    let owner = match owner {
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
        Ok(number) => unsafe { OwnedFd::from_raw_fd(number as i32) },
        // It belongs to a namespace above ours.
        Err(Errno::PERM) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    let (owner, own) = (fstat(&owner)?, stat("/proc/self/ns/user")?);
    Ok((owner.st_dev, owner.st_ino) == (own.st_dev, own.st_ino))
}

/// An argument or environment vector, laid out before the clone so that exec allocates nothing.
#[derive(Debug)]
pub struct Vector {
    // Boxed by CString: the bytes stay where they are when the vector moves.
    _texts: Vec<CString>,
    pointers: Vec<*const c_char>,
    /// The text that is filled in late; it is the last but the NULL.
    late: Option<Box<[u8; LATE_TEXT_MAX_BYTES]>>,
}

impl Vector {
    /// Lays out `texts` as a NULL-terminated array.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a CStr>) -> Self {
        let texts: Vec<CString> = texts.into_iter().map(CStr::to_owned).collect();
        let pointers = texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Self { _texts: texts, pointers, late: None }
    }

    /// Lays out `texts`, and room for one more that [`Vector::fill`] fills in; until then it is not there.
    pub fn with_room<'a>(texts: impl IntoIterator<Item = &'a CStr>) -> Self {
        let mut vector = Self::new(texts);
        vector.pointers.push(std::ptr::null());
        vector.late = Some(Box::new([0; LATE_TEXT_MAX_BYTES]));
        vector
    }

    /// Fills in the last text: these parts, one after the other. `ENAMETOOLONG` where there is no room. *Child-safe.*
    pub fn fill(&mut self, parts: &[&[u8]]) -> Result<(), Errno> {
        let room = self.late.as_mut().ok_or(Errno::NAMETOOLONG)?;
        let mut at = 0;
        for part in parts {
            let end = at + part.len();
            // One byte stays for the NUL.
            room[..LATE_TEXT_MAX_BYTES - 1].get_mut(at..end).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(part);
            at = end;
        }
        room[at] = 0;
        let place = self.pointers.len() - 2;
        self.pointers[place] = room.as_ptr().cast();
        Ok(())
    }
}

/// Becomes another program; returns only the error. *Child-safe.*
pub fn exec(path: &CStr, arguments: &Vector, environment: &Vector) -> Errno {
    // SAFETY: `path` is NUL-terminated; both arrays are NULL-terminated and point into strings that the vectors own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execve,
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    check(result).err().unwrap_or(Errno::IO)
}

/// Becomes the program that `fd` is open on; returns only the error. *Child-safe.*
pub fn exec_descriptor(fd: BorrowedFd<'_>, arguments: &Vector, environment: &Vector) -> Errno {
    // SAFETY: as for `exec`; the empty path with AT_EMPTY_PATH names the descriptor itself.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).err().unwrap_or(Errno::IO)
}

/// Closes one descriptor by number: a copy that a clone left us. *Child-safe.*
pub fn close_descriptor(descriptor: i32) {
    // SAFETY: called in the child, on its own copy of a number that no value of the child owns.
    unsafe {
        libc::syscall(libc::SYS_close, descriptor);
    }
}

/// Closes every descriptor from `first` up but `kept` (negative numbers are ignored). close_range(2), Linux 5.9.
/// Only for the child just before exec: whatever values still think they own these descriptors are never used again.
/// *Child-safe.*
pub fn close_all_from<const N: usize>(first: u32, kept: [i32; N]) -> Result<(), Errno> {
    let mut kept = kept.map(|fd| u32::try_from(fd).unwrap_or(u32::MAX));
    kept.sort_unstable();
    let mut from = first;
    for keep in kept.into_iter().filter(|keep| *keep >= first && *keep != u32::MAX) {
        if keep > from {
            close_range(from, keep - 1)?;
        }
        from = keep + 1;
    }
    close_range(from, u32::MAX)
}

/// Closes those of the descriptors from `first` to below `end` that exec would close, but `kept`: a path such as
/// `/proc/self/fd/7/..` is resolved before exec closes anything. Only for the child just before exec, as
/// [`close_all_from`]. *Child-safe.*
pub fn close_marked(first: u32, end: u32, kept: &[i32]) {
    for descriptor in (first..end).filter_map(|number| i32::try_from(number).ok()) {
        if kept.contains(&descriptor) {
            continue;
        }
        // SAFETY: integers only; a number that is not open gives EBADF.
        let flags = unsafe { libc::syscall(libc::SYS_fcntl, descriptor, libc::F_GETFD) };
        if flags >= 0 && flags & libc::c_long::from(libc::FD_CLOEXEC) != 0 {
            close_descriptor(descriptor);
        }
    }
}

/// Closes a descriptor by close_range(2), for a process whose close(2) a supervisor is asked about. *Child-safe.*
pub fn close_by_range(descriptor: OwnedFd) -> Result<(), Errno> {
    let number = descriptor.into_raw_fd().cast_unsigned();
    close_range(number, number)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: integers only; see `close_all_from` for who still refers to these descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Sets the supplementary groups, gids and uids of the calling thread, in that order, capabilities kept for the caller to
/// drop. `groups` is `None` where setgroups(2) is denied. *Child-safe.*
pub fn set_ids(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<(), Errno> {
    if let Some(groups) = groups {
        // SAFETY: the pointer and the length describe the slice, gid_t is u32.
        check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    // SAFETY: integers only. The raw calls change this thread alone, which in the child is the only one.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `setrlimit(2)` by `RLIMIT_*` number. *Child-safe.*
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a live rlimit64; the old value is not asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// The soft and hard limit of a resource, `u64::MAX` for unlimited.
pub fn limit(resource: u32) -> Result<(u64, u64), Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit64 to write; no new value is given.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &raw mut limit)
    })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// `personality(2)`. *Child-safe.*
pub fn set_personality(domain: u32) -> Result<(), Errno> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) }).map(drop)
}

/// `ioprio_set(2)` of the calling thread. *Child-safe.*
pub fn set_io_priority(class: u32, level: u32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: u32 = 1;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, class << 13 | level) })
        .map(drop)
}

/// Arguments of sched_setattr(2).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Scheduler {
    /// Size of this structure; filled in by [`set_scheduler`].
    pub size: u32,
    /// `SCHED_*` policy.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, for the ordinary policies.
    pub nice: i32,
    /// Static priority, for the real-time policies.
    pub priority: u32,
    /// Deadline policy: run time in nanoseconds.
    pub runtime: u64,
    /// Deadline policy: deadline in nanoseconds.
    pub deadline: u64,
    /// Deadline policy: period in nanoseconds.
    pub period: u64,
}

/// `sched_setattr(2)` of the calling thread. *Child-safe.*
pub fn set_scheduler(mut scheduler: Scheduler) -> Result<(), Errno> {
    /// `SCHED_FLAG_UTIL_CLAMP_MIN` and `_MAX`.
    const CLAMPS: u64 = 0x60;
    /// `struct sched_attr` of Linux 5.3.
    #[repr(C)]
    struct Clamped {
        scheduler: Scheduler,
        least: u32,
        most: u32,
    }
    let size = if scheduler.flags & CLAMPS == 0 { size_of::<Scheduler>() } else { size_of::<Clamped>() };
    scheduler.size = size as u32;
    // The whole range: the specification has no figure to go with the flags.
    let mut attributes = Clamped { scheduler, least: 0, most: 1024 };
    // SAFETY: `attributes` is a live sched_attr of at least the size it says.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0) }).map(drop)
}

/// `set_mempolicy(2)` of the calling thread: mode with its flags, nodes as bits. *Child-safe.*
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<(), Errno> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    // No nodes is a null pointer: behind any other the kernel takes 0 bits for too many.
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads `bits - 1` bits of a live slice that has them.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}

/// The processors that the calling thread may run on, for [`restore_affinity`].
#[derive(Debug, Clone)]
pub struct Affinity([u64; 128]);

/// `sched_getaffinity(2)` of the calling thread.
pub fn affinity() -> Result<Affinity, Errno> {
    let mut mask = [0u64; 128];
    // SAFETY: the mask is live, writable and of the size given.
    check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&mask), mask.as_mut_ptr()) })?;
    Ok(Affinity(mask))
}

/// Gives the calling thread back the processors that it had.
pub fn restore_affinity(affinity: &Affinity) -> Result<(), Errno> {
    let mask = &affinity.0;
    // SAFETY: the mask is live and of the size given.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) })
        .map(drop)
}

/// Gives the calling thread every processor that its cgroup allows. *Child-safe.*
pub fn reset_affinity() -> Result<(), Errno> {
    // What the mask holds beyond the kernel's own is passed over.
    restore_affinity(&Affinity([u64::MAX; 128]))
}

/// Restricts the calling thread to these processors, at most 1024. *Child-safe.*
pub fn set_affinity(cpus: &[u32]) -> Result<(), Errno> {
    let mut mask = [0u64; 16];
    for cpu in cpus {
        *mask.get_mut(*cpu as usize / 64).ok_or(Errno::INVAL)? |= 1 << (cpu % 64);
    }
    // SAFETY: the mask is live and of the size given.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr()) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};

    fn status(child: &Child) -> i32 {
        let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap();
        status.exit_status().unwrap()
    }

    #[test]
    fn a_child_runs_its_body_and_its_status_comes_back() {
        let child = clone_child(0, None, || 42).unwrap();
        assert_eq!(status(&child), 42);
    }

    #[test]
    fn a_panic_in_the_child_ends_the_child_alone() {
        let child = clone_child(0, None, || panic!("in the child")).unwrap();
        assert_eq!(status(&child), 101);
    }

    #[test]
    fn exec_passes_arguments_and_environment() {
        let child = clone_child(0, None, || {
            let arguments = Vector::new([c"sh", c"-c", c"exit $N"]);
            let environment = Vector::new([c"N=7"]);
            let _ = exec(c"/bin/sh", &arguments, &environment);
            1
        })
        .unwrap();
        assert_eq!(status(&child), 7);
    }

    #[test]
    fn a_late_text_is_there_once_it_is_filled_in() {
        let run = |fill: bool| {
            let child = clone_child(0, None, || {
                let arguments = Vector::new([c"sh", c"-c", c"exit ${LATE:-3}"]);
                let mut environment = Vector::with_room([c"N=7"]);
                if fill && environment.fill(&[b"LATE=", b"5"]).is_err() {
                    return 1;
                }
                let _ = exec(c"/bin/sh", &arguments, &environment);
                1
            });
            status(&child.unwrap())
        };
        assert_eq!((run(false), run(true)), (3, 5));
        let long = [b'x'; LATE_TEXT_MAX_BYTES];
        assert_eq!(Vector::with_room([]).fill(&[&long]), Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn a_thread_gets_its_processors_back() {
        let before = affinity().unwrap();
        set_affinity(&[0]).unwrap();
        restore_affinity(&before).unwrap();
        assert_eq!(affinity().unwrap().0, before.0);
    }

    #[test]
    fn a_namespace_file_tells_its_kind_and_other_files_do_not() {
        let file = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert_eq!(namespace_kind(file.as_fd()).unwrap(), libc::CLONE_NEWNET as u64);
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert!(namespace_kind(file.as_fd()).is_err());
    }
}
