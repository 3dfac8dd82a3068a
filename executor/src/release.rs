//! Giving back what a task held. Everything is named after the task's id, so nothing needs to be remembered; everything may
//! be done twice, because a release that was cut short is done again.

use std::path::PathBuf;

use cofferdam_image::StoreOptions;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, TaskRecord};
use crate::error::Error;
use crate::images;
use crate::networks;
use crate::spec::Keep;
use crate::status::Status;

/// Where everything is: what a release needs to know beside the task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) cni_config: Vec<PathBuf>,
    pub(crate) cni_plugins: Vec<PathBuf>,
    #[serde(default)]
    pub(crate) store: StoreOptions,
}

/// Gives back everything but the container itself, which must be deleted. Attempts everything; returns every failure,
/// and then leaves the task's state directory for the next recovery.
pub(crate) fn release(
    places: &Places,
    disk: &Disk,
    record: &TaskRecord,
    status: &Status,
) -> Result<(), Vec<Error>> {
    let mut failures = Vec::new();
    failures.extend(networks::detach(places, disk, &record.id).err().into_iter().flatten());
    // Whoever has connected or disconnected it has written that down. A name too many is no reason to keep a task: whoever
    // comes or goes next writes all names anew.
    let now =
        disk.load_record(&record.id).map_or_else(|_| record.spec.network.clone(), |now| now.spec.network);
    let _ = networks::names::tell(places, disk, &record.id, &now);
    if is_forgotten(record, status) {
        failures.extend(forget(places, disk, record).err().into_iter().flatten());
    }
    if failures.is_empty() {
        failures.extend(disk.drop_state(&record.id).err());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

/// A task that never ran leaves only its events: whoever launched it was told why. One with `--rm` leaves no more.
fn is_forgotten(record: &TaskRecord, status: &Status) -> bool {
    record.spec.keep == Keep::Nothing || status.started.is_none()
}

/// Removes what stays of a task until it is removed: its changes to the image, its volumes, its log, its result, its name.
pub(crate) fn forget(places: &Places, disk: &Disk, record: &TaskRecord) -> Result<(), Vec<Error>> {
    let mut failures = Vec::new();
    failures.extend(images::remove_snapshot(places, &record.id).err());
    if failures.is_empty() {
        failures.extend(disk.forget(&record.id, &record.name).err());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}
