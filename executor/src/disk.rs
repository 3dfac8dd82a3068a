//! Where tasks are on disk, and who owns one.
//!
//! ```text
//! ROOT (/var/lib/cofferdam)            survives a reboot; records are synced
//!   tasks/ID/spec.json                 what was asked for                    from admission
//!   tasks/ID/result.json               the final status                      from the end
//!   tasks/ID/log/                      its output
//!   tasks/ID/volumes/N                 anonymous volumes
//!   names/NAME -> ID                   a symbolic link: made or refused in one step
//!   volumes/NAME                       named volumes
//!   removed/ID                         what is being removed: renamed there first, so that nobody sees half a task
//!   events                             every status, a line each
//!   images/                            the image store
//! STATE (/run/cofferdam)               means nothing after a reboot; records are renamed, not synced
//!   tasks/ID/lock                      flock: whoever holds it owns the task (launcher, then shim)
//!   tasks/ID/status.json               the status, while it is not final
//!   tasks/ID/{launch.json,shim.sock}   the shim's
//!   tasks/ID/bundle/config.json        the container's configuration
//!   tasks/ID/etc/                      files for its /etc
//!   netns/ID, userns/ID                its network and its user namespace, pinned
//!   ids                                flock: whoever chooses ids for a task, until they are in its record
//!   runtime/                           the runtime's state
//!   admission                          flock: shared while a task directory is made, exclusive during recovery
//! ```
//!
//! The directory in STATE is made before anything else of a task and removed after everything else: it is the intent
//! record of everything that the task may hold, because all of it is named after the task's id. A directory whose lock
//! nobody holds belongs to a task that lost its owner; `recover` undoes it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_linux::removal;
use cofferdam_shim::durable::{self, Durability};
use cofferdam_shim::{LAUNCH_FILE, SOCKET, Timestamp};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::{TaskId, TaskName};
use crate::spec::TaskSpec;
use crate::status::Status;
use crate::subordinate::IdMaps;

/// Version of `spec.json`.
pub const RECORD_VERSION: u32 = 1;

/// What is remembered of a task from its admission on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Its id.
    pub id: TaskId,
    /// Its name.
    pub name: TaskName,
    /// The boot it belongs to.
    pub boot: String,
    /// When it was asked for.
    pub created: Timestamp,
    /// What was asked for.
    pub spec: TaskSpec,
    /// Digest of the image it runs.
    pub image: Option<String>,
    /// What it runs, entry point and all.
    pub command: Vec<String>,
    /// What its ids are on the host, if it has a user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<IdMaps>,
}

/// The two directories that everything is in.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    state: PathBuf,
}

/// Ownership of a task. Gone with the last descriptor of it: also when its holder is killed.
#[derive(Debug)]
pub struct Claim(File);

