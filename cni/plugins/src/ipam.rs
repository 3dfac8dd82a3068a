//! The plugin that gives the addresses, called on behalf of another.

use cofferdam_cni::{AddResult, Dns, PluginError, Request, Verb};
use serde::Deserialize;

/// What the configuration says of it.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Ipam {
    #[serde(rename = "type", default)]
    kind: String,
}

impl Ipam {
    /// What the request's configuration says.
    pub(crate) fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        Ok(request.get("ipam")?.unwrap_or_default())
    }

    /// Whether there is one.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.kind.is_empty()
    }

    /// Calls it; without one, nothing is done.
    pub(crate) fn call(&self, request: &Request<'_>, verb: Verb) -> Result<AddResult, PluginError> {
        if self.is_wanted() { request.delegate.call(&self.kind, verb) } else { Ok(AddResult::default()) }
    }
}

/// The name service that a configuration sets instead of the address plugin's, if it sets anything of it.
pub(crate) fn dns_of(request: &Request<'_>, allocated: Dns) -> Result<Dns, PluginError> {
    let own: Option<Dns> = request.get("dns")?;
    Ok(own.filter(|dns| !dns.is_empty()).unwrap_or(allocated))
}
