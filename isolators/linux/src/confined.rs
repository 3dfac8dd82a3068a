//! Threads that see one folder and nothing else of the host.
//!
//! For work on names and contents that a stranger chose, inside a process that holds a registry's credentials and every
//! descriptor of an agent. A process of its own would have to be fed through a pipe and forked from the agent's heap; a thread
//! shares its caller's memory, so this is a wall against names that lead astray, not against code that took over.
//!
//! | What | How | If the kernel has it not, or refuses |
//! |---|---|---|
//! | descriptors | close_range(2) with `CLOSE_RANGE_UNSHARE`: a table of its own, standard streams on `/dev/null` | an error |
//! | working directory, file mode mask | unshare(2) with `CLONE_FS` | an error |
//! | root | chroot(2) into the folder | left out |
//! | files | Landlock (ABI 2): only beneath the folder, and nothing is executed there | left out |
//! | sockets, programs, mounts, other processes | a seccomp filter | left out |

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::process::{check, unshare_directory};
use crate::seccomp::{SockFilter, load};

/// Starts a thread that sees `folder` and nothing else, and runs `work` there with the folder's descriptor. The thread's file
/// mode mask is 0. `work` must carry no descriptors: their numbers mean nothing on that thread.
///
/// The outer error of the join is a panic, the inner one of the confinement. Needs Linux 5.9.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    folder: &'scope Path,
    work: impl FnOnce(OwnedFd) -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, Result<T, Errno>>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, move || Ok(work(confine(folder)?)))
}

/// Confines the calling thread, which must be one that was made for it.
fn confine(folder: &Path) -> Result<OwnedFd, Errno> {
    leave_descriptors()?;
    unshare_directory()?;
    rustix::process::umask(Mode::empty());
    let root = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::fchdir(&root)?;
    // The rest is a second wall: whoever works here resolves names beneath `root` anyway.
    let _ = rustix::process::chroot(".");
    let _ = rustix::thread::set_no_new_privs(true);
    let _ = restrict_files(&root);
    let _ = load(&filter(), 0);
    Ok(root)
}

/// A descriptor table of this thread's own that holds nothing but `/dev/null`, as the standard streams.
fn leave_descriptors() -> Result<(), Errno> {
    const CLOSE_RANGE_UNSHARE: libc::c_uint = 2;
    // SAFETY: integers only. The table is copied first, so descriptors that other threads own stay open in theirs; values of
    // this thread own none, which is what `spawn` asks of its caller.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_UNSHARE) })?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

/// `struct landlock_ruleset_attr` up to ABI 4.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// Rights on files that each version of the interface knows, `LANDLOCK_ACCESS_FS_*`; the lowest bit is to execute.
const FILE_RIGHTS: [(i64, u64); 3] = [(5, 0xffff), (3, 0x7fff), (2, 0x3fff)];
const EXECUTE: u64 = 1;
/// To bind and to connect TCP sockets, since version 4.
const TCP: u64 = 3;

/// The kernel's version of Landlock; 0 without.
pub fn landlock_version() -> i64 {
    static VERSION: OnceLock<i64> = OnceLock::new();
    const ASK_VERSION: u32 = 1;
    *VERSION.get_or_init(|| {
        let nothing = std::ptr::null::<Ruleset>();
        // SAFETY: with this flag no ruleset is read, and an integer is returned.
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, ASK_VERSION) })
            .unwrap_or(0)
    })
}

