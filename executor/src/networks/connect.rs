//! Networks that come and go while a task runs.
//!
//! What a task is connected to is what the network crate has on record under its id; the task's own record follows, so that
//! `inspect` and a restart of the agent tell the same.

use std::os::fd::OwnedFd;

use cofferdam_cni::{Caller, NetnsFate, Record};
use cofferdam_shim::durable::Durability;

use super::{attach_one, attached, caller, container, failed, find, interface_names, invalid, load};
use crate::disk::Disk;
use crate::error::{Error, Kind};
use crate::etc::{self, Resolver};
use crate::executor::TaskInfo;
use crate::id::TaskId;
use crate::release::Places;
use crate::request::network::NetworkRequest;
use crate::spec::NetworkChoice;

/// Connects a running task to one more network. Undo: [`disconnect`].
pub(crate) fn connect(
    places: &Places,
    disk: &Disk,
    info: &TaskInfo,
    mut request: NetworkRequest,
) -> Result<(), Error> {
    let id = &info.record.id;
    let _turn = take_turn(disk, info)?;
    let list = find(&load(places)?, std::slice::from_ref(&request))?.remove(0);
    let caller = caller(places)?;
    let records = records(&caller, id)?;
    if records.iter().any(|record| *record.network() == list.name) {
        let message = format!("task {} is connected to the network {:?} already", id.short(), request.name);
        return Err(Error::Network { kind: Kind::AlreadyExists, message });
    }
    let taken: Vec<_> = records.iter().map(|record| record.if_name().clone()).collect();
    let if_name = interface_names(std::slice::from_ref(&request), &taken)?.remove(0);
    request.if_name = Some(if_name.to_string());
    let asked = request.clone();
    request.aliases.push(info.record.name.to_string());
    attach_one(places, id, &disk.netns(id), if_name, &list, &request, &[])?;
    remember(disk, id, |networks| networks.push(asked))?;
    refresh(&caller, disk, id)
}

/// Disconnects a running task from a network.
pub(crate) fn disconnect(places: &Places, disk: &Disk, info: &TaskInfo, network: &str) -> Result<(), Error> {
    let id = &info.record.id;
    let _turn = take_turn(disk, info)?;
    let caller = caller(places)?;
    let records = records(&caller, id)?;
    let mut of_network = records.iter().filter(|record| record.network().as_str() == network).peekable();
    if of_network.peek().is_none() {
        let message = format!("task {} is not connected to a network {network:?}", id.short());
        return Err(Error::Network { kind: Kind::NotFound, message });
    }
    for record in of_network {
        caller
            .detach(record.network(), record.container(), record.if_name(), NetnsFate::Stays)
            .map_err(|error| failed(&error))?;
    }
    remember(disk, id, |networks| networks.retain(|request| request.name != network))?;
    refresh(&caller, disk, id)
}

/// One at a time changes what a task is connected to; the task must run, in a namespace of its own.
fn take_turn(disk: &Disk, info: &TaskInfo) -> Result<OwnedFd, Error> {
    let id = &info.record.id;
    if info.record.spec.network == NetworkChoice::Host {
        return Err(invalid(format!("task {} has the host's network, which is not its own", id.short())));
    }
    if info.status.pid.is_none() {
        let (task, state) = (id.short().to_owned(), info.status.state);
        return Err(Error::WrongState { operation: "change the networks of", task, state });
    }
    let path = disk.task_state(id).join("networks.lock");
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(Error::io("open", &path))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| Error::io("lock", &path)(errno.into()))?;
    Ok(file.into())
}

/// The task's attachments in the order of their interfaces.
fn records(caller: &Caller, id: &TaskId) -> Result<Vec<Record>, Error> {
    let container = container(id)?;
    let (mut records, _) = caller.records().map_err(|error| failed(&error))?;
    records.retain(|record| *record.container() == container);
    records.sort_by(|one, other| one.if_name().cmp(other.if_name()));
    Ok(records)
}

fn remember(disk: &Disk, id: &TaskId, change: impl FnOnce(&mut Vec<NetworkRequest>)) -> Result<(), Error> {
    let mut record = disk.load_record(id)?;
    let mut networks = match std::mem::replace(&mut record.spec.network, NetworkChoice::None) {
        NetworkChoice::Networks(networks) => networks,
        NetworkChoice::None | NetworkChoice::Host => Vec::new(),
    };
    change(&mut networks);
    if !networks.is_empty() {
        record.spec.network = NetworkChoice::Networks(networks);
    }
    disk.store_record(&record, Durability::Power)
}

/// Brings the task's files in `/etc` up to date.
fn refresh(caller: &Caller, disk: &Disk, id: &TaskId) -> Result<(), Error> {
    let record = disk.load_record(id)?;
    let results: Vec<_> = records(caller, id)?
        .iter()
        .map(|record| (record.result().unwrap_or_default(), record.aliases()))
        .collect();
    let attached = attached(&results, &record.spec.dns);
    let resolver = Resolver::choose(attached.resolver, &record.spec.network);
    etc::rewrite(&disk.task_state(id).join("etc"), &attached.addresses, &resolver)
}
