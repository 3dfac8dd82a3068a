//! Links: dump, bridge, veth pair, change, delete.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
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
    /// Whether the link is loopback.
    pub loopback: bool,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Index of the peer of a veth, valid in the peer's namespace.
    pub peer: Option<u32>,
}

/// A bridge to make.
#[derive(Debug, Clone, Copy)]
pub struct Bridge<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Hardware address; without it the kernel changes the address with the ports, and neighbours' caches go stale.
    pub mac: Option<MacAddress>,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u32>,
}

/// A veth pair to make: this end here, the peer born in another namespace.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// Name of the end in the socket's namespace.
    pub name: &'a str,
    /// Index of the bridge this end becomes a port of.
    pub master: Option<u32>,
    /// Maximum transmission unit of both ends in bytes.
    pub mtu: Option<u32>,
    /// The other end.
    pub peer: VethPeer<'a>,
}

/// The end of a veth pair that lives in another namespace.
#[derive(Debug, Clone, Copy)]
pub struct VethPeer<'a> {
    /// Name in the namespace it is born in.
    pub name: &'a str,
    /// The namespace it is born in.
    pub netns: BorrowedFd<'a>,
    /// Hardware address; the kernel chooses one if absent.
    pub mac: Option<MacAddress>,
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

    /// Makes a bridge, up; `EEXIST` if the name is taken.
    pub fn add_bridge(&mut self, bridge: &Bridge<'_>) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        set_flag(&mut message, LinkFlags::Up, true);
        message.attributes.push(LinkAttribute::IfName(bridge.name.into()));
        message.attributes.extend(bridge.mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        message.attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
        let data = InfoData::Bridge(Vec::<InfoBridge>::new());
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)]));
        self.create_link(message, &format!("add bridge {}", bridge.name))
    }

    /// Makes a veth pair in one request: this end up and a port of its master, the peer in its own namespace, still down.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<(), Error> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(veth.peer.name.into()));
        peer.attributes.push(LinkAttribute::NetNsFd(veth.peer.netns.as_raw_fd()));
        peer.attributes.extend(veth.peer.mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        peer.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));

        let mut message = LinkMessage::default();
        set_flag(&mut message, LinkFlags::Up, true);
        message.attributes.push(LinkAttribute::IfName(veth.name.into()));
        message.attributes.extend(veth.master.map(LinkAttribute::Controller));
        message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
        let data = InfoData::Veth(InfoVeth::Peer(peer));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
        self.create_link(message, &format!("add veth {} with peer {}", veth.name, veth.peer.name))
    }

    fn create_link(&mut self, message: LinkMessage, operation: &str) -> Result<(), Error> {
        self.acknowledge(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, operation)
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
        message.attributes.extend(change.master.map(LinkAttribute::Controller));
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        message.attributes.extend(change.name.map(|name| LinkAttribute::IfName(name.into())));
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

    /// Lets a bridge send frames back out of the port they came in by, which a port map to oneself needs.
    pub fn set_hairpin(&mut self, index: u32, hairpin: bool) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(hairpin)])),
        ]));
        self.acknowledge(
            RouteNetlinkMessage::NewLink(message),
            0,
            &format!("set hairpin of link number {index}"),
        )
    }

    /// Deletes a link; both ends of a veth pair go. Takes 11 to 50 ms of waiting in the kernel.
    pub fn delete_link(&mut self, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.acknowledge(RouteNetlinkMessage::DelLink(message), 0, &format!("delete link {name}"))
    }
}

fn set_flag(message: &mut LinkMessage, flag: LinkFlags, on: bool) {
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
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(master) => link.master = Some(master).filter(|index| *index != 0),
                LinkAttribute::Link(peer) => link.peer = Some(peer).filter(|index| *index != 0),
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddress),
                LinkAttribute::LinkInfo(infos) => link.kind = infos.iter().find_map(kind_name),
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
