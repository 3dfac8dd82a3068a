//! Making links: every kind by the same request, kind and attributes.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVeth, InfoVlan, InfoVrf, InfoVxlan,
    IpVlanFlags, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};

use super::link::{MacAddress, set_flag};
use super::{Error, Request, Socket};

/// A link to make. What is absent is up to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    /// Interface name.
    pub name: &'a str,
    /// What it is.
    pub kind: LinkKind<'a>,
    /// Index of the link below it, in the socket's namespace.
    pub parent: Option<u32>,
    /// The namespace it is born in; absent means the socket's.
    pub netns: Option<BorrowedFd<'a>>,
    /// Index of the bridge (or other master) it becomes a port of.
    pub master: Option<u32>,
    /// Hardware address. A bridge without one changes its address with its ports, and neighbours' caches go stale.
    pub mac: Option<MacAddress>,
    /// Maximum transmission unit in bytes, of both ends of a veth pair.
    pub mtu: Option<u32>,
    /// Whether it is set up at once.
    pub up: bool,
    /// A text of at most 255 bytes that goes with it. Only for a link born in the socket's namespace.
    pub alias: Option<&'a str>,
}

/// What a link is, and what only links of its kind have.
#[derive(Debug, Clone, Copy)]
pub enum LinkKind<'a> {
    /// A switch.
    Bridge {
        /// Whether it looks who wants frames to many, and does not send them to all of its ports.
        multicast_snooping: bool,
        /// Whether it keeps the VLANs of its ports apart, which needs a kernel with `CONFIG_BRIDGE_VLAN_FILTERING`.
        vlan_filtering: bool,
    },
    /// A link that leads nowhere.
    Dummy,
    /// A link whose queue shapes what another receives.
    Ifb,
    /// A further address of its parent, with the parent's hardware address.
    Ipvlan {
        /// Who forwards.
        mode: IpvlanMode,
    },
    /// A further hardware address of its parent.
    Macvlan {
        /// Whom it reaches.
        mode: MacvlanMode,
        /// How many broadcast frames the parent keeps at most until they are passed on; absent means the kernel's number.
        broadcast_queue: Option<u32>,
    },
    /// One end of a pair.
    Veth(VethPeer<'a>),
    /// Its parent's frames of one IEEE 802.1Q tag.
    Vlan {
        /// The tag, 0 to 4094.
        id: u16,
    },
    /// A routing domain.
    Vrf {
        /// Number of its routing table.
        table: u32,
    },
    /// Frames in UDP datagrams to another host.
    Vxlan {
        /// Network identifier, 24 bits.
        id: u32,
        /// Our address.
        local: IpAddr,
        /// The other host's address.
        remote: IpAddr,
        /// UDP port of both.
        port: u16,
    },
}

/// Who forwards between an ipvlan, its siblings and the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpvlanMode {
    /// Each link for itself, as on one switch.
    #[default]
    L2,
    /// The parent's namespace, which sees no neighbours' frames.
    L3,
    /// As `L3`, and its packets pass the parent's netfilter.
    L3s,
}

/// Whom a macvlan reaches besides the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MacvlanMode {
    /// Its siblings.
    #[default]
    Bridge,
    /// Nobody.
    Private,
    /// Its siblings if the switch outside sends frames back.
    Vepa,
    /// It takes the parent over.
    Passthru,
}

/// The end of a veth pair that may live in another namespace.
#[derive(Debug, Clone, Copy)]
pub struct VethPeer<'a> {
    /// Name in the namespace it is born in.
    pub name: &'a str,
    /// The namespace it is born in.
    pub netns: BorrowedFd<'a>,
    /// Hardware address; the kernel chooses one if absent.
    pub mac: Option<MacAddress>,
}

impl<'a> NewLink<'a> {
    /// A link that is up, in the socket's namespace, with everything else up to the kernel.
    pub fn new(name: &'a str, kind: LinkKind<'a>) -> Self {
        Self {
            name,
            kind,
            parent: None,
            netns: None,
            master: None,
            mac: None,
            mtu: None,
            up: true,
            alias: None,
        }
    }

    /// The name that errors call it by.
    fn operation(&self) -> String {
        match self.kind {
            LinkKind::Veth(peer) => format!("add veth {} with peer {}", self.name, peer.name),
            kind => format!("add {} {}", kind.info().0, self.name),
        }
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            set_flag(&mut message, LinkFlags::Up, true);
        }
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(self.name.into()));
        attributes.extend(self.parent.map(LinkAttribute::Link));
        attributes.extend(self.netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        attributes.extend(self.master.map(LinkAttribute::Controller));
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        let (kind, mut data) = self.kind.info();
        if let Some(InfoData::Veth(InfoVeth::Peer(peer))) = &mut data {
            peer.attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        }
        let mut info = vec![LinkInfo::Kind(kind)];
        info.extend(data.map(LinkInfo::Data));
        attributes.push(LinkAttribute::LinkInfo(info));
        message
    }
}

