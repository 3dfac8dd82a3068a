//! bridge: a veth pair between the container and a bridge of the host.
//!
//! ```text
//! ADD   bridge there? ─▶ IPAM ─▶ veth pair, born in its place ─▶ addresses, routes ─▶ gateway on the bridge ─▶ nft elements
//! DEL   veth pair ∥ (IPAM, nft elements)
//! ```
//!
//! | asked for | done by | where |
//! |---|---|---|
//! | `vlan`, `vlanTrunk`, `preserveDefaultVlan` | VLANs of the port; the gateway on a link of its own | `vlan.rs` |
//! | `macspoofchk` | nft elements of the table `bridge cofferdam` | `sender.rs` |
//! | `enabledad` | the kernel asks for duplicates and ADD waits for what it says; otherwise it does not ask | `container.rs` |
//! | `disableContainerInterface` | the container's end stays down | here |
//! | `forceAddress` | addresses of the bridge that are in the gateways' way go | `gateway.rs` |
//! | `hairpinMode`, `portIsolation`, `promiscMode`, `mtu` | settings of links | here |
//! | `isGateway` | a bridge that is made here does not look who wants which multicast frames; a container of a network for IPv4 alone makes itself no IPv6 address | here |
//!
//! The host's end of the pair is named after the attachment, so DEL finds it without a result, without a namespace and
//! after any crash. Hairpin mode lets a container reach itself by a port map: the host routes such packets, but where
//! br_netfilter is on the destination is rewritten inside the bridge, and the frame must leave by the port it came in by.

mod config;
mod sender;
mod vlan;

use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_cni::{AddResult, Code, Interface, Object, Plugin, PluginError, Request, Verb, Version};
use cofferdam_linux::netlink::{self, BridgePort, Link, LinkChange, LinkKind, MacAddress, NewLink, Socket};
use cofferdam_linux::nft::Element;
use rustix::io::Errno;

use crate::container::{Inside, inside, sandbox};
use crate::ipam::{self, Ipam, dns_of};
use crate::ruleset::{Entry, Ip, Kind, Ruleset, octets};
use crate::veth::Carrier;
use crate::{announcement, foreign, gateway, links, sysctl, veth};
use config::Config;

pub(crate) use sender::delete_table as delete_sender_table;

pub(crate) struct Bridge;

impl Plugin for Bridge {
    fn kind(&self) -> &'static str {
        "bridge"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        crate::refuse_backend(config, "ipMasqBackend")
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let config = Config::of(request)?;
        let netns = request.open_netns()?;
        let mut host = Socket::route()?;
        let bridge = ensure_bridge(&mut host, &config)?;
        ipam::allocate(self, request, |allocated| {
            connect(request, &config, &mut host, &bridge, netns.as_fd(), allocated)
        })
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        // Who cannot say any more whether frames were checked gets what was made for it deleted.
        let checked = request.get("macspoofchk").unwrap_or(Some(true)).unwrap_or(false);
        let sender = if checked { sender::remove(request) } else { Ok(()) };
        disconnect(request).and(sender)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config = Config::of(request)?;
        let (netns, result) = ipam::begin_check(request)?;
        check_host(request, &config, &result)?;
        check_inside(request, &config, &mut Socket::route_in(netns.as_fd())?, &result)
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let all = [Ruleset::collect(request), links::collect(request), sender::collect(request)];
        let ipam = Ipam::of(request)?.call(request, Verb::Gc).map(drop);
        all.into_iter().chain([ipam]).collect()
    }

    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config = Config::of(request)?;
        if let Some(link) = Socket::route()?.find_link(config.bridge())? {
            is_bridge(&link).map_err(|error| PluginError { code: Code::NOT_AVAILABLE, ..error })?;
        }
        Ipam::of(request)?.call(request, Verb::Status).map(drop)
    }
}

/// Finds the bridge or makes it. Of many that make it at once one succeeds and the others find it.
fn ensure_bridge(host: &mut Socket, config: &Config) -> Result<Link, PluginError> {
    let name = config.bridge();
    let mut found = host.find_link(name)?;
    if found.is_none() {
        let mac = MacAddress::random().map_err(|errno| netlink::Error::new("choose an address", errno))?;
        let kind = LinkKind::Bridge {
            // Where no router asks, everybody gets frames to many in any case; but the kernel gets two timers ready for
            // every port whenever one changes.
            multicast_snooping: !config.is_gateway(),
            vlan_filtering: config.vlans().is_some(),
        };
        let new = NewLink { mac: Some(mac), mtu: config.mtu(), ..NewLink::new(name, kind) };
        match host.add_link(&new) {
            Err(error) if error.errno() == Errno::OPNOTSUPP && config.vlans().is_some() => {
                return Err(vlan::unknown_to_the_kernel());
            }
            Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
            _ => found = Some(host.link(name)?),
        }
    }
    let link = found.ok_or_else(|| PluginError::new(Code::KERNEL, format!("bridge {name} vanished")))?;
    is_bridge(&link)?;
    vlan::ensure_filtering(&link, config)?;
    if !link.up || (config.promisc_mode && !link.promiscuous) {
        let promiscuous = config.promisc_mode.then_some(true);
        host.change_link(link.index, &LinkChange { up: Some(true), promiscuous, ..LinkChange::default() })?;
    }
    Ok(link)
}

