//! Attempts at what a task must not do, made with arguments that do nothing where the attempt is let through.
//!
//! Each call is one that the kernel answers with EPERM (or the seccomp filter in its place) before it looks at the
//! arguments, which are such that it answers with *another* error afterwards. So the errno tells whether the call
//! was refused, and no attempt changes anything, except that a new user namespace, if it is given, stays with the process.
#![allow(unsafe_code)] // repeated from lib.rs for the second compilation, see guest.rs

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::ptr::null;

/// A call that a confined task is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// mount(2) of a file system type that does not exist, over `/`.
    Mount,
    /// init_module(2) of nothing.
    LoadModule,
    /// reboot(2) with a command that does not exist.
    Reboot,
    /// kexec_load(2) with flags that do not exist.
    LoadKernel,
    /// settimeofday(2) to no time.
    SetClock,
    /// open_by_handle_at(2) of a file that is not there: the way out of a container known as "shocker".
    OpenByHandle,
    /// mknod(2) of a disk in `/dev`, then open(2).
    BlockDevice,
    /// bpf(2) with a command that does not exist.
    Bpf,
    /// keyctl(2) with a command that does not exist: keyrings are not namespaced.
    Keyring,
    /// perf_event_open(2) of nothing.
    Perf,
    /// userfaultfd(2) with flags that do not exist.
    UserFault,
    /// unshare(2) of the user namespace, which would give every capability inside it.
    NewUserNamespace,
}

/// What came of an [`Attempt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel or the filter refused, with this errno.
    Refused(i32),
    /// The call was let through to its work. What it said there does not matter.
    LetThrough,
}

const EPERM: c_int = 1;
const EACCES: c_int = 13;
const ENOSYS: c_int = 38;
const EROFS: c_int = 30;

impl Attempt {
    /// Every attempt; the one that may change the process is last.
    pub const ALL: [Attempt; 12] = [
        Attempt::Mount,
        Attempt::LoadModule,
        Attempt::Reboot,
        Attempt::LoadKernel,
        Attempt::SetClock,
        Attempt::OpenByHandle,
        Attempt::BlockDevice,
        Attempt::Bpf,
        Attempt::Keyring,
        Attempt::Perf,
        Attempt::UserFault,
        Attempt::NewUserNamespace,
    ];

    /// What was attempted, in words that follow "tried to".
    pub fn words(self) -> &'static str {
        match self {
            Attempt::Mount => "mount a file system",
            Attempt::LoadModule => "load a kernel module",
            Attempt::Reboot => "reboot",
            Attempt::LoadKernel => "load another kernel",
            Attempt::SetClock => "set the clock",
            Attempt::OpenByHandle => "open a file by handle",
            Attempt::BlockDevice => "open a disk",
            Attempt::Bpf => "load a BPF program",
            Attempt::Keyring => "use the key rings",
            Attempt::Perf => "trace the CPU",
            Attempt::UserFault => "handle page faults",
            Attempt::NewUserNamespace => "make a user namespace",
        }
    }

    /// Makes the attempt.
    pub fn make(self) -> Outcome {
        let result = match self {
            Attempt::Mount => try_mount(),
            Attempt::Reboot => try_reboot(),
            Attempt::OpenByHandle => try_open_by_handle(),
            Attempt::BlockDevice => try_block_device(),
            Attempt::NewUserNamespace => try_unshare(),
            // Not the C library's wrapper: that reads the time before it asks the kernel.
            Attempt::SetClock => try_number(number::SETTIMEOFDAY, [0; 6]),
            Attempt::LoadModule => try_number(number::INIT_MODULE, [0; 6]),
            Attempt::LoadKernel => try_number(number::KEXEC_LOAD, [0, 0, 0, 0x0fff_0000, 0, 0]),
            Attempt::Bpf => try_number(number::BPF, [0x7fff_ffff, 0, 0, 0, 0, 0]),
            Attempt::Keyring => try_number(number::KEYCTL, [0x7fff_ffff, 0, 0, 0, 0, 0]),
            Attempt::Perf => try_number(number::PERF_EVENT_OPEN, [0; 6]),
            Attempt::UserFault => try_number(number::USERFAULTFD, [0x7fff_0000, 0, 0, 0, 0, 0]),
        };
        match result {
            Err(errno @ (EPERM | EACCES | ENOSYS | EROFS)) => Outcome::Refused(errno),
            Ok(()) | Err(_) => Outcome::LetThrough,
        }
    }
}

