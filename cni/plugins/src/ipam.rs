//! The plugin that gives the addresses, called on behalf of another.

use std::os::fd::OwnedFd;

use cofferdam_cni::{AddResult, Code, Dns, Object, Plugin, PluginError, Request, Verb};

/// What the configuration says of it.
#[derive(Debug, Default)]
pub(crate) struct Ipam {
    kind: String,
}

impl Ipam {
    /// What the request's configuration says.
    pub(crate) fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        // An object and nothing else: serde would take a list for the members of a struct in their order.
        let ipam: Object = request.get("ipam")?.unwrap_or_default();
        let kind: Option<String> = ipam
            .get("type")
            .map_err(|error| PluginError::new(Code::DECODE, format!("ipam.type: {error}")))?;
        Ok(Self { kind: kind.unwrap_or_default() })
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

/// ADD of a plugin that makes an interface: allocates and goes on with what it got. If going on fails, all of it is undone.
pub(crate) fn allocate(
    plugin: &dyn Plugin,
    request: &Request<'_>,
    go_on: impl FnOnce(AddResult) -> Result<AddResult, PluginError>,
) -> Result<AddResult, PluginError> {
    let allocated = Ipam::of(request)?.call(request, Verb::Add)?;
    undone_by(plugin, request, || go_on(allocated))
}

/// Goes on; if that fails, the plugin deletes what it made.
pub(crate) fn undone_by<T>(
    plugin: &dyn Plugin,
    request: &Request<'_>,
    go_on: impl FnOnce() -> Result<T, PluginError>,
) -> Result<T, PluginError> {
    go_on().inspect_err(|_| {
        // The first failure is the one worth telling; the caller's DEL tries again.
        let _ = plugin.del(request);
    })
}

/// How every CHECK of a plugin that made an interface begins: the addresses are held, and this is the namespace and what was
/// made.
pub(crate) fn begin_check(request: &Request<'_>) -> Result<(OwnedFd, AddResult), PluginError> {
    let netns = request.open_netns()?;
    Ipam::of(request)?.call(request, Verb::Check)?;
    Ok((netns, request.previous.clone().unwrap_or_default()))
}

/// The name service that a configuration sets instead of the address plugin's, if it sets anything of it.
pub(crate) fn dns_of(request: &Request<'_>, allocated: Dns) -> Result<Dns, PluginError> {
    let own: Option<Dns> = request.get("dns")?;
    Ok(own.filter(|dns| !dns.is_empty()).unwrap_or(allocated))
}
