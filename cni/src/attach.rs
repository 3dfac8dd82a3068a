//! ADD over a list: recorded before it begins, undone if it fails.

use std::time::Instant;

use crate::call::{Answer, Extra, Operation, Subject, input};
use crate::caller::{Attachment, Caller, NetnsFate, Undeclared};
use crate::config::NetworkList;
use crate::error::{Error, Failure, Verb};
use crate::lock::{Lock, Sharing};
use crate::name::ContainerId;
use crate::object::Object;
use crate::plugin::Code;
use crate::record::{Record, RecordState};
use crate::resolve::Resolved;
use crate::result::AddResult;
use crate::store::Durable;
use crate::tree::Tree;

impl Caller {
    /// Attaches a container to a network and returns what the whole chain achieved.
    ///
    /// An attachment that a crash left half done is undone first. On failure everything done is undone, and the record is
    /// removed; if that fails too, the record stays and [`Caller::detach`] can be called again.
    pub fn attach(&self, list: &NetworkList, attachment: &Attachment) -> Result<AddResult, Error> {
        self.check_request(list, attachment)?;
        let _network = self.lock_network(list.name.as_str(), Sharing::Shared)?;
        let held = self.lock_container(&attachment.container)?;
        self.clear_the_way(list, attachment, &held.tree)?;

        let mut plugins = Vec::with_capacity(list.plugins.len());
        for plugin in &list.plugins {
            plugins.push(self.resolve(&plugin.kind, &plugin.object, &list.name)?);
        }
        let list = &*self.agree(list, &plugins)?;
        let implementations = plugins.iter().map(Resolved::implementation).collect();
        let mut record = Record::new(list, attachment, implementations);
        self.store.write(&record, Durable::Name)?;

        match self.add_chain(list, attachment, &plugins, &mut record, &held.tree) {
            Ok(result) => {
                record.set_added();
                self.store.write(&record, Durable::Content).map(|()| result).or_else(|error| {
                    self.delete_chain(&record, list, NetnsFate::Stays, &held.tree)?;
                    Err(error)
                })
            }
            Err(failure) => Err(self.undo(&record, list, failure, &held.tree)),
        }
    }

    fn clear_the_way(&self, list: &NetworkList, attachment: &Attachment, tree: &Tree) -> Result<(), Error> {
        let otherwise = Record::new(list, attachment, Vec::new());
        let Some(record) = self.store.find_any(&otherwise)? else { return Ok(()) };
        if record.state() == RecordState::Added && !record.is_from_another_boot() {
            return Err(Error::Attached {
                container: attachment.container.clone(),
                network: list.name.clone(),
                if_name: attachment.if_name.clone(),
            });
        }
        let stored = record.network_list()?;
        self.delete_chain(&record, &stored, NetnsFate::Stays, tree)
    }

    fn add_chain(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        plugins: &[Resolved],
        record: &mut Record,
        tree: &Tree,
    ) -> Result<AddResult, AddFailure> {
        let operation = Operation {
            caller: self,
            network: &list.name,
            version: list.version,
            verb: Verb::Add,
            subject: Some(Subject {
                container: &attachment.container,
                if_name: &attachment.if_name,
                netns: Some(&attachment.netns),
                fate: NetnsFate::Stays,
                args: &attachment.args,
            }),
            tree,
            deadline: Instant::now() + self.options.deadlines.add,
        };
        let capabilities = attachment.capabilities.to_object();
        let mut result = AddResult::default();
        for (at, (plugin, who)) in list.plugins.iter().zip(plugins).enumerate() {
            let extra =
                Extra { capabilities: Some(&capabilities), previous: record.raw_result(), valid: None };
            let input: Object = input(list, plugin, extra).map_err(|error| {
                AddFailure::Own(Error::state("derive the input of a plugin", &attachment.netns)(error.into()))
            })?;
            let Answer { raw, result: so_far } = operation
                .call(&plugin.kind, who, &input)
                .map_err(|failure| AddFailure::Plugin { first: at == 0, failure })?;
            result = so_far;
            record.set_result(raw);
            let more = at + 1 < list.plugins.len();
            if more {
                self.store.write(record, Durable::No).map_err(AddFailure::Own)?;
            }
        }
        Ok(result)
    }

    /// The specification wants DEL after a failed ADD, of the whole list.
    fn undo(&self, record: &Record, list: &NetworkList, failure: AddFailure, tree: &Tree) -> Error {
        let undone = match &failure {
            AddFailure::Plugin { first: true, failure } if failure.code == Some(Code::UNKNOWN_CONTAINER) => {
                self.store.remove(record.network(), record.container(), record.if_name())
            }
            _ => self.delete_chain(record, list, NetnsFate::Stays, tree),
        };
        match (failure, undone) {
            (AddFailure::Plugin { failure, .. }, Ok(())) => Error::Plugin(failure),
            (AddFailure::Plugin { failure, .. }, Err(undo)) => {
                Error::Undo { add: failure, undo: Box::new(undo) }
            }
            (AddFailure::Own(error), Ok(())) => error,
            (AddFailure::Own(error), Err(undo)) => Error::Several(vec![error, undo]),
        }
    }

    pub(crate) fn lock_network(&self, network: &str, sharing: Sharing) -> Result<Lock, Error> {
        let path = self.store.lock_path("network", network);
        Lock::take(&path, sharing, self.options.deadlines.lock, &format!("network {network}"))
    }

    pub(crate) fn lock_container(&self, container: &ContainerId) -> Result<Held, Error> {
        let path = self.store.lock_path("container", container.as_str());
        let what = format!("the networks of container {container}");
        let lock = Lock::take(&path, Sharing::Exclusive, self.options.deadlines.lock, &what)?.removing(&path);
        Ok(Held { tree: self.store.tree("container", container.as_str()), _lock: lock })
    }

    /// Refuses what can be refused before anything was touched.
    fn check_request(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        for (key, value) in &attachment.args {
            if key.is_empty() || [key, value].iter().any(|text| text.contains([';', '=', '\0'])) {
                return Err(Error::Argument { key: key.clone(), value: value.clone() });
            }
        }
        // Plugins chained to loopback may work on what it gave.
        let is_loopback = list.plugins.first().is_some_and(|plugin| plugin.kind == "loopback");
        if attachment.if_name.as_str() == "lo" && !is_loopback {
            return Err(Error::Loopback { network: list.name.clone() });
        }
        self.check_capabilities(list, attachment)?;
        cofferdam_linux::namespace::open_netns(&attachment.netns)
            .map(drop)
            .map_err(|errno| Error::Netns { path: attachment.netns.clone(), errno })
    }

    fn check_capabilities(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        for (capability, missed) in attachment.capabilities.undeclared(|name| list.declares(name)) {
            let error = Error::Undeclared { network: list.name.clone(), capability };
            if missed && attachment.undeclared == Undeclared::Refuse {
                return Err(error);
            }
            self.warn(&error.to_string());
        }
        Ok(())
    }
}

/// A container that nobody else works on, and where the programs run that do. The programs are ended first.
pub(crate) struct Held {
    pub(crate) tree: Tree,
    _lock: Lock,
}

enum AddFailure {
    Plugin { first: bool, failure: Box<Failure> },
    Own(Error),
}
