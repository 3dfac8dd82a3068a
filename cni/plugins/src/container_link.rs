//! One link inside the container, of any kind: what macvlan, ipvlan, vlan, dummy and tap have in common.
//!
//! ```text
//! ADD   IPAM ─▶ link, born in the container under a hash of the mark ─▶ its name and its mark at once ─▶ addresses, routes, up
//! DEL   IPAM, the link if it is marked, or is what the result says
//! ```
//!
//! A kind is a row: its name, whether it needs a link below it, and how its attributes follow from the configuration. DEL
//! knows the link by its mark, so it never takes away an interface of another network that has the name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_cni::{AddResult, Code, NetnsFate, Object, Plugin, PluginError, Request, Verb};
use cofferdam_linux::netlink::{Link, LinkKind, NewLink, Socket};
use cofferdam_linux::tap::Tap;
use rustix::io::Errno;
use serde::Deserialize;

use crate::bridge::described;
use crate::container::{Detection, Inside, Neighbours, already_there, christen, inside, sandbox};
use crate::ipam::{self, Ipam, dns_of};
use crate::veth::wanted_mac;
use crate::{links, refuse_keys};

/// A plugin whose attachment is one link.
pub(crate) struct ContainerLink {
    /// The plugin's name.
    pub(crate) kind: &'static str,
    /// What the kernel calls such a link.
    pub(crate) link_kind: &'static str,
    /// Whether it lies on another.
    pub(crate) parent: Parent,
    /// What is to be made.
    pub(crate) shape: fn(&Request<'_>) -> Result<Shape, PluginError>,
    /// Keys of the reference plugin that this one does not know.
    pub(crate) unknown: &'static [&'static str],
}

/// Whether a link lies on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// It does not.
    None,
    /// On the configured one, or on the one of the default route.
    Master,
    /// As `Master`, or on the one that a plugin before made, whose addresses it then takes.
    Chained,
}

/// What is to be made.
pub(crate) enum Shape {
    /// A link made by rtnetlink.
    Link(LinkKind<'static>),
    /// A link made by its driver's device.
    Tap(Tap),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    master: Option<String>,
    mtu: u32,
    link_in_container: bool,
}

impl ContainerLink {
    fn config(&self, request: &Request<'_>) -> Result<Config, PluginError> {
        request.settings()
    }

    /// The result of the plugins before, if this one may lie on what they made.
    fn before<'r>(&self, request: &'r Request<'_>) -> Option<&'r AddResult> {
        request.previous.as_ref().filter(|_| self.parent == Parent::Chained)
    }

    /// The same, if the addresses are theirs as well. DEL and CHECK are always given a result, the attachment's own: only
    /// the configuration tells who allocated.
    fn chained<'r>(&self, request: &'r Request<'_>) -> Result<Option<&'r AddResult>, PluginError> {
        Ok(if Ipam::of(request)?.is_wanted() { None } else { self.before(request) })
    }

    fn interface<'a>(&self, request: &'a Request<'_>) -> Inside<'a> {
        Inside {
            plugin: self.kind,
            name: request.if_name.as_str(),
            neighbours: Neighbours::Network,
            detection: Detection::Kernel,
        }
    }

    /// The link below, as a socket of its namespace sees it.
    fn find_parent(
        &self,
        socket: &mut Socket,
        config: &Config,
        before: Option<&AddResult>,
    ) -> Result<Option<Link>, PluginError> {
        if self.parent == Parent::None {
            return Ok(None);
        }
        let below =
            || before?.interfaces.iter().find(|one| one.sandbox.is_empty()).map(|one| one.name.clone());
        let named = config.master.clone().filter(|name| !name.is_empty()).or_else(below);
        let link = match &named {
            Some(name) => socket.find_link(name)?,
            None => default_link(socket)?,
        };
        let what = named.unwrap_or_else(|| "with a default route".into());
        let missing = || {
            PluginError::new(
                Code::INVALID_CONFIG,
                format!("{}: there is no link {what} to lie on", self.kind),
            )
        };
        link.map(Some).ok_or_else(missing)
    }

    fn connect(
        &self,
        request: &Request<'_>,
        netns: BorrowedFd<'_>,
        mut result: AddResult,
    ) -> Result<AddResult, PluginError> {
        let config = self.config(request)?;
        let born = links::name("new", &request.owner());
        if Socket::route_in(netns)?.find_link(request.if_name.as_str())?.is_some() {
            return Err(already_there(request.if_name.as_str()));
        }
        self.make(request, &config, netns, &born)?;
        let (interface, owner) = (self.interface(request), request.owner());
        let link = inside(netns, |socket| {
            christen(socket, &born, interface.name, &owner)?;
            interface.configure(socket, &result)
        })?;
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        result.dns = dns_of(request, result.dns)?;
        result.interfaces = vec![described(request, &link, sandbox(request))];
        Ok(result)
    }

