//! What `/proc` says to a process about itself. Everything is read once, before anything is tried.

use std::collections::BTreeMap;
use std::fs;

/// The raw findings. A file that cannot be read is an empty text here: for the judge, "hidden" and "absent" are the same.
pub(crate) struct Facts {
    /// `/proc/self/status`.
    pub status: String,
    /// `/proc/self/mountinfo`.
    pub mounts: String,
    /// `/proc/self/cgroup`.
    pub cgroup: String,
    /// `/proc/self/uid_map`.
    pub uid_map: String,
    /// `/proc/net/dev`.
    pub interfaces: String,
    /// `/proc/net/fib_trie`.
    pub routes: String,
    pub hostname: String,
    pub pid: u32,
    /// Process ids in `/proc`.
    pub visible_processes: usize,
    /// Own namespaces: kind to inode number.
    pub namespaces: BTreeMap<String, u64>,
    /// The host's namespaces, as whoever started this task wrote them down.
    pub host_namespaces: BTreeMap<String, u64>,
    /// Open descriptors and what they are, without the three standard ones.
    pub descriptors: Vec<String>,
    /// Names in `/dev`.
    pub devices: Vec<String>,
}

impl Facts {
    /// Reads them.
    pub(crate) fn gather() -> Facts {
        Facts {
            // First, before anything of our own is open.
            descriptors: extra_descriptors(),
            status: text("/proc/self/status"),
            mounts: text("/proc/self/mountinfo"),
            cgroup: text("/proc/self/cgroup"),
            uid_map: text("/proc/self/uid_map"),
            interfaces: text("/proc/net/dev"),
            routes: text("/proc/net/fib_trie"),
            hostname: text("/proc/sys/kernel/hostname").trim().to_owned(),
            pid: std::process::id(),
            visible_processes: names("/proc").iter().filter(|name| name.parse::<u32>().is_ok()).count(),
            namespaces: own_namespaces(),
            host_namespaces: parse_namespaces(&std::env::var("COFFERDAM_HOST_NS").unwrap_or_default()),
            devices: names("/dev"),
        }
    }

    /// A line of `/proc/self/status`.
    pub(crate) fn status_of(&self, name: &str) -> Option<&str> {
        self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    /// A set of bits in `/proc/self/status`.
    pub(crate) fn status_bits(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.status_of(name)?, 16).ok()
    }

    /// The file system type and the options of what is mounted at `path`, the uppermost if several are.
    pub(crate) fn mount_at(&self, path: &str) -> Option<Mount<'_>> {
        self.mounts.lines().filter_map(Mount::parse).rfind(|mount| mount.path == path)
    }

    /// How many mounts there are, and how many of them are read-only.
    pub(crate) fn mount_counts(&self) -> (usize, usize) {
        let mounts: Vec<Mount<'_>> = self.mounts.lines().filter_map(Mount::parse).collect();
        (mounts.len(), mounts.iter().filter(|mount| mount.is_read_only()).count())
    }

    /// Names of network interfaces.
    pub(crate) fn interface_names(&self) -> Vec<&str> {
        self.interfaces.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim())).collect()
    }

    /// IPv4 addresses of this network namespace other than the loopback's.
    pub(crate) fn addresses(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        let mut last = "";
        for line in self.routes.lines().map(str::trim) {
            if let Some(address) = line.strip_prefix("|-- ") {
                last = address;
            } else if line.contains("/32 host LOCAL") && !last.starts_with("127.") && !found.contains(&last) {
                found.push(last);
            }
        }
        found
    }
}

/// A line of mountinfo: proc_pid_mountinfo(5).
pub(crate) struct Mount<'a> {
    pub path: &'a str,
    pub kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Mount<'a>> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(4);
        Some(Mount { path: front.next()?, options: front.next()?, kind: back.split(' ').next()? })
    }

    /// Whether this mount, whatever its file system says, refuses writes.
    pub(crate) fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| option == "ro")
    }
}

fn text(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn names(path: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn extra_descriptors() -> Vec<String> {
    let mut found = Vec::new();
    for number in names("/proc/self/fd") {
        // The listing's own descriptor is in the list, and gone by now.
        if let Ok(target) = fs::read_link(format!("/proc/self/fd/{number}"))
            && !["0", "1", "2"].contains(&number.as_str())
        {
            found.push(format!("{number} → {}", target.display()));
        }
    }
    found
}

fn own_namespaces() -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        if let Ok(link) = fs::read_link(format!("/proc/self/ns/{kind}"))
            && let Some(inode) = parse_namespace_link(&link.to_string_lossy())
        {
            found.insert(kind.to_owned(), inode);
        }
    }
    found
}

/// The number in `pid:[4026531836]`.
fn parse_namespace_link(link: &str) -> Option<u64> {
    link.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// `pid:4026531836,net:4026531840`.
fn parse_namespaces(list: &str) -> BTreeMap<String, u64> {
    list.split(',')
        .filter_map(|entry| {
            let (kind, inode) = entry.split_once(':')?;
            Some((kind.to_owned(), inode.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_namespaces_is_read_and_rubbish_in_it_left_out() {
        let read = parse_namespaces("pid:4026531836,net:x,,uts:7");
        assert_eq!(
            read.into_iter().collect::<Vec<_>>(),
            [("pid".to_owned(), 4_026_531_836), ("uts".to_owned(), 7)]
        );
    }

    #[test]
    fn a_mount_is_read_with_and_without_optional_fields() {
        let plain = Mount::parse("22 1 0:20 / /proc rw,nosuid - proc proc rw").expect("a mount");
        assert_eq!((plain.path, plain.kind, plain.is_read_only()), ("/proc", "proc", false));
        let shared =
            Mount::parse("23 1 0:21 / /sys ro,nosuid shared:7 master:1 - sysfs sysfs rw").expect("a mount");
        assert_eq!((shared.path, shared.kind, shared.is_read_only()), ("/sys", "sysfs", true));
        assert!(Mount::parse("nonsense").is_none());
    }

    #[test]
    fn local_addresses_are_found_once_and_without_the_loopback() {
        let facts = Facts {
            routes: "Main:\n  |-- 10.88.0.0\n     /16 link UNICAST\n  |-- 10.88.0.5\n     /32 host LOCAL\nLocal:\n  |-- 10.88.0.5\n     /32 host LOCAL\n  |-- 127.0.0.1\n     /32 host LOCAL\n".to_owned(),
            ..Facts::gather()
        };
        assert_eq!(facts.addresses(), ["10.88.0.5"]);
    }
}
