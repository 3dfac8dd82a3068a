//! Options of bridge: each takes effect, is looked at by CHECK, and is gone after DEL.

use std::os::fd::AsFd;

use cofferdam_cni::{Caller, Kind, NetnsFate, NetworkList, Prefer};
use cofferdam_linux::netlink::{LinkChange, LinkKind, MacAddress, NewLink, PortVlans, Socket};
use cofferdam_linux::nft::{Batch, Family};
use serde_json::{Value, json};

use crate::bed::{Bed, Container, address, ask, eth0, is_cut_off, on_a_host};

/// A network of one bridge with addresses, and with these options.
fn network(bed: &Bed, name: &str, subnet: u8, options: &Value) -> NetworkList {
    let mut plugin = json!({ "type": "bridge", "bridge": "options0", "isGateway": true,
        "ipam": { "type": "host-local", "dataDir": "LEASES",
            "ranges": [[{ "subnet": format!("10.{subnet}.0.0/24") }], [{ "subnet": format!("fd00:{subnet}::/64") }]] } });
    for (key, value) in options.as_object().unwrap() {
        plugin[key] = value.clone();
    }
    bed.network(name, json!([plugin]))
}

fn fails(caller: &Caller, network: &NetworkList, one: &Container, says: &str) {
    let error = caller.check(&network.name, &one.id, &eth0()).unwrap_err().to_string();
    assert!(error.contains(says), "{says}: {error}");
}

fn detach(caller: &Caller, network: &NetworkList, one: &Container) {
    caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
}

fn senders() -> usize {
    let elements = Socket::netfilter().unwrap().elements(Family::Bridge, "cofferdam", "senders");
    elements.map_or(0, |elements| elements.len())
}

/// Gives the container's link another hardware address behind everybody's back.
fn disguise(one: &Container, mac: MacAddress) {
    let mut socket = Socket::route_in(one.netns.as_fd()).unwrap();
    let link = socket.link("eth0").unwrap();
    socket.change_link(link.index, &LinkChange { mac: Some(mac), ..LinkChange::default() }).unwrap();
}

#[test]
fn with_macspoofchk_only_frames_with_the_containers_address_pass() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let checked = network(bed, "checked", 71, &json!({ "macspoofchk": true }));
        let (one, two) = (bed.container("one"), bed.container("two"));
        for container in [&one, &two] {
            caller.attach(&checked, &container.attachment()).unwrap();
            caller.check(&checked.name, &container.id, &eth0()).unwrap();
        }
        two.serve("[::]:80");
        assert!(ask(&one.netns, "10.71.0.3:80").is_ok());
        let true_mac = Socket::route_in(one.netns.as_fd()).unwrap().link("eth0").unwrap().mac.unwrap();
        disguise(&one, MacAddress([2, 0, 0, 0, 0, 0x71]));
        assert!(is_cut_off(&one.netns, "10.71.0.3:80"));
        assert!(is_cut_off(&one.netns, "[fd00:71::3]:80"));
        disguise(&one, true_mac);
        assert!(ask(&one.netns, "10.71.0.3:80").is_ok());

        let mut nft = Socket::netfilter().unwrap();
        let mut batch = Batch::new(Family::Bridge, "cofferdam");
        for element in nft.elements(Family::Bridge, "cofferdam", "checked").unwrap() {
            batch.delete_element("checked", &element);
        }
        nft.commit(&batch).unwrap();
        fails(
            &caller,
            &checked,
            &one,
            "the nft set checked of the table bridge cofferdam lacks checked/one/eth0",
        );
        detach(&caller, &checked, &one);
        assert_eq!(senders(), 1);
        // What nobody remembers is collected.
        std::fs::remove_file(bed.dir.path().join("state/results/checked-two-eth0")).unwrap();
        caller.gc(&checked, &cofferdam_cni::Valid::Nothing).unwrap();
        assert_eq!(senders(), 0);
        bed.assert_clean("checked");
        // An address that cannot be had leaves nothing either.
        let dry =
            network(bed, "dry", 72, &json!({ "macspoofchk": true, "forceAddress": true, "mtu": 99_999_999 }));
        assert!(caller.attach(&dry, &one.attachment()).is_err());
        assert_eq!(senders(), 0);
    });
}

