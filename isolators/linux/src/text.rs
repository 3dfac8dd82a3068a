//! Reading what the kernel tells as text, below `/proc` and `/sys`.

use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read};

/// What one read asks for, in bytes: nearly every such file fits.
const PAGE_BYTES: usize = 4096;

/// Reads a whole file. As [`std::fs::read_to_string`], which asks such a file for its size, is told zero, and goes on in small
/// steps: for each the kernel writes its text anew, or walks its lists from the start.
///
/// Bytes that are no text are replaced: names of processes and of mount points are whoever's who gave them, and a whole
/// list must not be lost for one of them.
///
/// # Errors
/// The kernel's answer.
pub fn read_text(path: &str) -> io::Result<String> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::with_capacity(PAGE_BYTES);
    loop {
        bytes.reserve(PAGE_BYTES);
        match read(&file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_whole_however_long_it_is() {
        for path in ["/proc/self/status", "/proc/kallsyms", "/sys/devices/system/cpu/online"] {
            let (ours, std) = (read_text(path).unwrap(), std::fs::read_to_string(path).unwrap());
            assert_eq!(ours.lines().count(), std.lines().count(), "{path}");
        }
        let name = std::thread::Builder::new().spawn(|| {
            rustix::thread::set_name(c"caf\xe9").unwrap();
            read_text("/proc/thread-self/stat").unwrap()
        });
        let stat = name.unwrap().join().unwrap();
        assert!(stat.contains("(caf\u{fffd}) R"), "a name that is no text: {stat}");
        assert_eq!(read_text("/proc/nothing").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