    /// Makes the link in the container, down, under the name it is born with.
    fn make(
        &self,
        request: &Request<'_>,
        config: &Config,
        netns: BorrowedFd<'_>,
        born: &str,
    ) -> Result<(), PluginError> {
        let mut socket = if config.link_in_container { Socket::route_in(netns)? } else { Socket::route()? };
        let parent = self.find_parent(&mut socket, config, self.before(request))?;
        if let Some(parent) = parent.as_ref().filter(|parent| config.mtu > parent.mtu) {
            return Err(PluginError::config(format!(
                "{}: an mtu of {} does not fit through {}, whose mtu is {}",
                self.kind, config.mtu, parent.name, parent.mtu
            )));
        }
        let (mac, mtu) = (wanted_mac(request)?, Some(config.mtu).filter(|mtu| *mtu > 0));
        // What a crash left.
        remove(&mut Socket::route_in(netns)?, born)?;
        match (self.shape)(request)? {
            Shape::Link(kind) => {
                let link = NewLink {
                    parent: parent.map(|link| link.index),
                    netns: Some(netns),
                    mac,
                    mtu,
                    up: false,
                    ..NewLink::new(born, kind)
                };
                socket.add_link(&link).map_err(|error| self.explain(error))
            }
            Shape::Tap(tap) => inside(netns, |socket| {
                tap.create(born).map_err(|errno| {
                    PluginError::new(Code::KERNEL, format!("cannot make a tap by /dev/net/tun: {errno}"))
                })?;
                let index = socket.link(born)?.index;
                let change = cofferdam_linux::netlink::LinkChange { mac, mtu, ..Default::default() };
                Ok(socket.change_link(index, &change)?)
            }),
        }
    }

    fn explain(&self, error: cofferdam_linux::netlink::Error) -> PluginError {
        if error.errno() == Errno::OPNOTSUPP {
            let message = format!("{}: this kernel has no links of the kind {}", self.kind, self.link_kind);
            return PluginError::new(Code::KERNEL, message);
        }
        error.into()
    }

    fn disconnect(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let link = match netns_if_there(request) {
            // The namespace takes it along.
            Some(_) if request.netns_fate == NetnsFate::Ends => Ok(()),
            Some(netns) => Socket::route_in(netns.as_fd())
                .map_err(PluginError::from)
                .and_then(|mut socket| remove_own(&mut socket, request)),
            None => Ok(()),
        };
        link.and(Ipam::of(request).and_then(|ipam| ipam.call(request, Verb::Del).map(drop)))
    }
}

impl Plugin for ContainerLink {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        refuse_keys(config, self.unknown)
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let netns = request.open_netns()?;
        let connect = |allocated| self.connect(request, netns.as_fd(), allocated);
        match self.chained(request)? {
            Some(previous) => ipam::undone_by(self, request, || connect(previous.clone())),
            None => ipam::allocate(self, request, connect),
        }
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        self.disconnect(request)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let netns = request.open_netns()?;
        let config = self.config(request)?;
        Ipam::of(request)?.call(request, Verb::Check)?;
        let result = request.previous.clone().unwrap_or_default();
        let mut socket = Socket::route_in(netns.as_fd())?;
        let link = self.interface(request).check(&mut socket, &result)?;
        let wrong =
            |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("{}: {what}", self.kind)));
        if link.kind.as_deref() != Some(self.link_kind) {
            return wrong(format!("{} is no {}", link.name, self.link_kind));
        }
        let Some(master) = config.master.as_deref().filter(|_| self.parent != Parent::None) else {
            return Ok(());
        };
        let mut outside = if config.link_in_container { socket } else { Socket::route()? };
        match outside.find_link(master)? {
            Some(parent) if Some(parent.index) == link.peer => Ok(()),
            _ => wrong(format!("{} does not lie on {master}", link.name)),
        }
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Ipam::of(request)?.call(request, Verb::Gc).map(drop)
    }

    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config = self.config(request)?;
        if !config.link_in_container && self.parent == Parent::Master {
            let parent = self.find_parent(&mut Socket::route()?, &config, None);
            parent.map_err(|error| PluginError { code: Code::NOT_AVAILABLE, ..error })?;
        }
        Ipam::of(request)?.call(request, Verb::Status).map(drop)
    }
}

/// The container's namespace in DEL, which is fine without.
pub(crate) fn netns_if_there(request: &Request<'_>) -> Option<OwnedFd> {
    request.netns.as_ref().and_then(|_| request.open_netns().ok())
}

/// The link of the default route with the lowest metric.
fn default_link(socket: &mut Socket) -> Result<Option<Link>, PluginError> {
    let routes = socket.routes()?.into_iter().filter(|route| route.destination.prefix == 0);
    let best = routes.min_by_key(|route| route.priority.unwrap_or_default());
    Ok(best.and_then(|route| route.link).map(|index| socket.link_by_index(index)).transpose()?)
}

/// Removes the attachment's link: the half-born one, and the one with its name if it is ours.
fn remove_own(socket: &mut Socket, request: &Request<'_>) -> Result<(), PluginError> {
    remove(socket, &links::name("new", &request.owner()))?;
    match socket.find_link(request.if_name.as_str())? {
        Some(link) if is_own(&link, request) => remove(socket, &link.name),
        _ => Ok(()),
    }
}

/// Ours is marked; one that the reference plugin made is not, but the result tells of it.
fn is_own(link: &Link, request: &Request<'_>) -> bool {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let told = || {
        let mut interfaces = request.previous.iter().flat_map(|result| &result.interfaces);
        interfaces
            .any(|one| one.name == link.name && one.mac.eq_ignore_ascii_case(&mac) && !one.sandbox.is_empty())
    };
    link.alias == request.owner() || (link.alias.is_empty() && told())
}

fn remove(socket: &mut Socket, name: &str) -> Result<(), PluginError> {
    match socket.delete_link(name) {
        Err(error) if error.errno() != Errno::NODEV => Err(error.into()),
        _ => Ok(()),
    }
}
