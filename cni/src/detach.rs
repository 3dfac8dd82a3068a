//! DEL and CHECK over a list, from the stored configuration.

use std::time::Instant;

use crate::call::{Extra, Operation, Subject, input};
use crate::caller::{Caller, NetnsFate};
use crate::config::NetworkList;
use crate::error::{Error, Verb};
use crate::lock::Sharing;
use crate::name::{ContainerId, IfName, NetworkName};
use crate::record::Record;
use crate::version::Version;

impl Caller {
    /// Detaches a container from a network: DEL in reverse order, with the configuration and the implementations that did
    /// the ADD, then the record is removed. What is not attached needs no detaching.
    ///
    /// The first failure stops, and the record stays, so that it can be tried again.
    pub fn detach(
        &self,
        network: &NetworkName,
        container: &ContainerId,
        if_name: &IfName,
        fate: NetnsFate,
    ) -> Result<(), Error> {
        let _network = self.lock_network(network.as_str(), Sharing::Shared)?;
        let _container = self.lock_container(container)?;
        match self.store.find(network, container, if_name)? {
            Some(record) => self.delete_chain(&record, &record.network_list()?, fate),
            None => Ok(()),
        }
    }

    /// Detaches although the record cannot be read or does not exist, with the configuration as it is now.
    pub fn detach_without_record(
        &self,
        list: &NetworkList,
        attachment: &crate::caller::Attachment,
        fate: NetnsFate,
    ) -> Result<(), Error> {
        let _network = self.lock_network(list.name.as_str(), Sharing::Shared)?;
        let _container = self.lock_container(&attachment.container)?;
        self.delete_chain(&Record::new(list, attachment, Vec::new()), list, fate)
    }

    /// Detaches everything a container has, for instance after a crash. Tries all and returns every failure.
    pub fn detach_all(&self, container: &ContainerId, fate: NetnsFate) -> Result<(), Error> {
        let mut failures = Vec::new();
        for record in self.records()?.0.iter().rev().filter(|record| record.container() == container) {
            failures.extend(self.detach(record.network(), container, record.if_name(), fate).err());
        }
        // What a kill left beside a record, or before there was one; the lock's own file goes with the lock.
        match self.lock_container(container) {
            Ok(_lock) => failures.extend(self.store.sweep_container(container).err()),
            Err(error) => failures.push(error),
        }
        several(failures)
    }

    /// DEL over the list. The locks are held.
    pub(crate) fn delete_chain(
        &self,
        record: &Record,
        list: &NetworkList,
        fate: NetnsFate,
    ) -> Result<(), Error> {
        let operation = self.operation_on(record, list, Verb::Del, fate);
        let previous = record.raw_result().filter(|_| list.version >= Version::V0_4_0);
        for (at, plugin) in list.plugins.iter().enumerate().rev() {
            let who = self.resolve_again(record.plugins().get(at), plugin, &list.name)?;
            let extra = Extra { capabilities: Some(record.capabilities()), previous, valid: None };
            let input = input(list, plugin, extra).map_err(|error| {
                Error::state("derive the input of a plugin", record.netns())(error.into())
            })?;
            operation.call(&plugin.kind, &who, &input).map_err(Error::Plugin)?;
        }
        self.store.remove(record.network(), record.container(), record.if_name())
    }

    /// Compares an attachment with what ADD made.
    pub fn check(
        &self,
        network: &NetworkName,
        container: &ContainerId,
        if_name: &IfName,
    ) -> Result<(), Error> {
        let _network = self.lock_network(network.as_str(), Sharing::Shared)?;
        let _container = self.lock_container(container)?;
        let record = self.store.find(network, container, if_name)?.ok_or_else(|| Error::NotAttached {
            container: container.clone(),
            network: network.clone(),
            if_name: if_name.clone(),
        })?;
        let list = record.network_list()?;
        if list.disable_check {
            return Ok(());
        }
        if list.version < Version::V0_4_0 {
            let (network, version) = (network.clone(), list.version);
            return Err(Error::VerbUnsupported {
                network,
                verb: Verb::Check,
                needed: Version::V0_4_0,
                version,
            });
        }
        let operation = self.operation_on(&record, &list, Verb::Check, NetnsFate::Stays);
        for (at, plugin) in list.plugins.iter().enumerate() {
            let who = self.resolve_again(record.plugins().get(at), plugin, &list.name)?;
            let previous = record.raw_result();
            let extra = Extra { capabilities: Some(record.capabilities()), previous, valid: None };
            let input = input(&list, plugin, extra).map_err(|error| {
                Error::state("derive the input of a plugin", record.netns())(error.into())
            })?;
            operation.call(&plugin.kind, &who, &input).map_err(Error::Plugin)?;
        }
        Ok(())
    }

    fn operation_on<'a>(
        &'a self,
        record: &'a Record,
        list: &'a NetworkList,
        verb: Verb,
        fate: NetnsFate,
    ) -> Operation<'a> {
        let deadlines = self.options.deadlines;
        let limit = if verb == Verb::Check { deadlines.check } else { deadlines.del };
        // A plain file that outlived its namespace must not be passed for one.
        let live =
            !record.is_from_another_boot() && cofferdam_linux::namespace::open_netns(record.netns()).is_ok();
        Operation {
            caller: self,
            network: &list.name,
            version: list.version,
            verb,
            subject: Some(Subject {
                container: record.container(),
                if_name: record.if_name(),
                netns: live.then(|| record.netns()),
                fate,
                args: record.args(),
            }),
            deadline: Instant::now() + limit,
        }
    }
}

/// No failure is success.
pub(crate) fn several(mut failures: Vec<Error>) -> Result<(), Error> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(Error::Several(failures)),
    }
}
