//! The cgroup world and its controllers.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, kernel_text};

const AREA: &str = "cgroups";

/// What limits need, by its name on v2 and on v1, and what is lost without it.
const CONTROLLERS: [(&str, &str, &str); 6] = [
    ("cpu", "cpu", "--cpus and CPU weights are refused"),
    ("memory", "memory", "--memory is refused, out of memory is not told from a kill"),
    ("pids", "pids", "--pids-limit is refused, a fork bomb takes the host"),
    ("cpuset", "cpuset", "--cpuset-cpus is refused"),
    ("io", "blkio", "disk limits are refused"),
    ("hugetlb", "hugetlb", "limits on huge pages are refused"),
];

/// Where cgroups are mounted.
#[derive(Debug, Default)]
struct World {
    /// Controllers of v1 hierarchies.
    v1: Vec<String>,
    v2: Option<PathBuf>,
}

pub(super) fn examine() -> Vec<Check> {
    let mounts = kernel_text("/proc/self/mountinfo").unwrap_or_default();
    let world = World::read(&mounts);
    let v2_controllers = world.v2_controllers();
    let mut checks = vec![world.mode()];
    for controller in CONTROLLERS {
        checks.push(world.controller(&v2_controllers, controller));
    }
    checks.push(world.devices());
    checks.push(world.freezer());
    checks.push(world.kill());
    checks
}

impl World {
    fn read(mounts: &str) -> World {
        let mut world = World::default();
        for line in mounts.lines() {
            let Some((front, back)) = line.split_once(" - ") else { continue };
            let mut back = back.split(' ');
            let (kind, options) = (back.next().unwrap_or_default(), back.nth(1).unwrap_or_default());
            match kind {
                "cgroup" => world.v1.extend(options.split(',').map(str::to_owned)),
                "cgroup2" => world.v2 = front.split(' ').nth(4).map(PathBuf::from),
                _ => {}
            }
        }
        world.v1.retain(|option| {
            !matches!(option.as_str(), "rw" | "ro" | "xattr" | "noprefix" | "clone_children")
        });
        world
    }

    fn v2_controllers(&self) -> Vec<String> {
        let text = self
            .v2
            .as_ref()
            .and_then(|path| kernel_text(path.join("cgroup.controllers")))
            .unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn is_v1(&self) -> bool {
        !self.v1.is_empty()
    }

    fn mode(&self) -> Check {
        const SUBJECT: &str = "mode";
        match (self.is_v1(), &self.v2) {
            (false, Some(path)) => Check::works(AREA, SUBJECT, format!("v2 at {}", path.display())),
            (true, Some(path)) => Check::works(
                AREA,
                SUBJECT,
                format!("hybrid: {} v1 hierarchies, v2 at {}", self.v1.len(), path.display()),
            ),
            (true, None) => Check::works(AREA, SUBJECT, format!("v1: {} hierarchies", self.v1.len())),
            (false, None) => {
                Check::missing(AREA, SUBJECT, "no cgroup file system is mounted", "no task can be limited")
                    .remedy("mount -t cgroup2 none /sys/fs/cgroup")
            }
        }
        .essential()
    }

    fn controller(&self, v2_controllers: &[String], (v2, v1, costs): (&str, &str, &str)) -> Check {
        if self.v1.iter().any(|name| name == v1) {
            return Check::works(AREA, v1, "v1");
        }
        if v2_controllers.iter().any(|name| name == v2) {
            // On a host with v1 limits are written there; a controller that lives on v2 only is out of reach.
            return match self.is_v1() {
                false => Check::works(AREA, v2, "v2"),
                true => Check::degraded(AREA, v2, "on v2, while the others are on v1", costs),
            };
        }
        Check::missing(AREA, v2, "not available", costs).remedy(
            "a kernel with this controller; on v1, mount its hierarchy; see also cgroup_disable= at boot",
        )
    }

    fn devices(&self) -> Check {
        const SUBJECT: &str = "device rules";
        let costs = "only capabilities and missing nodes keep tasks from devices";
        match (self.is_v1(), self.v1.iter().any(|name| name == "devices"), &self.v2) {
            (_, true, _) => Check::works(AREA, SUBJECT, "v1 controller"),
            (false, _, Some(_)) => Check::works(AREA, SUBJECT, "eBPF on v2"),
            _ => Check::missing(AREA, SUBJECT, "no devices hierarchy", costs),
        }
    }

    fn freezer(&self) -> Check {
        const SUBJECT: &str = "pause";
        match (self.v1.iter().any(|name| name == "freezer"), &self.v2) {
            (true, _) => Check::works(AREA, SUBJECT, "v1 freezer"),
            (false, Some(_)) => Check::works(AREA, SUBJECT, "v2 cgroup.freeze"),
            (false, None) => Check::missing(AREA, SUBJECT, "no freezer", "tasks cannot be paused"),
        }
    }

    /// Asks a cgroup, since the root has no such file.
    fn kill(&self) -> Check {
        const SUBJECT: &str = "cgroup.kill";
        let costs = "a task is killed process by process, more slowly and in rounds";
        let Some(mount_point) = &self.v2 else {
            return Check::missing(AREA, SUBJECT, "no v2 hierarchy", costs);
        };
        match Probe::make(mount_point) {
            Ok(probe) if probe.0.join("cgroup.kill").exists() => Check::works(AREA, SUBJECT, "works"),
            Ok(_) => Check::missing(AREA, SUBJECT, "not in this kernel (Linux 5.14)", costs),
            Err(error) => Check::missing(AREA, SUBJECT, format!("cannot make a cgroup: {error}"), costs),
        }
    }
}

/// A cgroup that is removed when dropped.
struct Probe(PathBuf);

impl Probe {
    fn make(mount_point: &Path) -> std::io::Result<Probe> {
        // The thread too: two examinations in one process must not meet.
        let name = format!("cofferdam-doctor-{}", rustix::thread::gettid().as_raw_nonzero());
        let path = mount_point.join(name);
        fs::create_dir(&path).map(|()| Probe(path))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // An empty cgroup that was just made: nothing can keep it.
        drop(fs::remove_dir(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    const HYBRID: &str = "\
31 30 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_is_told_from_a_pure_one() {
        let world = World::read(HYBRID);
        assert!(world.mode().found.starts_with("hybrid: 2 v1"), "{}", world.mode());
        let world = World::read("30 20 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(world.mode().found, "v2 at /sys/fs/cgroup");
        assert_eq!(World::read("").mode().state, State::Missing);
    }

    #[test]
    fn a_controller_on_v2_beside_v1_is_out_of_reach() {
        let world = World::read(HYBRID);
        let check = world.controller(&["hugetlb".to_owned()], CONTROLLERS[5]);
        assert_eq!(check.state, State::Degraded);
        assert_eq!(world.controller(&[], CONTROLLERS[0]).state, State::Works);
        assert_eq!(world.controller(&[], CONTROLLERS[2]).state, State::Missing);
    }
}
