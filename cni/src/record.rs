//! The record of an attachment: on disk before the first plugin runs, off disk after the last has cleaned up.
//!
//! ```text
//! (none) ── written, durable ──▶ adding ── after each plugin ──▶ adding ── durable ──▶ added ──▶ (removed)
//!                                  └── found after a crash: DEL over the whole list, then removed ───────┘
//! ```
//!
//! `results/<network>-<container>-<interface>` holds the keys of libcni's cache (`cniCacheV1`), so its tools read it, and
//! ours under `cofferdam`. Because the three names may contain hyphens, two attachments can share that file name; the
//! second then gets a suffix. Files change by write-temp, fsync, rename.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::caller::Attachment;
use crate::config::NetworkList;
use crate::error::Error;
use crate::name::{ContainerId, IfName, NetworkName};
use crate::object::Object;
use crate::result::AddResult;

/// `kind` of libcni's cache files.
const KIND: &str = "cniCacheV1";
/// Version of our own part.
const FORMAT: u32 = 1;

/// A temporary file is renamed within milliseconds of being written.
const ABANDONED: Duration = Duration::from_secs(60);

/// How far an attachment got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    /// ADD has begun and not ended; found at rest, it was interrupted.
    Adding,
    /// ADD has succeeded.
    Added,
}

/// Who did the ADD of one plugin, and so must do its DEL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Implementation {
    /// The plugin linked into this program.
    Builtin,
    /// The program at this path.
    Path(PathBuf),
}

/// Our part of the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ours {
    format: u32,
    state: RecordState,
    boot_id: String,
    created_unix_s: u64,
    plugins: Vec<Implementation>,
}

/// The record of one attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    kind: String,
    container_id: ContainerId,
    config: String,
    if_name: IfName,
    network_name: NetworkName,
    #[serde(default)]
    netns: PathBuf,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    capability_args: Object,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    cofferdam: Ours,
}

impl Record {
    /// A record of an ADD that is about to begin.
    pub(crate) fn new(list: &NetworkList, attachment: &Attachment, plugins: Vec<Implementation>) -> Self {
        Self {
            kind: KIND.into(),
            container_id: attachment.container.clone(),
            config: STANDARD.encode(list.to_text()),
            if_name: attachment.if_name.clone(),
            network_name: list.name.clone(),
            netns: attachment.netns.clone(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capabilities.to_object(),
            result: None,
            cofferdam: Ours {
                format: FORMAT,
                state: RecordState::Adding,
                boot_id: boot_id(),
                created_unix_s: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs()),
                plugins,
            },
        }
    }

    /// The container.
    pub fn container(&self) -> &ContainerId {
        &self.container_id
    }

    /// The network.
    pub fn network(&self) -> &NetworkName {
        &self.network_name
    }

    /// The interface inside the container.
    pub fn if_name(&self) -> &IfName {
        &self.if_name
    }

    /// The path its network namespace had.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// How far the attachment got.
    pub fn state(&self) -> RecordState {
        self.cofferdam.state
    }

    /// When ADD began, in seconds since 1970.
    pub fn created_unix_s(&self) -> u64 {
        self.cofferdam.created_unix_s
    }

    /// Who did each plugin's ADD, in the order of the list.
    pub fn plugins(&self) -> &[Implementation] {
        &self.cofferdam.plugins
    }

    /// Whether the machine has been started again since: namespaces, links and rules are gone, leases on disk are not.
    pub fn is_from_another_boot(&self) -> bool {
        self.cofferdam.boot_id != boot_id()
    }

