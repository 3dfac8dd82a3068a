//! The state of a container: what is on disk, and what its status is. runtime-spec runtime.md, "State".

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cofferdam_linux::cgroup::{Cgroup, Layout};
use cofferdam_linux::text::read_text;
use cofferdam_plan::Namespace;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::configuration::Configuration;
use crate::error::Error;
use crate::exec::Lent;

/// Version of the state file. A reader accepts this one and the one before.
pub const STATE_VERSION: u32 = 2;
const STATE_VERSION_BEFORE: u32 = STATE_VERSION - 1;

/// Largest state file that is read, in bytes.
const STATE_MAX_BYTES: u64 = 32 << 20;

/// The links that [`note_cgroup`] and [`note_process`] make.
const CGROUP_NOTE: &str = "cgroup";
const PROCESS_NOTE: &str = "process";

/// What a state file begins with; the checksum follows, in hexadecimal digits.
const CHECKSUM: &str = "{\"checksum\":\"";
const CHECKSUM_DIGITS: usize = 16;

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// The status of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the specification's own words
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The state as the specification defines it, and as callers of runc read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification that the container's configuration follows.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// Its first process, 0 when stopped.
    pub pid: i32,
    /// Status.
    pub status: Status,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Name of the user who created it.
    pub owner: String,
    /// Annotations of the configuration.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
}

/// What is kept on disk of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Container id.
    pub id: String,
    /// Bundle directory.
    pub bundle: PathBuf,
    /// Root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// Who created it.
    pub owner: String,
    /// First process; 0 while it is being created.
    pub pid: i32,
    /// Its start time in clock ticks after boot: with the pid, an identity.
    pub start_time: u64,
    /// The boot it belongs to.
    pub boot_id: String,
    /// The namespaces that it was cloned into, by kind: what `exec` joins must still be these.
    #[serde(default)]
    pub namespaces: Vec<(String, u64)>,
    /// The cgroup, below the root of every hierarchy; what `delete` must remove.
    pub cgroup: Option<String>,
    /// Where it lies, by controller, empty for the version 2 tree.
    #[serde(default)]
    pub cgroup_paths: BTreeMap<String, PathBuf>,
    /// The scope that systemd makes for it; `delete` must stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Directories of resctrl that are the container's own, in the order in which they were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<PathBuf>,
    /// Whether a process was let in that may trace, which the container's own may not: those who join after it hide.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tracers: bool,
    /// The steps after the gate, by number, in the words of the plan.
    pub late_steps: Vec<(usize, String)>,
    /// The program's name, for its errors.
    pub program: String,
    /// Whether the configuration has hooks: most have none, and need not be read for them.
    #[serde(default = "unknown")]
    pub hooked: bool,
    /// Whether somebody supervises the program's system calls.
    #[serde(default = "unknown")]
    pub supervised: bool,
    /// The configuration as it was at creation (later changes to config.json have no effect).
    pub spec: Configuration,
}

/// Of a container whose record does not say: its configuration is asked.
fn unknown() -> bool {
    true
}

/// What is written: the record, and what monitors and scripts read in runc's state file.
#[derive(Serialize)]
struct Stored<'a> {
    #[serde(flatten)]
    record: &'a Record,
    init_process_pid: i32,
    init_process_start: u64,
    namespace_paths: BTreeMap<&'static str, String>,
}

impl<'a> Stored<'a> {
    fn of(record: &'a Record) -> Self {
        let name = |kind: Namespace| match kind {
            Namespace::User => "NEWUSER",
            Namespace::Pid => "NEWPID",
            Namespace::Network => "NEWNET",
            Namespace::Mount => "NEWNS",
            Namespace::Ipc => "NEWIPC",
            Namespace::Uts => "NEWUTS",
            Namespace::Cgroup => "NEWCGROUP",
            Namespace::Time => "NEWTIME",
        };
        let path = |kind: Namespace| (name(kind), format!("/proc/{}/ns/{}", record.pid, kind.file()));
        Self {
            record,
            init_process_pid: record.pid,
            init_process_start: record.start_time,
            namespace_paths: Namespace::ALL.into_iter().map(path).collect(),
        }
    }
}

