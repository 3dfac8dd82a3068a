//! Links: dump, change, move, delete.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoPortData, InfoPortKind, InfoVrf, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use rustix::io::Errno;

use super::{Error, Socket};

/// An Ethernet address; prints as `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A random address with the bits "locally administered" and "unicast".
    pub fn random() -> Result<Self, Errno> {
        let mut bytes = [0; 6];
        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Ok(Self(bytes))
    }

    /// Reads six hexadecimal pairs joined by colons or hyphens.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2)?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index, positive.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// `bridge`, `veth` …; absent for hardware and loopback.
    pub kind: Option<String>,
    /// Hardware address, if it is an Ethernet one.
    pub mac: Option<MacAddress>,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// Whether the link is administratively up.
    pub up: bool,
    /// Whether frames pass: up, with carrier, and everybody who had to be told of it was.
    pub operational: bool,
    /// Whether the link is loopback.
    pub loopback: bool,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Index of the peer of a veth, or of the link below, valid in the namespace that one is in.
    pub peer: Option<u32>,
    /// Whether it takes frames for everybody.
    pub promiscuous: bool,
    /// Whether it takes every multicast frame.
    pub all_multicast: bool,
    /// Length of its queue in packets.
    pub queue_length: u32,
    /// The text that goes with it; empty if there is none.
    pub alias: String,
    /// How a bridge treats it, if it is a port of one.
    pub port: Option<BridgePort>,
    /// The routing table, of a vrf.
    pub table: Option<u32>,
    /// Whether it is a bridge that keeps the VLANs of its ports apart.
    pub filters_vlans: bool,
}

/// How a bridge treats one of its ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// Frames may leave by it that came in by it, which a port map to oneself needs.
    pub hairpin: bool,
    /// Frames from another isolated port do not leave by it.
    pub isolated: bool,
}

/// What to change of a link; absent fields stay as they are.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    /// Administratively up or down.
    pub up: Option<bool>,
    /// Index of the new master, 0 for none.
    pub master: Option<u32>,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddress>,
    /// New name; most drivers want the link down.
    pub name: Option<&'a str>,
    /// Promiscuous mode.
    pub promiscuous: Option<bool>,
    /// Whether it takes every multicast frame.
    pub all_multicast: Option<bool>,
    /// Length of the queue in packets.
    pub queue_length: Option<u32>,
    /// The text that goes with it, at most 255 bytes; empty takes it away.
    pub alias: Option<&'a str>,
    /// Group it belongs to, for requests about many.
    pub group: Option<u32>,
}

