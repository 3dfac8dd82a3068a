//! bridge: a veth pair between the container and a bridge of the host.
//!
//! ```text
//! ADD   bridge there? ─▶ IPAM ─▶ veth pair, born in its place ─▶ addresses, routes ─▶ gateway on the bridge ─▶ nft elements
//! DEL   veth pair ∥ (IPAM, nft elements)
//! ```
//!
//! The host's end of the pair is named after the attachment, so DEL finds it without a result, without a namespace and
//! after any crash. Hairpin mode lets a container reach itself by a port map: the host routes such packets, but where
//! br_netfilter is on the destination is rewritten inside the bridge, and the frame must leave by the port it came in by.

use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_cni::{AddResult, Code, Interface, Object, Plugin, PluginError, Request, Verb, Version};
use cofferdam_linux::netlink::{
    self, Address, BridgePort, Link, LinkChange, LinkKind, MacAddress, NewLink, Socket,
};
use cofferdam_linux::nft::Element;
use rustix::io::Errno;
use serde::Deserialize;

use crate::container::{Inside, Neighbours, inside, sandbox};
use crate::ipam::{Ipam, dns_of};
use crate::ruleset::{Entry, Ip, Kind, Ruleset, octets};
use crate::{foreign, gateway, links, refuse_keys, veth};

pub(crate) struct Bridge;

/// What the reference plugin calls its bridge.
const DEFAULT_BRIDGE: &str = "cni0";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    mtu: u32,
}

impl Config {
    fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        let config: Self = serde_json::from_str(&request.config.to_text())
            .map_err(|error| PluginError::new(Code::DECODE, format!("bridge: {error}")))?;
        if config.hairpin_mode && config.promisc_mode {
            return Err(PluginError::config("bridge: hairpinMode and promiscMode exclude each other"));
        }
        Ok(config)
    }

    fn bridge(&self) -> &str {
        self.bridge.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_BRIDGE)
    }

    fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu > 0)
    }

    fn port(&self) -> BridgePort {
        BridgePort { hairpin: self.hairpin_mode, isolated: self.port_isolation }
    }

    /// The addresses that the bridge has for its containers.
    fn gateways(&self, result: &AddResult) -> Vec<Address> {
        if self.is_gateway || self.is_default_gateway { gateway::gateways(result) } else { Vec::new() }
    }
}

impl Plugin for Bridge {
    fn kind(&self) -> &'static str {
        "bridge"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        let unknown = ["vlan", "vlanTrunk", "macspoofchk", "disableContainerInterface", "forceAddress"];
        refuse_keys(config, &unknown)
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let config = Config::of(request)?;
        let netns = request.open_netns()?;
        let mut host = Socket::route()?;
        let bridge = ensure_bridge(&mut host, &config)?;
        let allocated = Ipam::of(request)?.call(request, Verb::Add)?;
        connect(request, &config, &mut host, &bridge, netns.as_fd(), allocated).inspect_err(|_| {
            // The first failure is the one worth telling; the caller's DEL tries again.
            let _ = disconnect(request);
        })
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        disconnect(request)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config = Config::of(request)?;
        let netns = request.open_netns()?;
        Ipam::of(request)?.call(request, Verb::Check)?;
        let result = request.previous.clone().unwrap_or_default();
        check_host(request, &config, &result)?;
        interface(request).check(&mut Socket::route_in(netns.as_fd())?, &result).map(drop)
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let all = [Ruleset::collect(request), links::collect(request)];
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

fn interface<'a>(request: &'a Request<'_>) -> Inside<'a> {
    Inside { plugin: "bridge", name: request.if_name.as_str(), neighbours: Neighbours::Network }
}

/// Finds the bridge or makes it. Of many that make it at once one succeeds and the others find it.
fn ensure_bridge(host: &mut Socket, config: &Config) -> Result<Link, PluginError> {
    let name = config.bridge();
    let mut found = host.find_link(name)?;
    if found.is_none() {
        let mac = MacAddress::random().map_err(|errno| netlink::Error::new("choose an address", errno))?;
        let new = NewLink { mac: Some(mac), mtu: config.mtu(), ..NewLink::new(name, LinkKind::Bridge) };
        match host.add_link(&new) {
            Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
            _ => found = Some(host.link(name)?),
        }
    }
    let link = found.ok_or_else(|| PluginError::new(Code::KERNEL, format!("bridge {name} vanished")))?;
    is_bridge(&link)?;
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
    if config.port() != BridgePort::default() {
        host.set_port(end.index, config.port())?;
    }
    let mut result = gateway::complete(
        allocated,
        config.is_gateway || config.is_default_gateway,
        config.is_default_gateway,
    );
    let interface = interface(request);
    let inner = inside(netns, |socket| {
        let link = interface.configure(socket, &result)?;
        veth::wait_for_carrier(socket, interface.name)?;
        Ok(link)
    })?;
    veth::wait_for_carrier(host, &end.name)?;
    let gateways = config.gateways(&result);
    if !gateways.is_empty() {
        gateway::put_on(host, bridge, &gateways)?;
    }
    Ruleset::open()?.add(&elements(request, config, &result)).map_err(PluginError::from)?;

    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    result.dns = dns_of(request, result.dns)?;
    result.interfaces = vec![
        described(request, bridge, String::new()),
        described(request, &end, String::new()),
        described(request, &inner, sandbox(request)),
    ];
    Ok(result)
}

/// A link as a result tells of it; the mtu only to versions that know it.
pub(crate) fn described(request: &Request<'_>, link: &Link, sandbox: String) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let mtu = (request.version >= Version::V1_1_0).then_some(link.mtu);
    Interface { name: link.name.clone(), mac, mtu, sandbox, ..Interface::default() }
}

fn elements(request: &Request<'_>, config: &Config, result: &AddResult) -> Vec<Entry> {
    let owner = request.owner();
    let mut name = config.bridge().as_bytes().to_vec();
    name.resize(16, 0);
    let mut entries = Vec::new();
    for ip in result.container_ips() {
        let family = Ip::of(ip.address.address);
        let address = octets(ip.address.address);
        entries.push((Kind::Local.set(family), Element::set(&[address.clone(), name.clone()], &owner)));
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
        let rest = [ipam, Ruleset::remove_of(request), foreign::remove_chains(request, foreign::MASQUERADE)];
        let link = link.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (link, rest)
    });
    let link = link.and_then(|()| foreign::remove_link(request));
    [link].into_iter().chain(rest).collect()
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
        // A later plugin may isolate the port; nobody may take the isolation away.
        Some(end) if end.port.is_some_and(|port| lacks(port, config.port())) => {
            return wrong(format!("{name} is treated by {} as {:?}", bridge.name, end.port));
        }
        Some(_) => {}
    }
    gateway::check_on("bridge", &mut host, &bridge, &config.gateways(result))?;
    Ruleset::open()?.check("bridge", &elements(request, config, result))
}

fn lacks(port: BridgePort, wanted: BridgePort) -> bool {
    port.hairpin != wanted.hairpin || (wanted.isolated && !port.isolated)
}
