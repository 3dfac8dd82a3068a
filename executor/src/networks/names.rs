//! Names of the tasks of a network: each finds the others in its `/etc/hosts`, by name, alias and short id.
//!
//! What a file has to say follows from the attachments on record alone. So whoever changes one writes the files of all who
//! share a network with it, one writer at a time, and whoever is last has seen everything. A file is the one that its task has
//! mounted, and is written in its place.
//!
//! The built-in network gives no names, as with others of its kind: it may have a thousand tasks that have nothing to do with
//! one another.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};

use cofferdam_cni::{Caller, ContainerId, NetworkName, Record};
use cofferdam_cni_plugins::DefaultNetwork;
use rustix::fs::{FlockOperation, flock};

use super::{attached, caller, failed, state};
use crate::bundle;
use crate::disk::{Disk, make_private};
use crate::error::Error;
use crate::etc::{self, Address, Resolver};
use crate::id::TaskId;
use crate::release::Places;
use crate::spec::NetworkChoice;

/// Tells all who share one of these networks with the task who is there now.
pub(crate) fn tell(places: &Places, disk: &Disk, task: &TaskId, choice: &NetworkChoice) -> Result<(), Error> {
    let NetworkChoice::Networks(requests) = choice else { return Ok(()) };
    let names: BTreeSet<&str> = requests.iter().map(|request| request.name.as_str()).collect();
    tell_those(places, disk, Some(task), |network| names.contains(network.as_str()))
}

/// Tells everybody: after a crash nobody knows who has not been told.
pub(crate) fn tell_all(places: &Places, disk: &Disk) -> Result<(), Error> {
    if state(places).join("attachments").exists() { tell_those(places, disk, None, |_| true) } else { Ok(()) }
}

/// That a task's files cannot be written is its own failure: a neighbour that has made a program of its `/etc/hosts`, and runs
/// it, keeps nobody else from a launch.
fn tell_those(
    places: &Places,
    disk: &Disk,
    task: Option<&TaskId>,
    concerned: impl Fn(&NetworkName) -> bool,
) -> Result<(), Error> {
    let concerned = |record: &&Record| gives_names(record.network()) && concerned(record.network());
    let _turn = take_turn(places)?;
    let records = all(&caller(places)?)?;
    let members: BTreeSet<&ContainerId> = records.iter().filter(concerned).map(Record::container).collect();
    for member in members {
        // One that ends just now needs no names any more.
        if let Ok(id) = TaskId::parse(member.as_str())
            && disk.load_record(&id).is_ok()
        {
            let written = write(disk, &id, &records);
            if task == Some(&id) {
                written?;
            }
        }
    }
    Ok(())
}

/// Brings a task's own files in `/etc` up to date.
pub(super) fn refresh(places: &Places, disk: &Disk, id: &TaskId) -> Result<(), Error> {
    let _turn = take_turn(places)?;
    write(disk, id, &all(&caller(places)?)?)
}

fn gives_names(network: &NetworkName) -> bool {
    network.as_str() != DefaultNetwork::NAME
}

/// One at a time writes files of tasks.
fn take_turn(places: &Places) -> Result<File, Error> {
    make_private(&state(places))?;
    let path = state(places).join("names.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(Error::io("open", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|errno| Error::io("lock", &path)(errno.into()))?;
    Ok(file)
}

fn all(caller: &Caller) -> Result<Vec<Record>, Error> {
    let (mut records, _) = caller.records().map_err(|error| failed(&error))?;
    records.sort_by(|one, other| (one.if_name(), one.container()).cmp(&(other.if_name(), other.container())));
    Ok(records)
}

fn write(disk: &Disk, id: &TaskId, records: &[Record]) -> Result<(), Error> {
    let is_own = |record: &&Record| record.container().as_str() == id.as_str();
    let own: Vec<_> = records
        .iter()
        .filter(is_own)
        .map(|record| (record.result().unwrap_or_default(), record.aliases()))
        .collect();
    let spec = disk.load_record(id)?.spec;
    let hostname = bundle::hostname(id, &spec)?;
    let attached = attached(&own, &spec.dns);
    let resolver = Resolver::choose(attached.resolver, &spec.network);
    let neighbours = neighbours(id, records);
    etc::rewrite(&disk.task_state(id).join("etc"), &hostname, &attached.addresses, &neighbours, &resolver)
}

/// The other tasks of a task's networks: their addresses there, and what they are called.
fn neighbours(id: &TaskId, records: &[Record]) -> Vec<Address> {
    let is_own = |record: &&Record| record.container().as_str() == id.as_str();
    let networks: BTreeSet<&NetworkName> =
        records.iter().filter(is_own).map(Record::network).filter(|network| gives_names(network)).collect();
    let others = records.iter().filter(|record| !is_own(record) && networks.contains(record.network()));
    others
        .flat_map(|record| {
            let mut aliases = record.aliases();
            aliases.extend(TaskId::parse(record.container().as_str()).map(|id| id.short().to_owned()));
            let result = record.result().unwrap_or_default();
            let addresses: Vec<_> = result.container_ips().map(|ip| ip.address.address).collect();
            addresses.into_iter().map(move |ip| Address { ip, aliases: aliases.clone() })
        })
        .collect()
}