/// System call numbers of those that the C library does not pass on as they are.
#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const SETTIMEOFDAY: i64 = 164;
    pub(super) const INIT_MODULE: i64 = 175;
    pub(super) const KEXEC_LOAD: i64 = 246;
    pub(super) const KEYCTL: i64 = 250;
    pub(super) const PERF_EVENT_OPEN: i64 = 298;
    pub(super) const BPF: i64 = 321;
    pub(super) const USERFAULTFD: i64 = 323;
}

/// System call numbers of those that the C library does not pass on as they are: the table that newer architectures share.
#[cfg(not(target_arch = "x86_64"))]
mod number {
    pub(super) const SETTIMEOFDAY: i64 = 170;
    pub(super) const INIT_MODULE: i64 = 105;
    pub(super) const KEXEC_LOAD: i64 = 104;
    pub(super) const KEYCTL: i64 = 219;
    pub(super) const PERF_EVENT_OPEN: i64 = 241;
    pub(super) const BPF: i64 = 280;
    pub(super) const USERFAULTFD: i64 = 282;
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn open_by_handle_at(mount: c_int, handle: *mut FileHandle, flags: c_int) -> c_int;
    fn mknod(path: *const c_char, mode: c_uint, device: u64) -> c_int;
    fn unshare(flags: c_int) -> c_int;
}

/// `struct file_handle` with room for eight bytes.
#[repr(C)]
struct FileHandle {
    bytes: c_uint,
    kind: c_int,
    data: [u8; 8],
}

fn outcome(result: c_long) -> Result<(), c_int> {
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

/// Only called with the arguments in [`Attempt::make`], which hold no address.
fn try_number(number: i64, a: [usize; 6]) -> Result<(), c_int> {
    // SAFETY: every argument is a flag, a length of nothing, or a null pointer, so the kernel reads and writes no memory of ours.
    outcome(unsafe { syscall(number as c_long, a[0], a[1], a[2], a[3], a[4], a[5]) })
}

fn try_mount() -> Result<(), c_int> {
    let (source, target, kind) = (c"none", c"/", c"no-such-file-system");
    // SAFETY: three constant strings that end in zero and no data; a type that does not exist cannot be mounted.
    outcome(unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, null()) }.into())
}

fn try_reboot() -> Result<(), c_int> {
    // SAFETY: no memory is involved, and no such command exists (0 would, as "ctrl-alt-del off").
    outcome(unsafe { reboot(0x7fff_ffff) }.into())
}

fn try_open_by_handle() -> Result<(), c_int> {
    const AT_FDCWD: c_int = -100;
    let mut handle = FileHandle { bytes: 8, kind: 0x7f, data: [0; 8] };
    // SAFETY: the handle is a live local of the size that it states; its type belongs to no file system.
    outcome(unsafe { open_by_handle_at(AT_FDCWD, &mut handle, 0) }.into())
}

/// mknod(2) alone is not enough: Docker's default gives CAP_MKNOD and leaves the refusal to the device cgroup.
fn try_block_device() -> Result<(), c_int> {
    const PATH: &CStr = c"/dev/cofferdam-attempt";
    const BLOCK_DEVICE_0600: c_uint = 0o060_600;
    const FIRST_SCSI_DISK: u64 = 8 << 8;
    // SAFETY: a constant string that ends in zero.
    outcome(unsafe { mknod(PATH.as_ptr(), BLOCK_DEVICE_0600, FIRST_SCSI_DISK) }.into())?;
    let path = PATH.to_str().unwrap_or_default();
    let opened = std::fs::File::open(path).map(drop).map_err(|e| e.raw_os_error().unwrap_or(0));
    // Best effort: it is the container's own tmpfs, and the verdict is about the opening.
    drop(std::fs::remove_file(path));
    opened
}

fn try_unshare() -> Result<(), c_int> {
    const CLONE_NEWUSER: c_int = 0x1000_0000;
    // SAFETY: no memory is involved; the calling thread changes its own namespace or does not.
    outcome(unsafe { unshare(CLONE_NEWUSER) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attempt_that_changes_the_process_is_last() {
        assert_eq!(Attempt::ALL.last(), Some(&Attempt::NewUserNamespace));
    }

    #[test]
    fn an_unprivileged_process_is_refused_the_privileged_calls() {
        // As root this process may do most of these, which is what an unconfined task would see.
        let outcome = Attempt::SetClock.make();
        let root = std::fs::metadata("/proc/self")
            .map(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
            .unwrap_or(false);
        if root {
            assert_eq!(outcome, Outcome::LetThrough);
        } else {
            assert_eq!(outcome, Outcome::Refused(EPERM));
        }
    }
}