fn is_bridge(link: &Link) -> Result<(), PluginError> {
    if link.kind.as_deref() == Some("bridge") {
        return Ok(());
    }
    Err(PluginError::config(format!("the link {} exists and is not a bridge", link.name)))
}

fn connect(
    request: &Request<'_>,
    config: &Config,
    host: &mut Socket,
    bridge: &Link,
    netns: BorrowedFd<'_>,
    allocated: AddResult,
) -> Result<AddResult, PluginError> {
    let end = veth::add(host, request, netns, Some(bridge.index), config.mtu())?;
    without_ipv6(&end);
    if config.port() != BridgePort::default() {
        host.set_port(end.index, config.port())?;
    }
    vlan::join(host, &end, config)?;
    if config.check_sender {
        sender::guard(request, mac_inside(request, &mut Socket::route_in(netns)?)?)?;
    }
    let mut result = gateway::complete(allocated, config.is_gateway(), config.is_default_gateway());
    let gateways = config.gateways(&result);
    let gateway = if gateways.is_empty() { None } else { Some(vlan::ensure_gateway(host, bridge, config)?) };
    if let Some(gateway) = &gateway {
        if config.force_address {
            gateway::clear_for(host, gateway, &gateways)?;
        }
        gateway::put_on(host, gateway, &gateways)?;
    }
    Ruleset::open()?.add(&elements(request, config, &result)).map_err(PluginError::from)?;
    // One that somebody else made may have taken the address of its first port.
    let bridge = &host.link_by_index(bridge.index)?;
    // Last: a link that comes up sends its IPv6 greetings to all ports, and the kernel holds the lock of all links meanwhile.
    let inner = if config.disable_container_interface {
        host.set_up(end.index)?;
        Socket::route_in(netns)?.link(request.if_name.as_str())?
    } else {
        let greets = !config.is_gateway() || result.ips.iter().any(|ip| !ip.address.address.is_ipv4());
        bring_up(config.interface(request), greets, host, netns, &end, &result)?
    };

    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    result.dns = dns_of(request, result.dns)?;
    result.interfaces = vec![
        described(request, bridge, String::new()),
        described(request, &end, String::new()),
        described(request, &inner, sandbox(request)),
    ];
    let apart = gateway.filter(|gateway| gateway.index != bridge.index);
    result.interfaces.extend(apart.map(|gateway| described(request, &gateway, String::new())));
    Ok(result)
}

/// `IN6_ADDR_GEN_MODE_NONE`: the kernel gives the link no address of its own choice; others may.
const NO_ADDRESS: &str = "1";

/// A port needs no address of its own. With one it would have three routes, and the kernel looks through the routes of all ports
/// whenever one changes.
fn without_ipv6(port: &Link) {
    // A host without IPv6, or whose settings nobody may write, only has more to do.
    drop(sysctl::set_if_there(&format!("ipv6/conf/{}/disable_ipv6", port.name), "1"));
}

/// Gives the container's end its addresses and waits until both ends pass frames.
///
/// The port goes up last: one that is up before it has carrier is opened, closed and opened again by the bridge, which looks at
/// all its ports each time. In a network that this host alone routes, and for IPv4 only, nobody would answer an IPv6 address that
/// the container's end gives itself, but `greets` of it reach every other port: eight frames, of which a thousand containers
/// have to do with each.
fn bring_up(
    interface: Inside<'_>,
    greets: bool,
    host: &mut Socket,
    netns: BorrowedFd<'_>,
    end: &Link,
    result: &AddResult,
) -> Result<Link, PluginError> {
    let carrier = Carrier::watch()?;
    inside(netns, |socket| {
        let own_carrier = Carrier::watch()?;
        if !greets {
            sysctl::set_if_there(&format!("ipv6/conf/{}/addr_gen_mode", interface.name), NO_ADDRESS)?;
        }
        let link = interface.configure(socket, result)?;
        host.set_up(end.index)?;
        own_carrier.wait(&link)?;
        carrier.wait(end)?;
        interface.settle(socket, &link)?;
        if !result.ips.is_empty() {
            announcement::begin(Socket::route()?, &link);
        }
        Ok(link)
    })
}

fn mac_inside(request: &Request<'_>, socket: &mut Socket) -> Result<MacAddress, PluginError> {
    let name = request.if_name.as_str();
    let mac = socket.link(name)?.mac;
    mac.ok_or_else(|| PluginError::new(Code::KERNEL, format!("bridge: {name} has no hardware address")))
}

