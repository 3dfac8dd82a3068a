//! Network and user namespaces: made and pinned to a path, entered for a moment, removed. network_namespaces(7),
//! user_namespaces(7).
//!
//! A namespace lives as long as something holds it: a process, a descriptor, or a mount of its nsfs file. A pinned
//! namespace is held by a bind mount on an empty file, so it outlives the command that made it and is found again by path
//! after a crash. The mount is made private after it is attached; whether it is copied to other mount namespaces while it is
//! attached is decided by the directory's own propagation, and the unmount travels the same way.
//!
//! All functions leave the calling thread in its own namespace: a thread made for the purpose enters and then ends.
//! Needs CAP_SYS_ADMIN.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstatfs, open, unlink};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

/// The flag of clone(2) for a new user namespace.
const CLONE_NEWUSER: u64 = 0x1000_0000;
/// And for a new network namespace.
const CLONE_NEWNET: u64 = 0x4000_0000;
/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// How many mounts stacked on one path are taken away before it is called hopeless.
const STACKED_MOUNTS: usize = 16;

/// Makes a new network namespace and pins it at `path`, whose directory must exist.
///
/// An empty file that a crash left at `path` is reused. Fails with `EEXIST` if a namespace is already pinned there. Nothing
/// is left behind on failure. The namespace is bare: its loopback is down.
pub fn create_pinned_netns(path: &Path) -> Result<(), Errno> {
    if is_pinned(path) {
        return Err(Errno::EXIST);
    }
    on_own_thread(|| {
        new_netns()?;
        pin("/proc/thread-self/ns/net", path)
    })
}

/// Makes a user namespace with these id maps (lines of `INSIDE OUTSIDE COUNT`) and pins it at `path`, and at `netns` a
/// network namespace that belongs to it, as [`create_pinned_netns`] pins. Nothing is left behind on failure. Needs
/// CAP_SETUID and CAP_SETGID.
pub fn create_pinned_user_namespace(
    path: &Path,
    netns: Option<&Path>,
    uid_map: &str,
    gid_map: &str,
) -> Result<(), Errno> {
    if is_pinned(path) || netns.is_some_and(is_pinned) {
        return Err(Errno::EXIST);
    }
    let flags = if netns.is_some() { CLONE_NEWNET } else { 0 };
    with_new_user_namespace(flags, uid_map, gid_map, |pid| {
        pin(&format!("/proc/{pid}/ns/user"), path)?;
        let network = netns.map_or(Ok(()), |netns| pin(&format!("/proc/{pid}/ns/net"), netns));
        network.inspect_err(|_| {
            let _ = remove_pinned_netns(path);
        })
    })
}

/// Binds a namespace's file on an empty file, which is made. Nothing is left behind on failure.
fn pin(namespace: &str, path: &Path) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    drop(open(path, flags, Mode::from_raw_mode(0o600))?);
    let pinned =
        mount_bind(namespace, path).and_then(|()| mount_change(path, MountPropagationFlags::PRIVATE));
    // The first failure is the one worth telling.
    pinned.inspect_err(|_| {
        let _ = remove_pinned_netns(path);
    })
}

/// Removes a pinned namespace of any kind; the kernel destroys it once no process and no descriptor holds it.
///
/// Whatever a crash left (the file without the mount, several mounts, nothing at all) is cleaned as well.
pub fn remove_pinned_netns(path: &Path) -> Result<(), Errno> {
    for _ in 0..STACKED_MOUNTS {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(errno),
        }
    }
    match unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Opens the namespace at `path`; `EINVAL` if what is there is not a namespace (a plain file that outlived its mount).
pub fn open_netns(path: &Path) -> Result<OwnedFd, Errno> {
    // O_NONBLOCK so that a FIFO put in the place of the file cannot hold us.
    let fd = open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    if u64::try_from(fstatfs(&fd)?.f_type).ok() == Some(NSFS_MAGIC) { Ok(fd) } else { Err(Errno::INVAL) }
}

