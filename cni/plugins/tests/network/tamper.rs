//! CHECK: each change of an attachment is seen, and CHECK changes nothing.

use std::os::fd::AsFd;
use std::process::Command;

use cofferdam_cni::{PortMapping, Prefer, Protocol};
use cofferdam_linux::namespace::with_netns;
use cofferdam_linux::netlink::{Address, BridgePort, LinkChange, Route, Socket};
use cofferdam_linux::nft::{Batch, Element, Family};

use cofferdam_tests::needs;

use crate::bed::{Bed, Container, address, eth0, exists, on_a_host};

/// A change, how it is undone, and what CHECK says in between.
struct Tamper {
    what: &'static str,
    does: fn(&Bed, &Container),
    undo: fn(&Bed, &Container),
    says: &'static str,
}

fn host() -> Socket {
    Socket::route().unwrap()
}

fn inside(one: &Container) -> (Socket, u32) {
    let mut socket = Socket::route_in(one.netns.as_fd()).unwrap();
    let index = socket.link("eth0").unwrap().index;
    (socket, index)
}

fn change_host_end(bed: &Bed, change: &LinkChange<'_>) {
    let index = host().link(&bed.veths()[0]).unwrap().index;
    host().change_link(index, change).unwrap();
}

fn change_inner(one: &Container, change: &LinkChange<'_>) {
    let (mut socket, index) = inside(one);
    socket.change_link(index, change).unwrap();
}

fn default_route(one: &Container, gateway: &str) -> Route {
    Route::new(address("0.0.0.0", 0), Some(gateway.parse().unwrap()), inside(one).1)
}

fn nft(arguments: &str) {
    let status = Command::new("nft").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "{arguments}");
}

fn change_element(set: &str, remove: bool, element: &Element) {
    let mut batch = Batch::new(Family::Inet, "cofferdam");
    if remove {
        batch.delete_element(set, element);
    } else {
        batch.add_element(set, element);
    }
    Socket::netfilter().unwrap().commit(&batch).unwrap();
}

fn port(to: [u8; 4], owner: &str) -> Element {
    let data = [to.to_vec(), 80u16.to_be_bytes().to_vec()];
    Element::map(&[vec![6], 8080u16.to_be_bytes().to_vec()], &data, owner)
}

fn source(owner: &str) -> Element {
    Element::set(&[[10, 88, 0, 2]], owner)
}

const OURS: &str = "bridge/one/eth0";
const GATEWAY: &str = "10.88.0.1";

fn set_forwarding(on: &str) {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", on).unwrap();
}

fn set_bridge_address(present: bool) {
    let index = host().link("cofferdam0").unwrap().index;
    let gateway: Address = address(GATEWAY, 16);
    if present { host().add_address(index, gateway) } else { host().delete_address(index, gateway) }.unwrap();
}

fn set_default(one: &Container, from: &str, to: &str) {
    let (mut socket, _) = inside(one);
    socket.delete_route(&default_route(one, from)).unwrap();
    socket.add_route(&default_route(one, to)).unwrap();
}

fn rename_lease(bed: &Bed, from: &str, to: &str) {
    let folder = bed.leases().join("bridge");
    std::fs::rename(folder.join(from), folder.join(to)).unwrap();
}

fn route_localnet(on: &str) {
    std::fs::write("/proc/sys/net/ipv4/conf/cofferdam0/route_localnet", on).unwrap();
}

const fn row(
    what: &'static str,
    does: fn(&Bed, &Container),
    undo: fn(&Bed, &Container),
    says: &'static str,
) -> Tamper {
    Tamper { what, does, undo, says }
}

