//! vrf: puts an interface that a plugin before made into a routing domain of the container.

use std::net::IpAddr;
use std::os::fd::AsFd;

use cofferdam_cni::{AddResult, Code, Object, Plugin, PluginError, Request};
use cofferdam_linux::netlink::{Link, LinkChange, LinkKind, NewLink, Route, Socket};
use rustix::io::Errno;

use crate::container::to_address;
use crate::container_link::netns_if_there;

pub(crate) struct Vrf;

/// The first routing table that a domain gets that asks for none; above those that sbr takes.
const FIRST_TABLE: u32 = 1000;

impl Plugin for Vrf {
    fn kind(&self) -> &'static str {
        "vrf"
    }

    fn supports(&self, _config: &Object) -> Result<(), String> {
        Ok(())
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let result = request
            .previous
            .clone()
            .ok_or_else(|| PluginError::config("vrf must come after a plugin that makes an interface"))?;
        let mut socket = Socket::route_in(request.open_netns()?.as_fd())?;
        let domain = ensure(&mut socket, &name(request)?, request.get("table")?)?;
        join(&mut socket, request.if_name.as_str(), &domain, &result)?;
        Ok(result)
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let Some(netns) = netns_if_there(request) else { return Ok(()) };
        let mut socket = Socket::route_in(netns.as_fd())?;
        let Some(domain) = socket.find_link(&name(request)?)? else { return Ok(()) };
        let link = socket.find_link(request.if_name.as_str())?;
        if let Some(link) = link.filter(|link| link.master == Some(domain.index)) {
            leave(&mut socket, &link, &domain)?;
        }
        if socket.links()?.iter().any(|link| link.master == Some(domain.index)) {
            return Ok(());
        }
        match socket.delete_link(&domain.name) {
            Err(error) if error.errno() != Errno::NODEV => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("vrf: {what}")));
        let mut socket = Socket::route_in(request.open_netns()?.as_fd())?;
        let name = name(request)?;
        let Some(domain) = socket.find_link(&name)?.filter(|domain| domain.up) else {
            return wrong(format!("{name} is gone or down"));
        };
        if let Some(table) = request.get("table")?.filter(|table| domain.table != Some(*table)) {
            return wrong(format!("{name} routes by table {:?} instead of {table}", domain.table));
        }
        match socket.find_link(request.if_name.as_str())? {
            Some(link) if link.master == Some(domain.index) => Ok(()),
            _ => wrong(format!("{} is not in {name}", request.if_name)),
        }
    }

    fn gc(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }
}

fn name(request: &Request<'_>) -> Result<String, PluginError> {
    let name: Option<String> = request.get("vrfname")?;
    name.filter(|name| !name.is_empty()).ok_or_else(|| PluginError::config("vrf: vrfname is missing"))
}

fn ensure(socket: &mut Socket, name: &str, wanted: Option<u32>) -> Result<Link, PluginError> {
    if let Some(found) = socket.find_link(name)? {
        return match (found.table, wanted) {
            (None, _) => Err(PluginError::config(format!("vrf: the link {name} exists and is no vrf"))),
            (Some(table), Some(wanted)) if table != wanted => {
                Err(PluginError::config(format!("vrf: {name} routes by table {table}, not by {wanted}")))
            }
            _ => Ok(found),
        };
    }
    let table = match wanted {
        Some(table) => table,
        None => free_table(socket)?,
    };
    socket.add_link(&NewLink::new(name, LinkKind::Vrf { table })).map_err(|error| match error.errno() {
        Errno::OPNOTSUPP => PluginError::new(Code::KERNEL, "vrf: this kernel has no links of the kind vrf"),
        _ => error.into(),
    })?;
    Ok(socket.link(name)?)
}

fn free_table(socket: &mut Socket) -> Result<u32, PluginError> {
    let used: Vec<u32> = socket.links()?.iter().filter_map(|link| link.table).collect();
    let routes = socket.all_routes()?;
    let is_free =
        |table: &u32| !used.contains(table) && !routes.iter().any(|route| route.table == Some(*table));
    (FIRST_TABLE..)
        .find(is_free)
        .ok_or_else(|| PluginError::new(Code::EXHAUSTED, "vrf: every table is taken"))
}

/// A link that changes its master goes down and up: routes and IPv6 addresses are lost, and put back.
fn join(socket: &mut Socket, name: &str, domain: &Link, result: &AddResult) -> Result<(), PluginError> {
    let link = socket.link(name)?;
    let mut routes = socket.routes()?;
    routes.retain(|route| route.link == Some(link.index));
    let addresses = socket.addresses(link.index)?;
    socket.change_link(link.index, &LinkChange { master: Some(domain.index), ..LinkChange::default() })?;
    for ip in result.container_ips().map(|ip| to_address(ip.address)).filter(|ip| addresses.contains(ip)) {
        kept(socket.add_address(link.index, ip))?;
    }
    put_back(socket, routes, domain.table)
}

/// What [`join`] did, undone. What the interface had is put back where that can be: whoever made it takes it away next, and a
/// DEL that stops here would keep him from it.
fn leave(socket: &mut Socket, link: &Link, domain: &Link) -> Result<(), PluginError> {
    let mut routes = socket.all_routes()?;
    routes.retain(|route| route.link == Some(link.index) && route.table == domain.table);
    let addresses = socket.addresses(link.index)?;
    socket.change_link(link.index, &LinkChange { master: Some(0), ..LinkChange::default() })?;
    // The kernel gives an interface its link-local address by itself.
    for address in addresses.into_iter().filter(|address| !is_link_local(address.address)) {
        let _ = socket.add_address(link.index, address);
    }
    let _ = put_back(socket, routes, None);
    Ok(())
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn put_back(socket: &mut Socket, mut routes: Vec<Route>, table: Option<u32>) -> Result<(), PluginError> {
    // Those to neighbours first, for gateways are reached by them.
    routes.sort_by_key(|route| route.gateway.is_some());
    for route in routes {
        kept(socket.add_route(&Route { table, source: None, ..route }))?;
    }
    Ok(())
}

fn kept(added: Result<(), cofferdam_linux::netlink::Error>) -> Result<(), PluginError> {
    match added {
        Err(error) if error.errno() != Errno::EXIST => Err(error.into()),
        _ => Ok(()),
    }
}
