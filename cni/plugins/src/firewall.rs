//! firewall: lets the host forward for the container.
//!
//! An accept in our own table does not overrule a drop in another: nf_tables asks every table. Where the chain FORWARD of
//! iptables' nft table drops by policy (Docker sets that), the container's addresses are therefore accepted there as well,
//! by rules that iptables(8) lists like its own and that carry the attachment's mark. Legacy iptables tables and other
//! people's nft chains are left alone: nobody can tell what their owner meant.
//!
//! | `ingressPolicy` | containers of other bridges | containers of the same bridge |
//! |---|---|---|
//! | `open` | reach it | reach it |
//! | `same-bridge` | only by a mapped port | reach it |
//! | `isolated` | only by a mapped port | do not reach it: its port of the bridge is isolated from other such ports |
//!
//! Where br_netfilter is on, a mapped port is translated inside the bridge, so an isolated container does not reach itself
//! or its neighbours by one either.

use std::net::IpAddr;

use cofferdam_cni::{AddResult, Code, Object, Plugin, PluginError, Request};
use cofferdam_linux::netlink::{BridgePort, Link, Socket};
use cofferdam_linux::nft::{Batch, Element, Expression, Family, Policy, Register, Verdict};
use rustix::io::Errno;

use crate::ruleset::{Entry, Ip, Kind, Ruleset, octets, unwanted};

pub(crate) struct Firewall;

/// Where iptables' nft variant keeps what it forwards.
const FOREIGN_TABLE: &str = "filter";
const FOREIGN_CHAIN: &str = "FORWARD";
const TRIES: usize = 8;

impl Plugin for Firewall {
    fn kind(&self) -> &'static str {
        "firewall"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        policy_of(config)?;
        crate::refuse_backend(config, "backend")?;
        crate::refuse_keys(config, &["firewalldZone", "iptablesAdminChainName"])
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let previous = request.previous.clone();
        let previous = previous
            .ok_or_else(|| PluginError::config("firewall must come after a plugin that gives addresses"))?;
        let policy = policy_of(request.config).map_err(PluginError::config)?;
        Ruleset::open()?.add(&entries(&previous, policy, &request.owner()))?;
        if policy == Ingress::Isolated {
            isolate(&previous)?;
        }
        let mut socket = Socket::netfilter()?;
        for family in dropping_families(&mut socket)? {
            accept_in_foreign_chain(&mut socket, family, &previous, &request.owner())?;
        }
        Ok(previous)
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let owner = request.owner();
        Ruleset::remove_of(request, Vec::new())?;
        remove_from_foreign_chains(|found| found == owner)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let previous = request.previous.clone().unwrap_or_default();
        let policy = policy_of(request.config).map_err(PluginError::config)?;
        let owner = request.owner();
        Ruleset::open()?.check("firewall", &entries(&previous, policy, &owner))?;
        let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("firewall: {what}")));
        if policy == Ingress::Isolated {
            let ports = ports(&mut Socket::route()?, &previous)?;
            if let Some((link, _)) = ports.iter().find(|(_, port)| !port.isolated) {
                return wrong(format!("the bridge port {} is not isolated", link.name));
            }
        }
        let mut socket = Socket::netfilter()?;
        for family in dropping_families(&mut socket)? {
            let rules = socket.rules(family, FOREIGN_TABLE, FOREIGN_CHAIN)?;
            let found = rules.iter().filter(|rule| rule.comment == owner).count();
            if found < 2 * addresses(&previous, family).count() {
                return wrong(format!("the chain {FOREIGN_CHAIN} drops by policy and lacks {owner}"));
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Ruleset::collect(request)?;
        remove_from_foreign_chains(unwanted(request)?)
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ruleset::open().map(drop)
    }
}

/// Which other containers may begin to talk to the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ingress {
    Open,
    SameBridge,
    Isolated,
}

fn policy_of(config: &Object) -> Result<Ingress, String> {
    let policy: Option<String> = config.get("ingressPolicy").map_err(|error| error.to_string())?;
    match policy.as_deref() {
        None | Some("" | "open") => Ok(Ingress::Open),
        Some("same-bridge") => Ok(Ingress::SameBridge),
        Some("isolated") => Ok(Ingress::Isolated),
        Some(other) => Err(format!("firewall: there is no ingressPolicy {other:?}")),
    }
}

fn entries(previous: &AddResult, policy: Ingress, owner: &str) -> Vec<Entry> {
    let kinds: &[Kind] =
        if policy == Ingress::Open { &[Kind::Forward] } else { &[Kind::Forward, Kind::Guarded] };
    let addresses = previous.container_ips().map(|ip| ip.address.address);
    let of = |address| kinds.iter().map(move |kind| (kind.set(Ip::of(address)), address));
    addresses.flat_map(of).map(|(set, address)| (set, Element::set(&[octets(address)], owner))).collect()
}

/// The host's links of a result that are ports of a bridge.
fn ports(host: &mut Socket, previous: &AddResult) -> Result<Vec<(Link, BridgePort)>, PluginError> {
    let mut ports = Vec::new();
    for interface in previous.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        let link = host.find_link(&interface.name)?;
        ports.extend(link.and_then(|link| link.port.map(|port| (link, port))));
    }
    Ok(ports)
}

