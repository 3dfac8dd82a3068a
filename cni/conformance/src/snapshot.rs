//! What a host or a container holds, as lines that can be compared: links, addresses, routes, rules, qdiscs, nft and
//! iptables rules, files.
//!
//! Links and addresses are asked for by netlink; the rest of programs that administrators use, where they are installed:
//! they are nobody's of this project, and what they print is what a reader of a difference knows.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_linux::namespace::{open_netns, with_netns};
use cofferdam_linux::netlink::Socket;

/// Words at the end of `ip route` lines that come and go by themselves.
const PASSING: [&str; 2] = [" linkdown", " dead"];

/// How the names of the interfaces begin that are made for chained plugins.
pub(crate) const GIVEN: &str = "given";

/// A look at one network namespace and some folders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
    /// Files with their content, for looks after which nothing at all may have changed.
    contents: BTreeMap<PathBuf, Vec<u8>>,
}

impl Snapshot {
    /// Looks at the calling thread's network namespace, and at all files below the folders.
    pub fn take(folders: &[PathBuf]) -> Self {
        let mut lines = network(&["tc", "nft"]);
        let mut contents = BTreeMap::new();
        for folder in folders {
            files(folder, &mut contents);
        }
        // What the tests themselves made for chained plugins comes and goes with its containers.
        lines.retain(|line| !line.contains(GIVEN));
        lines.extend(contents.keys().map(|path| format!("file {}", path.display())));
        Self { lines, contents }
    }

    /// Looks at the network namespace at a path. One that is not there is empty.
    pub fn take_inside(netns: &Path) -> Self {
        let Ok(netns) = open_netns(netns) else { return Self::default() };
        let lines = with_netns(netns.as_fd(), || network(&["tc"])).unwrap_or_default();
        Self { lines, contents: BTreeMap::new() }
    }

    /// What came (`+`) and what went (`-`). The content of files does not count.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let came = later.lines.difference(&self.lines).map(|line| format!("+ {line}"));
        let went = self.lines.difference(&later.lines).map(|line| format!("- {line}"));
        went.chain(came).collect()
    }

    /// The same, with files whose content is another.
    pub(crate) fn all_differences(&self, later: &Self) -> Vec<String> {
        let mut differences = self.differences(later);
        for (path, content) in &self.contents {
            if later.contents.get(path).is_some_and(|other| other != content) {
                differences.push(format!("~ file {}", path.display()));
            }
        }
        differences
    }
}

fn network(tools: &[&str]) -> BTreeSet<String> {
    let mut lines = links().unwrap_or_default();
    for family in ["-4", "-6"] {
        let asked = "route show table all\nrule show\n";
        lines.extend(told("ip", &[family, "-batch", "-"], asked).filter_map(|line| route(family, &line)));
    }
    if tools.contains(&"tc") {
        lines.extend(told("tc", &["qdisc", "show"], "").filter(|line| !line.contains("noqueue")).map(qdisc));
    }
    if tools.contains(&"nft") {
        let mut place = String::new();
        lines.extend(
            told("nft", &["--stateless", "list", "ruleset"], "").filter_map(|l| rule(&l, &mut place)),
        );
        if std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")
            .is_ok_and(|names| !names.is_empty())
        {
            let saved = told("iptables-legacy-save", &[], "").filter(|line| !line.starts_with(['#', ':']));
            lines.extend(saved.map(|line| format!("iptables-legacy {line}")));
        }
    }
    lines
}

fn links() -> Result<BTreeSet<String>, cofferdam_linux::netlink::Error> {
    let mut socket = Socket::route()?;
    let all = socket.links()?;
    let mut lines = BTreeSet::new();
    for link in &all {
        let kind = link.kind.as_deref().unwrap_or("-");
        // A bridge takes the address of one of its ports, unless it was told one.
        let mac = link.mac.filter(|_| kind != "bridge").map(|mac| mac.to_string()).unwrap_or_default();
        let master = all.iter().find(|other| Some(other.index) == link.master).map_or("-", |link| &link.name);
        let state = if link.up { "up" } else { "down" };
        lines.insert(format!("link {} {kind} {state} mtu {} master {master} {mac}", link.name, link.mtu));
        for address in socket.addresses(link.index)? {
            // The kernel gives link-local ones, and takes a while.
            if !address.address.to_string().starts_with("fe80:") {
                lines.insert(format!("address {}/{} on {}", address.address, address.prefix, link.name));
            }
        }
    }
    Ok(lines)
}

