//! portmap: ports of the host that lead into the container, as elements of nft maps.
//!
//! | reached from | by |
//! |---|---|
//! | another machine | prerouting, destination NAT |
//! | the host, by any of its addresses | output, destination NAT |
//! | the host, by 127.0.0.1 | output, `route_localnet` on the way out, masquerade |
//! | a neighbour, or the container itself | prerouting, masquerade of what comes from the container's own network |
//!
//! A port is somebody's if it is a key of the map, or if a program of the host listens on it; both are refused, and the
//! holder is named. `::1` cannot be mapped: the kernel has no `route_localnet` for IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_cni::{
    AddResult, Code, IpConfig, Object, Plugin, PluginError, PortMapping, Prefix, Protocol, Request,
};
use cofferdam_linux::netlink::Socket;
use cofferdam_linux::nft::Element;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::ruleset::{Entry, Ip, Kind, Ruleset, octets};
use crate::{foreign, refuse_keys, sysctl};

pub(crate) struct Portmap;

impl Plugin for Portmap {
    fn kind(&self) -> &'static str {
        "portmap"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        crate::refuse_backend(config, "backend")?;
        refuse_keys(config, &["conditionsV4", "conditionsV6", "externalSetMarkChain"])
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let previous = request.previous.clone();
        let previous = previous
            .ok_or_else(|| PluginError::config("portmap must come after a plugin that gives addresses"))?;
        let mappings = mappings(request)?;
        if mappings.is_empty() {
            return Ok(previous);
        }
        let entries = entries(request, &mappings, &previous)?;
        let mut ruleset = Ruleset::open()?;
        for target in targets(&previous) {
            let hairpin = hairpin_entry(request, target)?;
            ruleset.remove_ports_of_former(&hairpin, target.address.address)?;
        }
        refuse_taken(&mut ruleset, &mappings, &entries)?;
        if let Some(link) = loopback_link(request, &mappings, &previous)? {
            // Packets from 127.0.0.1 leave by the link that leads to the container.
            sysctl::set(&format!("ipv4/conf/{link}/route_localnet"), "1")?;
        }
        match ruleset.add(&entries) {
            Ok(()) => {
                for mapping in mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp) {
                    // Helpful, not needed: such flows end by themselves.
                    let _ = ruleset.forget_flows_to(mapping.protocol.number(), mapping.host_port);
                }
                Ok(previous)
            }
            Err(error) if error.errno() == Errno::EXIST => {
                // Lost a race: now the holder can be named.
                refuse_taken(&mut ruleset, &mappings, &entries)?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        // The ports as the caller tells them: tables of older versions have no pointers to them.
        let previous = request.previous.clone().unwrap_or_default();
        let told = mappings(request).and_then(|mappings| entries(request, &mappings, &previous));
        Ruleset::remove_of(request, told.unwrap_or_default())?;
        foreign::remove_chains(request, foreign::PORTS)
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let previous = request.previous.clone().unwrap_or_default();
        let mappings = mappings(request)?;
        Ruleset::open()?.check("portmap", &entries(request, &mappings, &previous)?)?;
        let Some(link) = loopback_link(request, &mappings, &previous)? else { return Ok(()) };
        let key = format!("ipv4/conf/{link}/route_localnet");
        if sysctl::get(&key)? == "1" {
            return Ok(());
        }
        Err(PluginError::new(Code::CHECK_FAILED, format!("portmap: /proc/sys/net/{key} is not 1")))
    }

    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Ruleset::collect(request)
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ruleset::open().map(drop)
    }
}

fn mappings(request: &Request<'_>) -> Result<Vec<PortMapping>, PluginError> {
    let mappings: Vec<PortMapping> = request.capability("portMappings")?.unwrap_or_default();
    match mappings.iter().find(|mapping| mapping.host_port == 0 || mapping.container_port == 0) {
        Some(mapping) => Err(PluginError::config(format!("portmap: port 0 cannot be mapped ({mapping})"))),
        None => Ok(mappings),
    }
}

