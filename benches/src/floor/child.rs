//! The floor's child: from the clone to the exec.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use anyhow::Result;
use cofferdam_isolators::seccomp::compile;
use cofferdam_linux::mount::set_attributes_at;
use cofferdam_linux::process::{Vector, close_all_from, exec, set_limit, unshare};
use cofferdam_linux::seccomp::{SockFilter, load};
use rustix::fs::{CWD, FileType, Mode, makedev, mkdirat, mknodat, symlinkat};
use rustix::io::{self, Errno};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root, setsid, umask};
use rustix::system::sethostname;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::cgroup::World;

const CLONE_NEWCGROUP: u64 = 0x0200_0000;
const READ_ONLY: u64 = 1;
const RLIMIT_NOFILE: u32 = 7;

/// `/proc` and `/sys` paths of the bundle's configuration, relative to the new root.
const MASKED_FILES: [&str; 6] = [
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
];
const MASKED_FOLDERS: [&str; 4] = ["proc/acpi", "proc/asound", "proc/scsi", "sys/firmware"];
const READ_ONLY_PATHS: [&CStr; 5] =
    [c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];

/// Name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] = [
    ("dev/null", 1, 3),
    ("dev/zero", 1, 5),
    ("dev/full", 1, 7),
    ("dev/random", 1, 8),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "dev/ptmx"),
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
];

/// What is laid out before the clone.
pub(super) struct Prepared {
    rootfs: CString,
    cgroups: Cgroups,
    arguments: Vector,
    environment: Vector,
    filter: Vec<SockFilter>,
    filter_flags: u32,
}

/// What goes to `/sys/fs/cgroup`: for each v1 hierarchy its folder and its option, or nothing for v2.
struct Cgroups(Vec<(String, CString)>);

impl Prepared {
    pub(super) fn new(rootfs: CString, world: &World) -> Result<Prepared> {
        let mut cgroups = Vec::new();
        if let World::V1(hierarchies) = world {
            for hierarchy in hierarchies {
                cgroups.push((
                    format!("sys/fs/cgroup/{}", hierarchy.name),
                    CString::new(hierarchy.option.as_str())?,
                ));
            }
        }
        let (arguments, environment) = (Vector::new([c"/true"]), Vector::new([c"PATH=/bin"]));
        let filter = compile(&crate::bundle::seccomp()?)?;
        let filter_flags = filter.flags;
        let filter =
            filter.program.iter().map(|i| SockFilter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
        Ok(Prepared { rootfs, cgroups: Cgroups(cgroups), arguments, environment, filter, filter_flags })
    }

    /// Runs in the child; gives the exit status if something failed.
    pub(super) fn run(&self, doors: &[OwnedFd]) -> i32 {
        match self.enter(doors).and_then(|()| self.confine()) {
            Ok(()) => exec(c"/true", &self.arguments, &self.environment).raw_os_error(),
            Err(errno) => errno.raw_os_error(),
        }
    }

    fn enter(&self, doors: &[OwnedFd]) -> io::Result<()> {
        setsid()?;
        sethostname(b"bench")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // A root must be a mount of its own; its path leads to it only once it is there.
        mount_bind_recursive(self.rootfs.as_c_str(), self.rootfs.as_c_str())?;
        chdir(self.rootfs.as_c_str())?;
        self.mount_kernel_file_systems()?;
        make_devices()?;
        // A thread that moves itself waits for nobody.
        for door in doors {
            io::write(door, b"0")?;
        }
        unshare(CLONE_NEWCGROUP)?;
        self.mount_cgroups()?;
        mask()?;
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")?;
        set_attributes_at(CWD, c"/", READ_ONLY, 0, 0, false, None)
    }

    /// The bundle's three capabilities, no new privileges, the descriptor limit, no descriptor but three, and the filter.
    fn confine(&self) -> io::Result<()> {
        const HIGHEST: u32 = 40;
        let keep = CapabilitySet::KILL | CapabilitySet::NET_BIND_SERVICE | CapabilitySet::AUDIT_WRITE;
        set_limit(RLIMIT_NOFILE, 1024, 1024)?;
        for number in 0..=HIGHEST {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if !keep.contains(capability) {
                remove_capability_from_bounding_set(capability)?;
            }
        }
        clear_ambient_capability_set()?;
        set_capabilities(None, CapabilitySets { effective: keep, permitted: keep, inheritable: keep })?;
        for capability in keep {
            configure_capability_in_ambient_set(capability, true)?;
        }
        set_no_new_privs(true)?;
        close_all_from(3, [-1; 3])?;
        load(&self.filter, self.filter_flags).map(drop)
    }

    fn mount_kernel_file_systems(&self) -> io::Result<()> {
        let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        mount("proc", "proc", "proc", MountFlags::empty(), None)?;
        mount(
            "tmpfs",
            "dev",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::STRICTATIME,
            c"mode=755,size=65536k",
        )?;
        for folder in ["dev/pts", "dev/shm", "dev/mqueue"] {
            mkdirat(CWD, folder, Mode::from_raw_mode(0o755))?;
        }
        let pts = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("devpts", "dev/pts", "devpts", pts, c"newinstance,ptmxmode=0666,mode=0620,gid=5")?;
        mount("shm", "dev/shm", "tmpfs", quiet, c"mode=1777,size=65536k")?;
        mount("mqueue", "dev/mqueue", "mqueue", quiet, None)?;
        mount("sysfs", "sys", "sysfs", quiet | MountFlags::RDONLY, None)
    }

    fn mount_cgroups(&self) -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        let read_only = flags | MountFlags::RDONLY;
        if self.cgroups.0.is_empty() {
            return mount("cgroup", "sys/fs/cgroup", "cgroup2", read_only, None);
        }
        mount("tmpfs", "sys/fs/cgroup", "tmpfs", flags, c"mode=755")?;
        for (folder, option) in &self.cgroups.0 {
            mkdirat(CWD, folder.as_str(), Mode::from_raw_mode(0o755))?;
            mount("cgroup", folder.as_str(), "cgroup", read_only, option.as_c_str())?;
        }
        mount_remount("sys/fs/cgroup", read_only, c"")
    }
}

fn make_devices() -> io::Result<()> {
    let previous = umask(Mode::empty());
    for (path, major, minor) in DEVICES {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))?;
    }
    umask(previous);
    LINKS.into_iter().try_for_each(|(target, path)| symlinkat(target, CWD, path))
}

fn mask() -> io::Result<()> {
    for path in MASKED_FILES {
        unless_missing(mount_bind("dev/null", path))?;
    }
    for path in MASKED_FOLDERS {
        unless_missing(mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, c"nr_blocks=1,nr_inodes=1"))?;
    }
    for path in READ_ONLY_PATHS {
        let bound = mount_bind_recursive(path, path);
        unless_missing(bound.and_then(|()| set_attributes_at(CWD, path, READ_ONLY, 0, 0, true, None)))?;
    }
    Ok(())
}

/// What kernels have in `/proc` differs.
fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
