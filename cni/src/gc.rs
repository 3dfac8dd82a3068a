//! GC and STATUS over a list.

use std::time::{Duration, Instant};

use serde_json::value::{RawValue, to_raw_value};

use crate::call::{Extra, Operation, input};
use crate::caller::{Attachment, Caller, NetnsFate};
use crate::config::{NetworkList, PluginConfig};
use crate::detach::several;
use crate::error::{Error, Verb};
use crate::lock::{Lock, Sharing};
use crate::name::{ContainerId, IfName};
use crate::plugin::Code;
use crate::record::Record;
use crate::tree::Tree;
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
    fn holds(&self, container: &ContainerId, if_name: &IfName) -> bool {
        match self {
            Self::Only(valid) => valid.iter().any(|(id, name)| (id, name) == (container, if_name)),
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
            if !valid.holds(record.container(), record.if_name()) {
                failures.extend(self.delete_stored(record, NetnsFate::Stays).err());
            }
        }
        for (_, container, if_name) in self.store.torn(None, Some(&list.name)) {
            if !valid.holds(&container, &if_name) {
                let otherwise = Record::new(list, &Attachment::new(container, "", if_name), Vec::new());
                failures.extend(self.delete_stored(&otherwise, NetnsFate::Stays).err());
            }
        }
        if list.version >= Version::V1_1_0 {
            let raw = valid.to_raw();
            let raw = raw.map_err(|error| {
                Error::state("write the valid attachments", &self.options.state)(error.into())
            })?;
            let tree = self.store.tree("network", list.name.as_str());
            let operation = self.operation(list, Verb::Gc, &tree, self.options.deadlines.gc);
            for plugin in &list.plugins {
                failures.extend(self.ask(&operation, list, plugin, Some(raw.clone())).err());
            }
        }
        several(failures)
    }

    /// Whether the plugins of a network say that they could serve ADD now; the first that does not is the error. A plugin that
    /// is not there cannot (code 50).
    pub fn status(&self, list: &NetworkList) -> Result<(), Error> {
        if list.version < Version::V1_1_0 {
            return Ok(());
        }
        let path = self.store.lock_path("status", list.name.as_str());
        let what = format!("the status of network {}", list.name);
        let limit = self.options.deadlines.lock;
        let _lock = Lock::take(&path, Sharing::Exclusive, limit, &what)?.removing(&path);
        let tree = self.store.tree("status", list.name.as_str());
        let operation = self.operation(list, Verb::Status, &tree, self.options.deadlines.status);
        list.plugins.iter().try_for_each(|plugin| match self.ask(&operation, list, plugin, None) {
            Err(missing @ Error::PluginMissing { .. }) => {
                let mut failure = operation.failure(&plugin.kind, Verb::Status, missing.to_string());
                failure.code = Some(Code::NOT_AVAILABLE);
                failure.kind = Code::NOT_AVAILABLE.kind();
                Err(Error::Plugin(failure))
            }
            asked => asked,
        })
    }

    fn operation<'a>(
        &'a self,
        list: &'a NetworkList,
        verb: Verb,
        tree: &'a Tree,
        limit: Duration,
    ) -> Operation<'a> {
        let deadline = Instant::now() + limit;
        let (network, version) = (&list.name, list.version);
        Operation { caller: self, network, version, verb, subject: None, tree, deadline }
    }

    fn ask(
        &self,
        operation: &Operation<'_>,
        list: &NetworkList,
        plugin: &PluginConfig,
        valid: Option<Box<RawValue>>,
    ) -> Result<(), Error> {
        let who = self.resolve(&plugin.kind, &plugin.object, &list.name)?;
        let input = input(list, plugin, Extra { valid, ..Extra::default() }).map_err(|error| {
            Error::state("derive the input of a plugin", &self.options.state)(error.into())
        })?;
        operation.call(&plugin.kind, &who, &input).map(drop).map_err(Error::Plugin)
    }
}