fn isolate(previous: &AddResult) -> Result<(), PluginError> {
    let mut host = Socket::route()?;
    for (link, port) in ports(&mut host, previous)? {
        host.set_port(link.index, BridgePort { isolated: true, ..port })?;
    }
    Ok(())
}

fn addresses(previous: &AddResult, family: Family) -> impl Iterator<Item = IpAddr> {
    let addresses = previous.container_ips().map(|ip| ip.address.address);
    addresses.filter(move |address| address.is_ipv4() == (family == Family::Ipv4))
}

/// The families whose foreign chain drops by policy.
fn dropping_families(socket: &mut Socket) -> Result<Vec<Family>, PluginError> {
    let mut dropping = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let chains = socket.chains(family)?;
        let drops = chains.iter().any(|chain| {
            chain.table == FOREIGN_TABLE && chain.name == FOREIGN_CHAIN && chain.policy == Some(Policy::Drop)
        });
        dropping.extend(drops.then_some(family));
    }
    Ok(dropping)
}

fn accept_in_foreign_chain(
    socket: &mut Socket,
    family: Family,
    previous: &AddResult,
    owner: &str,
) -> Result<(), PluginError> {
    let mut batch = Batch::new(family, FOREIGN_TABLE);
    for address in addresses(previous, family) {
        batch.insert_rule(FOREIGN_CHAIN, &accept_from(address), owner);
        batch.insert_rule(FOREIGN_CHAIN, &accept_to(address), owner);
    }
    Ok(socket.commit(&batch)?)
}

/// The rule as iptables itself would write `-s ADDRESS -j ACCEPT`.
fn accept_from(address: IpAddr) -> Vec<Expression> {
    let offset = if address.is_ipv4() { 12 } else { 8 };
    let mut rule = compare_address(address, offset);
    rule.extend([Expression::Counter, Expression::verdict(Verdict::Accept)]);
    rule
}

/// The rule as iptables itself would write `-d ADDRESS -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT`: answers,
/// and what came by a mapped port. A port that is not mapped stays closed to the world.
fn accept_to(address: IpAddr) -> Vec<Expression> {
    let offset = if address.is_ipv4() { 16 } else { 24 };
    let mut rule = compare_address(address, offset);
    let state = Expression::XtablesMatch { name: "conntrack", revision: 3, data: conntrack_match() };
    rule.extend([state, Expression::Counter, Expression::verdict(Verdict::Accept)]);
    rule
}

fn compare_address(address: IpAddr, offset: u32) -> Vec<Expression> {
    let length = if address.is_ipv4() { 4 } else { 16 };
    let into = Register(0);
    vec![Expression::NetworkHeader { offset, length, into }, Expression::equal(into, octets(address))]
}

/// `struct xt_conntrack_mtinfo3` of linux/netfilter/xt_conntrack.h: everything zero but what is compared, and with what.
fn conntrack_match() -> Vec<u8> {
    const SIZE_BYTES: usize = 168;
    const MATCH_FLAGS_AT: usize = 146;
    const STATE_MASK_AT: usize = 150;
    const COMPARE_STATE: u16 = 1;
    const ESTABLISHED_RELATED_DNAT: u16 = (1 << 1) | (1 << 2) | (1 << 7);
    let mut data = vec![0; SIZE_BYTES];
    data[MATCH_FLAGS_AT..MATCH_FLAGS_AT + 2].copy_from_slice(&COMPARE_STATE.to_ne_bytes());
    data[STATE_MASK_AT..STATE_MASK_AT + 2].copy_from_slice(&ESTABLISHED_RELATED_DNAT.to_ne_bytes());
    data
}

fn remove_from_foreign_chains(unwanted: impl Fn(&str) -> bool) -> Result<(), PluginError> {
    let mut socket = Socket::netfilter()?;
    for family in [Family::Ipv4, Family::Ipv6] {
        remove_from_foreign_chain(&mut socket, family, &unwanted)?;
    }
    Ok(())
}

/// Deletes by mark, whatever the policy is by now.
fn remove_from_foreign_chain(
    socket: &mut Socket,
    family: Family,
    unwanted: &impl Fn(&str) -> bool,
) -> Result<(), PluginError> {
    for _ in 0..TRIES {
        let rules = match socket.rules(family, FOREIGN_TABLE, FOREIGN_CHAIN) {
            Err(error) if error.errno() == Errno::NOENT => return Ok(()),
            rules => rules?,
        };
        let mut batch = Batch::new(family, FOREIGN_TABLE);
        for rule in rules.iter().filter(|rule| !rule.comment.is_empty() && unwanted(&rule.comment)) {
            batch.delete_rule(FOREIGN_CHAIN, rule.handle);
        }
        match socket.commit(&batch) {
            Err(error) if error.errno() == Errno::NOENT => {}
            done => return Ok(done?),
        }
    }
    Err(PluginError::new(Code::KERNEL, "firewall: the chain FORWARD changes all the time"))
}
