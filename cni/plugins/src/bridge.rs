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

mod container;
mod gateway;

use std::os::fd::{AsFd, BorrowedFd};

use cofferdam_cni::{AddResult, Code, Dns, Interface, NetnsFate, Object, Plugin, PluginError, Request, Verb};
use cofferdam_linux::netlink::{self, Link, LinkChange, MacAddress, Socket, Veth, VethPeer};
use cofferdam_linux::nft::Element;
use rustix::io::Errno;
use serde::Deserialize;

use crate::refuse_keys;
use crate::ruleset::{Kind, Ruleset};

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
    mtu: u32,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default)]
    dns: Option<Dns>,
}

#[derive(Debug, Default, Deserialize)]
struct Ipam {
    #[serde(rename = "type", default)]
    kind: String,
}

impl Config {
    fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        serde_json::from_str(&request.config.to_text())
            .map_err(|error| PluginError::new(Code::DECODE, format!("bridge: {error}")))
    }

    fn bridge(&self) -> &str {
        self.bridge.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_BRIDGE)
    }

    fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu > 0)
    }

    fn ipam(&self) -> Option<&str> {
        Some(self.ipam.kind.as_str()).filter(|kind| !kind.is_empty())
    }

    fn is_gateway(&self) -> bool {
        self.is_gateway || self.is_default_gateway
    }
}

impl Plugin for Bridge {
    fn kind(&self) -> &'static str {
        "bridge"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        let unknown = [
            "vlan",
            "vlanTrunk",
            "macspoofchk",
            "portIsolation",
            "disableContainerInterface",
            "forceAddress",
        ];
        refuse_keys(config, &unknown)
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let config = Config::of(request)?;
        let netns = request.open_netns()?;
        let mut host = Socket::route()?;
        let bridge = ensure_bridge(&mut host, &config)?;
        let allocated = match config.ipam() {
            Some(kind) => request.delegate.call(kind, Verb::Add)?,
            None => AddResult::default(),
        };
        connect(request, &config, &mut host, &bridge, netns.as_fd(), allocated).inspect_err(|_| {
            // The first failure is the one worth telling; the caller's DEL tries again.
            let _ = disconnect(request, &config);
        })
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        disconnect(request, &Config::of(request)?)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let config = Config::of(request)?;
        let netns = request.open_netns()?;
        if let Some(kind) = config.ipam() {
            request.delegate.call(kind, Verb::Check)?;
        }
        check_host(request, &config)?;
        let result = request.previous.clone().unwrap_or_default();
        container::check(&mut Socket::route_in(netns.as_fd())?, request.if_name.as_str(), &result)
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let (mark, valid) = (request.network_mark(), request.valid_owners()?);
        let unwanted = |owner: &str| owner.starts_with(&mark) && !valid.iter().any(|one| one == owner);
        Ruleset::open()?.remove(unwanted)?;
        match Config::of(request)?.ipam() {
            Some(kind) => request.delegate.call(kind, Verb::Gc).map(drop),
            None => Ok(()),
        }
    }

    fn status(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Socket::route()?;
        match Config::of(request)?.ipam() {
            Some(kind) => request.delegate.call(kind, Verb::Status).map(drop),
            None => Ok(()),
        }
    }
}

/// Finds the bridge or makes it. Of many that make it at once one succeeds and the others find it.
fn ensure_bridge(host: &mut Socket, config: &Config) -> Result<Link, PluginError> {
    let name = config.bridge();
    let mut found = host.find_link(name)?;
    if found.is_none() {
        let mac = MacAddress::random().map_err(|errno| netlink::Error::new("choose an address", errno))?;
        match host.add_bridge(&netlink::Bridge { name, mac: Some(mac), mtu: config.mtu() }) {
            Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
            _ => found = Some(host.link(name)?),
        }
    }
    let link = found.ok_or_else(|| PluginError::new(Code::KERNEL, format!("bridge {name} vanished")))?;
    if link.kind.as_deref() != Some("bridge") {
        return Err(PluginError::config(format!("the link {name} exists and is not a bridge")));
    }
    if !link.up {
        host.set_up(link.index)?;
    }
    Ok(link)
}

fn connect(
    request: &Request<'_>,
    config: &Config,
    host: &mut Socket,
    bridge: &Link,
    netns: BorrowedFd<'_>,
    allocated: AddResult,
) -> Result<AddResult, PluginError> {
    let veth_name = veth_name(&request.owner());
    let mac = wanted_mac(request)?;
    let peer = VethPeer { name: request.if_name.as_str(), netns, mac };
    let veth = Veth { name: &veth_name, master: Some(bridge.index), mtu: config.mtu(), peer };
    add_veth(host, &veth)?;
    let veth = host.link(&veth_name)?;
    if config.hairpin_mode {
        host.set_hairpin(veth.index, true)?;
    }

    let mut result = gateway::complete(allocated, config.is_gateway(), config.is_default_gateway);
    let inside = container::configure(netns, request.if_name.as_str(), &result)?;
    if config.is_gateway() {
        gateway::put_on_bridge(host, bridge, &result)?;
    }
    Ruleset::open()?.add(&elements(request, config, &result)).map_err(PluginError::from)?;

    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    if let Some(dns) = config.dns.clone().filter(|dns| !dns.is_empty()) {
        result.dns = dns;
    }
    let sandbox = request.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    result.interfaces =
        vec![described(bridge, String::new()), described(&veth, String::new()), described(&inside, sandbox)];
    Ok(result)
}