impl Claim {
    /// Another descriptor of the same claim, to hand to a child.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// Admission of tasks is held back, or recovery is, as long as this lives.
#[derive(Debug)]
pub struct Admission(#[allow(dead_code)] File);

impl Disk {
    /// Opens the two directories, making what is missing, mode 0700. Refuses those that others could have tampered with.
    pub fn open(root: &Path, state: &Path) -> Result<Disk, Error> {
        for base in [root, state] {
            make_private(base)?;
            check_private(base)?;
        }
        let disk = Disk { root: root.to_owned(), state: state.to_owned() };
        for path in ["tasks", "names", "volumes", "removed"] {
            make_private(&disk.root.join(path))?;
        }
        for path in ["tasks", "netns", "userns"] {
            make_private(&disk.state.join(path))?;
        }
        Ok(disk)
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What stays of a task until it is removed.
    pub fn task_root(&self, id: &TaskId) -> PathBuf {
        self.root.join("tasks").join(id.as_str())
    }

    /// What a living task has.
    pub fn task_state(&self, id: &TaskId) -> PathBuf {
        self.state.join("tasks").join(id.as_str())
    }

    /// The control socket of a task's shim.
    pub fn socket(&self, id: &TaskId) -> PathBuf {
        self.task_state(id).join(SOCKET)
    }

    /// A task's log directory.
    pub fn log(&self, id: &TaskId) -> PathBuf {
        self.task_root(id).join("log")
    }

    /// A task's pinned network namespace.
    pub fn netns(&self, id: &TaskId) -> PathBuf {
        self.state.join("netns").join(id.as_str())
    }

    /// A task's pinned user namespace.
    pub fn userns(&self, id: &TaskId) -> PathBuf {
        self.state.join("userns").join(id.as_str())
    }

    /// The runtime's state directory.
    pub fn runtime(&self) -> PathBuf {
        self.state.join("runtime")
    }

    /// The event log.
    pub fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    /// A named volume's directory.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }

    fn name_link(&self, name: &TaskName) -> PathBuf {
        self.root.join("names").join(name.as_str())
    }

    /// Holds back recovery while task directories are made, or the other way round.
    pub fn lock_admission(&self, exclusively: bool) -> Result<Admission, Error> {
        let path = self.state.join("admission");
        let file = open_lock(&path).map_err(Error::io("open", &path))?;
        let operation = if exclusively { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
        flock(&file, operation).map_err(|errno| Error::io("lock", &path)(errno.into()))?;
        Ok(Admission(file))
    }

    /// Nobody else chooses ids for a task as long as the result lives.
    pub fn lock_ids(&self) -> Result<File, Error> {
        let path = self.state.join("ids");
        let file = open_lock(&path).map_err(Error::io("open", &path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| Error::io("lock", &path)(errno.into()))?;
        Ok(file)
    }

    /// Makes a task's directories and takes ownership of it. From here on recovery knows of it.
    pub fn admit(&self, record: &TaskRecord, status: &Status) -> Result<Claim, Error> {
        let state = self.task_state(&record.id);
        let claim = {
            let _admission = self.lock_admission(false)?;
            make_private(&state)?;
            self.claim(&record.id)?
                .ok_or_else(|| Error::Worker("a new task is owned by somebody".to_owned()))?
        };
        let admitted = self.fill_in(record, status);
        if admitted.is_err() {
            // Nothing but these directories was made; if they resist, recovery tries again.
            let _ = self.forget(&record.id, &record.name);
            let _ = self.drop_state(&record.id);
        }
        admitted.map(|()| claim)
    }

    fn fill_in(&self, record: &TaskRecord, status: &Status) -> Result<(), Error> {
        let root = self.task_root(&record.id);
        for path in [root.clone(), root.join("log"), self.task_state(&record.id).join("bundle/rootfs")] {
            make_private(&path)?;
        }
        self.store_status(status)?;
        self.store_record(record, Durability::Process)?;
        self.take_name(&record.name, &record.id)
    }

    fn take_name(&self, name: &TaskName, id: &TaskId) -> Result<(), Error> {
        let link = self.name_link(name);
        match std::os::unix::fs::symlink(id.as_str(), &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let by = self.id_of_name(name).map(|id| id.short().to_owned()).unwrap_or_default();
                Err(Error::NameTaken { name: name.to_string(), by })
            }
            made => made.map_err(Error::io("make", link)),
        }
    }

    /// Takes ownership of a task if nobody has it.
    pub fn claim(&self, id: &TaskId) -> Result<Option<Claim>, Error> {
        let path = self.task_state(id).join("lock");
        let file = match open_lock(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::io("open", &path))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Claim(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::io("lock", &path)(errno.into())),
        }
    }

    /// Writes what is remembered of a task.
    pub fn store_record(&self, record: &TaskRecord, durability: Durability) -> Result<(), Error> {
        Ok(durable::store(&self.task_root(&record.id).join("spec.json"), record, durability)?)
    }

    /// Reads it.
    pub fn load_record(&self, id: &TaskId) -> Result<TaskRecord, Error> {
        Ok(durable::load(&self.task_root(id).join("spec.json"))?)
    }

    /// Writes a task's status: a final one so that it survives loss of power.
    pub fn store_status(&self, status: &Status) -> Result<(), Error> {
        if status.state.is_final() {
            let path = self.task_root(&status.task).join("result.json");
            durable::store(&path, status, Durability::Power)?;
        }
        let path = self.task_state(&status.task).join("status.json");
        Ok(durable::store(&path, status, Durability::Process)?)
    }

    /// Reads a task's status: the final one if there is one.
    pub fn load_status(&self, id: &TaskId) -> Result<Status, Error> {
        match durable::load(&self.task_root(id).join("result.json")) {
            Err(error) if error.is_not_found() => {
                Ok(durable::load(&self.task_state(id).join("status.json"))?)
            }
            read => Ok(read?),
        }
    }

    /// Every task that is remembered or living, by id.
    pub fn tasks(&self) -> Result<Vec<TaskId>, Error> {
        let mut ids = ids_in(&self.root.join("tasks"))?;
        ids.extend(self.living()?);
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Every task with a state directory, owned or not.
    pub fn living(&self) -> Result<Vec<TaskId>, Error> {
        ids_in(&self.state.join("tasks"))
    }

    /// Whose name this is.
    pub fn id_of_name(&self, name: &TaskName) -> Option<TaskId> {
        let target = fs::read_link(self.name_link(name)).ok()?;
        TaskId::parse(target.to_str()?).ok()
    }

    /// Removes names that lead nowhere. Only under the exclusive admission lock: a name is taken before a record is
    /// complete.
    pub fn drop_dangling_names(&self) -> Result<(), Error> {
        let directory = self.root.join("names");
        for entry in fs::read_dir(&directory).map_err(Error::io("read", &directory))?.flatten() {
            let leads =
                fs::read_link(entry.path()).is_ok_and(|target| self.root.join("tasks").join(target).exists());
            if !leads {
                fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// Removes everything that is remembered of a task, its name last but for the directory itself.
    pub fn forget(&self, id: &TaskId, name: &TaskName) -> Result<(), Error> {
        if self.id_of_name(name).as_ref() == Some(id) {
            let link = self.name_link(name);
            fs::remove_file(&link).map_err(Error::io("remove", link))?;
        }
        self.remove_record(id)
    }

    /// Removes a task's directory in one step, as others see it.
    pub fn remove_record(&self, id: &TaskId) -> Result<(), Error> {
        let (from, to) = (self.task_root(id), self.root.join("removed").join(id.as_str()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove", from)(error)),
            Ok(()) => remove_tree(&to),
        }
    }

    /// Removes what removers that were killed did not get to.
    pub fn empty_removed(&self) -> Result<(), Error> {
        ids_in(&self.root.join("removed"))?
            .iter()
            .try_for_each(|id| remove_tree(&self.root.join("removed").join(id.as_str())))
    }

    /// Removes a task's state directory: the last act of its life. The lock goes last, so that nobody finds a directory
    /// without one and takes it for new.
    pub fn drop_state(&self, id: &TaskId) -> Result<(), Error> {
        let state = self.task_state(id);
        for name in [SOCKET, LAUNCH_FILE, "bundle", "etc"] {
            remove_tree(&state.join(name))?;
        }
        remove_tree(&state)
    }
}

/// The boot that this is. Process ids, namespaces and mounts of another one mean nothing.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes a directory and its parents with mode 0700; one that exists is left as it is.
pub(crate) fn make_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("make the directory", path))
}

fn check_private(path: &Path) -> Result<(), Error> {
    let meta = fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    let unsafe_because = |problem| Err(Error::UnsafeDirectory { path: path.to_owned(), problem });
    if !meta.is_dir() {
        return unsafe_because("it is not a directory (a symbolic link will not do)");
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return unsafe_because("it belongs to another user");
    }
    if meta.mode() & 0o022 != 0 {
        return unsafe_because("others may write to it");
    }
    Ok(())
}

/// Removes a file or a tree; what is not there is removed already.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match removal::remove_tree(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("remove", path)(errno.into())),
    }
}

fn ids_in(directory: &Path) -> Result<Vec<TaskId>, Error> {
    let entries = fs::read_dir(directory).map_err(Error::io("read", directory))?;
    Ok(entries.flatten().filter_map(|entry| TaskId::parse(entry.file_name().to_str()?).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restart::RestartPolicy;

    fn disk() -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("root"), &dir.path().join("state")).unwrap();
        (dir, disk)
    }

    fn record(name: &str) -> (TaskRecord, Status) {
        let id = TaskId::random().unwrap();
        let created = Timestamp::now();
        let record = TaskRecord {
            version: RECORD_VERSION,
            id: id.clone(),
            name: TaskName::parse(name).unwrap(),
            boot: boot_id().unwrap(),
            created,
            spec: TaskSpec::image("x"),
            image: None,
            command: vec![],
            ids: None,
        };
        (record, Status::new(id, created, RestartPolicy::No, None))
    }

    #[test]
    fn a_task_has_one_owner() {
        let (_dir, disk) = disk();
        let (record, status) = record("web");
        let claim = disk.admit(&record, &status).unwrap();
        assert!(disk.claim(&record.id).unwrap().is_none());
        drop(claim);
        assert!(disk.claim(&record.id).unwrap().is_some());
    }

    #[test]
    fn a_name_is_taken_once_and_a_refused_task_leaves_nothing() {
        let (_dir, disk) = disk();
        let (first, status) = record("web");
        let _claim = disk.admit(&first, &status).unwrap();
        let (second, status) = record("web");
        assert!(matches!(disk.admit(&second, &status), Err(Error::NameTaken { .. })));
        assert_eq!(disk.tasks().unwrap(), vec![first.id.clone()]);
        disk.forget(&first.id, &first.name).unwrap();
        disk.drop_state(&first.id).unwrap();
        assert!(disk.tasks().unwrap().is_empty() && disk.id_of_name(&first.name).is_none());
    }

    #[test]
    fn names_that_lead_nowhere_are_dropped() {
        let (_dir, disk) = disk();
        let name = TaskName::parse("ghost").unwrap();
        disk.take_name(&name, &TaskId::random().unwrap()).unwrap();
        disk.drop_dangling_names().unwrap();
        assert!(disk.id_of_name(&name).is_none());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Disk::open(&root, &dir.path().join("state")).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Denied);
    }
}
