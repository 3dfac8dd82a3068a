//! delete: remove what create made. runtime-spec runtime.md, "Delete".

use std::path::Path;

use cofferdam_linux::cgroup::Cgroup;
use cofferdam_linux::wait::readable;
use cofferdam_plan::ContainerId;
use cofferdam_plan::op::HookPoint;
use rustix::process::{Signal, pidfd_send_signal};

use crate::error::Error;
use crate::hooks;
use crate::kill::kill_all;
use crate::lock::Locked;
use crate::runtime::Runtime;
use crate::state::{Record, Status, file_error, has_process_note, noted_cgroup, noted_process};

impl Runtime {
    /// Deletes a stopped or created container; with `force` also a running one, and one whose lock another operation does
    /// not let go of. The state goes last: whatever cannot be removed leaves it in place, so that delete can be tried
    /// again. Failing poststop hooks are returned as warnings, and keep no
    /// other from running (runtime-spec "Lifecycle" 13).
    pub fn delete(&self, id: &ContainerId, force: bool) -> Result<Vec<String>, Error> {
        let limits = self.options.limits;
        let limit = if force { limits.forced_lock } else { limits.lock };
        match Locked::open(&self.directory(id), id.as_str(), limit) {
            Err(Error::NotFound { .. }) if force => Ok(Vec::new()),
            Err(held @ Error::Locked { .. }) if force => self.delete_held(id, &held),
            result => self.delete_locked(id, &result?, force),
        }
    }

    pub(crate) fn delete_locked(
        &self,
        id: &ContainerId,
        locked: &Locked,
        force: bool,
    ) -> Result<Vec<String>, Error> {
        let record = match Record::load(&locked.directory, id.as_str()) {
            Ok(record) => record,
            Err(error) if force => return self.delete_unreadable(id, locked, error),
            Err(error) => return Err(error),
        };
        match record.status(&locked.directory) {
            Status::Stopped | Status::Created => {}
            _ if force => {}
            status => {
                let words = format!("cannot delete container {id} that is not stopped: {status}");
                return Err(Error::Conflict(words));
            }
        }
        if !self.is_left_alone(&locked.directory, &record)
            && let Some(cgroup) = kill_all(self, &locked.directory, &record)?
        {
            cgroup.remove()?;
        }
        remove_folders(&record)?;
        // An empty scope ends by itself: that nobody could be told is no reason to keep the container.
        let unit = crate::systemd::end(&record).err().map(|problem| problem.to_string());
        let hooks = hooks::run_all(self, &record, HookPoint::Poststop, Status::Stopped);
        locked.remove()?;
        Ok(unit.into_iter().chain(hooks.iter().map(Error::to_string)).collect())
    }

    /// Whether nothing of a container runs any more; its cgroup is gone then too. What is not clear stays as it is.
    fn is_left_alone(&self, directory: &Path, record: &Record) -> bool {
        let process = record.process().or_else(|| noted_process(directory));
        let idle = |path: &str| Cgroup::remove_idle_in(&record.layout(), path).unwrap_or(false);
        process.is_none() && record.cgroup.as_deref().is_none_or(idle)
    }

    /// Another operation hangs over the container. Its processes are ended, which lets most such operations notice and
    /// give up; whoever still holds the lock then is not waited for.
    fn delete_held(&self, id: &ContainerId, held: &Error) -> Result<Vec<String>, Error> {
        let directory = self.directory(id);
        let unlocked = match Locked::open_unlocked(&directory, id.as_str()) {
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            result => result?,
        };
        self.end_noted(id, &directory)?;
        let warnings = match Locked::open(&directory, id.as_str(), self.options.limits.forced_lock) {
            Err(Error::NotFound { .. }) => Vec::new(),
            Err(Error::Locked { .. }) => self.delete_locked(id, &unlocked, true)?,
            result => self.delete_locked(id, &result?, true)?,
        };
        Ok(warnings.into_iter().chain([format!("{held}; deleted all the same")]).collect())
    }

    /// Without a readable state: the noted process and what the noted cgroup holds are ended. Nothing was made before the
    /// state was written; where there is one and no note, nobody knows what may still run, and the state stays.
    fn delete_unreadable(
        &self,
        id: &ContainerId,
        locked: &Locked,
        error: Error,
    ) -> Result<Vec<String>, Error> {
        let noted = self.end_noted(id, &locked.directory)?;
        if !noted && !matches!(error, Error::NotFound { .. }) {
            return Err(error);
        }
        locked.remove()?;
        let words = format!("{error}; its processes were ended, its poststop hooks did not run");
        Ok(noted.then_some(words).into_iter().collect())
    }

    /// Ends what the notes lead to; `false` when there are none.
    fn end_noted(&self, id: &ContainerId, directory: &Path) -> Result<bool, Error> {
        let process = noted_process(directory);
        if let Some(process) = &process {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        let path = noted_cgroup(directory);
        let cgroup = path
            .as_deref()
            .map(|path| self.own_cgroup(self.cgroups()?, id.as_str(), path, process.is_some()));
        if let Some(cgroup) = cgroup.transpose()?.flatten() {
            cgroup.kill()?;
            cgroup.remove()?;
        }
        if let Some(process) = &process {
            let _ = readable(process, self.options.limits.end);
        }
        Ok(path.is_some() || has_process_note(directory))
    }
}

/// Removes the groups of resctrl that are the container's own.
pub(crate) fn remove_folders(record: &Record) -> Result<(), Error> {
    record.folders.iter().rev().try_for_each(|folder| match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file_error("removing", folder, &error))
        }
        _ => Ok(()),
    })
}