const MATRIX: &[Tamper] = &[
    row(
        "the port map is removed",
        |_, _| change_element("ports4", true, &port([10, 88, 0, 2], OURS)),
        |_, _| change_element("ports4", false, &port([10, 88, 0, 2], OURS)),
        "the nft set ports4 lacks bridge/one/eth0",
    ),
    row(
        "the port map leads elsewhere",
        |_, _| {
            change_element("ports4", true, &port([10, 88, 0, 2], OURS));
            change_element("ports4", false, &port([10, 88, 0, 99], OURS));
        },
        |_, _| {
            change_element("ports4", true, &port([10, 88, 0, 99], OURS));
            change_element("ports4", false, &port([10, 88, 0, 2], OURS));
        },
        "ports4 leads elsewhere",
    ),
    row(
        "the port map is another's",
        |_, _| {
            change_element("ports4", true, &port([10, 88, 0, 2], OURS));
            change_element("ports4", false, &port([10, 88, 0, 2], "bridge/two/eth0"));
        },
        |_, _| {
            change_element("ports4", true, &port([10, 88, 0, 2], "bridge/two/eth0"));
            change_element("ports4", false, &port([10, 88, 0, 2], OURS));
        },
        "of bridge/two/eth0 in the place of bridge/one/eth0",
    ),
    row(
        "the masquerade is removed",
        |_, _| change_element("masquerade4", true, &source(OURS)),
        |_, _| change_element("masquerade4", false, &source(OURS)),
        "masquerade4 lacks",
    ),
    row(
        "forwarding is no longer accepted",
        |_, _| change_element("forward4", true, &source(OURS)),
        |_, _| change_element("forward4", false, &source(OURS)),
        "forward4 lacks",
    ),
    row(
        "the host's end is down",
        |bed, _| change_host_end(bed, &LinkChange { up: Some(false), ..LinkChange::default() }),
        |bed, _| change_host_end(bed, &LinkChange { up: Some(true), ..LinkChange::default() }),
        "is down",
    ),
    row(
        "the host's end is off the bridge",
        |bed, _| change_host_end(bed, &LinkChange { master: Some(0), ..LinkChange::default() }),
        |bed, _| {
            let bridge = host().link("cofferdam0").unwrap().index;
            change_host_end(bed, &LinkChange { master: Some(bridge), ..LinkChange::default() });
            let end = host().link(&bed.veths()[0]).unwrap().index;
            host().set_port(end, BridgePort { hairpin: true, isolated: false }).unwrap();
        },
        "is not on cofferdam0",
    ),
    row(
        "hairpin mode is off",
        |bed, _| host().set_port(host().link(&bed.veths()[0]).unwrap().index, BridgePort::default()).unwrap(),
        |bed, _| {
            let end = host().link(&bed.veths()[0]).unwrap().index;
            host().set_port(end, BridgePort { hairpin: true, isolated: false }).unwrap();
        },
        "is treated by cofferdam0 as",
    ),
    row(
        "the container's mtu is another",
        |_, one| change_inner(one, &LinkChange { mtu: Some(1400), ..LinkChange::default() }),
        |_, one| change_inner(one, &LinkChange { mtu: Some(1500), ..LinkChange::default() }),
        "has the mtu 1400 instead of 1500",
    ),
    row(
        "the default route leads to another gateway",
        |_, one| set_default(one, GATEWAY, "10.88.0.77"),
        |_, one| set_default(one, "10.88.0.77", GATEWAY),
        "the route to 0.0.0.0/0 is gone or another",
    ),
    row(
        "the default route is gone",
        |_, one| inside(one).0.delete_route(&default_route(one, GATEWAY)).unwrap(),
        |_, one| inside(one).0.add_route(&default_route(one, GATEWAY)).unwrap(),
        "the route to 0.0.0.0/0 is gone or another",
    ),
    row(
        "the bridge lost the gateway's address",
        |_, _| set_bridge_address(false),
        |_, _| set_bridge_address(true),
        "lacks the gateway's address 10.88.0.1",
    ),
    row(
        "the lease is of another address",
        |bed, _| rename_lease(bed, "10.88.0.2", "10.88.0.9"),
        |bed, _| rename_lease(bed, "10.88.0.9", "10.88.0.2"),
        "10.88.0.2 is not leased",
    ),
    row(
        "the host does not forward",
        |_, _| set_forwarding("0"),
        |_, _| set_forwarding("1"),
        "ip_forward is 0",
    ),
    row(
        "127.0.0.1 does not leave the host",
        |_, _| route_localnet("0"),
        |_, _| route_localnet("1"),
        "route_localnet is not 1",
    ),
    row(
        "the container's address is gone",
        |_, one| inside(one).0.delete_address(inside(one).1, address("fd00:88::2", 64)).unwrap(),
        |_, one| inside(one).0.add_address(inside(one).1, address("fd00:88::2", 64)).unwrap(),
        "lacks fd00:88::2/64",
    ),
    row(
        "the container's link is down",
        |_, one| change_inner(one, &LinkChange { up: Some(false), ..LinkChange::default() }),
        |_, one| {
            change_inner(one, &LinkChange { up: Some(true), ..LinkChange::default() });
            let (mut socket, index) = inside(one);
            socket.add_route(&default_route(one, GATEWAY)).unwrap();
            // The kernel drops the IPv6 addresses of a link that goes down.
            let _ = socket.add_address(index, address("fd00:88::2", 64));
            let v6 = Route::new(address("::", 0), Some("fd00:88::1".parse().unwrap()), index);
            let _ = socket.add_route(&v6);
        },
        "eth0 is down",
    ),
];

/// What is done to the table's rules; the table is repaired by taking an element away and asking for the next attachment.
const RULES: &[&str] = &[
    "flush chain inet cofferdam postrouting",
    "flush chain inet cofferdam prerouting",
    "flush chain inet cofferdam output",
    "flush chain inet cofferdam mapped",
    "flush chain inet cofferdam forward",
    "add rule inet cofferdam forward drop",
    "delete table inet cofferdam",
];

