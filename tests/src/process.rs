//! Processes that descend from this one, and what they hold.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustix::process::{Pid, Signal};

/// One process as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// Its short name (`comm`).
    pub name: String,
    /// The state letter of proc(5): `Z` has ended and was not waited for.
    pub state: char,
}

/// Makes this process the parent of every descendant whose own parent ends, so that none escapes the census.
///
/// A program that detaches itself would otherwise become a child of pid 1, where nothing tells it from a stranger.
pub fn adopt_orphans() -> std::io::Result<()> {
    // The value only has to be there: the attribute is a switch.
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// All descendants of this process, children first.
pub fn descendants() -> Vec<Process> {
    let mut by_parent: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for process in all() {
        by_parent.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut parents = vec![rustix::process::getpid().as_raw_nonzero().get()];
    while let Some(parent) = parents.pop() {
        for child in by_parent.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Kills every descendant and waits for those that are children. For cleaning up after a test that failed.
pub fn end_descendants() {
    // A process killed may have made another just before: look again until none is left, within reason.
    for _ in 0..20 {
        let living: Vec<_> = descendants().into_iter().filter(|process| process.state != 'Z').collect();
        if living.is_empty() {
            break;
        }
        for process in living {
            if let Some(pid) = Pid::from_raw(process.pid) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    reap();
}

/// Waits for the children that have ended. Only when no `std::process::Child` is still to be waited for.
pub fn reap() {
    for process in descendants().into_iter().filter(|process| process.state == 'Z') {
        if let Some(pid) = Pid::from_raw(process.pid) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
    }
}

/// Resident memory of a process in KiB, from `/proc/PID/status`.
pub fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| read(&entry.path())).collect()
}

/// Reads `/proc/PID/stat`: the name is between the first and the last parenthesis and may hold anything.
fn read(folder: &std::path::Path) -> Option<Process> {
    let pid = folder.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    let (before, rest) = stat.split_once('(')?;
    let (name, after) = rest.rsplit_once(')')?;
    debug_assert!(before.trim() == folder.file_name()?.to_str()?);
    let mut fields = after.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Process { pid, parent, name: name.to_owned(), state })
}

/// The network namespace of a process, as the kernel names it: `net:[4026531840]`.
pub fn network_namespace(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_among_the_descendants() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let found = descendants();
        child.kill().unwrap();
        child.wait().unwrap();
        let found = found.iter().find(|process| process.pid == child.id() as i32).unwrap();
        assert_eq!(found.parent, std::process::id() as i32);
        assert!(descendants().iter().all(|process| process.pid != child.id() as i32));
    }

    #[test]
    fn resident_memory_is_read() {
        assert!(resident_kib(std::process::id()).unwrap() > 100);
    }
}
