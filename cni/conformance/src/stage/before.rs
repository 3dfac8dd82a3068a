//! The plugins that a chained plugin comes after, where they are those of a network of the user's own.

use cofferdam_cni::{Attachment, Caller, ContainerId, IfName, NetnsFate, NetworkList, Options, Undeclared};
use serde_json::Value;

use super::{Container, Stage};
use crate::case::End;

impl Stage<'_> {
    /// Attaches the container by the chain before, and returns its result in the newest version that the plugin speaks.
    pub(super) fn attach_before(&self, container: &Container) -> Result<Value, End> {
        let failed = |error: &dyn std::fmt::Display| End::Failed(format!("the chain before it: {error}"));
        let (caller, list) = self.before(container)?;
        let id = ContainerId::parse(&container.id).map_err(|error| failed(&error))?;
        let if_name = IfName::parse(&container.ifname).map_err(|error| failed(&error))?;
        let mut attachment = Attachment::new(id, &container.netns, if_name);
        attachment.undeclared = Undeclared::Warn;
        let result = caller.attach(&list, &attachment).map_err(|error| failed(&error))?;
        let text = result.to_text(self.newest()).map_err(|error| failed(&error))?;
        serde_json::from_str(&text).map_err(|error| failed(&error))
    }

    /// Detaches it again; what was never attached is.
    pub(super) fn detach_before(&self, container: &Container) {
        if self.subject.after.is_none() {
            return;
        }
        let names = (ContainerId::parse(&container.id), IfName::parse(&container.ifname));
        if let (Ok((caller, list)), (Ok(id), Ok(if_name))) = (self.before(container), names) {
            // What stays is seen by whoever compares the host with what it was.
            let _ = caller.detach(&list.name, &id, &if_name, NetnsFate::Ends);
        }
    }

    fn before(&self, container: &Container) -> Result<(Caller, NetworkList), End> {
        let failed = |error: &dyn std::fmt::Display| End::Failed(format!("the chain before it: {error}"));
        let text = self.subject.after.as_ref().map(ToString::to_string).unwrap_or_default();
        let text = self.filled_text(&text, container);
        let list = NetworkList::parse(&text, None).map_err(|error| failed(&error))?;
        let options = Options {
            plugin_path: self.subject.plugin_path.clone(),
            builtins: self.subject.builtins,
            ..Options::new(self.folder.join("before"))
        };
        Ok((Caller::open(options).map_err(|error| failed(&error))?, list))
    }
}