fn attached(bed: &Bed) -> (cofferdam_cni::Caller, cofferdam_cni::NetworkList, Container) {
    let (caller, network, one) = (bed.caller(Prefer::Builtin), bed.default_network(), bed.container("one"));
    let mut attachment = one.attachment();
    attachment.capabilities.port_mappings =
        vec![PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip: None }];
    caller.attach(&network, &attachment).unwrap();
    (caller, network, one)
}

#[test]
fn b10_each_row_of_the_tamper_matrix_is_seen_by_check_and_check_changes_nothing() {
    on_a_host(|bed| {
        let (caller, network, one) = attached(bed);
        let check = || caller.check(&network.name, &one.id, &eth0());
        check().unwrap();
        for tamper in MATRIX {
            (tamper.does)(bed, &one);
            let before = bed.facts(&one);
            let error = check().expect_err(tamper.what).to_string();
            assert!(error.contains(tamper.says), "{}: {error}", tamper.what);
            assert_eq!(bed.facts(&one), before, "{}", tamper.what);
            (tamper.undo)(bed, &one);
            check().unwrap_or_else(|error| panic!("{} undone: {error}", tamper.what));
        }
        let before = bed.facts(&one);
        check().unwrap();
        assert_eq!(bed.facts(&one), before);
    });
}

#[test]
fn b10_rules_that_somebody_took_away_or_added_are_seen_and_the_next_attachment_puts_them_back() {
    if !needs::programs(&["nft"]) {
        return;
    }
    for arguments in RULES {
        on_a_host(|bed| {
            let (caller, network, one) = attached(bed);
            nft(arguments);
            let before = bed.facts(&one);
            let error = caller.check(&network.name, &one.id, &eth0()).expect_err(arguments).to_string();
            assert!(error.contains("were changed") || error.contains("lacks"), "{arguments}: {error}");
            assert_eq!(bed.facts(&one), before, "{arguments}");
            caller.detach(&network.name, &one.id, &eth0(), cofferdam_cni::NetnsFate::Stays).unwrap();
            // A set that is gone is what an ADD stumbles over.
            if !arguments.starts_with("delete") {
                nft("flush chain inet cofferdam forward");
                nft("delete set inet cofferdam forward4");
            }
            caller.attach(&network, &one.attachment()).unwrap();
            caller.check(&network.name, &one.id, &eth0()).unwrap();
        });
    }
}

#[test]
fn b11_the_attributes_of_a_route_reach_the_kernel_and_check_looks_at_them() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let network = bed.network(
            "routes",
            serde_json::json!([{ "type": "bridge", "bridge": "routes0", "isGateway": true,
            "ipam": { "type": "host-local", "dataDir": "LEASES",
                "ranges": [[{ "subnet": "10.31.0.0/24" }], [{ "subnet": "fd31::/64" }]], "routes": [
                { "dst": "10.32.0.0/16", "gw": "10.31.0.1", "mtu": 1300, "advmss": 1200, "priority": 77 },
                { "dst": "10.33.0.0/16", "table": 500 },
                { "dst": "10.34.0.0/16", "scope": 253 },
                { "dst": "fd32::/64", "mtu": 1350, "priority": 88, "table": 501 },
            ] } }]),
        );
        let one = bed.container("one");
        let result = caller.attach(&network, &one.attachment()).unwrap();
        assert_eq!((result.routes[0].mtu, result.routes[1].table), (Some(1300), Some(500)));
        let (mut socket, link) = inside(&one);
        let routes = socket.all_routes().unwrap();
        let find =
            |to: &str| *routes.iter().find(|route| route.destination.address.to_string() == to).unwrap();
        let plain = find("10.32.0.0");
        assert_eq!((plain.mtu, plain.advertised_mss, plain.priority), (Some(1300), Some(1200), Some(77)));
        assert_eq!(find("10.33.0.0").table, Some(500));
        let on_link = find("10.34.0.0");
        assert_eq!((on_link.gateway, on_link.scope), (None, Some(253)));
        let v6 = find("fd32::");
        assert_eq!((v6.mtu, v6.priority, v6.table, v6.link), (Some(1350), Some(88), Some(501), Some(link)));
        if exists("/sbin/ip") {
            let show = || Command::new("ip").args(["route", "show", "table", "all"]).output().unwrap();
            let text = with_netns(one.netns.as_fd(), || String::from_utf8_lossy(&show().stdout).into_owned())
                .unwrap();
            assert!(
                text.contains(
                    "10.32.0.0/16 via 10.31.0.1 dev eth0 proto static metric 77 mtu 1300 advmss 1200"
                ),
                "{text}"
            );
            assert!(text.contains("table 500"), "{text}");
        }
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        socket.replace_route(&Route { mtu: Some(1000), ..plain }).unwrap();
        let error = caller.check(&network.name, &one.id, &eth0()).unwrap_err().to_string();
        assert!(error.contains("the route to 10.32.0.0/16 is gone or another"), "{error}");
    });
}