impl Socket {
    /// Every link of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let answer = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "list links")?;
        Ok(answer.into_iter().filter_map(new_link).map(Link::from).collect())
    }

    /// The link of this name; `ENODEV` if there is none.
    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.get_link(message, &format!("find link {name}"))
    }

    /// The link of this index; `ENODEV` if there is none.
    pub fn link_by_index(&mut self, index: u32) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message, &format!("find link number {index}"))
    }

    /// The link of this name, if there is one.
    pub fn find_link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        match self.link(name) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.errno() == Errno::NODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn get_link(&mut self, message: LinkMessage, operation: &str) -> Result<Link, Error> {
        let answer = self.get(RouteNetlinkMessage::GetLink(message), operation)?;
        new_link(answer).map(Link::from).ok_or_else(|| Error::new(operation, Errno::BADMSG))
    }

    /// Changes a link.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            set_flag(&mut message, LinkFlags::Up, up);
        }
        if let Some(promiscuous) = change.promiscuous {
            set_flag(&mut message, LinkFlags::Promisc, promiscuous);
        }
        if let Some(all) = change.all_multicast {
            set_flag(&mut message, LinkFlags::Allmulti, all);
        }
        message.attributes.extend(change.master.map(LinkAttribute::Controller));
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        message.attributes.extend(change.name.map(|name| LinkAttribute::IfName(name.into())));
        message.attributes.extend(change.queue_length.map(LinkAttribute::TxQueueLen));
        message.attributes.extend(change.alias.map(|alias| LinkAttribute::IfAlias(alias.into())));
        message.attributes.extend(change.group.map(LinkAttribute::Group));
        self.acknowledge(
            RouteNetlinkMessage::SetLink(message),
            0,
            &format!("change link number {index}: {change:?}"),
        )
    }

    /// Moves a link into another network namespace, where it gets this name; it must be down. Its addresses are lost.
    pub fn move_link(&mut self, index: u32, netns: BorrowedFd<'_>, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let operation = format!("move link number {index} to another namespace as {name}");
        self.acknowledge(RouteNetlinkMessage::SetLink(message), 0, &operation)
    }

    /// Sets the link up.
    pub fn set_up(&mut self, index: u32) -> Result<(), Error> {
        self.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })
    }

    /// Tells the bridge how to treat one of its ports.
    pub fn set_port(&mut self, index: u32, port: BridgePort) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let settings =
            vec![InfoBridgePort::HairpinMode(port.hairpin), InfoBridgePort::Isolated(port.isolated)];
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)),
        ]));
        let operation = format!("set bridge port number {index}: {port:?}");
        self.acknowledge(RouteNetlinkMessage::NewLink(message), 0, &operation)
    }

    /// Deletes a link; both ends of a veth pair go. Takes 11 to 50 ms of waiting in the kernel.
    pub fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.acknowledge(RouteNetlinkMessage::DelLink(message), 0, &format!("delete link {name}"))
    }

    /// Deletes every link of a group at once, which waits no longer than for one; `ENODEV` if the group is empty.
    pub fn delete_group(&mut self, group: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        self.acknowledge(RouteNetlinkMessage::DelLink(message), 0, &format!("delete links of group {group}"))
    }
}

pub(super) fn set_flag(message: &mut LinkMessage, flag: LinkFlags, on: bool) {
    message.header.change_mask |= flag;
    if on {
        message.header.flags |= flag;
    }
}

fn new_link(message: RouteNetlinkMessage) -> Option<LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            promiscuous: message.header.flags.contains(LinkFlags::Promisc),
            all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(master) => link.master = Some(master).filter(|index| *index != 0),
                LinkAttribute::Link(peer) => link.peer = Some(peer).filter(|index| *index != 0),
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddress),
                LinkAttribute::OperState(state) => link.operational = state == State::Up,
                LinkAttribute::TxQueueLen(length) => link.queue_length = length,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(kind_name);
                    link.port = infos.iter().find_map(bridge_port);
                    link.table = infos.iter().find_map(vrf_table);
                    link.filters_vlans = infos.iter().any(filters_vlans);
                }
                _ => {}
            }
        }
        link
    }
}

fn kind_name(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn vrf_table(info: &LinkInfo) -> Option<u32> {
    let LinkInfo::Data(InfoData::Vrf(data)) = info else { return None };
    data.iter().find_map(|one| match one {
        InfoVrf::TableId(table) => Some(*table),
        _ => None,
    })
}

fn filters_vlans(info: &LinkInfo) -> bool {
    let LinkInfo::Data(InfoData::Bridge(data)) = info else { return false };
    data.contains(&InfoBridge::VlanFiltering(true))
}

fn bridge_port(info: &LinkInfo) -> Option<BridgePort> {
    let LinkInfo::PortData(InfoPortData::BridgePort(settings)) = info else { return None };
    let mut port = BridgePort::default();
    for setting in settings {
        match setting {
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            _ => {}
        }
    }
    Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_reads_back_as_it_prints() {
        let mac = MacAddress([2, 0, 0xab, 0, 0, 1]);
        assert_eq!(MacAddress::parse(&mac.to_string()), Some(mac));
        for bad in ["", "02:00", "02:00:ab:00:00:01:02", "02:00:ab:00:00:zz", "2:0:ab:0:0:1"] {
            assert_eq!(MacAddress::parse(bad), None, "{bad}");
        }
        assert_eq!(MacAddress::random().unwrap().0[0] & 3, 2);
    }
}
