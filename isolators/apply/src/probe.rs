//! Probing the host: the one place that turns the machine into [`HostFeatures`].

use std::collections::BTreeMap;

use cofferdam_plan::{CgroupLayout, HostFeatures, OverlayApi, V1Hierarchy};

/// First kernel whose overlayfs takes layers by descriptor.
const OVERLAY_DESCRIPTORS: (u32, u32) = (6, 13);

/// Asks the host what it can do and what this process may do. Reads a handful of files below /proc, changes nothing.
pub fn host() -> HostFeatures {
    let kernel = kernel();
    let status = read("/proc/self/status");
    let memory = read("/proc/meminfo");
    HostFeatures {
        kernel,
        cgroups: cgroup_layout(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")),
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

/// Which hierarchies are mounted where, and where this process is in each. proc_pid_mountinfo(5), cgroups(7).
fn cgroup_layout(mountinfo: &str, own: &str) -> CgroupLayout {
    let own: BTreeMap<&str, &str> = own
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            Some((controllers, path))
        })
        .collect();
    let path_of = |controllers: &str| (*own.get(controllers).unwrap_or(&"/")).to_owned();
    let mut hierarchies: Vec<V1Hierarchy> = Vec::new();
    let mut unified = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mount_point = left.split(' ').nth(4).unwrap_or_default().replace("\\040", " ");
        let mut right = right.split(' ');
        let (kind, _source, options) = (right.next(), right.next(), right.next().unwrap_or_default());
        match kind {
            Some("cgroup2") if unified.is_none() => unified = Some((mount_point, path_of(""))),
            Some("cgroup") => {
                let words = options.split(',');
                let flags = [
                    "rw",
                    "ro",
                    "xattr",
                    "none",
                    "clone_children",
                    "noprefix",
                    "cpuset_v2_mode",
                    "release_agent",
                ];
                let controllers: Vec<String> = words
                    .filter(|word| !flags.contains(&word.split('=').next().unwrap_or(word)))
                    .map(String::from)
                    .collect();
                if controllers.is_empty() || hierarchies.iter().any(|h| h.controllers == controllers) {
                    continue;
                }
                let own_path = path_of(&controllers.join(","));
                hierarchies.push(V1Hierarchy { controllers, mount_point, own_path });
            }
            _ => {}
        }
    }
    match (hierarchies.is_empty(), unified) {
        (true, Some((mount_point, own_path))) => {
            let controllers = read(&format!("{mount_point}/cgroup.controllers"));
            CgroupLayout::V2 {
                controllers: controllers.split_whitespace().map(String::from).collect(),
                mount_point,
                own_path,
            }
        }
        (true, None) => CgroupLayout::None,
        (false, unified) => CgroupLayout::V1 { hierarchies, unified },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_is_recognised() {
        let mountinfo = "30 29 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                         31 29 0:27 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
                         32 29 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let CgroupLayout::V1 { hierarchies, unified } =
            cgroup_layout(mountinfo, "2:cpu:/a\n1:name=systemd:/\n0::/b\n")
        else {
            panic!("not v1");
        };
        assert_eq!(hierarchies[0].controllers, ["cpu"]);
        assert_eq!(hierarchies[0].own_path, "/a");
        assert_eq!(hierarchies[1].controllers, ["name=systemd"]);
        assert_eq!(unified, Some(("/sys/fs/cgroup/unified".into(), "/b".into())));
    }

    #[test]
    fn a_pure_v2_host_is_recognised() {
        let mountinfo = "30 29 0:26 / /nowhere rw - cgroup2 cgroup2 rw\n";
        assert!(cgroup_layout(mountinfo, "0::/\n").is_v2());
        assert_eq!(cgroup_layout("", ""), CgroupLayout::None);
    }

    #[test]
    fn this_host_can_be_probed() {
        let host = host();
        assert!(host.kernel > (3, 0));
        assert!(host.memory_bytes > 0);
    }
}
