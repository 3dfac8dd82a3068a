//! The kernel's version, the clock, the boot's identity, the size of the machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Check, kernel_text};

const AREA: &str = "host";

/// The oldest kernel with everything that a launch uses: mount_setattr(2).
const OLDEST: (u32, u32) = (5, 12);

/// A clock before this commit's year is wrong: 2026-01-01.
const NOT_BEFORE: Duration = Duration::from_secs(1_767_225_600);

pub(super) fn examine() -> Vec<Check> {
    vec![kernel(), size(), clock(), boot()]
}

fn kernel() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let found = format!("Linux {release} on {}", uname.machine().to_string_lossy());
    match parse_version(&release) {
        Some(version) if version >= OLDEST => Check::works(AREA, "kernel", found),
        _ => Check::missing(
            AREA,
            "kernel",
            found,
            format!("mounts are made by calls of Linux {}.{} and later", OLDEST.0, OLDEST.1),
        )
        .remedy("a newer kernel"),
    }
    .essential()
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn size() -> Check {
    let information = kernel_text("/proc/meminfo").unwrap_or_default();
    let memory_kib = information.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory_kib.map_or_else(|| "unknown".to_owned(), |kib| format!("{} MiB", kib / 1024));
    Check::works(AREA, "size", format!("{cpus} CPUs, {memory} of memory"))
}

fn clock() -> Check {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(now) if now >= NOT_BEFORE => Check::works(AREA, "clock", "set"),
        _ => Check::degraded(
            AREA,
            "clock",
            "before this program was written",
            "certificates of registries look invalid, times of tasks are wrong",
        )
        .remedy("set the clock (chrony, systemd-timesyncd)"),
    }
}

fn boot() -> Check {
    match kernel_text("/proc/sys/kernel/random/boot_id") {
        Some(id) if id.len() == 36 => Check::works(AREA, "boot id", id),
        _ => Check::degraded(
            AREA,
            "boot id",
            "unreadable",
            "state of before a reboot cannot be told from state of now",
        )
        .remedy("mount /proc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_whatever_follows_them() {
        assert_eq!(parse_version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_version("6.1"), Some((6, 1)));
        assert_eq!(parse_version("5.15-rc1+"), Some((5, 15)));
        assert_eq!(parse_version("what"), None);
    }
}