/// The first address of the container in each family.
fn targets(previous: &AddResult) -> impl Iterator<Item = &IpConfig> {
    [true, false]
        .into_iter()
        .filter_map(|v4| previous.container_ips().find(|ip| ip.address.address.is_ipv4() == v4))
}

fn applies(mapping: &PortMapping, target: IpAddr) -> bool {
    mapping.host_ip.is_none_or(|host| host.is_ipv4() == target.is_ipv4())
}

fn entries(
    request: &Request<'_>,
    mappings: &[PortMapping],
    previous: &AddResult,
) -> Result<Vec<Entry>, PluginError> {
    let owner = request.owner();
    let snat = rewrites_source(request)?;
    let mut entries: Vec<Entry> = Vec::new();
    for target in targets(previous) {
        let address = target.address.address;
        let ip = Ip::of(address);
        let mapped: Vec<&PortMapping> = mappings.iter().filter(|mapping| applies(mapping, address)).collect();
        for mapping in &mapped {
            let entry = port_entry(mapping, ip, address, &owner);
            if entries.iter().any(|(set, other)| *set == entry.0 && other.key == entry.1.key) {
                return Err(PluginError::config(format!("portmap: {mapping} is mapped twice")));
            }
            entries.push(entry);
        }
        if snat && !mapped.is_empty() {
            entries.push(hairpin_entry(request, target)?);
        }
    }
    Ok(entries)
}

/// Masquerades what comes by way of the host from the container's own network, which would be answered directly; or from
/// everybody.
fn hairpin_entry(request: &Request<'_>, target: &IpConfig) -> Result<Entry, PluginError> {
    let all = request.get("masqAll")?.unwrap_or(false);
    let Prefix { address, .. } = target.address;
    let network = if all { Prefix { length: 0, ..target.address } } else { target.address };
    let first = [octets(network.network()), octets(address)];
    let last = [octets(network.last()), octets(address)];
    Ok((Kind::Hairpin.set(Ip::of(address)), Element::range(&first, &last, &request.owner())))
}

fn port_entry(mapping: &PortMapping, ip: Ip, target: IpAddr, owner: &str) -> Entry {
    let protocol = vec![mapping.protocol.number()];
    let port = mapping.host_port.to_be_bytes().to_vec();
    let data = [octets(target), mapping.container_port.to_be_bytes().to_vec()];
    match mapping.host_ip.filter(|host| !host.is_unspecified()) {
        Some(host) => {
            (Kind::AddressPorts.set(ip), Element::map(&[octets(host), protocol, port], &data, owner))
        }
        None => (Kind::Ports.set(ip), Element::map(&[protocol, port], &data, owner)),
    }
}

/// Refuses ports that another attachment or a program of the host holds, and names the holder.
fn refuse_taken(
    ruleset: &mut Ruleset,
    mappings: &[PortMapping],
    entries: &[Entry],
) -> Result<(), PluginError> {
    for (set, element) in entries.iter().filter(|(set, _)| !set.kind.is_by_address()) {
        if let Some(holder) = ruleset.find(*set, element)? {
            return Err(taken(&port_text(element), &attachment_text(&holder.comment)));
        }
    }
    for mapping in mappings {
        refuse_overlap(ruleset, mapping)?;
        if is_bound(mapping) {
            return Err(taken(&mapping.to_string(), "a program on this host"));
        }
    }
    Ok(())
}

fn taken(port: &str, holder: &str) -> PluginError {
    PluginError::new(Code::CONFLICT, format!("port {port} is already in use by {holder}"))
}

