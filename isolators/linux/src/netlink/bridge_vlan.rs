//! VLANs of a bridge's port: which it takes frames of, and which one frames without a tag belong to. bridge(8).

use std::ops::RangeInclusive;

use super::{Error, Socket, align, read_u16};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// `RTM_GETVLAN`, Linux 5.6.
const GET_VLAN: u16 = 114;
/// `struct br_vlan_msg`: family, seven bytes among which is the link's index.
const VLAN_HEADER_BYTES: usize = 8;
/// `BRIDGE_VLANDB_ENTRY`; in it `BRIDGE_VLANDB_ENTRY_INFO` and `BRIDGE_VLANDB_ENTRY_RANGE`.
const ENTRY: u16 = 1;
const ENTRY_INFO: u16 = 1;
const ENTRY_RANGE: u16 = 2;
/// The bits of an attribute's type that are not flags.
const TYPE_MASK: u16 = 0x3fff;
/// `BRIDGE_VLAN_INFO_PVID`.
const PVID: u16 = 1 << 1;
/// The VLANs that there are; 0 and 4095 are reserved.
const ALL: RangeInclusive<u16> = 1..=4094;

/// The VLANs of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortVlans {
    /// The VLAN of frames without a tag, in both directions.
    pub untagged: Option<u16>,
    /// The VLANs whose frames pass with their tags: ranges, in order and apart from each other.
    pub tagged: Vec<RangeInclusive<u16>>,
}

impl PortVlans {
    fn add_message(&self, index: u32) -> LinkMessage {
        let mut infos = Vec::new();
        for range in &self.tagged {
            infos.extend(infos_of(range, BridgeVlanInfoFlags::empty()));
        }
        if let Some(id) = self.untagged {
            let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
            infos.extend(infos_of(&(id..=id), flags));
        }
        message_of(index, infos)
    }
}

/// A range is two attributes, its first and its last.
fn infos_of(range: &RangeInclusive<u16>, flags: BridgeVlanInfoFlags) -> Vec<AfSpecBridge> {
    let info = |vid, more| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags: flags | more, vid });
    let (first, last) = (*range.start(), *range.end());
    if first == last {
        return vec![info(first, BridgeVlanInfoFlags::empty())];
    }
    vec![info(first, BridgeVlanInfoFlags::RangeBegin), info(last, BridgeVlanInfoFlags::RangeEnd)]
}

fn message_of(index: u32, infos: Vec<AfSpecBridge>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecBridge(infos));
    message
}

impl Socket {
    /// Gives a port of a bridge these VLANs besides those that it has; `EOPNOTSUPP` if the kernel's bridges have none.
    pub fn add_port_vlans(&mut self, index: u32, vlans: &PortVlans) -> Result<(), Error> {
        let operation = format!("give bridge port number {index} the VLANs {vlans:?}");
        self.acknowledge(RouteNetlinkMessage::SetLink(vlans.add_message(index)), 0, &operation)
    }

    /// Takes a port of a bridge every VLAN that it has, the bridge's default one among them.
    pub fn clear_port_vlans(&mut self, index: u32) -> Result<(), Error> {
        let message = message_of(index, infos_of(&ALL, BridgeVlanInfoFlags::empty()));
        let operation = format!("take bridge port number {index} its VLANs");
        self.acknowledge(RouteNetlinkMessage::DelLink(message), 0, &operation)
    }

    /// The VLANs of a port.
    pub fn port_vlans(&mut self, index: u32) -> Result<PortVlans, Error> {
        let mut header = vec![u8::from(AddressFamily::Bridge), 0, 0, 0];
        header.extend(index.to_ne_bytes());
        let mut vlans = PortVlans::default();
        let operation = format!("list the VLANs of bridge port number {index}");
        self.dump_raw(GET_VLAN, &header, &operation, |part| {
            let entries = part.get(VLAN_HEADER_BYTES..).unwrap_or_default();
            attributes(entries).filter(|(kind, _)| *kind == ENTRY).for_each(|(_, entry)| vlans.read(entry));
        })?;
        Ok(vlans)
    }
}

impl PortVlans {
    fn read(&mut self, entry: &[u8]) {
        let find = |wanted| attributes(entry).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let Some(info) = find(ENTRY_INFO) else { return };
        let (Some(flags), Some(first)) = (read_u16(info, 0), read_u16(info, 2)) else { return };
        let last = find(ENTRY_RANGE).and_then(|value| read_u16(value, 0)).unwrap_or(first);
        if flags & PVID != 0 {
            self.untagged = Some(first);
            return;
        }
        match self.tagged.last_mut().filter(|before| before.end() + 1 == first) {
            Some(before) => *before = *before.start()..=last,
            None => self.tagged.push(first..=last),
        }
    }
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(read_u16(rest, 0)?);
        let found = (read_u16(rest, 2)? & TYPE_MASK, rest.get(4..length)?);
        rest = rest.get(align(length)..).unwrap_or_default();
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::super::golden::hexadecimal;
    use super::*;

    #[test]
    fn the_messages_that_give_and_take_vlans_are_the_golden_ones() {
        let vlans = PortVlans { untagged: Some(100), tagged: vec![5..=5, 10..=20] };
        // struct ifinfomsg of AF_BRIDGE for link 9; then IFLA_AF_SPEC with an IFLA_BRIDGE_VLAN_INFO for each of 5, 10 (a range
        // begins), 20 (it ends), 100 (PVID and untagged).
        assert_eq!(
            hexadecimal(&vlans.add_message(9)),
            "07000000090000000000000000000000\
             24001a00\
             08000200000005000800020008000a0008000200100014000800020006006400"
        );
        // 1 (a range begins) to 4094 (it ends).
        let taken = message_of(9, infos_of(&ALL, BridgeVlanInfoFlags::empty()));
        assert_eq!(
            hexadecimal(&taken),
            "07000000090000000000000000000000".to_owned() + "14001a000800020008000100080002001000fe0f"
        );
    }

    #[test]
    fn what_the_kernel_says_of_a_ports_vlans_is_read_with_its_ranges() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(align(bytes.len()), 0);
            bytes
        };
        let entry = |flags: u16, first: u16, last: Option<u16>| {
            let mut inner = attribute(ENTRY_INFO, &[flags.to_ne_bytes(), first.to_ne_bytes()].concat());
            inner.extend(last.map(|last| attribute(ENTRY_RANGE, &last.to_ne_bytes())).unwrap_or_default());
            inner
        };
        let mut vlans = PortVlans::default();
        for bytes in
            [entry(0, 5, None), entry(0, 10, Some(19)), entry(0, 20, None), entry(PVID, 100, None), vec![1]]
        {
            vlans.read(&bytes);
        }
        assert_eq!(vlans, PortVlans { untagged: Some(100), tagged: vec![5..=5, 10..=20] });
    }
}
