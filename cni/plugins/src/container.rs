//! The interface inside the container: addresses, routes, up; and whether it is still so.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use cofferdam_cni::{AddResult, Code, IpConfig, PluginError, Prefix, Request};
use cofferdam_linux::namespace::with_netns;
use cofferdam_linux::netlink::{Address, Duplicates, Link, LinkChange, PrefixRoute, Route, Settled, Socket};
use rustix::io::Errno;

use crate::sysctl;

/// The metric of a route that another interface of the container has already: the first network's stays the better one.
const SECOND_BEST: u32 = 2048;
/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;
/// `RT_SCOPE_LINK`.
const LINK_SCOPE: u8 = 253;

/// Whom an interface reaches without a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Neighbours {
    /// Everybody in the networks of its addresses.
    Network,
    /// The gateways, and through them everybody else.
    Gateway,
}

/// Whether an interface looks for others that have its IPv6 addresses, before it uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detection {
    /// As the kernel is set up for the link-local address; never for those that were given.
    Kernel,
    /// Never: a port in hairpin mode gets its own question back, and takes it for somebody else's.
    Off,
    /// Always, and who has a duplicate is told.
    On,
}

/// How an interface inside is to be, or was, made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inside<'a> {
    /// The plugin that asks, for errors.
    pub(crate) plugin: &'a str,
    /// Name of the interface.
    pub(crate) name: &'a str,
    /// Whom it reaches.
    pub(crate) neighbours: Neighbours,
    /// Whether it looks for duplicates.
    pub(crate) detection: Detection,
}

/// The kernel asks once, after at most a second, and waits a second for an answer.
const DETECTION: Duration = Duration::from_secs(10);
/// Between two looks at what became of it.
const LOOK: Duration = Duration::from_millis(50);

/// Runs `work` on a thread inside the namespace.
pub(crate) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce(&mut Socket) -> Result<T, PluginError> + Send,
) -> Result<T, PluginError> {
    with_netns(netns, || work(&mut Socket::route()?)).map_err(|errno| {
        PluginError::new(Code::INVALID_NETNS, format!("cannot enter the namespace: {errno}"))
    })?
}

/// The namespace of the container as a result says it.
pub(crate) fn sandbox(request: &Request<'_>) -> String {
    request.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

impl Inside<'_> {
    /// Gives the interface its addresses and routes. Needs a thread inside the namespace, for there are settings in /proc.
    pub(crate) fn configure(&self, socket: &mut Socket, result: &AddResult) -> Result<Link, PluginError> {
        let link = socket.link(self.name)?;
        let families = |v4: bool| result.ips.iter().any(|ip| ip.address.address.is_ipv4() == v4);
        if families(true) {
            sysctl::set(&format!("ipv4/conf/{}/arp_notify", self.name), "1")?;
        }
        if families(false) {
            sysctl::set(&format!("ipv6/conf/{}/disable_ipv6", self.name), "0")?;
            sysctl::set(&format!("ipv6/conf/{}/ndisc_notify", self.name), "1")?;
        }
        self.set_detection()?;
        let prefix_route = match self.neighbours {
            Neighbours::Network => PrefixRoute::Made,
            Neighbours::Gateway => PrefixRoute::Left,
        };
        let duplicates =
            if self.detection == Detection::On { Duplicates::LookedFor } else { Duplicates::Excluded };
        for ip in &result.ips {
            socket.add_address_with(link.index, to_address(ip.address), prefix_route, duplicates)?;
        }
        socket.set_up(link.index)?;
        for route in self.routes(result, link.index) {
            add_route(socket, route)?;
        }
        Ok(link)
    }

    fn set_detection(&self) -> Result<(), PluginError> {
        let key = |name: &str| format!("ipv6/conf/{}/{name}", self.name);
        match self.detection {
            Detection::Kernel => Ok(()),
            Detection::Off => sysctl::set_if_there(&key("accept_dad"), "0"),
            Detection::On => {
                // Its own question, which a hairpin sends back, is known by a number (RFC 7527).
                sysctl::set_if_there(&key("enhanced_dad"), "1")?;
                sysctl::set_if_there(&key("accept_dad"), "1")
            }
        }
    }

    /// Waits until nobody has been found who has one of the addresses. Needs carrier.
    pub(crate) fn settle(&self, socket: &mut Socket, link: &Link) -> Result<(), PluginError> {
        if self.detection != Detection::On {
            return Ok(());
        }
        let deadline = Instant::now() + DETECTION;
        loop {
            match socket.settled(link.index)? {
                Settled::Duplicate(address) => {
                    let message = format!("{}: somebody else on the network has {address}", self.plugin);
                    return Err(PluginError::new(Code::CONFLICT, message));
                }
                Settled::NotYet if Instant::now() < deadline => std::thread::sleep(LOOK),
                Settled::Yes | Settled::NotYet => return Ok(()),
            }
        }
    }

    /// The routes of a result; one without a next hop takes the gateway of the first address of its family.
    fn routes(&self, result: &AddResult, link: u32) -> Vec<Route> {
        let mut routes = Vec::new();
        for ip in result.ips.iter().filter(|_| self.neighbours == Neighbours::Gateway) {
            routes.extend(by_gateway(ip, link).into_iter().flatten());
        }
        routes.extend(result.routes.iter().map(|route| {
            let v4 = route.dst.address.is_ipv4();
            let default = || result.ips.iter().find(|ip| ip.address.address.is_ipv4() == v4)?.gateway;
            let destination = Address { address: route.dst.network(), prefix: route.dst.length };
            let gateway = if route.scope == Some(LINK_SCOPE) { None } else { route.gw.or_else(default) };
            Route {
                mtu: route.mtu,
                advertised_mss: route.advmss,
                priority: route.priority,
                table: route.table,
                scope: route.scope,
                ..Route::new(destination, gateway, link)
            }
        }));
        routes
    }

    /// Compares the link alone with what the result tells of it.
    pub(crate) fn check_link(&self, socket: &mut Socket, result: &AddResult) -> Result<Link, PluginError> {
        let name = self.name;
        let wrong = |what: String| {
            PluginError::new(Code::CHECK_FAILED, format!("{}: in the container {what}", self.plugin))
        };
        let link = socket.find_link(name)?.ok_or_else(|| wrong(format!("{name} is gone")))?;
        let made = result.interfaces.iter().find(|one| one.name == name && !one.sandbox.is_empty());
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        if let Some(made) = made.filter(|made| !made.mac.is_empty() && !made.mac.eq_ignore_ascii_case(&mac)) {
            return Err(wrong(format!("{name} has the address {mac} instead of {}", made.mac)));
        }
        if let Some(mtu) = made.and_then(|made| made.mtu).filter(|mtu| *mtu != link.mtu) {
            return Err(wrong(format!("{name} has the mtu {} instead of {mtu}", link.mtu)));
        }
        Ok(link)
    }

    /// Compares the interface with what ADD made of it.
    pub(crate) fn check(&self, socket: &mut Socket, result: &AddResult) -> Result<Link, PluginError> {
        let link = self.check_link(socket, result)?;
        let name = self.name;
        let wrong = |what: String| {
            PluginError::new(Code::CHECK_FAILED, format!("{}: in the container {what}", self.plugin))
        };
        if !link.up {
            return Err(wrong(format!("{name} is down")));
        }
        let own = own_addresses(result, name);
        let addresses = socket.addresses(link.index)?;
        if let Some(ip) = own.ips.iter().find(|ip| !addresses.contains(&to_address(ip.address))) {
            return Err(wrong(format!("{name} lacks {}", ip.address)));
        }
        let present = socket.all_routes()?;
        let missing = |route: &Route| !present.iter().any(|other| is_route(other, route));
        let mut routes = self.routes(&own, link.index);
        // In a routing domain they are in its table.
        let domain = link.master.and_then(|master| socket.link_by_index(master).ok()?.table);
        if let Some(table) = domain {
            routes.iter_mut().for_each(|route| route.table = route.table.or(Some(table)));
        }
        match routes.into_iter().find(missing) {
            Some(Route { destination, .. }) => Err(wrong(format!(
                "the route to {}/{} is gone or another",
                destination.address, destination.prefix
            ))),
            None => Ok(link),
        }
    }
}

