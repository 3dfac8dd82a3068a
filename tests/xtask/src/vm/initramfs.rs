//! The initramfs: busybox, the disk's driver, and a script that switches to the disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::kernel::Kernel;
use super::modules::{DISK, Modules};

const INIT: &str = include_str!("initramfs.sh");
pub(super) const BUSYBOX: &str = "/bin/busybox";

pub(super) fn build(kernel: &Kernel, cache: &Path) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in ["bin", "proc", "sys", "dev", "modules", "disk"] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, INIT.as_bytes());
    archive.add("bin/busybox", 0o100_755, &std::fs::read(BUSYBOX).context("reading busybox-static")?);
    // The script loads them in the order of their names.
    for (index, path) in Modules::find(&kernel.modules)?.in_order(DISK)?.iter().enumerate() {
        archive.add(&format!("modules/{index:02}.ko"), 0o100_644, &std::fs::read(path)?);
    }
    let file = cache.join("initramfs.cpio");
    std::fs::write(&file, archive.finish())?;
    Ok(file)
}

/// A cpio archive in the "new ASCII" format, the one that the kernel unpacks (its `initramfs-buffer-format.rst`).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let fields =
            [self.entries, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"#!");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"07070100000001000081ed"));
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
