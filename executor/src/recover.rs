//! Bringing the host back to what it should be after somebody was killed.
//!
//! A task's state directory whose lock nobody holds lost its owner: the launcher before the task ran, or the shim while it
//! ran. Then whatever is left of it is killed and given back, and its status becomes final. A record without result and
//! without state directory is from before a reboot. Living tasks are never touched: their locks are held.
//!
//! Recovery runs at each start of an executor. It may itself be killed at any point: it only ever does again what is named
//! by a directory that goes last.

use cofferdam_shim::Timestamp;

use crate::containers;
use crate::disk::{Disk, TaskRecord};
use crate::error::Error;
use crate::id::TaskId;
use crate::images;
use crate::release::{self, Places};
use crate::status::{Reason, Status};
use crate::supervisor::publish;
use crate::transition::{Event, transition};

/// What recovery did about a task.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recovered {
    /// The task.
    pub task: TaskId,
    /// What it became; `None` if nothing was known of it but leftovers.
    pub status: Option<Status>,
    /// What could not be given back: the next recovery tries again.
    pub failures: Vec<Error>,
}

/// Recovers every task that lost its owner.
pub(crate) fn recover(places: &Places, disk: &Disk) -> Result<Vec<Recovered>, Error> {
    let mut recovered = Vec::new();
    for id in disk.living()? {
        recovered.extend(recover_one(places, disk, &id)?);
    }
    recovered.extend(recover_records(places, disk)?);
    if !recovered.is_empty() {
        // Of what these were connected to while they ran nothing may be known. The next change of a network writes them, too.
        let _ = crate::networks::names::tell_all(places, disk);
    }
    Ok(recovered)
}

/// Recovers one task if it lost its owner.
pub(crate) fn recover_one(places: &Places, disk: &Disk, id: &TaskId) -> Result<Option<Recovered>, Error> {
    let claim = {
        let _admission = disk.lock_admission(true)?;
        if !disk.task_state(id).exists() {
            return Ok(None);
        }
        disk.claim(id)?
    };
    let Some(_claim) = claim else { return Ok(None) };
    // Its owner may have finished between the listing and the claim; then only a lock file of ours is left.
    Ok(Some(undo(places, disk, id)))
}

fn undo(places: &Places, disk: &Disk, id: &TaskId) -> Recovered {
    let mut failures: Vec<Error> = containers::delete(places, id).err().into_iter().collect();
    let known = disk.load_record(id).ok().map(|record| {
        let status = disk.load_status(id).ok();
        (record, status)
    });
    let Some((record, status)) = known else {
        failures.extend(undo_unknown(places, disk, id));
        return Recovered { task: id.clone(), status: None, failures };
    };
    let status = settle(disk, &record, status, lost_reason);
    if failures.is_empty() {
        failures.extend(release::release(places, disk, &record, &status).err().into_iter().flatten());
    }
    Recovered { task: id.clone(), status: Some(status), failures }
}

/// Nothing was written down of it yet, or its record is gone already: only leftovers.
fn undo_unknown(places: &Places, disk: &Disk, id: &TaskId) -> Vec<Error> {
    let mut failures: Vec<Error> =
        crate::networks::detach(places, disk, id).err().into_iter().flatten().collect();
    failures.extend(images::remove_snapshot(places, id).err());
    failures.extend(disk.remove_record(id).err());
    if failures.is_empty() {
        failures.extend(disk.drop_state(id).err());
    }
    failures
}

fn lost_reason(status: &Status) -> Reason {
    if status.started.is_none() { Reason::LauncherLost } else { Reason::SupervisorLost }
}

/// Makes the status final and tells the world, unless it is final already.
fn settle(disk: &Disk, record: &TaskRecord, status: Option<Status>, reason: fn(&Status) -> Reason) -> Status {
    let now = Timestamp::now();
    let status = status.unwrap_or_else(|| {
        let spec = &record.spec;
        Status::new(record.id.clone(), record.created, spec.restart, spec.resources.memory_bytes)
    });
    if status.state.is_final() {
        return status;
    }
    let reason = reason(&status);
    let (status, _) = transition(status, Event::OwnerLost { reason }, now);
    // If it cannot be written, the task is released nevertheless; the next recovery says the same again.
    let _ = publish(disk, record, &status);
    status
}

/// Records without a state directory: finished tasks, which are fine, and those that a reboot ended.
fn recover_records(places: &Places, disk: &Disk) -> Result<Vec<Recovered>, Error> {
    let _admission = disk.lock_admission(true)?;
    let mut recovered = Vec::new();
    for id in disk.tasks()? {
        let finished = disk.task_root(&id).join("result.json").exists();
        if finished || disk.task_state(&id).exists() {
            continue;
        }
        recovered.push(end_by_reboot(places, disk, &id));
    }
    disk.drop_dangling_names()?;
    disk.empty_removed()?;
    Ok(recovered)
}

fn end_by_reboot(places: &Places, disk: &Disk, id: &TaskId) -> Recovered {
    let Ok(record) = disk.load_record(id) else {
        return Recovered { task: id.clone(), status: None, failures: undo_unknown(places, disk, id) };
    };
    let this_boot = crate::disk::boot_id().is_ok_and(|boot| boot == record.boot);
    // A status that was never published as running is gone with the state directory; the record says it was admitted.
    let mut status =
        Status::new(id.clone(), record.created, record.spec.restart, record.spec.resources.memory_bytes);
    status.started = Some(record.created);
    let reason: fn(&Status) -> Reason =
        if this_boot { |_| Reason::SupervisorLost } else { |_| Reason::HostRebooted };
    let mut failures: Vec<Error> =
        crate::disk::make_private(&disk.task_state(id)).err().into_iter().collect();
    let status = settle(disk, &record, Some(status), reason);
    failures.extend(release::release(places, disk, &record, &status).err().into_iter().flatten());
    Recovered { task: id.clone(), status: Some(status), failures }
}