/// A line of `ip route` or `ip rule`, unless it is one that the kernel makes in its own time.
fn route(family: &str, line: &str) -> Option<String> {
    let own = ["fe80:", "ff00:", "anycast", "multicast", "local ::", "unreachable"];
    if family == "-6" && (own.iter().any(|word| line.contains(word)) || line.starts_with("local ")) {
        return None;
    }
    // Made with the first vrf of a namespace, and kept when that goes.
    if line.contains("l3mdev-table") {
        return None;
    }
    let mut line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in PASSING {
        line = line.replace(word, "");
    }
    Some(format!("ip {family} {line}"))
}

/// Handles of qdiscs are numbered by the kernel.
fn qdisc(line: String) -> String {
    let words = line.split_whitespace();
    let kept: Vec<&str> = words.filter(|word| !word.ends_with(':') && !word.starts_with("refcnt")).collect();
    kept.join(" ")
}

/// A line of the ruleset with the table and chain that it is in.
fn rule(line: &str, place: &mut String) -> Option<String> {
    let text = line.trim();
    let depth = line.chars().take_while(|c| *c == '\t').count();
    if text.is_empty() || text == "}" || text.starts_with('#') {
        return None;
    }
    if let Some(opened) = text.strip_suffix(" {") {
        *place = match (depth, place.split_once(" / ")) {
            (0, _) => opened.to_owned(),
            (_, Some((table, _))) => format!("{table} / {opened}"),
            (_, None) => format!("{place} / {opened}"),
        };
        return Some(format!("nft {place}"));
    }
    Some(format!("nft {place}: {text}"))
}

/// The lines that a program prints; none if it is not installed.
fn told(program: &str, arguments: &[&str], input: &str) -> impl Iterator<Item = String> + use<> {
    use std::io::Write;
    use std::process::Stdio;
    let run = || {
        let mut child = Command::new(program)
            .args(arguments)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let text = run().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

fn files(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&path, found),
            Ok(kind) if kind.is_file() => {
                drop(found.insert(path.clone(), std::fs::read(&path).unwrap_or_default()))
            }
            _ => drop(found.insert(path, Vec::new())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_ruleset_says_where_it_is() {
        let ruleset = "table ip nat {\n\tchain POSTROUTING {\n\t\ttype nat hook\n\t\tmasquerade\n\t}\n\n\tchain other {\n\t}\n}\ntable inet x {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}\n";
        let mut place = String::new();
        let lines: Vec<String> = ruleset.lines().filter_map(|line| rule(line, &mut place)).collect();
        assert!(lines.contains(&"nft table ip nat / chain POSTROUTING: masquerade".to_owned()), "{lines:?}");
        assert!(lines.contains(&"nft table ip nat / chain other".to_owned()), "{lines:?}");
        assert!(lines.contains(&"nft table inet x / set s: type ipv4_addr".to_owned()), "{lines:?}");
    }

    #[test]
    fn what_the_kernel_does_in_its_own_time_is_passed_over() {
        assert_eq!(route("-6", "fe80::/64 dev eth0 proto kernel"), None);
        let line = route("-4", "10.0.0.0/24 dev br0  proto kernel linkdown");
        assert_eq!(line.as_deref(), Some("ip -4 10.0.0.0/24 dev br0 proto kernel"));
        assert_eq!(
            qdisc("qdisc tbf 8001: dev veth0 root refcnt 2 rate 1Mbit".into()),
            "qdisc tbf dev veth0 root 2 rate 1Mbit"
        );
    }
}