/// A link as a result tells of it; the mtu only to versions that know it.
pub(crate) fn described(request: &Request<'_>, link: &Link, sandbox: String) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let mtu = (request.version >= Version::V1_1_0).then_some(link.mtu);
    Interface { name: link.name.clone(), mac, mtu, sandbox, ..Interface::default() }
}

fn elements(request: &Request<'_>, config: &Config, result: &AddResult) -> Vec<Entry> {
    let owner = request.owner();
    // What stays on the bridge goes by the host's rules where br_netfilter is on, and then it leaves by the bridge itself.
    let mut links = vec![config.gateway_link(), config.bridge().to_owned()];
    links.dedup();
    let names = links.into_iter().map(|name| {
        let mut name = name.into_bytes();
        name.resize(16, 0);
        name
    });
    let mut entries = Vec::new();
    for ip in result.container_ips() {
        let family = Ip::of(ip.address.address);
        let address = octets(ip.address.address);
        for name in names.clone() {
            entries.push((Kind::Local.set(family), Element::set(&[address.clone(), name], &owner)));
        }
        if config.ip_masq {
            entries.push((Kind::Masquerade.set(family), Element::set(&[address], &owner)));
        }
    }
    entries
}

/// Takes away what ADD made. Tries everything and returns the first failure.
pub(crate) fn disconnect(request: &Request<'_>) -> Result<(), PluginError> {
    let (name, fate) = (veth::host_name(request), request.netns_fate);
    // The kernel waits for RCU while it deletes the pair; lease and elements go meanwhile.
    let (link, rest) = std::thread::scope(|scope| {
        let link = scope.spawn(|| veth::remove(&name, fate));
        let ipam = Ipam::of(request).and_then(|ipam| ipam.call(request, Verb::Del).map(drop));
        let rest =
            [ipam, remove_elements(request, &name), foreign::remove_chains(request, foreign::MASQUERADE)];
        let link = link.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (link, rest)
    });
    let link = link.and_then(|()| foreign::remove_link(request));
    [link].into_iter().chain(rest).collect()
}

/// A result without our link was replaced by a later plugin's: its addresses are no word of ours.
fn remove_elements(request: &Request<'_>, link: &str) -> Result<(), PluginError> {
    let is_ours = |result: &AddResult| {
        result.interfaces.iter().any(|interface| interface.name == link && interface.sandbox.is_empty())
    };
    match &request.previous {
        Some(result) if is_ours(result) => Ruleset::remove_of(request, Vec::new()),
        _ => Ruleset::remove_marked(request),
    }
}

fn check_host(request: &Request<'_>, config: &Config, result: &AddResult) -> Result<(), PluginError> {
    let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("bridge: {what}")));
    let mut host = Socket::route()?;
    let Some(bridge) = host.find_link(config.bridge())? else {
        return wrong(format!("the bridge {} is gone", config.bridge()));
    };
    let name = veth::host_name(request);
    match host.find_link(&name)? {
        None => return wrong(format!("the host's end {name} is gone")),
        Some(end) if end.master != Some(bridge.index) => {
            return wrong(format!("{name} is not on {}", bridge.name));
        }
        Some(end) if !end.up || !bridge.up => return wrong(format!("{name} or {} is down", bridge.name)),
        Some(_) if config.promisc_mode && !bridge.promiscuous => {
            return wrong(format!("{} is not in promiscuous mode", bridge.name));
        }
        // A later plugin may isolate the port; nobody may take the isolation away.
        Some(end) if end.port.is_some_and(|port| lacks(port, config.port())) => {
            return wrong(format!("{name} is treated by {} as {:?}", bridge.name, end.port));
        }
        Some(end) => vlan::check(&mut host, &end, config)?,
    }
    let gateways = config.gateways(result);
    if !gateways.is_empty() {
        let link = match host.find_link(&config.gateway_link())? {
            Some(link) if link.up => link,
            _ => return wrong(format!("the gateway's link {} is gone or down", config.gateway_link())),
        };
        gateway::check_on("bridge", &mut host, &link, &gateways)?;
    }
    Ruleset::open()?.check("bridge", &elements(request, config, result))
}

fn check_inside(
    request: &Request<'_>,
    config: &Config,
    socket: &mut Socket,
    result: &AddResult,
) -> Result<(), PluginError> {
    if config.check_sender {
        sender::check(request, mac_inside(request, socket)?)?;
    }
    let interface = config.interface(request);
    match config.disable_container_interface {
        true => interface.check_link(socket, result).map(drop),
        false => interface.check(socket, result).map(drop),
    }
}

fn lacks(port: BridgePort, wanted: BridgePort) -> bool {
    port.hairpin != wanted.hairpin || (wanted.isolated && !port.isolated)
}
