//! Networks that come and go while a task runs.
//!
//! What a task is connected to is what the network crate has on record under its id; the task's own record follows, so that
//! `inspect` and a restart of the agent tell the same.

use std::os::fd::OwnedFd;

use cofferdam_cni::{Caller, NetnsFate, NetworkList, Record};
use cofferdam_shim::durable::Durability;

use super::{
    PORTS, attach_one, caller, check_port, container, failed, find, interface_names, invalid, load, names,
};
use crate::disk::Disk;
use crate::error::{Error, Kind};
use crate::executor::TaskInfo;
use crate::id::TaskId;
use crate::release::Places;
use crate::request::network::NetworkRequest;
use crate::request::port::PortMapping;
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
    let ports = ports_to_lead(info, &list, &records);
    ports.iter().try_for_each(check_port)?;
    attach_one(places, id, &disk.netns(id), if_name, &list, &request, ports)?;
    remember(disk, id, |networks| networks.push(asked.clone()))?;
    names::refresh(places, disk, id)?;
    names::tell(places, disk, id, &NetworkChoice::Networks(vec![asked]))
}

/// The task's ports, if the network can lead them and no other network of the task does: where they led before was none, or is
/// none any more.
fn ports_to_lead<'a>(info: &'a TaskInfo, list: &NetworkList, records: &[Record]) -> &'a [PortMapping] {
    let is_led = records.iter().any(|record| !record.port_mappings().is_empty());
    if is_led || !list.declares(PORTS) { &[] } else { &info.record.spec.ports }
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
    names::refresh(places, disk, id)?;
    names::tell(places, disk, id, &NetworkChoice::Networks(vec![NetworkRequest::named(network)]))
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
