//! The bridge as gateway of its containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_cni::{AddResult, Code, PluginError, Prefix, Route};
use cofferdam_linux::netlink::{Address, Link, Socket};
use rustix::io::Errno;

use crate::sysctl;

/// Fills in the gateway of each address and the default routes.
pub(super) fn complete(mut result: AddResult, is_gateway: bool, is_default: bool) -> AddResult {
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

/// Gives the bridge the gateways' addresses and lets the host forward.
pub(super) fn put_on_bridge(host: &mut Socket, bridge: &Link, result: &AddResult) -> Result<(), PluginError> {
    for address in gateways(result) {
        let forwarding = if address.address.is_ipv4() {
            "ipv4/ip_forward"
        } else {
            // Without it the kernel keeps a bridge's address tentative until its first port has carrier.
            sysctl::set(&format!("ipv6/conf/{}/accept_dad", bridge.name), "0")?;
            sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", bridge.name), "0")?;
            "ipv6/conf/all/forwarding"
        };
        match host.add_address(bridge.index, address) {
            Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
            _ => sysctl::set(forwarding, "1")?,
        }
    }
    Ok(())
}

fn gateways(result: &AddResult) -> impl Iterator<Item = Address> {
    result.ips.iter().filter_map(|ip| Some(Address { address: ip.gateway?, prefix: ip.address.length }))
}

pub(super) fn check_on_bridge(
    host: &mut Socket,
    bridge: &Link,
    result: &AddResult,
) -> Result<(), PluginError> {
    let present = host.addresses(bridge.index)?;
    for gateway in gateways(result) {
        if !present.contains(&gateway) {
            let message = format!("bridge: {} lacks the gateway's address {}", bridge.name, gateway.address);
            return Err(PluginError::new(Code::CHECK_FAILED, message));
        }
    }
    Ok(())
}
