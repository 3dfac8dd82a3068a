//! A limit of what a snapshot's writable layer may hold.
//!
//! Three ways, in this order: a project quota of the store's file system, a quota group of btrfs, a file system of fixed size
//! in a file, under overlayfs by way of a loop device. The first is looked for and not used yet. The second needs a btrfs that
//! keeps count (`btrfs quota enable`): the writable layer is a subvolume then, which can hold what its group may. The last
//! needs nothing of the file system; its file is sparse: it takes what is written, at most its size.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam_linux::quota;
use cofferdam_linux::text::read_text;
use rustix::io::Errno;

use crate::error::Error;

/// The smallest writable layer, in bytes: below it, ext4's own structures leave no room.
pub const SMALLEST_BYTES: u64 = 4 << 20;
/// Where mkfs.ext4 is looked for: not in the caller's PATH, which may be anybody's.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
const PROGRAM: &str = "mkfs.ext4";
/// statfs(2)'s number of btrfs.
const BTRFS: i64 = 0x9123_683e;

/// One way of limiting a writable layer, and whether a store in that folder could have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaCheck {
    /// Its name.
    pub name: &'static str,
    /// What was found, or what is missing. The first that was found is the one that is used.
    pub found: Result<String, String>,
}

/// How a writable layer is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is a subvolume with a quota group.
    Subvolume,
    /// It is a file system of fixed size in a file.
    Disk,
}

/// Looks for all three, in order of preference.
pub fn probe(folder: &Path) -> [QuotaCheck; 3] {
    [
        QuotaCheck { name: "project quota", found: project(folder) },
        QuotaCheck { name: "btrfs quota group", found: btrfs(folder) },
        QuotaCheck { name: "file system in a file", found: disk() },
    ]
}

/// The way that a store in `folder` limits a writable layer to so many bytes.
pub(crate) fn choose(folder: &Path, bytes: u64) -> Result<Way, Error> {
    if bytes < SMALLEST_BYTES {
        let reason = format!("at least {SMALLEST_BYTES} bytes are needed");
        return Err(Error::QuotaUnavailable { bytes, reason });
    }
    first_of(&probe(folder)).map_err(|reason| Error::QuotaUnavailable { bytes, reason })
}

fn first_of([project, btrfs, disk]: &[QuotaCheck; 3]) -> Result<Way, String> {
    match (&btrfs.found, &disk.found) {
        (Ok(_), _) => Ok(Way::Subvolume),
        (_, Ok(_)) => Ok(Way::Disk),
        _ => {
            let refused = [project, btrfs, disk].map(|check| {
                format!("no {}: {}", check.name, check.found.as_ref().err().map_or("", String::as_str))
            });
            Err(refused.join("; "))
        }
    }
}

fn project(folder: &Path) -> Result<String, String> {
    let mounts = read_text("/proc/self/mountinfo").unwrap_or_default();
    let kind = file_system(folder, &mounts).ok_or("its mount is not listed")?;
    let place = File::open(folder).map_err(|error| error.to_string())?;
    Err(match quota::has_projects(place.as_fd()) {
        Ok(()) => format!("{kind} has it, but it is not used yet"),
        Err(Errno::SRCH) => format!("{kind} is not mounted with prjquota"),
        Err(Errno::NOSYS) => format!("the kernel has none for {kind}"),
        Err(errno) => format!("{kind}: {errno}"),
    })
}

/// Type of the file system that a folder is on: of the mounts above it the longest, the last of those.
fn file_system(folder: &Path, mounts: &str) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        let kind = system.split(' ').next()?;
        folder.starts_with(point).then(|| (point.len(), kind.to_owned()))
    });
    mounts.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

fn btrfs(folder: &Path) -> Result<String, String> {
    match rustix::fs::statfs(folder) {
        Ok(stat) if stat.f_type == BTRFS => {}
        Ok(_) => return Err("the store is not on btrfs".to_owned()),
        Err(errno) => return Err(errno.to_string()),
    }
    let place = File::open(folder).map_err(|error| error.to_string())?;
    match quota::has_groups(place.as_fd()) {
        Ok(true) => Ok("a subvolume for each, limited by its group".to_owned()),
        Ok(false) => {
            let folder = folder.display();
            Err(format!("this btrfs keeps no count; `btrfs quota enable {folder}` makes it"))
        }
        Err(errno) => Err(format!("this btrfs does not say whether it keeps count: {errno}")),
    }
}

