//! sbr: what leaves with an address of an interface leaves by that interface, whatever the main routing table says.
//!
//! Each address gets a rule and a routing table of its own, with the interface's routes. Those in the main table stay, so
//! nothing changes for packets that choose no address. With `table` the rules lead to a table that somebody else fills.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use cofferdam_cni::{AddResult, Code, IpConfig, Object, Plugin, PluginError, Request};
use cofferdam_linux::netlink::{Address, Route, Rule, Socket};
use rustix::io::Errno;
use serde::Deserialize;

use crate::container_link::netns_if_there;

pub(crate) struct Sbr;

/// The first table that is tried, as the reference plugin has it.
const FIRST_TABLE: u32 = 100;
/// The tables that every kernel has: default, main, local.
const RESERVED: std::ops::RangeInclusive<u32> = 253..=255;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    /// The table of every address; absent means one each, which is filled here.
    table: Option<u32>,
    /// At most one a family, in the place of the addresses' own.
    gateways: Vec<IpAddr>,
}

impl Plugin for Sbr {
    fn kind(&self) -> &'static str {
        "sbr"
    }

    fn supports(&self, config: &Object) -> Result<(), String> {
        crate::refuse_keys(config, &["addSourceHints"])
    }

    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        let previous = request
            .previous
            .clone()
            .ok_or_else(|| PluginError::config("sbr must come after a plugin that makes an interface"))?;
        let mut socket = Socket::route_in(request.open_netns()?.as_fd())?;
        let link = socket.link(request.if_name.as_str())?;
        let there = socket.rules_by_source()?;
        // One that has its rule already has its routes: they are made first.
        let without = |ip: &&IpConfig| !there.iter().any(|rule| rule.source == ip.address.address);
        let config = Config::of(request)?;
        for ip in own(&previous, request).into_iter().filter(without) {
            let table = match config.table {
                Some(table) => table,
                None => free_table(&mut socket)?,
            };
            // The routes first: a rule that leads nowhere would cut the address off.
            for route in config.routes(&mut socket, ip, link.index)? {
                socket.replace_route(&Route { table: Some(table), ..route })?;
            }
            match socket.add_rule(&Rule { source: ip.address.address, table }) {
                Err(error) if error.errno() != Errno::EXIST => return Err(error.into()),
                _ => {}
            }
        }
        Ok(previous)
    }

    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let Some(netns) = netns_if_there(request) else { return Ok(()) };
        let mut socket = Socket::route_in(netns.as_fd())?;
        let mut addresses: Vec<IpAddr> = request
            .previous
            .iter()
            .flat_map(|result| own(result, request))
            .map(|ip| ip.address.address)
            .collect();
        if let Some(link) = socket.find_link(request.if_name.as_str())? {
            addresses.extend(socket.addresses(link.index)?.iter().map(|address| address.address));
        }
        // Whoever fills a table empties it, too.
        let foreign_table = Config::of(request).unwrap_or_default().table;
        for rule in socket.rules_by_source()?.iter().filter(|rule| addresses.contains(&rule.source)) {
            missing_is_fine(socket.delete_rule(rule))?;
            if foreign_table == Some(rule.table) {
                continue;
            }
            let routes = socket.all_routes()?.into_iter().filter(|route| route.table == Some(rule.table));
            for route in routes.collect::<Vec<_>>() {
                missing_is_fine(socket.delete_route(&route))?;
            }
        }
        Ok(())
    }

    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        let wrong = |what: String| Err(PluginError::new(Code::CHECK_FAILED, format!("sbr: {what}")));
        let previous = request.previous.clone().unwrap_or_default();
        let mut socket = Socket::route_in(request.open_netns()?.as_fd())?;
        let link = socket.link(request.if_name.as_str())?;
        let (rules, all) = (socket.rules_by_source()?, socket.all_routes()?);
        let config = Config::of(request)?;
        for ip in own(&previous, request) {
            let source = ip.address.address;
            let Some(rule) = rules.iter().find(|rule| rule.source == source) else {
                return wrong(format!("there is no rule for {source}"));
            };
            if let Some(table) = config.table.filter(|table| *table != rule.table) {
                return wrong(format!("{source} is routed by table {} instead of {table}", rule.table));
            }
            let there = |made: &Route| {
                let same = |found: &Route| {
                    (found.destination, found.gateway, found.link)
                        == (made.destination, made.gateway, made.link)
                };
                all.iter().any(|found| found.table == Some(rule.table) && same(found))
            };
            if let Some(route) =
                config.routes(&mut socket, ip, link.index)?.iter().find(|route| !there(route))
            {
                return wrong(format!("table {} has no route to {}", rule.table, route.destination.address));
            }
        }
        Ok(())
    }

    fn gc(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn status(&self, _request: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }
}

/// The addresses of the interface that is asked about.
fn own<'r>(result: &'r AddResult, request: &Request<'_>) -> Vec<&'r IpConfig> {
    let is_own = |ip: &&IpConfig| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == request.if_name.as_str())
    };
    result.container_ips().filter(is_own).collect()
}

fn free_table(socket: &mut Socket) -> Result<u32, PluginError> {
    let (rules, routes) = (socket.rules_by_source()?, socket.all_routes()?);
    let is_free = |table: &u32| {
        !RESERVED.contains(table)
            && !rules.iter().any(|rule| rule.table == *table)
            && !routes.iter().any(|route| route.table == Some(*table))
    };
    (FIRST_TABLE..)
        .find(is_free)
        .ok_or_else(|| PluginError::new(Code::EXHAUSTED, "sbr: every table is taken"))
}

impl Config {
    fn of(request: &Request<'_>) -> Result<Self, PluginError> {
        let config: Self = request.settings()?;
        let of = |v4: bool| config.gateways.iter().filter(move |gateway| gateway.is_ipv4() == v4).count();
        if of(true) > 1 || of(false) > 1 {
            return Err(PluginError::config("sbr: gateways has more than one address of a family"));
        }
        Ok(config)
    }

    /// The routes of the address's table: those of the interface in the main one, and the default by the configured gateway or
    /// by the address's. None in a table that somebody else fills.
    fn routes(&self, socket: &mut Socket, ip: &IpConfig, link: u32) -> Result<Vec<Route>, PluginError> {
        if self.table.is_some() {
            return Ok(Vec::new());
        }
        let v4 = ip.address.address.is_ipv4();
        let mut routes = socket.routes()?;
        routes.retain(|route| {
            let destination = route.destination.address;
            let is_link_local = matches!(destination, IpAddr::V6(v6) if v6.is_unicast_link_local());
            route.link == Some(link) && destination.is_ipv4() == v4 && !is_link_local
        });
        let configured = self.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == v4);
        if let Some(gateway) = configured.or(ip.gateway) {
            let anywhere: IpAddr =
                if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let default = Address { address: anywhere, prefix: 0 };
            routes.retain(|route| route.destination != default);
            routes.push(Route::new(default, Some(gateway), link));
        }
        routes.sort_by_key(|route| route.gateway.is_some());
        Ok(routes)
    }
}

fn missing_is_fine(deleted: Result<(), cofferdam_linux::netlink::Error>) -> Result<(), PluginError> {
    match deleted {
        Err(error) if !matches!(error.errno(), Errno::NOENT | Errno::SRCH) => Err(error.into()),
        _ => Ok(()),
    }
}
