//! Probing the host: the one place that turns the machine into [`HostFeatures`].

use cofferdam_linux::cgroup::Layout;
use cofferdam_plan::{CgroupLayout, HostFeatures, OverlayApi, V1Hierarchy};

/// First kernel whose overlayfs takes layers by descriptor.
const OVERLAY_DESCRIPTORS: (u32, u32) = (6, 13);

/// Asks the host what it can do and what this process may do. Reads a handful of files below /proc, changes nothing.
pub fn host(cgroups: &Layout) -> HostFeatures {
    let kernel = kernel();
    let status = read("/proc/self/status");
    let memory = read("/proc/meminfo");
    HostFeatures {
        kernel,
        cgroups: cgroup_layout(cgroups.clone()),
        overlay: if kernel >= OVERLAY_DESCRIPTORS {
            OverlayApi::Descriptors
        } else {
            OverlayApi::OptionString
        },
        capabilities: field(&status, "CapBnd:")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or(0),
        privileged: rustix::process::geteuid().is_root(),
        oom_score_adj: read("/proc/self/oom_score_adj").trim().parse().unwrap_or(0),
        hard_limits: std::array::from_fn(|resource| {
            let number = u32::try_from(resource).unwrap_or(u32::MAX);
            cofferdam_linux::process::limit(number).map_or(u64::MAX, |(_, hard)| hard)
        }),
        cpus: std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
        online_cpus: read("/sys/devices/system/cpu/online").trim().to_owned(),
        online_nodes: read("/sys/devices/system/node/online").trim().to_owned(),
        memory_bytes: field(&memory, "MemTotal:").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024,
        apparmor: read("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
        selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists(),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
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

/// The cgroup world, as a plan sees it.
fn cgroup_layout(layout: Layout) -> CgroupLayout {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let hierarchies = layout.v1.into_iter().map(|hierarchy| V1Hierarchy {
        controllers: hierarchy.controllers,
        mount_point: text(&hierarchy.mount_point),
        own_path: hierarchy.own_path,
    });
    let hierarchies: Vec<V1Hierarchy> = hierarchies.collect();
    match (hierarchies.is_empty(), layout.unified) {
        (true, Some(unified)) => CgroupLayout::V2 {
            mount_point: text(&unified.mount_point),
            controllers: unified.controllers,
            own_path: unified.own_path,
        },
        (true, None) => CgroupLayout::None,
        (false, unified) => CgroupLayout::V1 {
            hierarchies,
            unified: unified.map(|unified| (text(&unified.mount_point), unified.own_path)),
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
        assert!(host.memory_bytes > 0);
        assert_ne!(host.cgroups, CgroupLayout::None);
    }
}
