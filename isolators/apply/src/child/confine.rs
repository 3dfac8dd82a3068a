//! Giving up what the task may not have, in a fixed order that the plan sets.

use cofferdam_linux::{process, signal};
use cofferdam_plan::{ContainerPath, Op, Text};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, accessat, fchown, fstat, major,
    minor, open, statat,
};
use rustix::io::Errno;
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_linux::rootfs::Rootfs;

/// Highest capability number that any kernel may know; the kernel says `EINVAL` above its own.
const CAPABILITIES_MAX: u32 = 63;

pub(super) fn run(op: &Op) -> Result<(), Errno> {
    match op {
        Op::ForbidDump => {
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        }
        Op::SetLimit(limit) => process::set_limit(limit.resource, limit.soft, limit.hard),
        Op::SetScheduler { policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns } => {
            process::set_scheduler(process::Scheduler {
                size: 0,
                policy: *policy,
                flags: *flags,
                nice: *nice,
                priority: *priority,
                runtime: *runtime_ns,
                deadline: *deadline_ns,
                period: *period_ns,
            })
        }
        Op::SetIoPriority { class, level } => process::set_io_priority(*class, *level),
        Op::ResetAffinity => process::reset_affinity(),
        Op::SetAffinity { cpus } => process::set_affinity(cpus),
        Op::SetMemoryPolicy { mode, nodes } => process::set_memory_policy(*mode, nodes),
        Op::SetPersonality { domain } => process::set_personality(*domain),
        Op::SetUmask { mask } => {
            rustix::process::umask(Mode::from_raw_mode(*mask));
            Ok(())
        }
        Op::BoundCapabilities { keep } => bound(*keep),
        Op::ReopenNull => reopen_null(),
        Op::GiveStdio { uid, gid } => give_stdio(*uid, *gid),
        Op::SetIds { uid, gid, groups } => set_ids(*uid, *gid, groups.as_deref()),
        Op::SetCapabilities { effective, permitted, inheritable, ambient } => {
            set_capabilities(*effective, *permitted, *inheritable, *ambient)
        }
        Op::ForbidNewPrivileges => thread::set_no_new_privs(true),
        Op::ChangeDirectory { path } => change_directory(path),
        Op::ResetSignals => signal::reset_to_defaults(),
        _ => Err(Errno::NOSYS),
    }
}

fn bound(keep: u64) -> Result<(), Errno> {
    for number in 0..=CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep >> number & 1 == 1 {
            continue;
        }
        match thread::remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break, // past the kernel's last one
            result => result?,
        }
    }
    Ok(())
}

/// In a user namespace without a map for groups, setgroups is denied and there is nothing to drop.
fn set_ids(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<(), Errno> {
    thread::set_keep_capabilities(true)?;
    match process::set_ids(uid, gid, groups) {
        Err(Errno::PERM) if groups == Some(&[]) => process::set_ids(uid, gid, None),
        result => result,
    }
}

/// Major and minor number of the null device.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// Through the host's node a root of the container could change the mode of the host's `/dev/null`, and containerd gives a
/// descriptor that only reads as standard output too. What is at the path is taken only if it is the null device: the
/// image, or what runs in the container, may have put something else there.
fn reopen_null() -> Result<(), Errno> {
    let is_null = |fd: BorrowedFd<'_>| {
        fstat(fd).is_ok_and(|found| {
            FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
                && (major(found.st_rdev), minor(found.st_rdev)) == NULL_DEVICE
        })
    };
    let given = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()].map(is_null);
    if given == [false; 3] {
        return Ok(());
    }
    let Ok(node) = open(c"/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    else {
        return Ok(());
    };
    if !is_null(node.as_fd()) {
        return Ok(());
    }
    // Whatever takes its place in between: for reading and writing, opening waits for nobody, not even of a FIFO.
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(own) = open(c"/dev/null", flags, Mode::empty()) else { return Ok(()) };
    if !is_null(own.as_fd()) {
        return Ok(());
    }
    if given[0] {
        rustix::stdio::dup2_stdin(&own)?;
    }
    if given[1] {
        rustix::stdio::dup2_stdout(&own)?;
    }
    if given[2] {
        rustix::stdio::dup2_stderr(&own)?;
    }
    Ok(())
}

/// A pipe is nobody else's, so it takes both ids. A file and a terminal keep their group: others may be there by it. A device
/// is the host's and stays what it is.
fn give_stdio(uid: u32, gid: u32) -> Result<(), Errno> {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(found) = fstat(fd) else { continue };
        let gid = match FileType::from_raw_mode(found.st_mode) {
            FileType::Fifo => Some(Gid::from_raw(gid)),
            FileType::RegularFile => None,
            FileType::CharacterDevice if rustix::termios::isatty(fd) => None,
            _ => continue,
        };
        match fchown(fd, Some(Uid::from_raw(uid)), gid) {
            Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn set_capabilities(effective: u64, permitted: u64, inheritable: u64, ambient: u64) -> Result<(), Errno> {
    let set = CapabilitySet::from_bits_retain;
    thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets {
        effective: set(effective),
        permitted: set(permitted),
        inheritable: set(inheritable),
    };
    thread::set_capabilities(None, sets)?;
    for number in (0..=CAPABILITIES_MAX).filter(|number| ambient >> number & 1 == 1) {
        thread::configure_capability_in_ambient_set(set(1 << number), true)?;
    }
    thread::set_keep_capabilities(false)
}

/// Never through a magic link: `/proc/self/fd/7` as a working directory must not lead anywhere (CVE-2024-21626).
fn change_directory(path: &ContainerPath) -> Result<(), Errno> {
    let root = open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let directory = Rootfs::new(root.as_fd()).open(
        path.as_c_str(),
        OFlags::PATH | OFlags::DIRECTORY,
        ResolveFlags::empty(),
    )?;
    rustix::process::fchdir(&directory)
}

/// The first candidate that may be executed. `ENOENT` when there is none, `EACCES` when there is one that may not.
pub(super) fn find_program(candidates: &[Text]) -> Result<usize, Errno> {
    let mut answer = Errno::NOENT;
    for (index, candidate) in candidates.iter().enumerate() {
        match executable(candidate) {
            Ok(()) => return Ok(index),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => answer = errno,
        }
    }
    Err(answer)
}

fn executable(path: &Text) -> Result<(), Errno> {
    let stat = statat(CWD, path.as_c_str(), AtFlags::empty())?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => accessat(CWD, path.as_c_str(), Access::EXEC_OK, AtFlags::EACCESS),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::ACCESS),
    }
}