impl LinkKind<'_> {
    /// A switch as the kernel makes it when nothing is said.
    pub const BRIDGE: Self = Self::Bridge { multicast_snooping: true, vlan_filtering: false };

    fn info(self) -> (InfoKind, Option<InfoData>) {
        match self {
            Self::Bridge { multicast_snooping, vlan_filtering } => {
                // Only what differs from the kernel's own choice.
                let snooping = (!multicast_snooping).then_some(InfoBridge::MulticastSnooping(false));
                let filtering = vlan_filtering.then_some(InfoBridge::VlanFiltering(true));
                (InfoKind::Bridge, Some(InfoData::Bridge(snooping.into_iter().chain(filtering).collect())))
            }
            Self::Dummy => (InfoKind::Dummy, None),
            Self::Ifb => (InfoKind::Ifb, None),
            Self::Ipvlan { mode } => {
                let data = vec![InfoIpVlan::Mode(mode.into()), InfoIpVlan::Flags(IpVlanFlags::empty())];
                (InfoKind::IpVlan, Some(InfoData::IpVlan(data)))
            }
            Self::Macvlan { mode, broadcast_queue } => {
                let mut data = vec![InfoMacVlan::Mode(mode.into())];
                data.extend(broadcast_queue.map(InfoMacVlan::BcQueueLen));
                (InfoKind::MacVlan, Some(InfoData::MacVlan(data)))
            }
            Self::Veth(peer) => (InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer.message())))),
            Self::Vlan { id } => (InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(id)]))),
            Self::Vrf { table } => (InfoKind::Vrf, Some(InfoData::Vrf(vec![InfoVrf::TableId(table)]))),
            Self::Vxlan { id, local, remote, port } => {
                let address = |ip, v4: fn(_) -> _, v6: fn(_) -> _| match ip {
                    IpAddr::V4(ip) => v4(ip),
                    IpAddr::V6(ip) => v6(ip),
                };
                let data = vec![
                    InfoVxlan::Id(id),
                    address(local, InfoVxlan::Local, InfoVxlan::Local6),
                    address(remote, InfoVxlan::Group, InfoVxlan::Group6),
                    InfoVxlan::Port(port),
                ];
                (InfoKind::Vxlan, Some(InfoData::Vxlan(data)))
            }
        }
    }
}

impl VethPeer<'_> {
    fn message(&self) -> LinkMessage {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(self.name.into()));
        peer.attributes.push(LinkAttribute::NetNsFd(self.netns.as_raw_fd()));
        peer.attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        peer
    }
}

impl From<IpvlanMode> for IpVlanMode {
    fn from(mode: IpvlanMode) -> Self {
        match mode {
            IpvlanMode::L2 => Self::L2,
            IpvlanMode::L3 => Self::L3,
            IpvlanMode::L3s => Self::L3S,
        }
    }
}

impl From<MacvlanMode> for MacVlanMode {
    fn from(mode: MacvlanMode) -> Self {
        match mode {
            MacvlanMode::Bridge => Self::Bridge,
            MacvlanMode::Private => Self::Private,
            MacvlanMode::Vepa => Self::Vepa,
            MacvlanMode::Passthru => Self::Passthrough,
        }
    }
}

impl Socket {
    /// Makes a link; `EEXIST` if the name is taken, `EOPNOTSUPP` if the kernel does not have the kind.
    ///
    /// The kernel sets an alias only on a link that exists. Both requests go in one datagram, which it works through before
    /// anybody can be killed: there is never a link without its alias.
    pub fn add_link(&mut self, link: &NewLink<'_>) -> Result<(), Error> {
        let mut requests = vec![Request {
            message: RouteNetlinkMessage::NewLink(link.message()),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }];
        if let Some(alias) = link.alias {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(link.name.into()));
            message.attributes.push(LinkAttribute::IfAlias(alias.into()));
            requests.push(Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 });
        }
        self.acknowledge_all(requests, &link.operation())
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden::hexadecimal;
    use super::*;

    #[test]
    fn b16_the_messages_that_make_ipvlan_vlan_vrf_and_dummy_are_the_golden_ones() {
        let macvlan = |broadcast_queue| LinkKind::Macvlan { mode: MacvlanMode::Bridge, broadcast_queue };
        let bridge = |multicast_snooping, vlan_filtering| {
            NewLink::new("eth0", LinkKind::Bridge { multicast_snooping, vlan_filtering })
        };
        let on_parent = |kind| NewLink { parent: Some(7), ..NewLink::new("eth0", kind) };
        let cases = [
            ("dummy", NewLink::new("eth0", LinkKind::Dummy)),
            ("ipvlan-l3s", on_parent(LinkKind::Ipvlan { mode: IpvlanMode::L3s })),
            ("vlan", on_parent(LinkKind::Vlan { id: 100 })),
            ("vrf", NewLink::new("eth0", LinkKind::Vrf { table: 10 })),
            ("macvlan-bridge", on_parent(macvlan(None))),
            ("macvlan-queue", on_parent(macvlan(Some(77)))),
            ("plain-bridge", bridge(false, false)),
            ("vlan-bridge", bridge(true, true)),
        ];
        let golden = include_str!("golden/new_link.txt");
        for (name, link) in cases {
            let expected = golden.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            assert_eq!(Some(hexadecimal(&link.message()).as_str()), expected, "{name}");
        }
    }
}