/// The result without addresses of other interfaces, whose gateways would be taken for this one's.
fn own_addresses(result: &AddResult, name: &str) -> AddResult {
    let is_own = |ip: &&IpConfig| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == name && !interface.sandbox.is_empty())
    };
    AddResult { ips: result.ips.iter().filter(is_own).cloned().collect(), ..result.clone() }
}

/// The gateway as only neighbour, and its network behind it.
fn by_gateway(ip: &IpConfig, link: u32) -> [Option<Route>; 2] {
    let Some(gateway) = ip.gateway else { return [None, None] };
    let full = full_length(gateway);
    let source = Some(ip.address.address);
    let to_gateway = Route { source, ..Route::new(Address { address: gateway, prefix: full }, None, link) };
    let network = Address { address: ip.address.network(), prefix: ip.address.length };
    let behind = Route { source, ..Route::new(network, Some(gateway), link) };
    [Some(to_gateway), (ip.address.length < full).then_some(behind)]
}

/// The length of a prefix that holds one address.
pub(crate) fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn add_route(socket: &mut Socket, route: Route) -> Result<(), PluginError> {
    match socket.add_route(&route) {
        Err(error) if error.errno() == Errno::EXIST => {
            if socket.all_routes()?.iter().any(|other| is_route(other, &route)) {
                return Ok(());
            }
            let priority = Some(SECOND_BEST + route.link.unwrap_or_default());
            Ok(socket.add_route(&Route { priority, ..route })?)
        }
        added => Ok(added?),
    }
}

/// Whether the route found is the one that was made; the kernel fills in what was left open.
fn is_route(found: &Route, made: &Route) -> bool {
    let same = |found: Option<u32>, made: Option<u32>| made.is_none() || found == made;
    (found.destination, found.gateway, found.link) == (made.destination, made.gateway, made.link)
        && found.table == Some(made.table.unwrap_or(MAIN_TABLE))
        && same(found.mtu, made.mtu)
        && same(found.advertised_mss, made.advertised_mss)
        && same(found.priority, made.priority)
}

/// Gives a link that was born under another name its own, and the mark by which DEL knows it, in one request.
pub(crate) fn christen(socket: &mut Socket, from: &str, to: &str, mark: &str) -> Result<(), PluginError> {
    let link = socket.link(from)?;
    let change = LinkChange { name: Some(to), alias: Some(mark), ..LinkChange::default() };
    socket.change_link(link.index, &change).map_err(|error| match error.errno() {
        Errno::EXIST => already_there(to),
        _ => error.into(),
    })
}

/// The name is taken.
pub(crate) fn already_there(name: &str) -> PluginError {
    PluginError::new(Code::CONFLICT, format!("the container already has an interface {name}"))
}

pub(crate) fn to_address(prefix: Prefix) -> Address {
    Address { address: prefix.address, prefix: prefix.length }
}
