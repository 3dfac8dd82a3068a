//! HOME, from the container's own list of users. passwd(5). Everything here is *child-safe*.

use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_linux::process::Vector;
use cofferdam_linux::rootfs::Rootfs;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open};
use rustix::io::{Errno, read};

/// How much of the file is looked at, in bytes: what a container has in the place of the file may have no end.
const PASSWD_MAX_BYTES: usize = 1 << 20;
/// Longest home directory, in bytes.
const HOME_MAX_BYTES: usize = 4096;
/// Longest line that is understood, in bytes; a longer one is passed over.
const LINE_MAX_BYTES: usize = 8192;

/// Fills in `HOME` of the user `uid`; `/` where the container does not say.
pub(super) fn fill(environment: &mut Vector, uid: u32) -> Result<(), Errno> {
    let mut home = [0; HOME_MAX_BYTES];
    match look_up(uid, &mut home) {
        Ok(length) if length > 0 => environment.fill(&[b"HOME=", &home[..length]]),
        _ => environment.fill(&[b"HOME=/"]),
    }
}

fn look_up(uid: u32, home: &mut [u8; HOME_MAX_BYTES]) -> Result<usize, Errno> {
    let root = open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Not blocking: it may be a FIFO, which is found out by looking at what was opened.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = Rootfs::new(root.as_fd()).open(c"/etc/passwd", flags, ResolveFlags::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    search(file.as_fd(), uid, home)
}

/// The length of the home directory of `uid`, 0 when it is not listed.
fn search(file: BorrowedFd<'_>, uid: u32, home: &mut [u8; HOME_MAX_BYTES]) -> Result<usize, Errno> {
    let mut buffer = [0; LINE_MAX_BYTES];
    let (mut filled, mut total, mut skipping) = (0, 0, false);
    while total < PASSWD_MAX_BYTES {
        let count = match read(file, &mut buffer[filled..]) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        total += count;
        filled += count;
        let mut start = 0;
        while let Some(end) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            let line = &buffer[start..start + end];
            start += end + 1;
            if !std::mem::take(&mut skipping)
                && let Some(length) = home_in(line, uid, home)
            {
                return Ok(length);
            }
        }
        if count == 0 {
            let last = home_in(&buffer[..filled], uid, home).filter(|_| !skipping);
            return Ok(last.unwrap_or(0));
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == buffer.len() {
            (filled, skipping) = (0, true);
        }
    }
    Ok(0)
}

/// `name:password:uid:gid:comment:home:shell`
fn home_in(line: &[u8], uid: u32, home: &mut [u8; HOME_MAX_BYTES]) -> Option<usize> {
    let mut fields = line.split(|byte| *byte == b':');
    let number = std::str::from_utf8(fields.nth(2)?).ok()?;
    if number.parse() != Ok(uid) {
        return None;
    }
    let found = fields.nth(2)?;
    if found.contains(&0) {
        return None;
    }
    home.get_mut(..found.len())?.copy_from_slice(found);
    Some(found.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};

    fn home(text: &str, uid: u32) -> String {
        let file = memfd_create("passwd", MemfdFlags::CLOEXEC).unwrap();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&file, rest).unwrap()..];
        }
        seek(&file, SeekFrom::Start(0)).unwrap();
        let mut home = [0; HOME_MAX_BYTES];
        let length = search(file.as_fd(), uid, &mut home).unwrap();
        String::from_utf8(home[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_home_of_a_user_is_found_by_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbad line\nu:x:1000:1000::/home/u:/bin/sh\nlast:x:7:7::/l:";
        for (uid, expected) in [(0, "/root"), (1000, "/home/u"), (7, "/l"), (1, "")] {
            assert_eq!(home(passwd, uid), expected, "{uid}");
        }
    }

    #[test]
    fn lines_may_lie_across_reads_and_be_too_long() {
        let filler = "x:x:2:2::/x:\n".repeat(3000);
        assert_eq!(home(&format!("{filler}u:x:9:9::/home/u:"), 9), "/home/u");
        let long = "y".repeat(LINE_MAX_BYTES * 2);
        assert_eq!(home(&format!("{long}\nu:x:9:9::/home/u:\n"), 9), "/home/u");
        assert_eq!(home(&format!("a:x:9:9:{long}:/a:\n"), 9), "", "a line beyond the limit is no answer");
        let endless = "z:x:3:3::/z:\n".repeat(PASSWD_MAX_BYTES / 8);
        assert_eq!(home(&format!("{endless}u:x:9:9::/home/u:\n"), 9), "");
    }
}