/// Makes the pair; a host's end that a crash left under our name goes first.
fn add_veth(host: &mut Socket, veth: &Veth<'_>) -> Result<(), PluginError> {
    match host.add_veth(veth) {
        Err(error) if error.errno() == Errno::EXIST && host.find_link(veth.name)?.is_some() => {
            host.delete_link(veth.name)?;
            host.add_veth(veth)?;
        }
        Err(error) if error.errno() == Errno::EXIST => {
            let message = format!("the container already has an interface {}", veth.peer.name);
            return Err(PluginError::new(Code::CONFLICT, message));
        }
        made => made?,
    }
    Ok(())
}

fn described(link: &Link, sandbox: String) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name: link.name.clone(), mac, sandbox, ..Interface::default() }
}

fn wanted_mac(request: &Request<'_>) -> Result<Option<MacAddress>, PluginError> {
    let text: Option<String> = request.capability("mac")?;
    let text = text.or_else(|| request.argument("MAC").map(str::to_owned)).filter(|text| !text.is_empty());
    let parse = |text: String| {
        MacAddress::parse(&text)
            .ok_or_else(|| PluginError::config(format!("{text:?} is no hardware address")))
    };
    text.map(parse).transpose()
}

fn elements(request: &Request<'_>, config: &Config, result: &AddResult) -> Vec<crate::ruleset::Entry> {
    let owner = request.owner();
    let mut name = config.bridge().as_bytes().to_vec();
    name.resize(16, 0);
    let mut entries = Vec::new();
    for ip in &result.ips {
        let family = crate::ruleset::Ip::of(ip.address.address);
        let address = octets(ip.address.address);
        entries.push((Kind::Local.set(family), Element::set(&[address.clone(), name.clone()], &owner)));
        if config.ip_masq {
            entries.push((Kind::Masquerade.set(family), Element::set(&[address], &owner)));
        }
    }
    entries
}

/// The bytes of an address in network order.
pub(crate) fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Takes away what ADD made. Tries everything and returns the first failure.
fn disconnect(request: &Request<'_>, config: &Config) -> Result<(), PluginError> {
    let (veth, fate) = (veth_name(&request.owner()), request.netns_fate);
    // The kernel waits for RCU while it deletes the pair; lease and elements go meanwhile.
    let (link, rest) = std::thread::scope(|scope| {
        let link = scope.spawn(|| remove_veth(&veth, fate));
        let rest = [release_address(request, config), remove_elements(request)];
        let link = link.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (link, rest)
    });
    [link].into_iter().chain(rest).collect()
}

fn release_address(request: &Request<'_>, config: &Config) -> Result<(), PluginError> {
    config.ipam().map_or(Ok(()), |kind| request.delegate.call(kind, Verb::Del).map(drop))
}

fn remove_elements(request: &Request<'_>) -> Result<(), PluginError> {
    let owner = request.owner();
    Ok(Ruleset::open()?.remove(|found| found == owner)?)
}

fn remove_veth(name: &str, fate: NetnsFate) -> Result<(), PluginError> {
    let mut host = Socket::route()?;
    let gone = match fate {
        NetnsFate::Stays => host.delete_link(name),
        // Cut off at once, and gone with the namespace: no waiting.
        NetnsFate::Ends => host.link(name).and_then(|link| {
            let cut = LinkChange { up: Some(false), master: Some(0), ..LinkChange::default() };
            host.change_link(link.index, &cut)
        }),
    };
    match gone {
        Err(error) if error.errno() != Errno::NODEV => Err(error.into()),
        _ => Ok(()),
    }
}

fn check_host(request: &Request<'_>, config: &Config) -> Result<(), PluginError> {
    let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("bridge: {what}")));
    let mut host = Socket::route()?;
    let Some(bridge) = host.find_link(config.bridge())? else {
        return wrong(format!("the bridge {} is gone", config.bridge()));
    };
    let name = veth_name(&request.owner());
    match host.find_link(&name)? {
        None => return wrong(format!("the host's end {name} is gone")),
        Some(veth) if veth.master != Some(bridge.index) => {
            return wrong(format!("{name} is not on {}", bridge.name));
        }
        Some(veth) if !veth.up || !bridge.up => return wrong(format!("{name} or {} is down", bridge.name)),
        Some(_) => {}
    }
    let result = request.previous.clone().unwrap_or_default();
    if config.is_gateway() {
        gateway::check_on_bridge(&mut host, &bridge, &result)?;
    }
    let mut ruleset = Ruleset::open()?;
    for (set, element) in elements(request, config, &result) {
        if ruleset.find(set, &element)?.as_ref() != Some(&element) {
            return wrong(format!("the nft set {} lacks {}", set.text(), request.owner()));
        }
    }
    Ok(())
}

/// The name of the host's end: `veth` and 44 bits of a hash (FNV-1a) of the attachment's mark.
fn veth_name(owner: &str) -> String {
    let hash = owner.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("veth{:011x}", (hash ^ (hash >> 44)) & 0xfff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_end_has_a_name_of_its_own_that_the_kernel_takes() {
        let names: std::collections::BTreeSet<String> =
            (0..1000).map(|n| veth_name(&format!("bridge/container-{n}/eth0"))).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 15));
    }
}
