//! Options of a task's root file system, as `--storage-opt` takes them.

use std::path::Path;

use super::Refusal;
use super::size::parse_bytes;

/// Where file systems say that they seal files by fs-verity.
const VERITY: [&str; 2] = ["/sys/fs/ext4/features/verity", "/sys/fs/btrfs/features/verity"];

/// Reads `size=BYTES`, what a task may write to its root file system. `integrity=require`, layers that the kernel checks
/// whenever they are read, is refused for a reason.
pub fn parse(text: &str) -> Result<u64, Refusal> {
    let refuse = |problem: &str| Err(Refusal::new("storage option", text, problem));
    match text.split_once('=') {
        Some(("size", size)) => match parse_bytes(size)? {
            bytes if bytes < cofferdam_image::SMALLEST_WRITABLE_BYTES => {
                refuse("a writable layer has at least 4m")
            }
            bytes => Ok(bytes),
        },
        Some(("integrity", "require")) if VERITY.iter().any(|path| Path::new(path).exists()) => {
            refuse("layers are not sealed with fs-verity yet: leave the option out")
        }
        Some(("integrity", "require")) => {
            refuse("this kernel has no fs-verity (CONFIG_FS_VERITY): leave the option out")
        }
        _ => refuse("known are size=BYTES and integrity=require"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a76_integrity_that_cannot_be_had_is_refused_by_name() {
        let error = parse("integrity=require").unwrap_err().to_string();
        assert!(error.contains("fs-verity"), "{error}");
    }

    #[test]
    fn sizes_are_read_and_everything_else_is_refused() {
        assert_eq!(parse("size=64m"), Ok(64 << 20));
        for text in ["size=", "size=1m", "size=x", "size", "inodes=5", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
