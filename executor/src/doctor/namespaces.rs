//! The eight namespaces, each made once for a process that ends at once.

use std::os::fd::AsFd;
use std::path::Path;

use cofferdam_linux::process::clone_child;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::{Check, Need, kernel_text};

const AREA: &str = "namespaces";

/// Name below `/proc/self/ns`, `CLONE_NEW*` bit, need, and what is lost without it.
const ALL: [(&str, u64, Need, &str); 8] = [
    ("mnt", 0x0002_0000, Need::Essential, "tasks cannot have a root of their own"),
    ("pid", 0x2000_0000, Need::Essential, "tasks see and signal each other"),
    ("net", 0x4000_0000, Need::Essential, "tasks use the host's network"),
    ("ipc", 0x0800_0000, Need::Essential, "tasks share memory segments and queues"),
    ("uts", 0x0400_0000, Need::Essential, "tasks cannot have a host name"),
    ("cgroup", 0x0200_0000, Need::Essential, "tasks see where the host puts them"),
    ("user", 0x1000_0000, Need::Optional, "root in a task is root outside"),
    ("time", 0x0000_0080, Need::Optional, "configurations with clock offsets are refused"),
];

pub(super) fn examine() -> Vec<Check> {
    let mut checks: Vec<Check> = ALL.into_iter().map(namespace).collect();
    checks.push(user_namespaces());
    checks
}

fn namespace((name, flag, need, costs): (&str, u64, Need, &str)) -> Check {
    let subject = format!("{name} namespace");
    let check = if !Path::new("/proc/self/ns").join(name).exists() {
        Check::missing(AREA, subject, "not built into this kernel", costs)
    } else {
        match make(flag) {
            Ok(()) => Check::works(AREA, subject, "works"),
            Err(errno) => Check::missing(AREA, subject, errno.to_string(), costs),
        }
    };
    Check { need, ..check }
}

fn make(flag: u64) -> Result<(), Errno> {
    let child = clone_child(flag, None, || 0)?;
    waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).map(drop)
}

fn user_namespaces() -> Check {
    const SUBJECT: &str = "user namespaces, most";
    let most = kernel_text("/proc/sys/user/max_user_namespaces").and_then(|text| text.parse::<u64>().ok());
    let closed = kernel_text("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0")
        || kernel_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1");
    match most {
        None | Some(0) => Check::missing(AREA, SUBJECT, "0", "tasks cannot have a user namespace")
            .remedy("sysctl user.max_user_namespaces=15000"),
        Some(most) if closed => Check::works(AREA, SUBJECT, format!("{most}, for root only")),
        Some(most) => Check::works(AREA, SUBJECT, most.to_string()),
    }
}