    /// The configuration that ADD used.
    pub fn network_list(&self) -> Result<NetworkList, Error> {
        let unreadable = |why: String| crate::config::ConfigError::Value { key: "config".into(), why };
        let bytes = STANDARD.decode(&self.config).map_err(|error| unreadable(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
        Ok(NetworkList::parse(&text, None)?)
    }

    /// The result so far: of the whole chain if the state is [`RecordState::Added`].
    pub fn result(&self) -> Option<AddResult> {
        let raw = self.result.as_deref()?;
        AddResult::parse(raw.get(), crate::version::Version::NEWEST).ok()
    }

    /// The arguments of the capability `portMappings`, which tell who holds a port.
    pub fn port_mappings(&self) -> Vec<crate::capability::PortMapping> {
        self.capability_args.get("portMappings").ok().flatten().unwrap_or_default()
    }

    pub(crate) fn raw_result(&self) -> Option<&RawValue> {
        self.result.as_deref()
    }

    pub(crate) fn args(&self) -> &[(String, String)] {
        &self.cni_args
    }

    pub(crate) fn capabilities(&self) -> &Object {
        &self.capability_args
    }

    pub(crate) fn set_result(&mut self, result: Option<Box<RawValue>>) {
        self.result = result;
    }

    pub(crate) fn set_added(&mut self) {
        self.cofferdam.state = RecordState::Added;
    }

    fn is_of(&self, network: &NetworkName, container: &ContainerId, if_name: &IfName) -> bool {
        (&self.network_name, &self.container_id, &self.if_name) == (network, container, if_name)
    }
}

/// How much of a change must survive a power failure. After one the namespaces are gone; what leads to leases on disk has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    /// The file and its name: a new record.
    Name,
    /// The file: a record that replaces another, either of which will do.
    Content,
    /// Nothing.
    No,
}

/// The directory of records.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    results: PathBuf,
    locks: PathBuf,
}

