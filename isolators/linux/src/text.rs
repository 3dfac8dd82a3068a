//! Reading what the kernel tells as text, below `/proc` and `/sys`.

use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read};

/// What one read asks for, in bytes: nearly every such file fits.
const PAGE_BYTES: usize = 4096;

/// Reads a whole file. As [`std::fs::read_to_string`], which asks such a file for its size, is told zero, and goes on in small
/// steps: for each the kernel writes its text anew, or walks its lists from the start.
///
/// # Errors
/// The kernel's answer; `InvalidData` for what is not UTF-8.
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
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
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
        assert_eq!(read_text("/proc/nothing").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
