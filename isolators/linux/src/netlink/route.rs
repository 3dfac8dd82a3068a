//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::{Address, Error, Socket};

/// A unicast route. `destination` with prefix 0 is the default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; host bits must be zero.
    pub destination: Address,
    /// The next hop; absent means directly on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link it leaves by.
    pub link: Option<u32>,
    /// The address that packets of this host leave with; absent means the kernel chooses.
    pub source: Option<IpAddr>,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise, in bytes.
    pub advertised_mss: Option<u32>,
    /// Metric; lower wins.
    pub priority: Option<u32>,
    /// Routing table; absent means main.
    pub table: Option<u32>,
    /// Scope as in rtnetlink(7); absent means by gateway.
    pub scope: Option<u8>,
}

impl Route {
    /// A plain route through a gateway or directly on a link.
    pub fn new(destination: Address, gateway: Option<IpAddr>, link: u32) -> Self {
        Self {
            destination,
            gateway,
            link: Some(link),
            source: None,
            mtu: None,
            advertised_mss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

impl Socket {
    /// The unicast routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut routes = self.all_routes()?;
        routes.retain(|route| route.table == Some(RouteHeader::RT_TABLE_MAIN.into()));
        Ok(routes)
    }

    /// The unicast routes of every table, both families.
    pub fn all_routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answer = self.dump(RouteNetlinkMessage::GetRoute(message), "list routes")?;
            routes.extend(answer.into_iter().filter_map(read));
        }
        Ok(routes)
    }

    /// The route the kernel would take to `address`; `ENETUNREACH` if there is none.
    pub fn route_to(&mut self, address: IpAddr) -> Result<Route, Error> {
        let operation = format!("look up the route to {address}");
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(address);
        message.header.destination_prefix_length = full_prefix(address);
        message.attributes.push(RouteAttribute::Destination(to_wire(address)));
        let answer = self.get(RouteNetlinkMessage::GetRoute(message), &operation)?;
        read_any_kind(answer).ok_or_else(|| Error::new(operation, Errno::NETUNREACH))
    }

    /// Adds a route; `EEXIST` if an equal one is there.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let operation = format!("add route {route:?}");
        self.acknowledge(
            RouteNetlinkMessage::NewRoute(message_of(route)),
            NLM_F_CREATE | NLM_F_EXCL,
            &operation,
        )
    }

    /// Adds a route in the place of an equal one, if there is one.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let operation = format!("replace route {route:?}");
        let message = RouteNetlinkMessage::NewRoute(message_of(route));
        self.acknowledge(message, NLM_F_CREATE | NLM_F_REPLACE, &operation)
    }

    /// Removes a route; `ESRCH` if it is not there.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let operation = format!("delete route {route:?}");
        self.acknowledge(RouteNetlinkMessage::DelRoute(message_of(route)), 0, &operation)
    }
}

fn message_of(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(route.destination.address);
    message.header.destination_prefix_length = route.destination.prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    let natural = if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.header.scope = route.scope.map_or(natural, RouteScope::from);
    let attributes = &mut message.attributes;
    if route.destination.prefix > 0 {
        attributes.push(RouteAttribute::Destination(to_wire(route.destination.address)));
    }
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(to_wire(gateway))));
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(to_wire(source))));
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    attributes.extend(route.table.map(RouteAttribute::Table));
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.advertised_mss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    if let Some(table) = route.table {
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    }
    message
}

fn read(message: RouteNetlinkMessage) -> Option<Route> {
    let wanted = matches!(&message, RouteNetlinkMessage::NewRoute(route)
        if route.header.kind == RouteType::Unicast);
    if wanted { read_any_kind(message) } else { None }
}

fn read_any_kind(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let anywhere: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let destination = Address { address: anywhere, prefix: message.header.destination_prefix_length };
    let scope = Some(message.header.scope.into());
    let table = Some(message.header.table.into());
    let mut route = Route { scope, table, ..Route::new(destination, None, 0) };
    route.link = None;
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination.address = from_wire(&address)?,
            RouteAttribute::Gateway(address) => route.gateway = from_wire(&address),
            RouteAttribute::PrefSource(address) => route.source = from_wire(&address),
            RouteAttribute::Oif(index) => route.link = Some(index),
            RouteAttribute::Priority(priority) => route.priority = Some(priority),
            RouteAttribute::Table(table) => route.table = Some(table),
            RouteAttribute::Metrics(metrics) => read_metrics(&mut route, &metrics),
            _ => {}
        }
    }
    Some(route)
}

fn read_metrics(route: &mut Route, metrics: &[RouteMetric]) {
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
            RouteMetric::Advmss(mss) => route.advertised_mss = Some(*mss),
            _ => {}
        }
    }
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_wire(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn from_wire(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
