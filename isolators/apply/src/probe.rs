//! Probing the host: the one place that turns the machine into [`HostFeatures`].

use std::io::ErrorKind;

use cofferdam_linux::cgroup::Layout;
use cofferdam_linux::text::read_text;
use cofferdam_plan::{CgroupLayout, HostFeatures, OverlayApi, Standing, V1Hierarchy};

/// First kernel whose overlayfs takes layers by descriptor.
const OVERLAY_DESCRIPTORS: (u32, u32) = (6, 13);
/// First kernel whose overlayfs takes layers one by one.
const OVERLAY_NAMES: (u32, u32) = (6, 7);

/// Asks the host what it can do and what this process may do. Reads a handful of files below /proc, changes nothing.
pub fn host(cgroups: &Layout) -> HostFeatures {
    host_that_spares(cgroups, None)
}

/// As [`host`], for a caller who says whether to do without the cgroups that cannot be made: otherwise everybody but root
/// does.
pub fn host_that_spares(cgroups: &Layout, spares: Option<bool>) -> HostFeatures {
    let kernel = kernel();
    let status = read("/proc/self/status");
    let standing = standing(&status);
    HostFeatures {
        kernel,
        cgroups: cgroup_layout(cgroups.clone(), standing == Standing::Host && spares != Some(true)),
        systemd: None,
        overlay: overlay(kernel),
        capabilities: field(&status, "CapBnd:")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or(0),
        standing,
        spares_cgroups: spares.unwrap_or(standing != Standing::Host),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        oom_score_adj: read("/proc/self/oom_score_adj").trim().parse().unwrap_or(0),
        hard_limits: std::array::from_fn(|resource| {
            let number = u32::try_from(resource).unwrap_or(u32::MAX);
            cofferdam_linux::process::limit(number).map_or(u64::MAX, |(_, hard)| hard)
        }),
        online_cpus: read("/sys/devices/system/cpu/online").trim().to_owned(),
        online_nodes: read("/sys/devices/system/node/online").trim().to_owned(),
        resctrl: None,
        // What cannot be found out is taken to be there: a label that is asked for is then applied or refused, never left out.
        apparmor: read_text("/sys/module/apparmor/parameters/enabled")
            .map_or_else(|error| error.kind() != ErrorKind::NotFound, |text| text.starts_with('Y')),
        selinux: std::path::Path::new("/sys/fs/selinux/enforce").try_exists().unwrap_or(true),
    }
}

/// Where resctrl is mounted, if it is.
pub fn resctrl() -> Option<String> {
    // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS … - TYPE SOURCE OPTIONS, proc_pid_mountinfo(5)
    let point = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("resctrl")).then(|| before.split(' ').nth(4).map(str::to_owned))?
    };
    read("/proc/thread-self/mountinfo").lines().find_map(point)
}

fn overlay(kernel: (u32, u32)) -> OverlayApi {
    if kernel >= OVERLAY_DESCRIPTORS {
        OverlayApi::Descriptors
    } else if kernel >= OVERLAY_NAMES {
        OverlayApi::Names
    } else {
        OverlayApi::OptionString
    }
}

fn read(path: &str) -> String {
    read_text(path).unwrap_or_default()
}

/// The first word after a line's label.
fn field<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(label)).and_then(|rest| rest.split_whitespace().next())
}

fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What our capabilities are good for.
fn standing(status: &str) -> Standing {
    const SYS_ADMIN: u32 = 21;
    /// `PROC_USER_INIT_INO`: the initial user namespace's file has this number for ever.
    const INITIAL: u64 = 0xEFFF_FFFD;
    let effective = field(status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    if effective >> SYS_ADMIN & 1 == 0 {
        return Standing::User;
    }
    match rustix::fs::stat("/proc/self/ns/user") {
        Ok(stat) if stat.st_ino != INITIAL => {}
        // A kernel without user namespaces has no file, and nobody but its root.
        _ => return Standing::Host,
    }
    // Who has unshared his user namespace alone is root of nothing: his mounts are still his parent's.
    match cofferdam_linux::process::owns_mounts() {
        Ok(true) => Standing::Namespace,
        _ => Standing::User,
    }
}

/// The cgroup world, as a plan sees it; the `whole` of it is delegated to root.
fn cgroup_layout(layout: Layout, whole: bool) -> CgroupLayout {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let alone = layout.is_v2();
    let hierarchies = layout.v1.into_iter().map(|hierarchy| V1Hierarchy {
        delegated: whole || hierarchy.is_delegated(),
        controllers: hierarchy.controllers,
        mount_point: text(&hierarchy.mount_point),
        own_path: hierarchy.own_path,
    });
    let hierarchies: Vec<V1Hierarchy> = hierarchies.collect();
    match (hierarchies.is_empty(), layout.unified) {
        (true, Some(unified)) => CgroupLayout::V2 {
            delegated: whole || unified.is_delegated(alone),
            mount_point: text(&unified.mount_point),
            controllers: unified.controllers,
            own_path: unified.own_path,
        },
        (true, None) => CgroupLayout::None,
        (false, unified) => CgroupLayout::V1 {
            hierarchies,
            unified: unified.map(|unified| V1Hierarchy {
                delegated: whole || unified.is_delegated(alone),
                controllers: Vec::new(),
                mount_point: text(&unified.mount_point),
                own_path: unified.own_path,
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_probed() {
        let host = host(&Layout::probe().unwrap());
        assert!(host.kernel > (3, 0));
        assert!(!host.online_cpus.is_empty());
        assert_ne!(host.cgroups, CgroupLayout::None);
    }
}
