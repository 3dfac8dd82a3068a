//! What the host holds at one moment, and what changed between two.
//!
//! ```text
//! let watch = Watch::begin(&[root]);      census before
//! …                                       the suite acts
//! watch.end();                            census after, repeated until equal or the deadline; a difference panics
//! ```
//!
//! Each [`Kind`] is read in one function of its own below, without any of the product's code. What belongs to this
//! process alone (its mounts, its network namespace's links and rules, its descriptors, its descendants) is compared
//! in both directions. What the whole machine shares (cgroups, pinned namespaces, files under common folders) is
//! compared for additions only, and cgroups only where their path names us: a machine has other tenants.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{needs, process};

/// What an entry of the census is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A mount in the calling thread's mount namespace.
    Mount,
    /// A folder in any cgroup hierarchy whose path names us.
    Cgroup,
    /// A network namespace that is pinned under `/run/netns`, or in which a descendant lives.
    NetworkNamespace,
    /// A link in the calling thread's network namespace.
    Link,
    /// A line of nft's rule set in the calling thread's network namespace.
    FirewallRule,
    /// An open descriptor of this process.
    Descriptor,
    /// A descendant of this process.
    Process,
    /// A file below a given root or one of [`SHARED_ROOTS`].
    File,
}

/// Folders in which the product leaves files when it is not told otherwise.
pub const SHARED_ROOTS: &[&str] = &["/run/cofferdam", "/var/lib/cofferdam"];

/// What temporary files of ours begin with.
const TEMPORARY_PREFIX: &str = "cofferdam-";

/// A cgroup is ours when its path contains this.
const CGROUP_NAME: &str = "cofferdam";

/// How long a difference may last: the kernel takes links, namespaces and cgroups down after the fact, and network namespaces
/// one after the other.
const SETTLE: Duration = Duration::from_secs(10);

/// Between two looks while waiting for that. There is no descriptor to wait on for "the host is as before".
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// What the host holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<Entry, usize>);

/// One thing that the host holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Which one, in words.
    pub name: String,
    reach: Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Own,
    Shared,
}

/// A thing that is in one census and not in the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is.
    pub entry: Entry,
    /// Which way it changed.
    pub change: Change,
}

/// Which way a thing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Appeared,
    /// It is not there any more.
    Disappeared,
}

impl Census {
    /// Reads the host. `roots` are folders whose files are counted besides [`SHARED_ROOTS`].
    ///
    /// What cannot be read (no nft, no such folder) counts as empty.
    pub fn take(roots: &[&Path]) -> Census {
        let mut census = Census::default();
        census.mounts();
        census.cgroups();
        census.network_namespaces();
        census.links();
        census.firewall_rules();
        census.descriptors();
        census.processes();
        for root in roots {
            census.files(root, Reach::Own);
        }
        for root in SHARED_ROOTS {
            census.files(Path::new(root), Reach::Shared);
        }
        census.temporary_files();
        census
    }

    /// What changed from this census to a later one.
    pub fn differences(&self, later: &Census) -> Vec<Difference> {
        let appeared = later.0.iter().filter(|(entry, count)| self.count(entry) < **count);
        let gone =
            self.0.iter().filter(|(entry, count)| entry.reach == Reach::Own && later.count(entry) < **count);
        let difference = |change| move |(entry, _): (&Entry, _)| Difference { entry: entry.clone(), change };
        appeared.map(difference(Change::Appeared)).chain(gone.map(difference(Change::Disappeared))).collect()
    }