/// The calling thread's own network namespace.
pub fn current_netns() -> Result<OwnedFd, Errno> {
    open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Whether both descriptors are the same namespace.
pub fn same_namespace(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool, Errno> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Brings up the loopback of the calling thread's network namespace, netdevice(7). Needs CAP_NET_ADMIN there. *Child-safe.*
pub fn raise_loopback() -> Result<(), Errno> {
    /// `struct ifreq` with the flags in its union.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let mut request =
        Request { name: [0; libc::IFNAMSIZ], flags: libc::IFF_UP as libc::c_short, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // Any socket asks its namespace about devices; this kind is in every kernel.
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `request` is a live value with the size and layout of an ifreq, which the kernel reads.
    crate::process::check(unsafe {
        libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    })
    .map(drop)
}

/// Runs `work` on a thread of its own inside the network namespace `netns` and returns what it returned.
pub fn with_netns<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    on_own_thread(|| {
        move_into_thread_name_spaces(netns, ThreadNameSpaceType::NETWORK)?;
        Ok(work())
    })
}

/// Runs `work` on a thread of its own inside a new network namespace that ends with the last thing that holds it.
pub fn with_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    on_own_thread(|| {
        new_netns()?;
        Ok(work())
    })
}

/// Makes a new network namespace that only the returned descriptor holds.
pub fn new_anonymous_netns() -> Result<OwnedFd, Errno> {
    with_new_netns(current_netns)?
}

/// Makes a user namespace with these id maps (lines of `INSIDE OUTSIDE COUNT`) that only the returned descriptor holds.
/// Nobody ever runs in it: it is for mounts whose owners are shown through its maps. Needs CAP_SETUID and CAP_SETGID.
pub fn new_user_namespace(uid_map: &str, gid_map: &str) -> Result<OwnedFd, Errno> {
    with_new_user_namespace(0, uid_map, gid_map, |pid| {
        open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    })
}

/// Hands the pid of somebody in a new user namespace with these maps, and in further new ones, to `take`, and ends him.
fn with_new_user_namespace<T>(
    further: u64,
    uid_map: &str,
    gid_map: &str,
    take: impl FnOnce(i32) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let parent = rustix::process::getpid();
    let child = crate::process::clone_child(CLONE_NEWUSER | further, None, || {
        // Until it is killed: only its namespace is wanted. It goes with us, too.
        let tied = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        while tied.is_ok() && rustix::process::getppid() == Some(parent) {
            let _ = rustix::thread::nanosleep(&rustix::fs::Timespec { tv_sec: 3600, tv_nsec: 0 });
        }
        1
    })?;
    let made = map(child.pid, uid_map, gid_map).and_then(|()| take(child.pid));
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL);
    let reap = || {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        use std::os::fd::AsFd;
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
    };
    while matches!(reap(), Err(Errno::INTR)) {}
    made
}

fn map(pid: i32, uid_map: &str, gid_map: &str) -> Result<(), Errno> {
    for (file, map) in [("gid_map", gid_map), ("uid_map", uid_map)] {
        std::fs::write(format!("/proc/{pid}/{file}"), map)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    Ok(())
}

fn new_netns() -> Result<(), Errno> {
    // SAFETY: only the network namespace of this thread is unshared; descriptors, memory and the file system context stay
    // shared as they are, so no other thread's assumptions change.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

fn is_pinned(path: &Path) -> bool {
    open_netns(path).is_ok()
}

/// A panic in `work` goes on in the caller.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: needs root");
        }
        root
    }

    #[test]
    fn a_pinned_namespace_is_another_one_and_vanishes_when_removed() {
        if !root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one");
        create_pinned_netns(&path).unwrap();
        assert_eq!(create_pinned_netns(&path), Err(Errno::EXIST));
        let (here, there) = (current_netns().unwrap(), open_netns(&path).unwrap());
        assert!(!same_namespace(here.as_fd(), there.as_fd()).unwrap());
        let inside = with_netns(there.as_fd(), || current_netns().unwrap()).unwrap();
        assert!(same_namespace(inside.as_fd(), there.as_fd()).unwrap());
        remove_pinned_netns(&path).unwrap();
        assert!(!path.exists());
        remove_pinned_netns(&path).unwrap();
    }

    #[test]
    fn a_plain_file_left_by_a_crash_is_no_namespace_and_is_reused() {
        if !root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("left");
        std::fs::write(&path, "").unwrap();
        assert_eq!(open_netns(&path).unwrap_err(), Errno::INVAL);
        create_pinned_netns(&path).unwrap();
        remove_pinned_netns(&path).unwrap();
    }

    #[test]
    fn a_namespace_cannot_be_pinned_where_no_directory_is() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(create_pinned_netns(&directory.path().join("a/b")), Err(Errno::NOENT));
    }
}
