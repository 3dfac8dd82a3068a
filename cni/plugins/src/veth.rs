//! The pair of links between host and container.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use cofferdam_cni::{NetnsFate, PluginError, Request};
use cofferdam_linux::netlink::{
    Link, LinkChange, LinkKind, LinkWatch, MacAddress, NewLink, Socket, VethPeer,
};
use rustix::io::Errno;

use crate::container::already_there;
use crate::links;

/// The name of the host's end.
pub(crate) fn host_name(request: &Request<'_>) -> String {
    links::name("veth", &request.owner())
}

/// Makes the pair and returns the host's end: of a master a port that is down, otherwise up. The container's end is down.
pub(crate) fn add(
    host: &mut Socket,
    request: &Request<'_>,
    netns: BorrowedFd<'_>,
    master: Option<u32>,
    mtu: Option<u32>,
) -> Result<Link, PluginError> {
    let (name, owner) = (host_name(request), request.owner());
    let peer = VethPeer { name: request.if_name.as_str(), netns, mac: wanted_mac(request)? };
    let pair = NewLink {
        master,
        mtu,
        up: master.is_none(),
        alias: Some(&owner),
        ..NewLink::new(&name, LinkKind::Veth(peer))
    };
    match host.add_link(&pair) {
        // A host's end that a crash left under our name goes first.
        Err(error) if error.errno() == Errno::EXIST && host.find_link(&name)?.is_some() => {
            host.delete_link(&name)?;
            host.add_link(&pair)?;
        }
        Err(error) if error.errno() == Errno::EXIST => return Err(already_there(peer.name)),
        made => made?,
    }
    Ok(host.link(&name)?)
}

/// How long the kernel may take to tell everybody that a pair has carrier; it needs a lock that others may hold for long.
const CARRIER: Duration = Duration::from_secs(2);

/// Waits until frames pass: a bridge opens its port, and a link its queue, only when the kernel's worker has told them of
/// the carrier. An attachment that is ready before would lose its first packets.
pub(crate) struct Carrier(LinkWatch);

impl Carrier {
    /// Listens from now on, in the calling thread's namespace; to be called before the link can have carrier.
    pub(crate) fn watch() -> Result<Self, PluginError> {
        Ok(Self(LinkWatch::open()?))
    }

    /// Waits for the link.
    pub(crate) fn wait(mut self, link: &Link) -> Result<(), PluginError> {
        // Who goes on without will see the packets come through a moment later.
        Ok(self.0.wait(link.index, CARRIER, |now| now.operational).map(drop)?)
    }
}

/// The hardware address that somebody asked for: by capability, by `args.cni.mac`, by `MAC=` of `CNI_ARGS`, by the
/// configuration, in this order.
pub(crate) fn wanted_mac(request: &Request<'_>) -> Result<Option<MacAddress>, PluginError> {
    let said: [Option<String>; 4] = [
        request.capability("mac")?,
        crate::arguments(request, "mac")?,
        request.argument("MAC").map(str::to_owned),
        request.get("mac")?,
    ];
    let text = said.into_iter().flatten().find(|text| !text.is_empty());
    let parse = |text: String| {
        MacAddress::parse(&text)
            .ok_or_else(|| PluginError::config(format!("{text:?} is no hardware address")))
    };
    text.map(parse).transpose()
}

/// Takes the pair away; nothing there is fine.
pub(crate) fn remove(name: &str, fate: NetnsFate) -> Result<(), PluginError> {
    if fate == NetnsFate::Stays {
        return links::delete(name);
    }
    // Cut off at once, and gone with the namespace: no waiting.
    let mut host = Socket::route()?;
    let Some(link) = host.find_link(name)? else { return Ok(()) };
    let cut = LinkChange { up: Some(false), master: Some(0), ..LinkChange::default() };
    match host.change_link(link.index, &cut) {
        Err(error) if error.errno() != Errno::NODEV => Err(error.into()),
        _ => Ok(()),
    }
}
