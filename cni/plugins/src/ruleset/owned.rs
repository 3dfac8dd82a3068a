//! What belongs to an attachment, found without a look at what belongs to others.
//!
//! | element | found by |
//! |---|---|
//! | of an address | the addresses, and the host's links, of the result that DEL is given |
//! | of a port | the maps `owned4`, `owned6`: digest of the mark . number → the key of the port, and which map it is in |
//!
//! Everything found is believed only if it carries the attachment's mark. Who has no result gets every set listed.

use cofferdam_cni::{Prefix, Request};
use cofferdam_linux::nft::Element;
use sha2::{Digest, Sha256};

use super::{Entry, IPV4, IPV6, Ip, Kind, SetName, octets};

/// What of a digest is kept: an IPv6 address of it, as nft(8) prints it.
const DIGEST_BYTES: usize = 16;
/// A name of a link as sets have it.
const NAME_BYTES: usize = 16;
/// Protocol and port, each padded to four bytes: what a key ends with.
const PORT_BYTES: usize = 8;
/// The maps of a family that pointers lead to, by number.
const MAPS: [Kind; 2] = [Kind::Ports, Kind::AddressPorts];

/// The pointers to the ports among these elements of one attachment.
pub(super) fn pointers(entries: &[Entry]) -> Vec<Entry> {
    let of = |ip: Ip| {
        let map = move |set: SetName| (0_u16..).zip(MAPS).find(|(_, kind)| kind.set(ip) == set);
        let ports = entries.iter().filter_map(move |(set, element)| Some((map(*set)?.0, element)));
        (0..).zip(ports).map(move |(at, (map, element))| (Kind::Owned.set(ip), pointer(ip, at, map, element)))
    };
    [IPV4, IPV6].into_iter().flat_map(of).collect()
}

fn pointer(ip: Ip, at: u16, map: u16, element: &Element) -> Element {
    let (address, port) = element.key.split_at(element.key.len().saturating_sub(PORT_BYTES));
    let mut address = address.to_vec();
    address.resize(ip.bytes(), 0);
    let data = [address, map.to_be_bytes().to_vec(), port[..1].to_vec(), port[4..6].to_vec()];
    Element::map(&key(&element.comment, at), &data, &element.comment)
}

/// What the pointer of this number is found by.
pub(super) fn nth(ip: Ip, owner: &str, at: u16) -> Entry {
    (Kind::Owned.set(ip), Element::set(&key(owner, at), owner))
}

fn key(owner: &str, at: u16) -> [Vec<u8>; 2] {
    [Sha256::digest(owner)[..DIGEST_BYTES].to_vec(), at.to_be_bytes().to_vec()]
}

/// Where a pointer leads: the element's set and its key.
pub(super) fn target(ip: Ip, pointer: &Element) -> Option<Entry> {
    let (address, rest) = pointer.data.as_ref()?.split_at_checked(ip.bytes())?;
    let number = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
    let kind = *MAPS.get(usize::from(number))?;
    let address = if kind == Kind::AddressPorts { address } else { &[] };
    let key = [address, rest.get(4..4 + PORT_BYTES)?].concat();
    Some((kind.set(ip), Element { key, comment: pointer.comment.clone(), ..Element::default() }))
}

/// The keys that elements of the attachment's addresses may have; nothing if there is no word of its addresses.
pub(super) fn by_address(request: &Request<'_>) -> Option<Vec<Entry>> {
    let previous = request.previous.as_ref()?;
    let owner = request.owner();
    let links = || previous.interfaces.iter().filter(|link| link.sandbox.is_empty());
    let mut found = Vec::new();
    for ip in previous.container_ips() {
        let Prefix { address, .. } = ip.address;
        let (family, bytes) = (Ip::of(address), octets(address));
        for kind in [Kind::Masquerade, Kind::Forward, Kind::Guarded] {
            found.push((kind.set(family), Element::set(&[&bytes], &owner)));
        }
        for from in [ip.address, Prefix { length: 0, ..ip.address }] {
            let ends = [from.network(), from.last()].map(|end| [octets(end), bytes.clone()]);
            found.push((Kind::Hairpin.set(family), Element::range(&ends[0], &ends[1], &owner)));
        }
        for link in links() {
            let mut name = link.name.clone().into_bytes();
            name.resize(NAME_BYTES, 0);
            found.push((Kind::Local.set(family), Element::set(&[bytes.clone(), name], &owner)));
        }
    }
    Some(found).filter(|found| !found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_leads_to_what_it_was_made_for() {
        let port = [vec![6], 8080_u16.to_be_bytes().to_vec()];
        let at = |address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            [vec![octets(address)], port.to_vec()].concat()
        };
        let entries = [
            (Kind::Ports.set(IPV4), Element::set(&port, "net/one/eth0")),
            (Kind::Forward.set(IPV4), Element::set(&[[10, 0, 0, 2]], "net/one/eth0")),
            (Kind::Ports.set(IPV6), Element::set(&port, "net/one/eth0")),
            (Kind::AddressPorts.set(IPV4), Element::set(&at("203.0.113.1"), "net/one/eth0")),
            (Kind::AddressPorts.set(IPV6), Element::set(&at("fd00::1"), "net/one/eth0")),
        ];
        let pointers = pointers(&entries);
        let led = pointers.iter().filter_map(|(set, pointer)| target(set.ip, pointer));
        assert_eq!(led.collect::<Vec<_>>(), [0, 3, 2, 4].map(|at: usize| entries[at].clone()));
        for (at, (set, pointer)) in [0, 1, 0, 1].into_iter().zip(&pointers) {
            let (same, key) = nth(set.ip, "net/one/eth0", at);
            assert_eq!((*set, &pointer.key), (same, &key.key));
        }
        assert_eq!(target(IPV4, &Element { data: Some(vec![0; 5]), ..Element::default() }), None);
    }
}