#[test]
fn disable_container_interface_leaves_it_down_and_excludes_addresses() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let one = bed.container("one");
        let with = network(bed, "with", 73, &json!({ "disableContainerInterface": true }));
        let error = caller.attach(&with, &one.attachment()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains("disableContainerInterface excludes"), "{error}");
        let options = json!({ "disableContainerInterface": true, "isGateway": false, "ipam": {} });
        let down = network(bed, "down", 73, &options);
        let result = caller.attach(&down, &one.attachment()).unwrap();
        assert_eq!(result.interfaces[2].name, "eth0");
        let mut inside = Socket::route_in(one.netns.as_fd()).unwrap();
        assert!(!inside.link("eth0").unwrap().up);
        caller.check(&down.name, &one.id, &eth0()).unwrap();
        disguise(&one, MacAddress([2, 0, 0, 0, 0, 0x73]));
        fails(&caller, &down, &one, "has the address 02:00:00:00:00:73 instead of");
        detach(&caller, &down, &one);
        bed.assert_clean("down");
    });
}

#[test]
fn p4_where_the_host_routes_ipv4_alone_a_container_gives_itself_no_ipv6_address() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        for (name, addresses, is_gateway, has_own) in [
            ("routed", json!([{ "address": "10.77.0.5/24" }]), true, false),
            ("dual", json!([{ "address": "10.77.0.6/24" }, { "address": "fd00:77::6/64" }]), true, true),
            // Whoever routes such a network may have IPv6, too.
            ("flat", json!([{ "address": "10.77.0.7/24" }]), false, true),
        ] {
            let ipam = json!({ "type": "static", "addresses": addresses });
            let options = json!({ "isGateway": is_gateway, "isDefaultGateway": false, "ipam": ipam });
            let (network, container) = (network(bed, name, 77, &options), bed.container(name));
            caller.attach(&network, &container.attachment()).unwrap();
            let mut inside = Socket::route_in(container.netns.as_fd()).unwrap();
            let index = inside.link("eth0").unwrap().index;
            let mut own = || {
                let found = inside.addresses(index).unwrap();
                found.iter().any(|one| one.address.to_string().starts_with("fe80"))
            };
            assert_eq!(own(), has_own, "{name}");
            // It is left to whoever wants one.
            inside.add_address(index, address("fd00:78::5", 64)).unwrap();
            detach(&caller, &network, &container);
        }
        bed.assert_clean("flat");
    });
}

#[test]
fn force_address_takes_the_place_of_other_addresses_and_spares_other_networks() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let (one, two) = (bed.container("one"), bed.container("two"));
        let (old, new) =
            (network(bed, "old", 74, &json!({})), network(bed, "new", 75, &json!({ "forceAddress": true })));
        caller.attach(&old, &one.attachment()).unwrap();
        let mut host = Socket::route().unwrap();
        let index = host.link("options0").unwrap().index;
        // An IPv6 network that holds the new one is in its way, another is not.
        host.add_address(index, address("fd00:75::99", 56)).unwrap();
        caller.attach(&new, &two.attachment()).unwrap();
        let mut found = host.addresses(index).unwrap();
        found.retain(|one| !one.address.to_string().starts_with("fe80"));
        found.sort_by_key(|one| one.address);
        let expected = [address("10.75.0.1", 24), address("fd00:74::1", 64), address("fd00:75::1", 64)];
        assert_eq!(found, expected);
        caller.check(&new.name, &two.id, &eth0()).unwrap();
        fails(&caller, &old, &one, "lacks the gateway's address 10.74.0.1");
    });
}

#[test]
fn enabledad_finds_who_has_the_address_and_hairpin_does_not_mislead_it() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let (one, two) = (bed.container("one"), bed.container("two"));
        let with_address = |name: &str, options: Value| {
            let ipam = json!({ "type": "static", "addresses": [{ "address": "fd00:76::5/64" }] });
            let mut options = options;
            options["ipam"] = ipam;
            network(bed, name, 76, &options)
        };
        let first = with_address("first", json!({ "hairpinMode": true, "enabledad": true }));
        caller.attach(&first, &one.attachment()).unwrap();
        caller.check(&first.name, &one.id, &eth0()).unwrap();
        let second = with_address("second", json!({ "enabledad": true }));
        let error = caller.attach(&second, &two.attachment()).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        assert!(error.to_string().contains("somebody else on the network has fd00:76::5"), "{error}");
        assert_eq!(Socket::route_in(two.netns.as_fd()).unwrap().find_link("eth0").unwrap(), None);
        // Nobody asks who is not told to.
        caller.attach(&with_address("third", json!({})), &two.attachment()).unwrap();
    });
}