pub(crate) fn not_found(error: &std::io::Error, path: &Path, id: &str) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { id: id.to_owned() },
        _ => file_error("opening", path, error),
    }
}

pub(crate) fn file_error(operation: &'static str, path: &Path, error: &std::io::Error) -> Error {
    let problem =
        rustix::io::Errno::from_io_error(error).map_or_else(|| error.to_string(), cofferdam_apply::in_words);
    Error::StateFile { operation, path: path.to_owned(), problem }
}

/// The gate of a container.
pub(crate) fn gate(directory: &Path) -> PathBuf {
    directory.join("start.sock")
}

impl Record {
    /// Reads the state of the container in `directory`. A file that is not ours, or torn, is an error that names it.
    pub(crate) fn load(directory: &Path, id: &str) -> Result<Self, Error> {
        let path = directory.join("state.json");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed() | OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
            .map_err(|error| not_found(&error, &path, id))?;
        let broken = |problem: String| Error::StateFile { operation: "reading", path: path.clone(), problem };
        let metadata = file.metadata().map_err(|error| file_error("reading", &path, &error))?;
        if !metadata.is_file() {
            return Err(broken("not a regular file".into()));
        }
        // Room for all of it and its end: reads would begin with 32 bytes and double.
        let length = usize::try_from(metadata.len().min(STATE_MAX_BYTES)).unwrap_or(0);
        let mut text = String::with_capacity(length + 1);
        file.take(STATE_MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| file_error("reading", &path, &error))?;
        let text = verified(&text).ok_or_else(|| broken("torn or changed: the checksum is wrong".into()))?;
        let record: Self = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if record.id != id {
            return Err(broken(format!("it is the state of {:?}", record.id)));
        }
        match record.version {
            STATE_VERSION | STATE_VERSION_BEFORE => Ok(record),
            other => Err(broken(format!("version {other}, this program knows {STATE_VERSION}"))),
        }
    }

    /// Writes the state: a temporary file, which takes the place of the one before. It belongs to one boot, so nothing is forced
    /// to disk; ext4 would do that to a file that is renamed over another, and `delete` would wait for it.
    pub(crate) fn store(&self, directory: &Path) -> Result<(), Error> {
        let (path, temporary) = (directory.join("state.json"), directory.join("state.json.new"));
        let text = serde_json::to_string(&Stored::of(self))
            .map_err(|error| file_error("writing", &path, &error.into()))?;
        std::fs::write(&temporary, sealed(&text))
            .map_err(|error| file_error("writing", &temporary, &error))?;
        match renameat_with(CWD, &temporary, CWD, &path, RenameFlags::EXCHANGE) {
            Ok(()) => std::fs::remove_file(&temporary),
            // The first, or a file system that cannot exchange.
            Err(_) => std::fs::rename(&temporary, &path),
        }
        .map_err(|error| file_error("renaming", &path, &error))
    }

    /// A descriptor of the container's first process, if it is still that process and not a zombie.
    pub(crate) fn process(&self) -> Option<OwnedFd> {
        process(self.pid, self.start_time, &self.boot_id)
    }

    /// Notes the namespaces that a process has right after its clone. What it joins by path or unshares later is not among
    /// them: those are nobody's to swap for the container, or nothing that `exec` is held by.
    pub(crate) fn note_namespaces(&mut self, kinds: impl Iterator<Item = Namespace>) {
        let inode = |kind: Namespace| Some((kind.file().to_owned(), namespace(self.pid, kind.file())?));
        self.namespaces = kinds.filter_map(inode).collect();
    }

