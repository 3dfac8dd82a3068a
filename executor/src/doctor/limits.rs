//! Limits of this caller and of the machine that many tasks meet first.

use rustix::process::{Resource, getrlimit};

use super::{Check, kernel_text};

const AREA: &str = "limits";

/// A machine-wide knob: path, least that does not get in the way, what happens below it.
const KNOBS: [(&str, &str, u64, &str); 7] = [
    ("processes of the machine", "kernel/pid_max", 32_768, "many tasks run out of process ids"),
    ("threads of the machine", "kernel/threads-max", 32_768, "many tasks run out of threads"),
    ("key quota of root", "kernel/keys/root_maxkeys", 2_000, "every task takes a session key ring"),
    (
        "inotify instances",
        "fs/inotify/max_user_instances",
        128,
        "programs that watch files fail when there are many",
    ),
    (
        "inotify watches",
        "fs/inotify/max_user_watches",
        8_192,
        "programs that watch files fail when there are many",
    ),
    ("mounts of a namespace", "fs/mount-max", 10_000, "tasks with many volumes fail"),
    ("pseudo terminals", "kernel/pty/max", 256, "tasks with a terminal fail when there are many"),
];

pub(super) fn examine() -> Vec<Check> {
    let mut checks = vec![
        own("open files", Resource::Nofile, 1_024, "each attached task takes about six"),
        own("processes of this user", Resource::Nproc, 1_024, "tasks of the same user share it"),
    ];
    checks.extend(KNOBS.into_iter().filter_map(knob));
    checks.push(locked_memory());
    checks
}

fn own(subject: &str, resource: Resource, least: u64, costs: &str) -> Check {
    let limit = getrlimit(resource);
    let words = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
    let found = format!("{} soft, {} hard", words(limit.current), words(limit.maximum));
    match limit.maximum {
        Some(hard) if hard < least => Check::degraded(AREA, subject, found, costs),
        _ => Check::works(AREA, subject, found),
    }
}

/// Nothing where this kernel has no such knob.
fn knob((subject, path, least, costs): (&str, &str, u64, &str)) -> Option<Check> {
    let value: u64 = kernel_text(format!("/proc/sys/{path}"))?.parse().ok()?;
    if value >= least {
        return Some(Check::works(AREA, subject, value.to_string()));
    }
    let remedy = format!("sysctl {}={least}", path.replace('/', "."));
    Some(Check::degraded(AREA, subject, value.to_string(), costs).remedy(remedy))
}

/// Programs for devices on cgroup v2 are charged to it on kernels before 5.11.
fn locked_memory() -> Check {
    let limit = getrlimit(Resource::Memlock).current;
    let found = limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    Check::works(AREA, "locked memory", found)
}
