//! DEL and CHECK over a list, from the stored configuration.

use std::time::Instant;

use crate::call::{Extra, Operation, Subject, input};
use crate::caller::{Attachment, Caller, NetnsFate};
use crate::config::NetworkList;
use crate::directory::Networks;
use crate::error::{Error, Verb};
use crate::lock::Sharing;
use crate::name::{ContainerId, IfName, NetworkName};
use crate::record::Record;
use crate::tree::Tree;
use crate::version::Version;

impl Caller {
    /// Detaches a container from a network: DEL in reverse order, with the configuration and the implementations that did
    /// the ADD, then the record is removed. What is not attached needs no detaching.
    ///
    /// The first failure stops, and the record stays, so that it can be tried again. A record that can be read in part is
    /// used as far as it goes; one that does not even hold the configuration needs [`Caller::detach_with`].
    pub fn detach(
        &self,
        network: &NetworkName,
        container: &ContainerId,
        if_name: &IfName,
        fate: NetnsFate,
    ) -> Result<(), Error> {
        let otherwise = Record::unknown(network, container, if_name);
        self.detach_stored(&otherwise, fate).map(drop)
    }

    /// Detaches whatever is left of the record: what it does not hold is taken from the configuration as it is now and from
    /// `attachment`, whose namespace need not exist. Without any record DEL is asked for all the same.
    pub fn detach_with(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        fate: NetnsFate,
    ) -> Result<(), Error> {
        let otherwise = Record::new(list, attachment, Vec::new());
        if self.detach_stored(&otherwise, fate)? {
            return Ok(());
        }
        let _network = self.lock_network(list.name.as_str(), Sharing::Shared)?;
        let held = self.lock_container(&attachment.container)?;
        self.delete_chain(&otherwise, list, fate, &held.tree)
    }

    /// Detaches what is on record; tells whether anything was.
    fn detach_stored(&self, otherwise: &Record, fate: NetnsFate) -> Result<bool, Error> {
        let _network = self.lock_network(otherwise.network().as_str(), Sharing::Shared)?;
        self.delete_stored(otherwise, fate)
    }

    /// DEL of what is on record, as far as that can be read. The network is locked.
    pub(crate) fn delete_stored(&self, otherwise: &Record, fate: NetnsFate) -> Result<bool, Error> {
        let held = self.lock_container(otherwise.container())?;
        let Some(record) = self.store.find_any(otherwise)? else { return Ok(false) };
        self.delete_chain(&record, &record.network_list()?, fate, &held.tree)?;
        Ok(true)
    }

    /// Detaches everything a container has, for instance after a crash. Tries all and returns every failure.
    pub fn detach_all(&self, container: &ContainerId, fate: NetnsFate) -> Result<(), Error> {
        self.detach_all_with(container, fate, &Networks::default())
    }

    /// The same; records that do not even hold their configuration are helped out with what `networks` holds now.
    pub fn detach_all_with(
        &self,
        container: &ContainerId,
        fate: NetnsFate,
        networks: &Networks,
    ) -> Result<(), Error> {
        let mut failures = Vec::new();
        for record in self.records()?.0.iter().rev().filter(|record| record.container() == container) {
            failures.extend(self.detach(record.network(), container, record.if_name(), fate).err());
        }
        for (network, container, if_name) in self.store.torn(Some(container), None) {
            let otherwise = match networks.get(network.as_str()) {
                Some(list) => Record::new(list, &Attachment::new(container, "", if_name), Vec::new()),
                None => Record::unknown(&network, &container, &if_name),
            };
            failures.extend(self.detach_stored(&otherwise, fate).err());
        }
        // What a kill left beside a record, or before there was one; the lock's own file goes with the lock.
        match self.lock_container(container) {
            Ok(_held) => failures.extend(self.store.sweep_container(container).err()),
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
        tree: &Tree,
    ) -> Result<(), Error> {
        let operation = self.operation_on(record, list, Verb::Del, fate, tree);
        let previous = record.result_in(list.version).filter(|_| list.version >= Version::V0_4_0);
        for (at, plugin) in list.plugins.iter().enumerate().rev() {
            let who = self.resolve_again(record, at, plugin, &list.name)?;
            let previous = previous.as_deref();
            let extra = Extra { capabilities: Some(record.capabilities()), previous, valid: None };
            let input = input(list, plugin, extra).map_err(|error| {
                Error::state("derive the input of a plugin", record.netns())(error.into())
            })?;
            operation.call(&plugin.kind, &who, &input).map_err(Error::Plugin)?;
        }
        self.store.remove(record.network(), record.container(), record.if_name())
    }

    /// Compares an attachment with what ADD made, for a network as it is configured now: a network that wants no CHECK is
    /// content without anybody being asked, and one whose version has none is told apart from a failure.
    pub fn check_with(
        &self,
        list: &NetworkList,
        container: &ContainerId,
        if_name: &IfName,
    ) -> Result<(), Error> {
        if list.disable_check {
            return Ok(());
        }
        can_check(list)?;
        self.check(&list.name, container, if_name)
    }

    /// Compares an attachment with what ADD made.
    pub fn check(
        &self,
        network: &NetworkName,
        container: &ContainerId,
        if_name: &IfName,
    ) -> Result<(), Error> {
        let _network = self.lock_network(network.as_str(), Sharing::Shared)?;
        let held = self.lock_container(container)?;
        let record = self.store.find(network, container, if_name)?.ok_or_else(|| Error::NotAttached {
            container: container.clone(),
            network: network.clone(),
            if_name: if_name.clone(),
        })?;
        let list = record.network_list()?;
        if list.disable_check {
            return Ok(());
        }
        can_check(&list)?;
        let operation = self.operation_on(&record, &list, Verb::Check, NetnsFate::Stays, &held.tree);
        for (at, plugin) in list.plugins.iter().enumerate() {
            let who = self.resolve_again(&record, at, plugin, &list.name)?;
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
        tree: &'a Tree,
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
            tree,
            deadline: Instant::now() + limit,
        }
    }
}

fn can_check(list: &NetworkList) -> Result<(), Error> {
    if list.version >= Version::V0_4_0 {
        return Ok(());
    }
    let (network, version) = (list.name.clone(), list.version);
    Err(Error::VerbUnsupported { network, verb: Verb::Check, needed: Version::V0_4_0, version })
}

/// No failure is success.
pub(crate) fn several(mut failures: Vec<Error>) -> Result<(), Error> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(Error::Several(failures)),
    }
}