/// Denies this thread every file but those beneath `root`. Version 1 would deny links from one directory to another.
fn restrict_files(root: &OwnedFd) -> Result<(), Errno> {
    let version = landlock_version();
    let files = FILE_RIGHTS.iter().find(|(from, _)| version >= *from).map(|(_, rights)| *rights);
    let files = files.ok_or(Errno::OPNOTSUPP)?;
    let ruleset = Ruleset { files, network: if version >= 4 { TCP } else { 0 } };
    // Older kernels accept a longer structure whose unknown part is zero.
    let size = size_of::<Ruleset>();
    // SAFETY: `ruleset` is live and `size` bytes long; the kernel copies it and returns a fresh descriptor.
    let made =
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0u32) })?;
    // SAFETY: nobody else knows this number.
    let made = unsafe { OwnedFd::from_raw_fd(made as i32) };
    const PATH_BENEATH: u32 = 1;
    let rule = Beneath { allowed: files & !EXECUTE, parent: root.as_raw_fd() };
    // SAFETY: `rule` is live and of the kind that PATH_BENEATH names; the kernel copies it.
    check(unsafe {
        let ruleset = made.as_fd().as_raw_fd();
        libc::syscall(libc::SYS_landlock_add_rule, ruleset, PATH_BENEATH, &raw const rule, 0u32)
    })?;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, made.as_raw_fd(), 0u32) }).map(drop)
}

/// What no work on files needs: to talk, to start or touch programs, and to change what is mounted.
const DENIED: [libc::c_long; 30] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_io_uring_setup,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_open_by_handle_at,
    libc::SYS_acct,
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// Calls of the x32 interface have this bit.
const X32: u32 = 0x4000_0000;

/// Everything is allowed but what is denied, which fails with EPERM; so does every call of another interface.
fn filter() -> Vec<SockFilter> {
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const DENY: u32 = 0x0005_0000 | libc::EPERM as u32;
    let step = |code, jt, jf, k| SockFilter { code, jt, jf, k };
    let mut filter = vec![
        step(LOAD, 0, 0, 4),
        step(EQUAL, 1, 0, ARCHITECTURE),
        step(RETURN, 0, 0, DENY),
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, DENY),
    ];
    for (index, call) in DENIED.iter().enumerate() {
        let to_the_end = u8::try_from(DENIED.len() - index).unwrap_or(u8::MAX);
        filter.push(step(EQUAL, to_the_end, 0, u32::try_from(*call).unwrap_or(u32::MAX)));
    }
    filter.extend([step(RETURN, 0, 0, ALLOW), step(RETURN, 0, 0, DENY)]);
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a51_a_confined_thread_reaches_its_folder_and_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        let canary = outside.path().join("canary");
        std::fs::write(&canary, "safe").unwrap();
        let folder = outside.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let held = std::fs::File::open(&canary).unwrap();
        let number = held.as_raw_fd();
        std::thread::scope(|scope| {
            let (folder, canary) = (&folder, &canary);
            let work = move |root: OwnedFd| {
                assert!(std::fs::read(canary).is_err(), "by its path");
                assert!(std::fs::read("../canary").is_err(), "by a relative path");
                assert!(std::fs::read(format!("/proc/self/fd/{number}")).is_err());
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                assert!(rustix::fs::openat(&root, "../canary", flags, Mode::empty()).is_err());
                assert_eq!(rustix::process::chroot("."), Err(Errno::PERM));
                assert!(std::net::TcpStream::connect(address).is_err());
                assert!(std::os::unix::net::UnixStream::pair().is_err());
                assert!(std::process::Command::new("/bin/true").status().is_err());
                std::fs::write("inside", "x").unwrap();
                std::fs::create_dir("sub").unwrap();
                std::fs::hard_link("inside", "sub/link").unwrap();
                std::fs::read("sub/link").unwrap()
            };
            let thread = spawn(scope, "confined", folder, work).unwrap();
            assert_eq!(thread.join().unwrap().unwrap(), b"x");
        });
        // Nothing of it stuck to the others.
        assert_eq!(std::fs::read(&canary).unwrap(), b"safe");
        assert!(held.metadata().is_ok() && std::net::TcpStream::connect(address).is_ok());
        assert_ne!(rustix::process::umask(Mode::from_raw_mode(0o022)), Mode::empty());
        assert!(folder.join("sub/link").exists());
    }
}
