//! Debian's cloud kernel: small, modular, and the one that nodes on clouds run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{command, demand, read, succeeds};

/// Debian's name for its newest cloud kernel; it only depends on the versioned package.
const NEWEST: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// Holds the modules, as a tree of `.ko` files.
    pub(super) modules: PathBuf,
}

/// Unpacks the kernel into the cache, unless it is there.
pub(super) fn fetch(cache: &Path) -> Result<Kernel> {
    let package = newest_package()?;
    let folder = cache.join(&package);
    if !folder.exists() {
        let partial = cache.join("kernel.partial");
        let _ = std::fs::remove_dir_all(&partial);
        std::fs::create_dir_all(&partial)?;
        demand(command("apt-get", "download -q").arg(&package).current_dir(&partial))?;
        let archive = only_entry(&partial, "")?;
        demand(command("dpkg-deb", "--extract").arg(&archive).arg(&partial))?;
        std::fs::remove_file(archive)?;
        std::fs::rename(&partial, &folder)?;
    }
    Ok(Kernel {
        image: only_entry(&folder.join("boot"), "vmlinuz-")?,
        modules: only_entry(&folder.join("lib/modules"), "")?.join("kernel"),
    })
}

fn newest_package() -> Result<String> {
    let ask = || read(command("apt-cache", "depends --important").arg(NEWEST));
    let mut answer = ask().unwrap_or_default();
    if !answer.contains("Depends:") {
        // No package lists yet: this is a fresh machine.
        succeeds(&mut command("apt-get", "update -q"))?;
        answer = ask()?;
    }
    let versioned = answer.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    versioned.map(|rest| format!("linux-image-{rest}")).with_context(|| format!("no kernel behind {NEWEST}"))
}

fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("nothing named {prefix}… in {}", folder.display())
}
