//! GC and STATUS over a list.

use std::time::Instant;

use serde_json::value::{RawValue, to_raw_value};

use crate::call::{Extra, Operation, input};
use crate::caller::{Caller, NetnsFate};
use crate::config::NetworkList;
use crate::detach::several;
use crate::error::{Error, Verb};
use crate::lock::Sharing;
use crate::name::{ContainerId, IfName};
use crate::record::Record;
use crate::version::Version;

/// The attachments of a network that are in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Valid {
    /// These; everything else goes.
    Only(Vec<(ContainerId, IfName)>),
    /// None: everything goes.
    Nothing,
}

impl Valid {
    fn holds(&self, record: &Record) -> bool {
        match self {
            Self::Only(valid) => {
                valid.iter().any(|(id, name)| (id, name) == (record.container(), record.if_name()))
            }
            Self::Nothing => false,
        }
    }

    fn to_raw(&self) -> Result<Box<RawValue>, serde_json::Error> {
        let listed = match self {
            Self::Only(valid) => valid.as_slice(),
            Self::Nothing => &[],
        };
        let listed: Vec<_> = listed
            .iter()
            .map(|(id, name)| serde_json::json!({ "containerID": id, "ifname": name }))
            .collect();
        to_raw_value(&listed)
    }
}

impl Caller {
    /// Deletes what belongs to no valid attachment of the network: stored attachments by DEL with their own configuration,
    /// then what the plugins find themselves. Waits for running operations on the network. Tries everything and returns
    /// every failure.
    pub fn gc(&self, list: &NetworkList, valid: &Valid) -> Result<(), Error> {
        if list.disable_gc {
            return Ok(());
        }
        let _network = self.lock_network(list.name.as_str(), Sharing::Exclusive)?;
        let mut failures = Vec::new();
        for record in self.records()?.0.iter().filter(|record| *record.network() == list.name) {
            if !valid.holds(record) {
                let deleted = record
                    .network_list()
                    .and_then(|stored| self.delete_chain(record, &stored, NetnsFate::Stays));
                failures.extend(deleted.err());
            }
        }
        if list.version >= Version::V1_1_0 {
            let raw = valid.to_raw();
            let raw = raw.map_err(|error| {
                Error::state("write the valid attachments", &self.options.state)(error.into())
            })?;
            failures.extend(self.each_plugin(list, Verb::Gc, Some(raw)));
        }
        several(failures)
    }

    /// Whether the plugins of a network say that they could serve ADD now; the first that does not is the error.
    pub fn status(&self, list: &NetworkList) -> Result<(), Error> {
        if list.version < Version::V1_1_0 {
            return Ok(());
        }
        self.each_plugin(list, Verb::Status, None).into_iter().next().map_or(Ok(()), Err)
    }

    fn each_plugin(&self, list: &NetworkList, verb: Verb, valid: Option<Box<RawValue>>) -> Vec<Error> {
        let deadlines = self.options.deadlines;
        let limit = if verb == Verb::Gc { deadlines.gc } else { deadlines.status };
        let operation = Operation {
            caller: self,
            network: &list.name,
            version: list.version,
            verb,
            subject: None,
            deadline: Instant::now() + limit,
        };
        let mut failures = Vec::new();
        for plugin in &list.plugins {
            let called = self.resolve(&plugin.kind, &plugin.object, &list.name).and_then(|who| {
                let input = input(list, plugin, Extra { valid: valid.clone(), ..Extra::default() }).map_err(
                    |error| Error::state("derive the input of a plugin", &self.options.state)(error.into()),
                )?;
                operation.call(&plugin.kind, &who, &input).map_err(Error::Plugin)
            });
            failures.extend(called.err());
        }
        failures
    }
}