    /// All entries of one kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.0.keys().filter(move |entry| entry.kind == kind).map(|entry| entry.name.as_str())
    }

    fn count(&self, entry: &Entry) -> usize {
        self.0.get(entry).copied().unwrap_or(0)
    }

    fn add(&mut self, kind: Kind, reach: Reach, name: impl Into<String>) {
        *self.0.entry(Entry { kind, name: name.into(), reach }).or_default() += 1;
    }

    fn mounts(&mut self) {
        for mount in mounts() {
            self.add(Kind::Mount, Reach::Own, format!("{} on {}", mount.filesystem, mount.point.display()));
        }
    }

    fn cgroups(&mut self) {
        for folder in cgroup_folders() {
            self.add(Kind::Cgroup, Reach::Shared, folder.display().to_string());
        }
    }

    fn network_namespaces(&mut self) {
        for path in children(Path::new("/run/netns")) {
            self.add(Kind::NetworkNamespace, Reach::Shared, path.display().to_string());
        }
        let own = std::fs::read_link("/proc/thread-self/ns/net").ok();
        for child in process::descendants() {
            if let Some(namespace) =
                process::network_namespace(child.pid).filter(|found| Some(found) != own.as_ref())
            {
                let name = format!("{} of {}", namespace.display(), child.name);
                self.add(Kind::NetworkNamespace, Reach::Own, name);
            }
        }
    }

    fn links(&mut self) {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        for link in table.lines().filter_map(|line| line.split_once(':')) {
            self.add(Kind::Link, Reach::Own, link.0.trim());
        }
    }

    fn firewall_rules(&mut self) {
        let Some(nft) = needs::find_program("nft") else { return };
        // Without counters: traffic is no change of the rules.
        let Ok(output) = std::process::Command::new(nft).args(["--stateless", "list", "ruleset"]).output()
        else {
            return;
        };
        for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.trim().is_empty()) {
            self.add(Kind::FirewallRule, Reach::Own, line.trim());
        }
    }

    fn descriptors(&mut self) {
        for path in children(Path::new("/proc/self/fd")) {
            // The descriptor by which this folder is read is gone by now.
            if let Ok(target) = std::fs::read_link(&path) {
                self.add(Kind::Descriptor, Reach::Own, target.display().to_string());
            }
        }
    }

    fn processes(&mut self) {
        for child in process::descendants() {
            let ended = if child.state == 'Z' { ", ended and not waited for" } else { "" };
            self.add(Kind::Process, Reach::Own, format!("{} ({}{ended})", child.pid, child.name));
        }
    }

    fn files(&mut self, root: &Path, reach: Reach) {
        // The mark of an image store that its disk is behind goes when the disk is not.
        for path in walk(root).into_iter().filter(|path| !path.ends_with("images/unsettled")) {
            self.add(Kind::File, reach, path.display().to_string());
        }
    }

    fn temporary_files(&mut self) {
        for path in children(&std::env::temp_dir()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(TEMPORARY_PREFIX) {
                self.add(Kind::File, Reach::Shared, path.display().to_string());
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.change == Change::Appeared { '+' } else { '-' };
        write!(f, "{sign} {:?}: {}", self.entry.kind, self.entry.name)
    }
}

/// Compares the host before and after.
#[derive(Debug)]
pub struct Watch {
    roots: Vec<PathBuf>,
    before: Census,
}

impl Watch {
    /// Takes the census before. Descendants that detach themselves are adopted from here on.
    pub fn begin(roots: &[&Path]) -> Watch {
        // Without this the census of processes has gaps, but everything else still holds.
        let _ = process::adopt_orphans();
        process::reap();
        Watch { roots: roots.iter().map(|root| (*root).to_owned()).collect(), before: Census::take(roots) }
    }

    /// Takes the census after, and panics with every difference that does not settle.
    ///
    /// # Panics
    /// If the host is not as it was.
    pub fn end(self) {
        let differences = self.settle();
        let lines: Vec<_> = differences.iter().map(Difference::to_string).collect();
        assert!(lines.is_empty(), "the host is not as it was before:\n  {}", lines.join("\n  "));
    }

    /// Waits until there is no difference, or not any longer, and returns what is left.
    pub fn settle(&self) -> Vec<Difference> {
        let roots: Vec<&Path> = self.roots.iter().map(PathBuf::as_path).collect();
        let deadline = Instant::now() + SETTLE;
        loop {
            process::reap();
            let differences = self.before.differences(&Census::take(&roots));
            if differences.is_empty() || Instant::now() >= deadline {
                return differences;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Where the calling thread's mounts are, in the order in which they were made.
pub fn mount_points() -> Vec<PathBuf> {
    mounts().into_iter().map(|mount| mount.point).collect()
}

/// One line of mountinfo.
#[derive(Debug)]
struct Mount {
    filesystem: String,
    point: PathBuf,
}

/// The calling thread's mounts: a test may have gone into a namespace of its own.
fn mounts() -> Vec<Mount> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?.into();
            Some(Mount { filesystem: right.split(' ').next()?.to_owned(), point })
        })
        .collect()
}

/// Every folder of ours in every cgroup hierarchy, deepest first within a hierarchy.
pub fn cgroup_folders() -> Vec<PathBuf> {
    let hierarchies = mounts().into_iter().filter(|mount| mount.filesystem.starts_with("cgroup"));
    hierarchies
        .flat_map(|mount| {
            let mut folders = Vec::new();
            cgroups_below(&mount.point, &mut folders);
            folders
        })
        .filter(|folder| folder.to_string_lossy().contains(CGROUP_NAME))
        .collect()
}

/// Control files are many and never folders: only folders are entered.
fn cgroups_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            cgroups_below(&entry.path(), found);
            found.push(entry.path());
        }
    }
}

/// Everything below a folder; links are entries and are not followed.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in children(&folder) {
            if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_quiet_host_is_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        Watch::begin(&[root.path()]).end();
    }

    #[test]
    fn a_new_file_a_process_and_a_descriptor_are_differences() {
        let root = tempfile::tempdir().unwrap();
        let before = Census::take(&[root.path()]);
        std::fs::create_dir(root.path().join("folder")).unwrap();
        let file = std::fs::File::create(root.path().join("folder/left behind")).unwrap();
        let mut child = Command::new("sleep").arg("30").stdin(Stdio::null()).spawn().unwrap();
        let after = Census::take(&[root.path()]);
        child.kill().unwrap();
        child.wait().unwrap();
        drop(file);

        let lines: Vec<_> = before.differences(&after).iter().map(Difference::to_string).collect();
        let has =
            |start: &str, end: &str| lines.iter().any(|line| line.starts_with(start) && line.ends_with(end));
        assert!(has("+ File: ", "/folder/left behind"), "{lines:?}");
        assert!(has("+ Descriptor: ", "/folder/left behind"), "{lines:?}");
        assert!(has(&format!("+ Process: {}", child.id()), "(sleep)"), "{lines:?}");
    }

    #[test]
    fn what_disappears_is_a_difference_too() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let before = Census::take(&[root.path()]);
        std::fs::remove_file(&file).unwrap();
        let differences = before.differences(&Census::take(&[root.path()]));
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].change, Change::Disappeared);
    }
}
