//! The floor's cgroups: one in every hierarchy that the host has, with the default device rules.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// The host's hierarchies.
#[derive(Clone, Debug)]
pub(super) enum World {
    V1(Vec<Hierarchy>),
    V2(PathBuf),
}

/// A v1 hierarchy: the option that mounts it, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    pub(super) option: String,
    pub(super) name: String,
    mount_point: PathBuf,
}

/// A launch's cgroups.
pub(super) struct Cgroup {
    directories: Vec<PathBuf>,
    /// On v2: the child is cloned straight into it.
    directory: Option<OwnedFd>,
    /// On v1: the child moves itself in through these.
    doors: Vec<OwnedFd>,
}

/// How often a cgroup of others is tried to be removed, and how long apart: together a second.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// What every runtime lets through: nodes may be made, and these may be used.
const DEVICES: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

impl World {
    pub(super) fn probe() -> Result<World> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
        let mut hierarchies = Vec::new();
        let mut unified = None;
        for (mount_point, kind, options) in mounts.lines().filter_map(parse) {
            match kind {
                "cgroup" => hierarchies.push(hierarchy(mount_point, options)),
                "cgroup2" => unified = Some(PathBuf::from(mount_point)),
                _ => {}
            }
        }
        if hierarchies.is_empty() {
            return Ok(World::V2(unified.context("no cgroup file system is mounted")?));
        }
        Ok(World::V1(hierarchies))
    }

    /// Makes the cgroups and gives them their limits, which for this bundle are device rules only.
    ///
    /// On v2 those would be an eBPF program; the floor leaves it out, to its own advantage.
    pub(super) fn create(&self, name: &str) -> Result<Cgroup> {
        match self {
            World::V2(mount_point) => {
                let directory = mount_point.join(name);
                fs::create_dir(&directory)?;
                let handle = super::handle(&directory)?;
                Ok(Cgroup { directories: vec![directory], directory: Some(handle), doors: Vec::new() })
            }
            World::V1(hierarchies) => {
                let mut directories = Vec::with_capacity(hierarchies.len());
                let mut doors = Vec::with_capacity(hierarchies.len());
                for hierarchy in hierarchies {
                    let directory = hierarchy.create(name)?;
                    doors.push(fs::OpenOptions::new().write(true).open(directory.join("tasks"))?.into());
                    directories.push(directory);
                }
                Ok(Cgroup { directories, directory: None, doors })
            }
        }
    }
}

/// Removes the cgroup of this name, and those in it, from every hierarchy; best effort, for what others leave behind.
pub(crate) fn remove_everywhere(name: &str) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount_points = mounts.lines().filter_map(parse).filter(|(_, kind, _)| kind.starts_with("cgroup"));
    for (mount_point, ..) in mount_points {
        let directory = Path::new(mount_point).join(name);
        // Whoever left it may have processes that are just ending.
        for _ in 0..REMOVE_TRIES {
            remove_with_children(&directory);
            if !directory.exists() {
                break;
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
    }
}

fn remove_with_children(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_with_children(&entry.path());
        }
    }
    drop(fs::remove_dir(directory));
}

impl Hierarchy {
    fn create(&self, name: &str) -> Result<PathBuf> {
        let directory = self.mount_point.join(name);
        fs::create_dir(&directory)?;
        match self.name.as_str() {
            // A cpuset without CPUs and memory nodes takes no process.
            "cpuset" => {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    write(&directory, file, &fs::read_to_string(self.mount_point.join(file))?)?;
                }
            }
            "devices" => {
                write(&directory, "devices.deny", "a")?;
                for rule in DEVICES {
                    write(&directory, "devices.allow", rule)?;
                }
            }
            _ => {}
        }
        Ok(directory)
    }
}

impl Cgroup {
    pub(super) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn doors(&self) -> &[OwnedFd] {
        &self.doors
    }

    pub(super) fn remove(&self) -> Result<()> {
        for directory in &self.directories {
            match fs::remove_dir(directory) {
                // Whoever sweeps empty cgroups of this name meanwhile was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other.with_context(|| format!("removing {}", directory.display()))?,
            }
        }
        Ok(())
    }
}

fn write(directory: &Path, file: &str, value: &str) -> Result<()> {
    let path = directory.join(file);
    fs::write(&path, value.trim_end()).with_context(|| format!("writing {value:?} to {}", path.display()))
}

/// Mount point, file system type and super options of a line of mountinfo.
fn parse(line: &str) -> Option<(&str, &str, &str)> {
    let (front, back) = line.split_once(" - ")?;
    let mut back = back.split(' ');
    Some((front.split(' ').nth(4)?, back.next()?, back.nth(1)?))
}

fn hierarchy(mount_point: &str, options: &str) -> Hierarchy {
    let wanted: Vec<&str> = options.split(',').filter(|option| !matches!(*option, "rw" | "ro")).collect();
    let name = mount_point.rsplit('/').next().unwrap_or_default().to_owned();
    Hierarchy { option: wanted.join(","), name, mount_point: PathBuf::from(mount_point) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_mounted_again_by_its_own_options() {
        let line = "30 20 0:25 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd";
        let (mount_point, kind, options) = parse(line).expect("a mount");
        let hierarchy = hierarchy(mount_point, options);
        assert_eq!(
            (kind, hierarchy.name.as_str(), hierarchy.option.as_str()),
            ("cgroup", "systemd", "name=systemd")
        );
    }
}