#[test]
fn promiscuous_mode_and_hairpin_are_set_checked_and_exclude_each_other() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let one = bed.container("one");
        let both = network(bed, "both", 77, &json!({ "promiscMode": true, "hairpinMode": true }));
        assert_eq!(caller.attach(&both, &one.attachment()).unwrap_err().kind(), Kind::InvalidInput);
        let promiscuous = network(bed, "promiscuous", 77, &json!({ "promiscMode": true }));
        caller.attach(&promiscuous, &one.attachment()).unwrap();
        let mut host = Socket::route().unwrap();
        let bridge = host.link("options0").unwrap();
        assert!(bridge.promiscuous);
        caller.check(&promiscuous.name, &one.id, &eth0()).unwrap();
        let off = LinkChange { promiscuous: Some(false), ..LinkChange::default() };
        host.change_link(bridge.index, &off).unwrap();
        fails(&caller, &promiscuous, &one, "options0 is not in promiscuous mode");
    });
}

#[test]
fn what_the_backends_of_others_would_do_is_done_and_what_nobody_can_is_refused_by_name() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let one = bed.container("one");
        for backend in ["iptables", "nftables"] {
            let masked = network(bed, "backend", 78, &json!({ "ipMasq": true, "ipMasqBackend": backend }));
            caller.attach(&masked, &one.attachment()).unwrap();
            assert!(bed.nft_marks().len() >= 4);
            detach(&caller, &masked, &one);
        }
        let other = network(bed, "backend", 78, &json!({ "ipMasq": true, "ipMasqBackend": "magic" }));
        let error = caller.attach(&other, &one.attachment()).unwrap_err().to_string();
        assert!(error.contains("no ipMasqBackend \"magic\""), "{error}");
    });
}

/// Whether bridges of this kernel keep VLANs apart; says so if not.
fn have_vlans() -> bool {
    let mut host = Socket::route().unwrap();
    let vlans = LinkKind::Bridge { multicast_snooping: true, vlan_filtering: true };
    let have = host.add_link(&NewLink::new("probe", vlans)).is_ok();
    if have {
        assert!(host.link("probe").unwrap().filters_vlans);
        host.delete_link("probe").unwrap();
    } else {
        println!("skipped: bridges of this kernel have no VLANs");
    }
    have
}

fn port_vlans(bed: &Bed, at: usize) -> PortVlans {
    let mut host = Socket::route().unwrap();
    let name = bed.veths().into_iter().filter(|name| name.starts_with("veth")).nth(at).unwrap();
    let index = host.link(&name).unwrap().index;
    host.port_vlans(index).unwrap()
}

#[test]
fn a_bridge_that_cannot_keep_vlans_apart_is_refused() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let one = bed.container("one");
        Socket::route().unwrap().add_link(&NewLink::new("options0", LinkKind::BRIDGE)).unwrap();
        let tagged = network(bed, "tagged", 79, &json!({ "vlan": 100 }));
        let error = caller.attach(&tagged, &one.attachment()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains("options0 was there and does not keep VLANs apart"), "{error}");
        Socket::route().unwrap().delete_link("options0").unwrap();
        let made = caller.attach(&tagged, &one.attachment());
        // A kernel that can keeps them apart, and one that cannot says so.
        assert!(
            made.as_ref().err().is_none_or(|error| error.to_string().contains("have no VLANs")),
            "{made:?}"
        );
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        for (options, says) in [
            (json!({ "vlan": 4095 }), "vlan 4095 is not between 0 and 4094"),
            (json!({ "vlanTrunk": [{ "minID": 3 }] }), "vlanTrunk: maxID is missing beside minID"),
            (json!({ "vlan": 4000, "bridge": "a-long-name-br" }), "a-long-name-br.4000, which is longer"),
        ] {
            let bad = network(bed, "bad", 79, &options);
            let error = caller.attach(&bad, &one.attachment()).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(bed.veths().iter().all(|name| !name.starts_with("veth")));
    });
}

