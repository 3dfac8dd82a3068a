//! The directory of records and locks.
//!
//! A record's file has the name that libcni gives it, `results/<network>-<container>-<interface>`. Because the three may
//! contain hyphens, two attachments can share that name; the second then gets a suffix. Files change by write-temp, fsync,
//! rename.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::name::{ContainerId, IfName, NetworkName};
use crate::record::Record;
use crate::tree::Tree;

/// A temporary file is renamed within milliseconds of being written.
const ABANDONED: Duration = Duration::from_secs(60);

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
    /// What plugins answered when asked for their versions.
    pub(crate) versions: PathBuf,
    /// Tells our cgroups from those of a caller with another state directory.
    mark: String,
}

impl Store {
    pub(crate) fn open(state: &Path) -> Result<Self, Error> {
        let [results, locks, versions] = ["results", "locks", "versions"].map(|name| state.join(name));
        for directory in [&results, &locks] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(Error::state("make the directory", directory))?;
        }
        // The directory itself and not its path: one may have several, and mount namespaces may each have another at it.
        let meta = fs::metadata(&results).map_err(Error::state("look at the directory", &results))?;
        let mark = format!("{:x}-{:x}", meta.dev(), meta.ino());
        let store = Self { results, locks, versions, mark };
        store.sweep();
        Ok(store)
    }

    /// Removes temporary files whose writer did not live to rename them. What cannot be removed is only clutter.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.results).into_iter().flatten().flatten() {
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let written = entry.metadata().and_then(|meta| meta.modified());
            if written.is_ok_and(|then| then.elapsed().unwrap_or_default() > ABANDONED) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(crate) fn lock_path(&self, what: &str, name: &str) -> PathBuf {
        self.locks.join(format!("{what}-{name}"))
    }

    /// The networks that have a lock: those that were ever used, until they are forgotten.
    pub(crate) fn known_networks(&self) -> Vec<NetworkName> {
        let locks = fs::read_dir(&self.locks).into_iter().flatten().flatten();
        let names = locks.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| NetworkName::parse(name.strip_prefix("network-")?).ok()).collect()
    }

    /// The cgroup of the plugins that run under the lock of this name.
    pub(crate) fn tree(&self, what: &str, name: &str) -> Tree {
        Tree::new(&format!("{}-{what}-{name}", self.mark))
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

    /// The record of an attachment as far as it can be read; what is missing in it is taken from `otherwise`. What is there
    /// and names no configuration at all is an error unless `otherwise` has one.
    pub(crate) fn find_any(&self, otherwise: &Record) -> Result<Option<Record>, Error> {
        let (network, container, if_name) = (otherwise.network(), otherwise.container(), otherwise.if_name());
        for path in self.paths(network, container, if_name) {
            let error = match read(&path) {
                Ok(record) if record.is_of(network, container, if_name) => return Ok(Some(record)),
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => error,
            };
            let text = fs::read(&path).unwrap_or_default();
            let record = Record::salvaged(&String::from_utf8_lossy(&text), otherwise);
            return match record.network_list() {
                Ok(_) => Ok(Some(record)),
                Err(_) => Err(Error::state("read the record", path)(error)),
            };
        }
        Ok(None)
    }

    /// The attachments whose records cannot be read, as far as their files' names tell: of this container if it is given, and
    /// of this network if it is.
    pub(crate) fn torn(
        &self,
        container: Option<&ContainerId>,
        network: Option<&NetworkName>,
    ) -> Vec<(NetworkName, ContainerId, IfName)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.results).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let unreadable = || read(&entry.path()).is_err_and(|e| e.kind() != io::ErrorKind::NotFound);
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.') && unreadable()) else {
                continue;
            };
            found.extend(identity(name, container, network));
        }
        found
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
        let [plain, unambiguous] = self.paths(record.network(), record.container(), record.if_name());
        let taken = read(&plain)
            .is_ok_and(|other| !other.is_of(record.network(), record.container(), record.if_name()));
        if taken || unambiguous.exists() { unambiguous } else { plain }
    }

    /// The name libcni uses, and one that no other attachment can have: lengths tell the parts apart.
    fn paths(&self, network: &NetworkName, container: &ContainerId, if_name: &IfName) -> [PathBuf; 2] {
        let plain = format!("{network}-{container}-{if_name}");
        let unambiguous = format!("{plain}~{}~{}", network.as_str().len(), container.as_str().len());
        [self.results.join(plain), self.results.join(unambiguous)]
    }
}

/// Takes a record's file name apart. What joins its parts may be in them: only what is known can be told apart from it.
fn identity(
    name: &str,
    container: Option<&ContainerId>,
    network: Option<&NetworkName>,
) -> Option<(NetworkName, ContainerId, IfName)> {
    let plain = name.split_once('~').map_or(name, |(plain, _)| plain);
    let (network, rest) = match (network, container) {
        (Some(network), _) => (network.as_str(), plain.strip_prefix(network.as_str())?.strip_prefix('-')?),
        (None, Some(container)) => plain.split_at_checked(plain.find(&format!("-{container}-"))?)?,
        (None, None) => return None,
    };
    let rest = rest.trim_start_matches('-');
    let (id, if_name) = match container {
        Some(container) => (container.as_str(), rest.strip_prefix(container.as_str())?.strip_prefix('-')?),
        None => rest.rsplit_once('-')?,
    };
    Some((NetworkName::parse(network).ok()?, ContainerId::parse(id).ok()?, IfName::parse(if_name).ok()?))
}

fn read(path: &Path) -> io::Result<Record> {
    let text = fs::read(path)?;
    let record: Record = serde_json::from_slice(&text)?;
    if !record.is_ours_to_read() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the record is of a version we do not know"));
    }
    Ok(record)
}

/// Puts `text` in the place of a file in one step.
pub(crate) fn replace(path: &Path, text: &[u8], durable: Durable) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::caller::Attachment;
    use crate::config::NetworkList;
    use crate::record::Implementation;

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
    fn a_state_directory_is_known_by_itself_and_not_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let mark = |name: &str| Store::open(&dir.path().join(name)).unwrap().mark;
        let one = mark("one");
        std::os::unix::fs::symlink("one", dir.path().join("other")).unwrap();
        assert_eq!(one, mark("other"));
        assert_eq!(one, mark("./one/"));
        assert_ne!(one, mark("two"));
        // As another mount namespace has another directory at the same path.
        std::fs::rename(dir.path().join("one"), dir.path().join("three")).unwrap();
        assert_ne!(one, mark("one"));
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
