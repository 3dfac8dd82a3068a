//! A limit of what a snapshot's writable layer may hold.
//!
//! Three ways, in this order: a project quota of the store's file system, a quota group of btrfs, a file system of fixed size
//! in a file, under overlayfs by way of a loop device. The last needs nothing of the file system and is the one that is
//! used; the others are looked for and reported. Its file is sparse: it takes what is written, at most its size.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    /// What was found, or what is missing.
    pub found: Result<String, String>,
}

/// Looks for all three, in order of preference.
pub fn probe(folder: &Path) -> [QuotaCheck; 3] {
    [
        QuotaCheck { name: "project quota", found: project(folder) },
        QuotaCheck { name: "btrfs quota group", found: btrfs(folder) },
        QuotaCheck { name: "file system in a file", found: disk() },
    ]
}

fn project(folder: &Path) -> Result<String, String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (kind, options) = file_system(folder, &mounts).ok_or("its mount is not listed")?;
    match (kind.as_str(), options.split(',').any(|option| matches!(option, "prjquota" | "pquota"))) {
        ("xfs" | "ext4" | "f2fs", true) => Ok(format!("{kind} has it, but it is not used yet")),
        ("xfs" | "ext4" | "f2fs", false) => Err(format!("{kind} is not mounted with prjquota")),
        _ => Err(format!("{kind} has none")),
    }
}

/// Type and options of the file system that a folder is on: of the mounts above it the longest, the last of those.
fn file_system(folder: &Path, mounts: &str) -> Option<(String, String)> {
    let folder = folder.canonicalize().ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        folder.starts_with(point).then(|| (point.len(), kind.to_owned(), options.to_owned()))
    });
    mounts.max_by_key(|(length, ..)| *length).map(|(_, kind, options)| (kind, options))
}

fn btrfs(folder: &Path) -> Result<String, String> {
    match rustix::fs::statfs(folder) {
        Ok(stat) if stat.f_type == BTRFS => Ok("btrfs, but it is not used yet".to_owned()),
        Ok(_) => Err("the store is not on btrfs".to_owned()),
        Err(errno) => Err(errno.to_string()),
    }
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
    if bytes < SMALLEST_BYTES {
        return Err(refused(format!("at least {SMALLEST_BYTES} bytes are needed")));
    }
    self::disk().map_err(refused)?;
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
        let (kind, options) = file_system(Path::new("/usr"), mounts).unwrap();
        assert_eq!((kind.as_str(), options.as_str()), ("ext4", "rw,prjquota"));
        assert_eq!(file_system(Path::new("/proc/self"), mounts).unwrap().0, "proc");
    }
}
