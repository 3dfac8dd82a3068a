//! delete: remove what create made. runtime-spec runtime.md, "Delete".

use cofferdam_linux::cgroup::Layout;
use cofferdam_plan::ContainerId;
use cofferdam_plan::op::HookPoint;

use crate::error::Error;
use crate::hooks;
use crate::kill::kill_all;
use crate::resources::existing;
use crate::runtime::Runtime;
use crate::state::{Locked, Record, Status, file_error, noted_cgroup};

impl Runtime {
    /// Deletes a stopped or created container; with `force` also a running one. The state goes last: whatever cannot be
    /// removed leaves it in place, so that delete can be tried again. A failing poststop hook is returned as a warning
    /// (runtime-spec "Lifecycle" 13).
    pub fn delete(&self, id: &ContainerId, force: bool) -> Result<Vec<String>, Error> {
        let locked = match Locked::open(&self.directory(id), id.as_str()) {
            Err(Error::NotFound { .. }) if force => return Ok(Vec::new()),
            result => result?,
        };
        let record = match Record::load(&locked.directory, id.as_str()) {
            Ok(record) => record,
            Err(error) if force => return delete_unreadable(&locked, error, &self.cgroups),
            Err(error) => return Err(error),
        };
        match record.status(&locked.directory, &self.cgroups) {
            Status::Stopped | Status::Created => {}
            _ if force => {}
            status => {
                let words = format!("cannot delete container {id} that is not stopped: {status}");
                return Err(Error::Conflict(words));
            }
        }
        if let Some(cgroup) = kill_all(&record, &self.cgroups)? {
            cgroup.remove()?;
        }
        let warning = hooks::run(&record, HookPoint::Poststop, Status::Stopped, None).err();
        remove(&locked)?;
        Ok(warning.map(|error| error.to_string()).into_iter().collect())
    }
}

/// Without a readable state: what the noted cgroup holds is ended. Nothing was made before the state was written; where
/// there is one and no note of the cgroup, nobody knows what may still run, and the state stays.
fn delete_unreadable(locked: &Locked, error: Error, cgroups: &Layout) -> Result<Vec<String>, Error> {
    let noted = noted_cgroup(&locked.directory);
    if let Some(path) = &noted {
        if let Some(cgroup) = existing(cgroups, path)? {
            cgroup.kill()?;
            cgroup.remove()?;
        }
    } else if !matches!(error, Error::NotFound { .. }) {
        return Err(error);
    }
    remove(locked)?;
    let warning = noted.map(|_| format!("{error}; its cgroup was emptied, its poststop hooks did not run"));
    Ok(warning.into_iter().collect())
}

fn remove(locked: &Locked) -> Result<(), Error> {
    std::fs::remove_dir_all(&locked.directory)
        .map_err(|error| file_error("removing", &locked.directory, &error))
}
