//! Temporary files that a phase's tests leave behind.
//!
//! Mounts, cgroups, links and processes are compared by the suites themselves. What no test can see is its own folder: a
//! test that is killed, or that keeps its folder in a static, leaves it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::tally::Tally;

/// Where tests make temporary files.
const FOLDERS: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// How the names of ours begin: as the tempfile crate names them, and as we do. A machine has other tenants.
const PREFIXES: [&str; 2] = [".tmp", "cofferdam-"];

/// Runs a phase and counts its leftovers as one failure, which names them.
pub(crate) fn refuse(run: impl FnOnce() -> anyhow::Result<Tally>) -> anyhow::Result<Tally> {
    let before = temporary(&FOLDERS);
    let mut tally = run()?;
    let left: Vec<PathBuf> = temporary(&FOLDERS).difference(&before).cloned().collect();
    for path in &left {
        println!("  left behind: {}", path.display());
    }
    if !left.is_empty() {
        tally += Tally::FAILED;
    }
    Ok(tally)
}

fn temporary(folders: &[impl AsRef<Path>]) -> BTreeSet<PathBuf> {
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        PREFIXES.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    });
    ours.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tests_name_counts() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".tmpAbCdEf", "cofferdam-world-1", "cofferdam", "another"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = temporary(&[folder.path()]);
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, [".tmpAbCdEf", "cofferdam-world-1"]);
    }
}