/// Makes the subvolume `folder`, which holds at most `bytes`.
pub(crate) fn make_subvolume(folder: &Path, bytes: u64) -> Result<(), Error> {
    let failed = |operation| Error::io(operation, folder);
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name().and_then(|name| name.to_str()))
    else {
        return Err(failed("name the subvolume")(Errno::INVAL));
    };
    let parent = File::open(parent).map_err(Error::io("open", parent))?;
    quota::create_subvolume(parent.as_fd(), name).map_err(failed("make the subvolume"))?;
    let made = File::open(folder).map_err(Error::io("open", folder))?;
    quota::limit_subvolume(made.as_fd(), bytes).map_err(failed("limit the subvolume"))
}

fn disk() -> Result<String, String> {
    let program = program().ok_or_else(|| format!("{PROGRAM} is not installed (e2fsprogs)"))?;
    if !Path::new("/dev/loop-control").exists() {
        return Err("the kernel has no loop devices (/dev/loop-control)".to_owned());
    }
    Ok(format!("ext4 by {}, on a loop device", program.display()))
}

fn program() -> Option<PathBuf> {
    PROGRAM_FOLDERS.iter().map(|folder| Path::new(folder).join(PROGRAM)).find(|path| path.is_file())
}

/// Makes a file system of `bytes` in the new file `disk`, with what the folder `contents` holds.
///
/// It has no journal: a task does not survive a loss of power, and neither does its writable layer.
pub(crate) fn make_disk(disk: &Path, bytes: u64, contents: &Path) -> Result<(), Error> {
    let refused = |reason: String| Error::QuotaUnavailable { bytes, reason };
    let program = program().ok_or_else(|| refused(format!("{PROGRAM} vanished")))?;
    let file = File::options().write(true).create_new(true).open(disk).map_err(Error::io("create", disk))?;
    file.set_len(bytes).map_err(Error::io("set the size of", disk))?;
    let output = Command::new(&program)
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-d"])
        .args([contents, disk])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(Error::io("run", &program))?;
    if output.status.success() {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&output.stderr).chars().take(400).collect();
    Err(refused(format!("{}: {}", program.display(), words.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_a_folder_is_on_is_the_nearest_one() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw,prjquota\n2 1 8:2 / /proc rw - proc proc rw\n";
        assert_eq!(file_system(Path::new("/usr"), mounts).unwrap(), "ext4");
        assert_eq!(file_system(Path::new("/proc/self"), mounts).unwrap(), "proc");
    }

    #[test]
    fn a77_a_project_quota_is_refused_by_name_as_the_kernel_says() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for folder in ["/proc", "/var/tmp"] {
            let [project, ..] = probe(Path::new(folder));
            let kind = file_system(Path::new(folder), &mounts).unwrap();
            assert_eq!(project.name, "project quota");
            let refused = project.found.unwrap_err();
            assert!(refused.contains(&kind), "{folder}: {refused}");
        }
    }

    #[test]
    fn a77_the_first_way_that_there_is_is_taken_and_without_any_each_is_refused_by_name() {
        let check = |name, found: bool| {
            let found = if found { Ok(String::new()) } else { Err(format!("{name} is away")) };
            QuotaCheck { name, found }
        };
        let checks =
            |btrfs, disk| [check("project quota", false), check("btrfs", btrfs), check("disk", disk)];
        assert_eq!(first_of(&checks(true, true)), Ok(Way::Subvolume));
        assert_eq!(first_of(&checks(false, true)), Ok(Way::Disk));
        let refused = first_of(&checks(false, false)).unwrap_err();
        for name in ["project quota is away", "btrfs is away", "disk is away"] {
            assert!(refused.contains(name), "{refused}");
        }
        assert!(matches!(
            choose(Path::new("/var/tmp"), SMALLEST_BYTES - 1),
            Err(Error::QuotaUnavailable { .. })
        ));
    }
}
