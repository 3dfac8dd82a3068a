//! Who is asking, and what he may do and may pass on.

use rustix::process::{getegid, geteuid};

use super::{Check, kernel_text};

const AREA: &str = "privileges";

/// A capability by number, and what is lost without it; capabilities(7).
const WANTED: [(u32, &str, &str); 12] = [
    (21, "CAP_SYS_ADMIN", "no namespace, mount or cgroup can be made"),
    (12, "CAP_NET_ADMIN", "no network can be set up for a task"),
    (6, "CAP_SETGID", "tasks cannot run as another group"),
    (7, "CAP_SETUID", "tasks cannot run as another user"),
    (8, "CAP_SETPCAP", "tasks cannot be deprived of capabilities"),
    (0, "CAP_CHOWN", "layers lose their owners"),
    (1, "CAP_DAC_OVERRIDE", "layers with strict modes cannot be unpacked"),
    (27, "CAP_MKNOD", "layers with device nodes cannot be unpacked"),
    (31, "CAP_SETFCAP", "layers lose file capabilities"),
    (5, "CAP_KILL", "tasks of other users cannot be stopped"),
    (18, "CAP_SYS_CHROOT", "a task's root cannot be entered"),
    (
        24,
        "CAP_SYS_RESOURCE",
        "hard limits cannot be raised above this caller's own, nor oom_score_adj lowered below it: such requests are refused",
    ),
];

/// Without the first of these nothing runs.
const ESSENTIAL: [&str; 1] = ["CAP_SYS_ADMIN"];

pub(super) fn examine() -> Vec<Check> {
    let status = kernel_text("/proc/self/status").unwrap_or_default();
    let mut checks = vec![user(), user_namespace()];
    let bounding = field(&status, "CapBnd").and_then(|bits| u64::from_str_radix(bits, 16).ok()).unwrap_or(0);
    let effective = field(&status, "CapEff").and_then(|bits| u64::from_str_radix(bits, 16).ok()).unwrap_or(0);
    checks.extend(capabilities(effective & bounding));
    checks.push(confinement(&status));
    checks
}

fn user() -> Check {
    let found = format!("uid {}, gid {}", geteuid().as_raw(), getegid().as_raw());
    if geteuid().is_root() {
        return Check::works(AREA, "user", found).essential();
    }
    Check::missing(AREA, "user", found, "cofferdam runs tasks as root only, so far")
        .remedy("sudo")
        .essential()
}

fn user_namespace() -> Check {
    const SUBJECT: &str = "initial user namespace";
    let map = kernel_text("/proc/self/uid_map").unwrap_or_default();
    let words: Vec<&str> = map.split_whitespace().collect();
    if words == ["0", "0", "4294967295"] {
        return Check::works(AREA, SUBJECT, "yes");
    }
    Check::degraded(
        AREA,
        SUBJECT,
        format!("no, ids are mapped: {}", words.join(" ")),
        "root of a container in a container: device nodes, most sysctls and some file systems are refused",
    )
}

fn capabilities(held: u64) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut lacking = Vec::new();
    for (number, name, costs) in WANTED {
        if held >> number & 1 == 1 {
            continue;
        }
        lacking.push(name);
        let check = match ESSENTIAL.contains(&name) {
            true => Check::missing(AREA, name, "not held", costs).essential(),
            false => Check::degraded(AREA, name, "not held", costs),
        };
        checks.push(
            check.remedy("start cofferdam from a service or container that leaves it in the bounding set"),
        );
    }
    let count = WANTED.len() - lacking.len();
    checks.insert(0, Check::works(AREA, "capabilities", format!("{count} of {} wanted", WANTED.len())));
    checks
}

fn confinement(status: &str) -> Check {
    const SUBJECT: &str = "own confinement";
    let seccomp = field(status, "Seccomp").unwrap_or("0");
    let no_new_privileges = field(status, "NoNewPrivs").unwrap_or("0");
    if seccomp == "0" && no_new_privileges == "0" {
        return Check::works(AREA, SUBJECT, "none");
    }
    Check::degraded(
        AREA,
        SUBJECT,
        format!("seccomp mode {seccomp}, no-new-privileges {no_new_privileges}"),
        "tasks inherit it: they may do less than was asked for",
    )
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Need, State};

    #[test]
    fn only_what_is_lacking_gets_a_line() {
        let all = WANTED.iter().fold(0, |bits, (number, ..)| bits | 1_u64 << number);
        assert_eq!(capabilities(all).len(), 1);
        let without_resource = capabilities(all & !(1 << 24));
        assert_eq!(without_resource[1].subject, "CAP_SYS_RESOURCE");
        assert_eq!((without_resource[1].state, without_resource[1].need), (State::Degraded, Need::Optional));
        assert_eq!(capabilities(0)[1].need, Need::Essential);
    }

    #[test]
    fn a_field_of_the_status_file_is_found_by_its_whole_name() {
        assert_eq!(field("Seccomp:\t2\nSeccomp_filters:\t1\n", "Seccomp"), Some("2"));
    }
}
