//! The host as gateway of its containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_cni::{AddResult, Code, PluginError, Prefix, Route};
use cofferdam_linux::netlink::{Address, Link, Socket};
use rustix::io::Errno;

use crate::sysctl;

/// Fills in the gateway of each address and the default routes.
pub(crate) fn complete(mut result: AddResult, is_gateway: bool, is_default: bool) -> AddResult {
    for ip in result.ips.iter_mut().filter(|_| is_gateway) {
        ip.gateway = ip.gateway.or_else(|| Some(first_host(ip.address)));
    }
    if is_default {
        for ip in result.ips.clone() {
            let anywhere: IpAddr = match ip.address.address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let dst = Prefix { address: anywhere, length: 0 };
            if !result.routes.iter().any(|route| route.dst == dst) {
                result.routes.push(Route::new(dst, ip.gateway));
            }
        }
    }
    result
}

fn first_host(prefix: Prefix) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4).wrapping_add(1)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6).wrapping_add(1)).into()),
    }
}

/// The setting by which the host forwards for addresses like this one.
fn forwarding(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" }
}

/// Lets the host forward for every address.
pub(crate) fn forward(addresses: impl Iterator<Item = IpAddr>) -> Result<(), PluginError> {
    addresses.into_iter().try_for_each(|address| sysctl::set(forwarding(address), "1"))
}

/// Compares with what [`forward`] did.
pub(crate) fn check_forwarding(
    plugin: &str,
    addresses: impl Iterator<Item = IpAddr>,
) -> Result<(), PluginError> {
    for key in addresses.map(forwarding) {
        if sysctl::get(key)? == "0" {
            return Err(PluginError::new(Code::CHECK_FAILED, format!("{plugin}: /proc/sys/net/{key} is 0")));
        }
    }
    Ok(())
}

/// Takes a link of the host the addresses that are in the way of the gateways': every other IPv4 address, and IPv6 addresses
/// whose networks overlap.
pub(crate) fn clear_for(host: &mut Socket, link: &Link, gateways: &[Address]) -> Result<(), PluginError> {
    let prefix = |one: &Address| Prefix { address: one.address, length: one.prefix };
    for present in host.addresses(link.index)?.iter().filter(|one| !gateways.contains(one)) {
        let is_in_the_way = |gateway: &Address| {
            let both_v4 = gateway.address.is_ipv4() && present.address.is_ipv4();
            both_v4 || prefix(gateway).overlaps(prefix(present))
        };
        if gateways.iter().any(is_in_the_way) {
            PluginError::unless_gone(host.delete_address(link.index, *present))?;
        }
    }
    Ok(())
}

/// Gives a link of the host the gateways' addresses and lets the host forward.
pub(crate) fn put_on(host: &mut Socket, link: &Link, gateways: &[Address]) -> Result<(), PluginError> {
    if gateways.iter().any(|gateway| gateway.address.is_ipv6()) {
        // Without it the kernel keeps a bridge's address tentative until its first port has carrier.
        sysctl::set(&format!("ipv6/conf/{}/accept_dad", link.name), "0")?;
        sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", link.name), "0")?;
    }
    for gateway in gateways {
        match host.add_address(link.index, *gateway) {
            Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
            _ => {}
        }
    }
    forward(gateways.iter().map(|gateway| gateway.address))
}

/// Compares with what [`put_on`] did.
pub(crate) fn check_on(
    plugin: &str,
    host: &mut Socket,
    link: &Link,
    gateways: &[Address],
) -> Result<(), PluginError> {
    let present = host.addresses(link.index)?;
    if let Some(gateway) = gateways.iter().find(|gateway| !present.contains(gateway)) {
        let message = format!("{plugin}: {} lacks the gateway's address {}", link.name, gateway.address);
        return Err(PluginError::new(Code::CHECK_FAILED, message));
    }
    check_forwarding(plugin, gateways.iter().map(|gateway| gateway.address))
}

/// The gateways of a result, each in the network of its container's address.
pub(crate) fn gateways(result: &AddResult) -> Vec<Address> {
    let gateway =
        |ip: &cofferdam_cni::IpConfig| Some(Address { address: ip.gateway?, prefix: ip.address.length });
    result.ips.iter().filter_map(gateway).collect()
}
