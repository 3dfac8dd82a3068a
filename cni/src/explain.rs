//! What an ADD would send, without sending it.

use serde_json::value::RawValue;

use crate::call::{Extra, input};
use crate::caller::{Attachment, Caller};
use crate::config::NetworkList;
use crate::error::Error;
use crate::record::Implementation;
use crate::version::Version;

/// What an ADD would do.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The version that would be spoken.
    pub version: Version,
    /// Every plugin in the order of the ADD.
    pub plugins: Vec<Explained>,
}

/// What one plugin would be sent.
#[derive(Debug, Clone)]
pub struct Explained {
    /// Its name.
    pub kind: String,
    /// Who would do it.
    pub implementation: Implementation,
    /// Its standard input, byte for byte. Where the result of the plugin before it is not known, a text stands in its place.
    pub input: String,
}

impl Caller {
    /// Tells what [`Caller::attach`] would send to each plugin; nothing is run but, where the network leaves a choice of
    /// versions, VERSION. `results` are those of the first plugins, as far as they are known.
    pub fn explain(
        &self,
        list: &NetworkList,
        attachment: &Attachment,
        results: &[Box<RawValue>],
    ) -> Result<Explanation, Error> {
        let underivable = |error: serde_json::Error| {
            Error::state("derive the input of a plugin of", &attachment.netns)(error.into())
        };
        let mut who = Vec::new();
        for plugin in &list.plugins {
            who.push(self.resolve(&plugin.kind, &plugin.object, &list.name)?);
        }
        let list = &*self.agree(list, &who)?;
        let capabilities = attachment.capabilities.to_object();
        let mut plugins: Vec<Explained> = Vec::new();
        for (at, (plugin, who)) in list.plugins.iter().zip(&who).enumerate() {
            let previous = match at.checked_sub(1) {
                None => None,
                Some(before) => Some(match results.get(before) {
                    Some(known) => known.clone(),
                    None => stand_in(&list.plugins[before].kind).map_err(underivable)?,
                }),
            };
            let extra =
                Extra { capabilities: Some(&capabilities), previous: previous.as_deref(), valid: None };
            plugins.push(Explained {
                kind: plugin.kind.clone(),
                implementation: who.implementation(),
                input: input(list, plugin, extra).map_err(underivable)?.to_text(),
            });
        }
        Ok(Explanation { version: list.version, plugins })
    }
}

fn stand_in(kind: &str) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(&format!("(what {kind} will have answered)"))
}
