//! The container's end: addresses, routes, up.

use std::os::fd::BorrowedFd;

use cofferdam_cni::{AddResult, Code, PluginError, Prefix};
use cofferdam_linux::namespace::with_netns;
use cofferdam_linux::netlink::{Address, Link, Route, Socket};
use rustix::io::Errno;

/// Gives the interface its addresses and routes. All of it happens on a thread inside the namespace.
pub(super) fn configure(netns: BorrowedFd<'_>, name: &str, result: &AddResult) -> Result<Link, PluginError> {
    with_netns(netns, || configure_inside(name, result)).map_err(|errno| {
        PluginError::new(Code::INVALID_NETNS, format!("cannot enter the namespace: {errno}"))
    })?
}

fn configure_inside(name: &str, result: &AddResult) -> Result<Link, PluginError> {
    let mut socket = Socket::route()?;
    let link = socket.link(name)?;
    if result.ips.iter().any(|ip| ip.address.address.is_ipv6()) {
        crate::sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    for ip in &result.ips {
        socket.add_address(link.index, to_address(ip.address))?;
    }
    socket.set_up(link.index)?;
    for route in routes(result, link.index) {
        match socket.add_route(&route) {
            Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
            _ => {}
        }
    }
    Ok(link)
}

pub(super) fn to_address(prefix: Prefix) -> Address {
    Address { address: prefix.address, prefix: prefix.length }
}

/// The routes of a result; one without a next hop takes the gateway of the first address of its family.
fn routes(result: &AddResult, link: u32) -> impl Iterator<Item = Route> {
    result.routes.iter().map(move |route| {
        let v4 = route.dst.address.is_ipv4();
        let default = || result.ips.iter().find(|ip| ip.address.address.is_ipv4() == v4)?.gateway;
        let destination = Address { address: route.dst.network(), prefix: route.dst.length };
        // Scope 253 is "link": the destination is reached without a hop.
        let gateway = if route.scope == Some(253) { None } else { route.gw.or_else(default) };
        Route {
            mtu: route.mtu,
            advertised_mss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
            ..Route::new(destination, gateway, link)
        }
    })
}

/// Compares the interface with what ADD made of it.
pub(super) fn check(inside: &mut Socket, name: &str, result: &AddResult) -> Result<(), PluginError> {
    let wrong =
        |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("bridge: in the container {what}")));
    let Some(link) = inside.find_link(name)? else { return wrong(format!("{name} is gone")) };
    if !link.up {
        return wrong(format!("{name} is down"));
    }
    let made =
        result.interfaces.iter().find(|interface| interface.name == name && !interface.sandbox.is_empty());
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if let Some(made) = made.filter(|made| !made.mac.eq_ignore_ascii_case(&mac)) {
        return wrong(format!("{name} has the address {mac} instead of {}", made.mac));
    }
    let addresses = inside.addresses(link.index)?;
    for ip in result.container_ips() {
        if !addresses.contains(&to_address(ip.address)) {
            return wrong(format!("{name} lacks {}", ip.address));
        }
    }
    let present = inside.routes()?;
    for route in routes(result, link.index).filter(|route| route.table.is_none()) {
        let same = |other: &Route| {
            (other.destination, other.gateway, other.link) == (route.destination, route.gateway, route.link)
        };
        if !present.iter().any(same) {
            return wrong(format!(
                "the route to {}/{} is gone",
                route.destination.address, route.destination.prefix
            ));
        }
    }
    Ok(())
}
