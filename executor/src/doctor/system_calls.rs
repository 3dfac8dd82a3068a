//! Calls and confinement mechanisms that a launch uses, each tried.

use cofferdam_linux::feature;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::{Check, kernel_text};

const AREA: &str = "kernel";

/// `SECCOMP_RET_*`.
const KILL_PROCESS: u32 = 0x8000_0000;
const USER_NOTIFICATION: u32 = 0x7fc0_0000;

pub(super) fn examine() -> Vec<Check> {
    vec![
        openat2_call(),
        clone3_call(),
        pidfd(),
        filter(),
        notification(),
        landlock(),
        security_modules(),
        io_uring(),
    ]
}

/// What a filter of our own would hide as ENOSYS or EPERM counts as missing.
fn tried(subject: &str, works: Result<(), Errno>, costs: &str) -> Check {
    match works {
        Ok(()) => Check::works(AREA, subject, "works"),
        Err(errno) => Check::missing(AREA, subject, errno.to_string(), costs),
    }
}

fn openat2_call() -> Check {
    let opened = openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
    tried("openat2", opened.map(drop), "paths inside a container cannot be opened safely").essential()
}

fn clone3_call() -> Check {
    let result = if feature::has_clone3() { Ok(()) } else { Err(Errno::NOSYS) };
    tried("clone3", result, "tasks cannot be started").essential()
}

fn pidfd() -> Check {
    tried(
        "pidfd",
        pidfd_open(getpid(), PidfdFlags::empty()).map(drop),
        "tasks cannot be watched or signalled safely",
    )
    .essential()
}

fn filter() -> Check {
    let result = if feature::has_seccomp_action(KILL_PROCESS) { Ok(()) } else { Err(Errno::NOSYS) };
    tried("seccomp filter", result, "every task is refused: the default profile cannot be applied")
        .essential()
}

fn notification() -> Check {
    let result = if feature::has_seccomp_action(USER_NOTIFICATION) { Ok(()) } else { Err(Errno::NOSYS) };
    tried("seccomp notify", result, "profiles that ask a supervising process are refused")
}

fn landlock() -> Check {
    match feature::landlock_abi() {
        Ok(version) => Check::works(AREA, "Landlock", format!("ABI {version}")),
        Err(errno) => Check::missing(
            AREA,
            "Landlock",
            errno.to_string(),
            "helpers that read untrusted bytes have one wall less",
        ),
    }
}

fn security_modules() -> Check {
    const SUBJECT: &str = "security modules";
    let apparmor = kernel_text("/sys/module/apparmor/parameters/enabled").as_deref() == Some("Y");
    let selinux = std::path::Path::new("/sys/fs/selinux/enforce").exists();
    let active: Vec<&str> = [("AppArmor", apparmor), ("SELinux", selinux)]
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(name, _)| name)
        .collect();
    match active.as_slice() {
        [] => Check::missing(
            AREA,
            SUBJECT,
            "neither AppArmor nor SELinux is active",
            "no second line behind namespaces and seccomp; configurations that name a label are refused",
        ),
        _ => Check::works(AREA, SUBJECT, active.join(", ")),
    }
}

/// Not needed by us; told because the default profile refuses it to tasks and people wonder.
fn io_uring() -> Check {
    let disabled = kernel_text("/proc/sys/kernel/io_uring_disabled");
    let found = match disabled.as_deref() {
        Some("0") => "on; the default profile refuses it to tasks",
        Some(_) => "off on this host",
        None => "not built, or too old for a switch",
    };
    Check::works(AREA, "io_uring", found)
}