/// "every address" and "one address" on the same port cannot both be had.
fn refuse_overlap(ruleset: &mut Ruleset, mapping: &PortMapping) -> Result<(), PluginError> {
    let key = [vec![mapping.protocol.number()], mapping.host_port.to_be_bytes().to_vec()];
    let tail = Element::set(&key, "").key;
    for ip in [crate::ruleset::IPV4, crate::ruleset::IPV6] {
        let other = match mapping.host_ip.filter(|host| !host.is_unspecified()) {
            Some(host) if Ip::of(host) == ip => ruleset.find(Kind::Ports.set(ip), &Element::set(&key, ""))?,
            Some(_) => None,
            None if mapping.host_ip.is_some_and(|host| Ip::of(host) != ip) => None,
            None => {
                let all = ruleset.elements(Kind::AddressPorts.set(ip))?;
                all.into_iter().find(|element| element.key.ends_with(&tail))
            }
        };
        if let Some(other) = other {
            return Err(taken(&mapping.to_string(), &attachment_text(&other.comment)));
        }
    }
    Ok(())
}

/// A mark as a user would say it.
fn attachment_text(owner: &str) -> String {
    match owner.split('/').collect::<Vec<_>>()[..] {
        [network, container, _] => format!("container {container} (network {network})"),
        _ => "something else in the nft table cofferdam".into(),
    }
}

/// A key as a user would write it: it ends with protocol and port, each padded to four bytes, and may begin with an address.
fn port_text(element: &Element) -> String {
    let at = element.key.len().saturating_sub(8);
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| element.key.get(at) == Some(&protocol.number()));
    let host_port =
        element.key.get(at + 4..at + 6).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let address = &element.key[..at];
    let v4 = <[u8; 4]>::try_from(address).ok().map(IpAddr::from);
    let host_ip = v4.or_else(|| <[u8; 16]>::try_from(address).ok().map(IpAddr::from));
    let mapping = |protocol| PortMapping { host_port, container_port: 0, protocol, host_ip };
    protocol.map_or_else(|| host_port.to_string(), |protocol| mapping(protocol).to_string())
}

/// Whether a program of the host holds the port. Asked by trying: there is no list that is not out of date.
fn is_bound(mapping: &PortMapping) -> bool {
    let hosts = match mapping.host_ip {
        Some(host) => vec![host],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    };
    hosts.into_iter().any(|host| try_bind(host, mapping) == Err(Errno::ADDRINUSE))
}

fn try_bind(host: IpAddr, mapping: &PortMapping) -> Result<(), Errno> {
    let kind = match mapping.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        // Few kernels have it, and a mapping needs no listener.
        Protocol::Sctp => return Ok(()),
    };
    let family = if host.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if host.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections in TIME_WAIT do not hold a port; a listener does even so.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &std::net::SocketAddr::new(host, mapping.host_port))?;
    if kind == SocketType::STREAM { listen(&socket, 1) } else { Ok(()) }
}

/// Whether the host's address takes the place of the sender's where the answer would not find back.
fn rewrites_source(request: &Request<'_>) -> Result<bool, PluginError> {
    Ok(request.get("snat")?.unwrap_or(true))
}

/// The link that leads to the container, if a mapping is reached by 127.0.0.1.
fn loopback_link(
    request: &Request<'_>,
    mappings: &[PortMapping],
    previous: &AddResult,
) -> Result<Option<String>, PluginError> {
    if !rewrites_source(request)? {
        return Ok(None);
    }
    let by_loopback = |mapping: &PortMapping| match mapping.host_ip {
        None => true,
        Some(IpAddr::V4(host)) => host.is_loopback() || host.is_unspecified(),
        Some(IpAddr::V6(_)) => false,
    };
    let target = targets(previous).map(|ip| ip.address.address).find(IpAddr::is_ipv4);
    let Some(target) = target.filter(|_| mappings.iter().any(by_loopback)) else { return Ok(None) };
    let mut socket = Socket::route()?;
    let Some(link) = socket.route_to(target)?.link else { return Ok(None) };
    Ok(Some(socket.link_by_index(link)?.name))
}
