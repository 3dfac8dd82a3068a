//! Who is asking, and what he may do and may pass on.

use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{getegid, geteuid};

use super::{Check, kernel_text};

const AREA: &str = "privileges";

/// A capability, and what is lost without it; capabilities(7).
const WANTED: [(Capability, &str); 12] = [
    (Capability::CAP_SYS_ADMIN, "no namespace, mount or cgroup can be made"),
    (Capability::CAP_NET_ADMIN, "no network can be set up for a task"),
    (Capability::CAP_SETGID, "tasks cannot run as another group"),
    (Capability::CAP_SETUID, "tasks cannot run as another user"),
    (Capability::CAP_SETPCAP, "tasks cannot be deprived of capabilities"),
    (Capability::CAP_CHOWN, "layers lose their owners"),
    (Capability::CAP_DAC_OVERRIDE, "layers with strict modes cannot be unpacked"),
    (Capability::CAP_MKNOD, "layers with device nodes cannot be unpacked"),
    (Capability::CAP_SETFCAP, "layers lose file capabilities"),
    (Capability::CAP_KILL, "tasks of other users cannot be stopped"),
    (Capability::CAP_SYS_CHROOT, "a task's root cannot be entered"),
    (
        Capability::CAP_SYS_RESOURCE,
        "hard limits cannot be raised above this caller's own, nor oom_score_adj lowered below it: such requests are refused",
    ),
];

/// Without the first of these nothing runs.
const ESSENTIAL: [Capability; 1] = [Capability::CAP_SYS_ADMIN];

pub(super) fn examine() -> Vec<Check> {
    let status = kernel_text("/proc/self/status").unwrap_or_default();
    let mut checks = vec![user(), user_namespace()];
    checks.extend(capabilities(&held()));
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

/// What the caller has and may pass on. A set that cannot be read is empty.
fn held() -> CapsHashSet {
    let read = |set| caps::read(None, set).unwrap_or_default();
    let bounding = read(CapSet::Bounding);
    read(CapSet::Effective).intersection(&bounding).copied().collect()
}

fn capabilities(held: &CapsHashSet) -> Vec<Check> {
    let lacking: Vec<_> = WANTED.into_iter().filter(|(capability, _)| !held.contains(capability)).collect();
    let found = format!("{} of {} wanted", WANTED.len() - lacking.len(), WANTED.len());
    let mut checks = vec![Check::works(AREA, "capabilities", found)];
    for (capability, costs) in lacking {
        let check = match ESSENTIAL.contains(&capability) {
            true => Check::missing(AREA, capability.to_string(), "not held", costs).essential(),
            false => Check::degraded(AREA, capability.to_string(), "not held", costs),
        };
        checks.push(
            check.remedy("start cofferdam from a service or container that leaves it in the bounding set"),
        );
    }
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
        let all: CapsHashSet = WANTED.into_iter().map(|(capability, _)| capability).collect();
        assert_eq!(capabilities(&all).len(), 1);
        let mut without_resource = all;
        without_resource.remove(&Capability::CAP_SYS_RESOURCE);
        let checks = capabilities(&without_resource);
        assert_eq!(checks[1].subject, "CAP_SYS_RESOURCE");
        assert_eq!((checks[1].state, checks[1].need), (State::Degraded, Need::Optional));
        assert_eq!(capabilities(&CapsHashSet::new())[1].need, Need::Essential);
    }

    #[test]
    fn a_field_of_the_status_file_is_found_by_its_whole_name() {
        assert_eq!(field("Seccomp:\t2\nSeccomp_filters:\t1\n", "Seccomp"), Some("2"));
    }
}