#[test]
fn containers_of_two_vlans_do_not_see_each_other_and_each_has_its_gateway() {
    on_a_host(|bed| {
        if !have_vlans() {
            return;
        }
        let caller = bed.caller(Prefer::Builtin);
        let red = network(bed, "red", 81, &json!({ "vlan": 100, "ipMasq": true }));
        let blue = network(bed, "blue", 82, &json!({ "vlan": 200 }));
        let containers = ["one", "two", "three"].map(|id| bed.container(id));
        let result = caller.attach(&red, &containers[0].attachment()).unwrap();
        assert_eq!(result.interfaces[3].name, "options0.100");
        caller.attach(&red, &containers[1].attachment()).unwrap();
        caller.attach(&blue, &containers[2].attachment()).unwrap();
        for (network, container) in [(&red, &containers[0]), (&red, &containers[1]), (&blue, &containers[2])]
        {
            caller.check(&network.name, &container.id, &eth0()).unwrap();
        }
        containers[1].serve("[::]:80");
        assert_eq!(ask(&containers[0].netns, "10.81.0.3:80").unwrap().to_string(), "::ffff:10.81.0.2");
        assert_eq!(ask(&bed.host, "10.81.0.3:80").unwrap().to_string(), "::ffff:10.81.0.1");
        assert_eq!(ask(&bed.host, "[fd00:81::3]:80").unwrap().to_string(), "fd00:81::1");
        // On the other VLAN there is nobody of that name, whatever address is taken there.
        let mut inside = Socket::route_in(containers[2].netns.as_fd()).unwrap();
        let index = inside.link("eth0").unwrap().index;
        inside.add_address(index, address("10.81.0.99", 24)).unwrap();
        assert!(is_cut_off(&containers[2].netns, "10.81.0.3:80"));
        detach(&caller, &red, &containers[0]);
        detach(&caller, &red, &containers[1]);
        caller.check(&blue.name, &containers[2].id, &eth0()).unwrap();
        detach(&caller, &blue, &containers[2]);
        assert!(bed.veths().iter().all(|name| !name.starts_with("veth")));
        assert_eq!(bed.nft_marks(), Vec::<String>::new());
    });
}

#[test]
fn a_trunk_has_its_ranges_and_the_default_vlan_goes_unless_it_is_preserved() {
    on_a_host(|bed| {
        if !have_vlans() {
            return;
        }
        let caller = bed.caller(Prefer::Builtin);
        let one = bed.container("one");
        let trunk = json!([{ "minID": 10, "maxID": 20 }, { "id": 30 }]);
        let cases = [
            (json!({ "vlanTrunk": trunk }), PortVlans { untagged: Some(1), tagged: vec![10..=20, 30..=30] }),
            (
                json!({ "vlan": 15, "vlanTrunk": trunk }),
                PortVlans { untagged: Some(15), tagged: vec![10..=14, 16..=20, 30..=30] },
            ),
            (json!({ "vlan": 100 }), PortVlans { untagged: Some(100), tagged: vec![] }),
            (
                json!({ "vlan": 100, "preserveDefaultVlan": true }),
                PortVlans { untagged: Some(100), tagged: vec![1..=1] },
            ),
        ];
        for (mut options, expected) in cases {
            options["ipam"] = json!({});
            let network = network(bed, "trunk", 83, &options);
            caller.attach(&network, &one.attachment()).unwrap();
            assert_eq!(port_vlans(bed, 0), expected, "{options}");
            caller.check(&network.name, &one.id, &eth0()).unwrap();
            let mut host = Socket::route().unwrap();
            let port = host.link(&bed.veths()[0]).unwrap().index;
            host.clear_port_vlans(port).unwrap();
            fails(&caller, &network, &one, "is in the VLANs");
            detach(&caller, &network, &one);
        }
    });
}

/// For how long the kernel believes an answer about a neighbour against any other (`locktime`), and a little more.
const BELIEVED: std::time::Duration = std::time::Duration::from_millis(1200);

#[test]
fn an_address_that_is_used_again_is_found_at_its_new_place_at_once() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let (asks, before, after) = (bed.container("asks"), bed.container("before"), bed.container("after"));
        let fixed = json!({ "type": "static",
            "addresses": [{ "address": "10.79.0.5/24" }, { "address": "fd00:79::5/64" }] });
        let same = network(bed, "same", 79, &json!({ "ipam": fixed, "isGateway": false }));
        caller.attach(&network(bed, "others", 79, &json!({})), &asks.attachment()).unwrap();
        let places = ["10.79.0.5:80", "[fd00:79::5]:80"];
        caller.attach(&same, &before.attachment()).unwrap();
        before.serve("[::]:80");
        for place in places {
            ask(&asks.netns, place).unwrap();
        }
        std::thread::sleep(BELIEVED);
        detach(&caller, &same, &before);
        caller.attach(&same, &after.attachment()).unwrap();
        after.serve("[::]:80");
        for place in places {
            ask(&asks.netns, place).unwrap();
        }
    });
}
