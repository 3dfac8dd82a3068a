//! The host's own procfs and sysfs under a root that was moved into its place, which pivoting would have left behind. Nothing
//! leads to them, but a new instance may be mounted in a user namespace wherever an old one is in full view, and then all
//! that is masked and read-only in the container's could be had anew (mount_namespaces(7)). Everything here is *child-safe*.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::{Errno, read};
use rustix::mount::{UnmountFlags, unmount};

/// Longest line of the list of mounts that is understood, in bytes: a path and a few words; a longer one is passed over.
const LINE_MAX_BYTES: usize = 8192;

/// Kinds of file systems that the kernel holds back while they are covered.
const KINDS: [&[u8]; 2] = [b"proc", b"sysfs"];

/// Longest path, in bytes.
const PATH_MAX_BYTES: usize = 4096;

/// Detaches them all, but for those in the tree of `root`, where that tree is attached somewhere. What a user namespace may
/// not detach is locked to what covers it there, and stays.
pub(super) fn detach(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let own = statx(root, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    let mut at = [0; PATH_MAX_BYTES];
    let mut length = 0;
    each(|mount| {
        let path = mount.path.to_bytes();
        if mount.id == own && path.len() < PATH_MAX_BYTES {
            at[..path.len()].copy_from_slice(path);
            length = path.len();
        }
    })?;
    let at = &at[..length];
    let inside = |path: &[u8]| {
        !at.is_empty() && path.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    };
    each(|mount| {
        if KINDS.contains(&mount.kind) && !inside(mount.path.to_bytes()) {
            let _ = unmount(mount.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    })
}

/// A mount, as mountinfo says it.
#[derive(Debug, PartialEq)]
struct Listed<'a> {
    id: u64,
    path: &'a CStr,
    kind: &'a [u8],
}

/// Looks at every mount of the namespace.
fn each(mut look: impl FnMut(Listed<'_>)) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let list = match open(c"/proc/self/mountinfo", flags, Mode::empty()) {
        // Without a procfs there is none in view here.
        Err(Errno::NOENT) => return Ok(()),
        list => list?,
    };
    let mut buffer = [0; LINE_MAX_BYTES];
    let (mut filled, mut skipping) = (0, false);
    loop {
        let count = match read(&list, &mut buffer[filled..]) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let mut start = 0;
        while let Some(end) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            let line = &mut buffer[start..start + end];
            start += end + 1;
            if !std::mem::take(&mut skipping)
                && let Some(mount) = listed(line)
            {
                look(mount);
            }
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == buffer.len() {
            (filled, skipping) = (0, true);
        }
    }
}

/// A line of mountinfo: `36 35 98:0 / /proc rw - proc proc rw`, proc_pid_mountinfo(5). The path is put straight in the line
/// itself.
fn listed(line: &mut [u8]) -> Option<Listed<'_>> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let start: usize = line.split(|byte| *byte == b' ').take(4).map(|word| word.len() + 1).sum();
    let length = line.get(start..)?.iter().position(|byte| *byte == b' ')?;
    let (head, rest) = line.split_at_mut(start + length + 1);
    let kind = rest.split(|byte| *byte == b' ').skip_while(|word| *word != b"-").nth(1)?;
    let path = head.get_mut(start..)?;
    let (mut from, mut to) = (0, 0);
    while from < length {
        let escaped = match &path[from..] {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        path[to] = escaped.unwrap_or(path[from]);
        from += if escaped.is_some() { 4 } else { 1 };
        to += 1;
    }
    path[to] = 0;
    Some(Listed { id, path: CStr::from_bytes_until_nul(path).ok()?, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_understood() {
        for (line, expected) in [
            ("24 30 0:22 / /proc rw,nosuid shared:14 - proc proc rw", Some((24, "/proc", "proc"))),
            ("25 30 0:23 / /sys ro - sysfs sysfs rw", Some((25, "/sys", "sysfs"))),
            (r"26 30 0:22 / /a\040b\134c rw master:1 - proc none rw", Some((26, r"/a b\c", "proc"))),
            ("28 30 0:22 / /proc", None),
            ("x 30 0:22 / /proc rw - proc proc rw", None),
            ("", None),
        ] {
            let mut bytes = line.as_bytes().to_vec();
            let read = listed(&mut bytes).map(|mount| {
                (mount.id, mount.path.to_str().unwrap(), std::str::from_utf8(mount.kind).unwrap())
            });
            assert_eq!(read, expected, "{line}");
        }
    }
}
