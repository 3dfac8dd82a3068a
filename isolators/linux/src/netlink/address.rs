//! Addresses of links.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Error, Socket};

/// An address of a link with the length of its network's prefix; the host bits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// The address itself.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

/// Whether the kernel makes a route to the network of an address that is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixRoute {
    /// It does: everybody in the network is a neighbour.
    Made,
    /// It does not.
    Left,
}

/// Whether the kernel asks the network if somebody has an IPv6 address already, before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicates {
    /// It does not: the address is usable at once.
    Excluded,
    /// It does, for about two seconds.
    LookedFor,
}

/// What became of looking for duplicates of a link's IPv6 addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Every address is usable.
    Yes,
    /// Not finished.
    NotYet,
    /// Somebody else has it.
    Duplicate(IpAddr),
}

impl Socket {
    /// The addresses of one link, or of all for index 0.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Address>, Error> {
        Ok(self.dump_addresses(index)?.into_iter().filter_map(|part| read(part, index)).collect())
    }

    /// Adds an address; `EEXIST` if the link has it. An IPv6 address is usable at once (no duplicate detection).
    pub fn add_address(&mut self, index: u32, address: Address) -> Result<(), Error> {
        self.add_address_with(index, address, PrefixRoute::Made, Duplicates::Excluded)
    }

    /// Adds an address, with or without the route that usually comes with it, and with or without a look for duplicates.
    pub fn add_address_with(
        &mut self,
        index: u32,
        address: Address,
        route: PrefixRoute,
        duplicates: Duplicates,
    ) -> Result<(), Error> {
        let mut message = message_of(index, address);
        let mut flags = AddressFlags::empty();
        if duplicates == Duplicates::Excluded && address.address.is_ipv6() {
            flags |= AddressFlags::Nodad;
        }
        if route == PrefixRoute::Left {
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes.push(AddressAttribute::Flags(flags));
        let operation = format!("add address {}/{} to link number {index}", address.address, address.prefix);
        self.acknowledge(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL, &operation)
    }

    /// Whether the kernel is done looking for duplicates of the link's addresses.
    pub fn settled(&mut self, index: u32) -> Result<Settled, Error> {
        let mut settled = Settled::Yes;
        for part in self.dump_addresses(index)? {
            let RouteNetlinkMessage::NewAddress(message) = &part else { continue };
            let has = |flag| {
                let of = |one: &_| matches!(one, AddressAttribute::Flags(flags) if flags.contains(flag));
                message.attributes.iter().any(of)
            };
            if has(AddressFlags::Dadfailed)
                && let Some(found) = read(part.clone(), index)
            {
                return Ok(Settled::Duplicate(found.address));
            }
            if message.header.index == index && has(AddressFlags::Tentative) {
                settled = Settled::NotYet;
            }
        }
        Ok(settled)
    }

    fn dump_addresses(&mut self, index: u32) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        self.dump(RouteNetlinkMessage::GetAddress(message), "list addresses")
    }

    /// Removes an address; `EADDRNOTAVAIL` if the link does not have it.
    pub fn delete_address(&mut self, index: u32, address: Address) -> Result<(), Error> {
        let message = message_of(index, address);
        let operation =
            format!("delete address {}/{} of link number {index}", address.address, address.prefix);
        self.acknowledge(RouteNetlinkMessage::DelAddress(message), 0, &operation)
    }
}

fn message_of(index: u32, address: Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address.address));
    match address.address {
        IpAddr::V4(v4) => {
            message.header.family = AddressFamily::Inet;
            message.attributes.push(AddressAttribute::Address(address.address));
            if let Some(host) = u32::MAX.checked_shr(address.prefix.into()).filter(|_| address.prefix < 31) {
                message.attributes.push(AddressAttribute::Broadcast((u32::from(v4) | host).into()));
            }
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.attributes.push(AddressAttribute::Address(address.address));
        }
    }
    message
}

fn read(message: RouteNetlinkMessage, index: u32) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if index != 0 && message.header.index != index {
        return None;
    }
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    Some(Address { address: local.or(address)?, prefix: message.header.prefix_len })
}