    /// Refuses a container whose first process has left the namespaces that it was created in: whoever joined it now would
    /// run in a world of its making.
    pub(crate) fn in_its_namespaces(&self, lent: Option<&[Lent]>) -> Result<(), Error> {
        let found = |kind: &str| match lent {
            None => namespace(self.pid, kind),
            Some(lent) => {
                let (.., file) = lent.iter().find(|(lent, ..)| lent.file() == kind)?;
                rustix::fs::fstat(file).ok().map(|stat| stat.st_ino)
            }
        };
        let left = self.namespaces.iter().find(|(kind, inode)| found(kind) != Some(*inode));
        left.map_or(Ok(()), |(kind, _)| {
            let problem = match found(kind) {
                Some(_) => "has left",
                // To anybody but root a process that was not started is closed.
                None => "has ended, or was not started and lets only root see",
            };
            let words = format!(
                "cannot exec in container {}: its first process {problem} the {kind} namespace it was created in",
                self.id
            );
            Err(Error::Conflict(words))
        })
    }

    /// The hierarchies in which the cgroup was made.
    pub(crate) fn layout(&self) -> Layout {
        Layout::of_directories(&self.cgroup_paths, self.cgroup.as_deref().unwrap_or_default())
    }

    /// The status now.
    pub(crate) fn status(&self, directory: &Path) -> Status {
        self.look(directory).0
    }

    /// The status now, and a descriptor of the first process unless it is being created or has ended.
    pub(crate) fn look(&self, directory: &Path) -> (Status, Option<OwnedFd>) {
        if self.pid == 0 && self.boot_id == boot_id() {
            return (Status::Creating, None);
        }
        let Some(process) = self.process() else { return (Status::Stopped, None) };
        (self.status_alive(directory), Some(process))
    }

    fn status_alive(&self, directory: &Path) -> Status {
        // First of all: a frozen process comes to no program, so a created container that was paused cannot be started.
        let is_frozen = |path| Cgroup::is_frozen_in(&self.layout(), path).unwrap_or(false);
        if self.cgroup.as_deref().is_some_and(is_frozen) {
            return Status::Paused;
        }
        if gate(directory).exists() { Status::Created } else { Status::Running }
    }

    /// The specification's view of it.
    pub(crate) fn state(&self, status: Status) -> Result<State, Error> {
        let spec = self.spec.get()?;
        Ok(State {
            oci_version: spec.version().clone(),
            id: self.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.pid },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            owner: self.owner.clone(),
            annotations: spec.annotations().clone().unwrap_or_default(),
        })
    }
}

/// A descriptor of a process, if it is still that process and not a zombie.
fn process(pid: i32, start_time: u64, boot: &str) -> Option<OwnedFd> {
    if pid <= 1 || boot != boot_id() {
        return None;
    }
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Checked after the descriptor is open: from here on it cannot become another process.
    match stat(pid) {
        Some((state, start)) if start == start_time && !matches!(state, 'Z' | 'X') => Some(pidfd),
        _ => None,
    }
}

/// The number of one of a process's namespaces.
fn namespace(pid: i32, kind: &str) -> Option<u64> {
    rustix::fs::stat(format!("/proc/{pid}/ns/{kind}")).ok().map(|stat| stat.st_ino)
}

/// The text of a state file: a record with its checksum in front. A file that is not whole, or that anybody has edited, is
/// not acted on: its pid may be a stranger's, and the real process forgotten.
fn sealed(record: &str) -> String {
    let body = record.strip_prefix('{').unwrap_or(record);
    format!("{CHECKSUM}{:016x}\",{body}", checksum(body.as_bytes()))
}

/// The record in the text of a state file, if the checksum is right.
fn verified(text: &str) -> Option<String> {
    let (digits, rest) = text.strip_prefix(CHECKSUM)?.split_at_checked(CHECKSUM_DIGITS)?;
    let body = rest.strip_prefix("\",")?;
    let sums = [checksum, checksum_before].into_iter();
    let is_right = sums.map(|sum| sum(body.as_bytes())).any(|sum| digits == format!("{sum:016x}"));
    is_right.then(|| format!("{{{body}"))
}