impl Store {
    pub(crate) fn open(state: &Path) -> Result<Self, Error> {
        let store = Self { results: state.join("results"), locks: state.join("locks") };
        for directory in [&store.results, &store.locks] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(Error::state("make the directory", directory))?;
        }
        store.sweep();
        Ok(store)
    }

    /// Removes temporary files whose writer did not live to rename them. What cannot be removed is only clutter.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.results).into_iter().flatten().flatten() {
            let temporary = entry.file_name().as_encoded_bytes().starts_with(b".");
            let age = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .map(|then| then.elapsed().unwrap_or_default());
            if temporary && age.is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(crate) fn lock_path(&self, what: &str, name: &str) -> PathBuf {
        self.locks.join(format!("{what}-{name}"))
    }

    /// Every record, and every file that is none.
    pub(crate) fn all(&self) -> Result<(Vec<Record>, Vec<Error>), Error> {
        let (mut records, mut problems) = (Vec::new(), Vec::new());
        let entries = fs::read_dir(&self.results).map_err(Error::state("list", &self.results))?;
        for entry in entries.flatten() {
            // A temporary file that its writer did not live to rename; younger ones belong to somebody.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            match read(&entry.path()) {
                Ok(record) => records.push(record),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => problems.push(Error::state("read the record", entry.path())(error)),
            }
        }
        records.sort_by_key(Record::created_unix_s);
        Ok((records, problems))
    }

    /// The record of an attachment. One that cannot be read is an error, none is `None`.
    pub(crate) fn find(
        &self,
        network: &NetworkName,
        container: &ContainerId,
        if_name: &IfName,
    ) -> Result<Option<Record>, Error> {
        for path in self.paths(network, container, if_name) {
            match read(&path) {
                Ok(record) if record.is_of(network, container, if_name) => return Ok(Some(record)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::state("read the record", path)(error)),
            }
        }
        Ok(None)
    }

    pub(crate) fn write(&self, record: &Record, durable: Durable) -> Result<(), Error> {
        let path = self.path_of(record);
        // A record of strings and raw values always serialises.
        let text = serde_json::to_vec(record)
            .map_err(|error| Error::state("write the record", &path)(error.into()))?;
        replace(&path, &text, durable).map_err(Error::state("write the record", &path))
    }

    /// Removes the record; removes as well what is unreadable under its name.
    pub(crate) fn remove(
        &self,
        network: &NetworkName,
        container: &ContainerId,
        if_name: &IfName,
    ) -> Result<(), Error> {
        for path in self.paths(network, container, if_name) {
            let foreign = read(&path).is_ok_and(|record| !record.is_of(network, container, if_name));
            match if foreign { Ok(()) } else { fs::remove_file(&path) } {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::state("remove the record", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes records of this container that were never finished. Its lock is held.
    pub(crate) fn sweep_container(&self, container: &ContainerId) -> Result<(), Error> {
        let failed = Error::state("remove half-written records from", &self.results);
        let unfinished = |name: &str| {
            let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
            inner.is_some_and(|inner| inner.contains(container.as_str()))
        };
        let sweep = || -> io::Result<()> {
            for entry in fs::read_dir(&self.results)? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(unfinished) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        sweep().map_err(failed)
    }

    fn path_of(&self, record: &Record) -> PathBuf {
        let [plain, unambiguous] = self.paths(&record.network_name, &record.container_id, &record.if_name);
        let taken = read(&plain)
            .is_ok_and(|other| !other.is_of(&record.network_name, &record.container_id, &record.if_name));
        if taken || unambiguous.exists() { unambiguous } else { plain }
    }

    /// The name libcni uses, and one that no other attachment can have: lengths tell the parts apart.
    fn paths(&self, network: &NetworkName, container: &ContainerId, if_name: &IfName) -> [PathBuf; 2] {
        let plain = format!("{network}-{container}-{if_name}");
        let unambiguous = format!("{plain}~{}~{}", network.as_str().len(), container.as_str().len());
        [self.results.join(plain), self.results.join(unambiguous)]
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let text = fs::read(path)?;
    let record: Record = serde_json::from_slice(&text)?;
    if record.kind != KIND || record.cofferdam.format > FORMAT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the record is of a version we do not know"));
    }
    Ok(record)
}

fn replace(path: &Path, text: &[u8], durable: Durable) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // One writer an attachment (its container is locked), so the name needs no more than that.
    let temporary = directory.join(format!(".{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text)?;
    if durable != Durable::No {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)?;
    if durable == Durable::Name { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// Identifies this run of the kernel; empty if it cannot be told, which compares equal to itself.
fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(network: &str, container: &str) -> Record {
        let text = format!(r#"{{"name":"{network}","cniVersion":"1.0.0","plugins":[{{"type":"x"}}]}}"#);
        let list = NetworkList::parse(&text, None).unwrap();
        let attachment =
            Attachment::new(ContainerId::parse(container).unwrap(), "/n", IfName::parse("eth0").unwrap());
        Record::new(&list, &attachment, vec![Implementation::Builtin])
    }

    fn find(store: &Store, record: &Record) -> Result<Option<Record>, Error> {
        store.find(record.network(), record.container(), record.if_name())
    }

    #[test]
    fn two_attachments_whose_joined_names_are_equal_have_a_record_each() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (one, two) = (record("net-a", "b"), record("net", "a-b"));
        store.write(&one, Durable::Name).unwrap();
        store.write(&two, Durable::No).unwrap();
        assert_eq!(store.all().unwrap().0.len(), 2);
        assert_eq!(find(&store, &two).unwrap().unwrap().network().as_str(), "net");
        store.remove(one.network(), one.container(), one.if_name()).unwrap();
        assert!(find(&store, &one).unwrap().is_none());
        assert!(find(&store, &two).unwrap().is_some());
        store.remove(two.network(), two.container(), two.if_name()).unwrap();
        assert!(store.all().unwrap().0.is_empty());
    }

    #[test]
    fn a_truncated_record_is_reported_and_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let record = record("net", "c");
        store.write(&record, Durable::No).unwrap();
        let path = dir.path().join("results/net-c-eth0");
        let text = fs::read(&path).unwrap();
        for length in [0, 1, text.len() / 2, text.len() - 1] {
            fs::write(&path, &text[..length]).unwrap();
            assert!(find(&store, &record).is_err(), "{length}");
            assert_eq!(store.all().unwrap().1.len(), 1);
        }
        store.remove(record.network(), record.container(), record.if_name()).unwrap();
        assert!(find(&store, &record).unwrap().is_none());
    }

    #[test]
    fn the_keys_of_libcnis_cache_are_there() {
        let value = serde_json::to_value(record("net", "c")).unwrap();
        assert_eq!(value["kind"], "cniCacheV1");
        assert_eq!(value["containerId"], "c");
        assert_eq!(value["ifName"], "eth0");
        assert_eq!(value["networkName"], "net");
        let config = STANDARD.decode(value["config"].as_str().unwrap()).unwrap();
        assert!(String::from_utf8(config).unwrap().contains("plugins"));
    }
}