/// FNV-1a, 64 bits, of eight bytes at a time and of the length: against accidents, not against root, who can compute it as
/// well. A change within any eight bytes changes the sum.
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
    words.chain([bytes.len() as u64]).fold(FNV_BASIS, |sum, word| (sum ^ word).wrapping_mul(FNV_PRIME))
}

/// As records of version 1 have it: of one byte at a time.
fn checksum_before(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV_BASIS, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// Notes the first process a second time, when the state file does not have it yet and before it goes on to what its parent's
/// death would not end: whatever becomes of the operation and of that file, the process is found and ended.
pub(crate) fn note_process(directory: &Path, record: &Record) -> Result<(), Error> {
    let path = directory.join(PROCESS_NOTE);
    let note = format!("{} {} {}", record.pid, record.start_time, record.boot_id);
    std::os::unix::fs::symlink(note, &path).map_err(|error| file_error("writing", &path, &error))
}

/// The process that [`note_process`] noted, if it lives.
pub(crate) fn noted_process(directory: &Path) -> Option<OwnedFd> {
    let note = std::fs::read_link(directory.join(PROCESS_NOTE)).ok()?.into_os_string().into_string().ok()?;
    let [pid, start, boot] = note.split(' ').collect::<Vec<_>>().try_into().ok()?;
    process(pid.parse().ok()?, start.parse().ok()?, boot)
}

/// Whether anything was noted of a container's process.
pub(crate) fn has_process_note(directory: &Path) -> bool {
    directory.join(PROCESS_NOTE).symlink_metadata().is_ok()
}

/// Notes the cgroup a second time, as the target of a link: where the state file cannot be read, what the container left
/// is still found and ended.
pub(crate) fn note_cgroup(directory: &Path, cgroup: &str) -> Result<(), Error> {
    let path = directory.join(CGROUP_NOTE);
    std::os::unix::fs::symlink(cgroup, &path).map_err(|error| file_error("writing", &path, &error))
}

/// The cgroup that [`note_cgroup`] noted.
pub(crate) fn noted_cgroup(directory: &Path) -> Option<String> {
    std::fs::read_link(directory.join(CGROUP_NOTE)).ok()?.into_os_string().into_string().ok()
}

/// State letter and start time of a process, proc_pid_stat(5). The name in parentheses may hold anything.
pub(crate) fn stat(pid: i32) -> Option<(char, u64)> {
    let text = read_text(&format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The id of this boot.
pub(crate) fn boot_id() -> &'static str {
    static THIS_BOOT: OnceLock<String> = OnceLock::new();
    let read = || read_text("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    THIS_BOOT.get_or_init(read)
}

/// Now, as RFC 3339 in UTC with nanoseconds.
pub fn now_rfc3339() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// Days since 1970-01-01 to a date of the Gregorian calendar: years of 400-year cycles that begin on 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// The name of a user, from the host's passwd file; its number when it has none.
pub(crate) fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let owner = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    owner.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_that_was_cut_or_edited_is_not_believed() {
        let record = r#"{"version":1,"pid":4711}"#;
        let text = sealed(record);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "still JSON: {text}");
        assert_eq!(verified(&text).as_deref(), Some(record));
        for length in 0..text.len() {
            assert_eq!(verified(&text[..length]), None);
        }
        for (from, to) in [("4711", "4712"), ("version", "Version"), (",", ", "), ("checksum", "sum")] {
            assert_eq!(verified(&text.replacen(from, to, 1)), None, "{from} became {to}");
        }
    }

    #[test]
    fn a_state_file_of_the_version_before_is_believed() {
        let body = r#""version":1,"pid":4711}"#;
        let text = format!("{CHECKSUM}{:016x}\",{body}", checksum_before(body.as_bytes()));
        assert_eq!(verified(&text), Some(format!("{{{body}")));
        assert_eq!(verified(&text.replace("4711", "4712")), None);
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_779), (2026, 11, 22));
    }

    #[test]
    fn our_own_process_has_a_start_time() {
        let (state, start) = stat(std::process::id().cast_signed()).unwrap();
        assert!(matches!(state, 'R' | 'S'));
        assert!(start > 0);
    }
}
