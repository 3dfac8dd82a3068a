//! The plugins that put one link into the container, and those that change one.

use std::os::fd::AsFd;

use cofferdam_cni::{AddResult, Caller, Error, Kind, NetnsFate, NetworkList, Prefer};
use cofferdam_linux::netlink::{IpvlanMode, LinkChange, LinkKind, MacvlanMode, NewLink, Route, Socket};
use serde_json::{Value, json};

use crate::bed::{Bed, Container, address, ask, eth0, have_kind, interface, on_a_host, wait_until};

/// A plugin with an address that nobody else has.
fn with_address(mut plugin: Value, address: &str) -> Value {
    plugin["ipam"] = json!({ "type": "static", "addresses": [{ "address": address }] });
    plugin
}

fn inside(container: &Container) -> Socket {
    Socket::route_in(container.netns.as_fd()).unwrap()
}

/// What every plugin that makes a link has to stand: its life, twice, with the name taken, with the address refused, with the
/// namespace gone.
fn a_whole_life(bed: &Bed, plugin: &Value, kind: &str) {
    let caller = bed.caller(Prefer::Builtin);
    let network = bed.network("net", json!([with_address(plugin.clone(), "203.0.113.10/24")]));
    let other = bed.network("other", json!([with_address(plugin.clone(), "203.0.113.11/24")]));
    let one = bed.container("one");
    caller.status(&network).unwrap();
    let result = caller.attach(&network, &one.attachment()).unwrap();
    let link = inside(&one).link("eth0").unwrap();
    assert_eq!(link.kind.as_deref(), Some(kind));
    assert_eq!(result.interfaces.last().unwrap().name, "eth0");
    assert!(inside(&one).addresses(link.index).unwrap().contains(&address("203.0.113.10", 24)));
    assert_eq!(
        result.interfaces.last().unwrap().mac,
        link.mac.map(|mac| mac.to_string()).unwrap_or_default()
    );
    check_sees_and_changes_nothing(bed, &caller, &network, &one);

    // The name is taken: whoever comes second gets an error, and whoever was first keeps the interface.
    let error = caller.attach(&other, &one.attachment()).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    assert!(error.to_string().contains("already has an interface eth0"), "{error}");
    caller.check(&network.name, &one.id, &eth0()).unwrap();
    caller.gc(&other, &cofferdam_cni::Valid::Nothing).unwrap();
    caller.check(&network.name, &one.id, &eth0()).unwrap();

    caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
    caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
    assert_eq!(inside(&one).find_link("eth0").unwrap(), None);

    // No address, no link.
    let dry = bed.network(
        "dry",
        json!([{ "type": plugin["type"], "master": plugin["master"], "vlanId": plugin["vlanId"],
        "ipam": { "type": "static" } }]),
    );
    assert!(caller.attach(&dry, &one.attachment()).is_err());
    assert_eq!(inside(&one).find_link("eth0").unwrap(), None);

    // An address is given back by DEL: there is only this one.
    let mut scarce = plugin.clone();
    scarce["ipam"] = json!({ "type": "host-local", "dataDir": "LEASES", "ranges":
        [[{ "subnet": "203.0.113.0/24", "rangeStart": "203.0.113.12", "rangeEnd": "203.0.113.12" }]] });
    let scarce = bed.network("scarce", json!([scarce]));
    for _ in 0..2 {
        caller.attach(&scarce, &one.attachment()).unwrap();
        caller.detach(&scarce.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
    }

    caller.attach(&network, &one.attachment()).unwrap();
    let id = one.id.clone();
    drop(one);
    caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap();
    assert!(caller.records().unwrap().0.is_empty());
}

fn check_sees_and_changes_nothing(bed: &Bed, caller: &Caller, network: &NetworkList, one: &Container) {
    let before = bed.facts(one);
    caller.check(&network.name, &one.id, &eth0()).unwrap();
    assert_eq!(bed.facts(one), before);
    let mut socket = inside(one);
    let link = socket.link("eth0").unwrap();
    let change = |mtu| cofferdam_linux::netlink::LinkChange { mtu: Some(mtu), ..Default::default() };
    socket.change_link(link.index, &change(link.mtu - 100)).unwrap();
    let error = caller.check(&network.name, &one.id, &eth0()).unwrap_err().to_string();
    assert!(error.contains("mtu"), "{error}");
    socket.change_link(link.index, &change(link.mtu)).unwrap();
    caller.check(&network.name, &one.id, &eth0()).unwrap();
}

/// As `a_whole_life`, for what lies on another link, whose network it reaches, and with which it goes.
fn a_whole_life_on_a_link(kind: &str, probe: LinkKind<'static>) {
    on_a_host(|bed| {
        if !have_kind(kind, probe) {
            return;
        }
        let plugin = json!({ "type": kind, "master": "down" });
        let outside = bed.outside();
        a_whole_life(bed, &plugin, kind);
        let caller = bed.caller(Prefer::Builtin);
        let network = bed.network("net", json!([with_address(plugin, "203.0.113.10/24")]));
        let one = bed.container("one");
        caller.attach(&network, &one.attachment()).unwrap();
        outside.serve("203.0.113.2:70");
        assert_eq!(ask(&one.netns, "203.0.113.2:70").unwrap().to_string(), "203.0.113.10");
        // The link below goes, and takes ours along.
        Socket::route().unwrap().delete_link("down").unwrap();
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        let error = caller.attach(&network, &one.attachment()).unwrap_err();
        assert!(error.to_string().contains("there is no link down"), "{error}");
    });
}

#[test]
fn b16_macvlan_lives_as_it_should_and_reaches_its_network() {
    a_whole_life_on_a_link("macvlan", LinkKind::Macvlan { mode: MacvlanMode::Bridge, broadcast_queue: None });
}

#[test]
fn b16_a_network_whose_link_below_is_gone_is_not_ready() {
    on_a_host(|bed| {
        let network = bed.network("net", json!([{ "type": "macvlan", "master": "down" }]));
        let status = bed.caller(Prefer::Builtin).status(&network);
        assert!(matches!(status, Err(Error::Plugin(failure)) if failure.code.unwrap().0 == 50));
    });
}

#[test]
fn b16_a_macvlan_with_a_wrong_mode_or_too_large_an_mtu_is_refused() {
    on_a_host(|bed| {
        let _outside = bed.outside();
        let (caller, one) = (bed.caller(Prefer::Builtin), bed.container("one"));
        for (key, value, says) in
            [("mode", json!("sideways"), "none of bridge, private"), ("mtu", json!(9000), "does not fit")]
        {
            let mut plugin = json!({ "type": "macvlan", "master": "down" });
            plugin[key] = value;
            let network = bed.network("net", json!([with_address(plugin, "203.0.113.10/24")]));
            let error = caller.attach(&network, &one.attachment()).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(inside(&one).find_link("eth0").unwrap(), None);
        }
    });
}

#[test]
fn b16_ipvlan_lives_as_it_should_and_reaches_its_network() {
    a_whole_life_on_a_link("ipvlan", LinkKind::Ipvlan { mode: IpvlanMode::L2 });
}

#[test]
fn b16_vlan_lives_as_it_should_and_talks_to_its_tag() {
    on_a_host(|bed| {
        if !have_kind("vlan", LinkKind::Vlan { id: 1 }) {
            return;
        }
        let outside = bed.outside();
        let plugin = json!({ "type": "vlan", "master": "down", "vlanId": 100 });
        a_whole_life(bed, &plugin, "vlan");
        let mut out = inside(&outside);
        let up = out.link("up").unwrap().index;
        out.add_link(&NewLink { parent: Some(up), ..NewLink::new("tagged", LinkKind::Vlan { id: 100 }) })
            .unwrap();
        let tagged = out.link("tagged").unwrap().index;
        out.add_address(tagged, address("198.51.100.2", 24)).unwrap();
        let caller = bed.caller(Prefer::Builtin);
        let network = bed.network("net", json!([with_address(plugin, "198.51.100.10/24")]));
        let one = bed.container("one");
        caller.attach(&network, &one.attachment()).unwrap();
        outside.serve("198.51.100.2:70");
        assert_eq!(ask(&one.netns, "198.51.100.2:70").unwrap().to_string(), "198.51.100.10");
        Socket::route().unwrap().delete_link("down").unwrap();
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
    });
}

#[test]
fn b16_dummy_lives_as_it_should() {
    on_a_host(|bed| {
        if have_kind("dummy", LinkKind::Dummy) {
            a_whole_life(bed, &json!({ "type": "dummy" }), "dummy");
        }
    });
}

#[test]
fn b16_tap_lives_as_it_should() {
    on_a_host(|bed| {
        if !crate::bed::exists("/dev/net/tun") {
            println!("skipped: there is no /dev/net/tun");
            return;
        }
        a_whole_life(bed, &json!({ "type": "tap", "owner": 0, "group": 0, "multiQueue": true }), "tun");
    });
}

#[test]
fn b16_ptp_lives_as_it_should_and_reaches_the_world_and_its_neighbours() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let network = bed.network("ptp", json!([
            { "type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": { "type": "host-local", "dataDir": "LEASES",
                "ranges": [[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd00:88::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
            { "type": "firewall" },
        ]));
        let (one, two, outside) = (bed.container("one"), bed.container("two"), bed.outside());
        let result = caller.attach(&network, &one.attachment()).unwrap();
        caller.attach(&network, &two.attachment()).unwrap();
        assert_eq!(result.interfaces.len(), 2);
        assert_eq!(result.interfaces[1].mtu, Some(1400));
        assert_eq!(result.ips[0].interface, Some(1));
        outside.serve("[::]:70");
        two.serve("[::]:80");
        assert_eq!(ask(&one.netns, "203.0.113.2:70").unwrap().to_string(), "::ffff:203.0.113.1");
        assert_eq!(ask(&one.netns, "[fd00:113::2]:70").unwrap().to_string(), "fd00:113::1");
        assert!(ask(&one.netns, "10.88.0.3:80").is_ok());
        assert!(ask(&one.netns, "[fd00:88::3]:80").is_ok());
        assert_eq!(ask(&bed.host, "10.88.0.3:80").unwrap().to_string(), "::ffff:10.88.0.1");
        check_sees_and_changes_nothing(bed, &caller, &network, &one);
        let mut host = Socket::route().unwrap();
        let way: Route = host
            .routes()
            .unwrap()
            .into_iter()
            .find(|route| route.destination == address("10.88.0.2", 32))
            .unwrap();
        host.delete_route(&way).unwrap();
        let error = caller.check(&network.name, &one.id, &eth0()).unwrap_err().to_string();
        assert!(error.contains("the host's route to 10.88.0.2 is gone"), "{error}");
        host.add_route(&way).unwrap();

        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        caller.check(&network.name, &two.id, &eth0()).unwrap();
        let id = two.id.clone();
        drop(two);
        caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap();
        host.delete_link("down").unwrap();
        wait_until("the end of the pairs", || bed.veths().is_empty());
        bed.assert_clean("ptp");
    });
}

fn two_interfaces(bed: &Bed, second: Value) -> (NetworkList, NetworkList) {
    let bridge = |name: &str, subnet: &str| {
        json!({ "type": "bridge", "bridge": name, "isGateway": true, "ipam": { "type": "host-local", "dataDir": "LEASES",
            "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }] } })
    };
    let first = bed.network("first", json!([bridge("first0", "10.61.0.0/24")]));
    (first, bed.network("second", json!([bridge("second0", "10.62.0.0/24"), second])))
}

fn attach_as(caller: &Caller, network: &NetworkList, one: &Container, name: &str) -> AddResult {
    let mut attachment = one.attachment();
    attachment.if_name = interface(name);
    caller.attach(network, &attachment).unwrap()
}

#[test]
fn b16_sbr_sends_by_the_interface_of_the_source_address() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let (first, second) = two_interfaces(bed, json!({ "type": "sbr" }));
        let one = bed.container("one");
        attach_as(&caller, &first, &one, "eth0");
        let before = crate::bed::routes(&mut inside(&one)).len();
        attach_as(&caller, &second, &one, "eth1");
        let mut socket = inside(&one);
        let rule = socket.rules_by_source().unwrap()[0];
        assert_eq!((rule.source.to_string().as_str(), rule.table), ("10.62.0.2", 100));
        let eth1 = socket.link("eth1").unwrap().index;
        let table: Vec<_> =
            socket.all_routes().unwrap().into_iter().filter(|route| route.table == Some(100)).collect();
        assert!(table.iter().all(|route| route.link == Some(eth1)));
        let default = table.iter().find(|route| route.destination.prefix == 0).unwrap();
        assert_eq!(default.gateway, Some("10.62.0.1".parse().unwrap()));
        caller.check(&first.name, &one.id, &eth0()).unwrap();
        caller.check(&second.name, &one.id, &interface("eth1")).unwrap();
        socket.delete_route(default).unwrap();
        let fails = |what: &str| {
            let error = caller.check(&second.name, &one.id, &interface("eth1")).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        fails("sbr: table 100 has no route to 0.0.0.0");
        socket.delete_rule(&rule).unwrap();
        fails("sbr: there is no rule for 10.62.0.2");
        socket.add_rule(&rule).unwrap();
        caller.detach(&second.name, &one.id, &interface("eth1"), NetnsFate::Stays).unwrap();
        assert_eq!(socket.rules_by_source().unwrap(), []);
        assert_eq!(crate::bed::routes(&mut socket).len(), before);
        caller.detach(&second.name, &one.id, &interface("eth1"), NetnsFate::Stays).unwrap();
        let id = one.id.clone();
        attach_as(&caller, &second, &one, "eth1");
        drop(one);
        caller.detach_all(&id, NetnsFate::Stays).unwrap();
        wait_until("the end of the pairs", || bed.veths().is_empty());
        bed.assert_clean("second");
    });
}

#[test]
fn sbr_leads_to_a_table_of_somebody_else_or_by_a_gateway_that_is_named() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let one = bed.container("one");
        let mut socket = inside(&one);
        let lo = socket.link("lo").unwrap().index;
        let foreign = Route { table: Some(77), ..Route::new(address("198.51.100.0", 24), None, lo) };
        socket.add_route(&foreign).unwrap();
        let table = |socket: &mut Socket, wanted: u32| {
            let mut routes = socket.all_routes().unwrap();
            routes.retain(|route| route.table == Some(wanted));
            routes
        };
        let (_, second) = two_interfaces(bed, json!({ "type": "sbr", "table": 77 }));
        attach_as(&caller, &second, &one, "eth1");
        let rules = socket.rules_by_source().unwrap();
        assert_eq!((rules.len(), rules[0].source.to_string(), rules[0].table), (1, "10.62.0.2".into(), 77));
        assert_eq!(table(&mut socket, 77).len(), 1);
        caller.check(&second.name, &one.id, &interface("eth1")).unwrap();
        caller.detach(&second.name, &one.id, &interface("eth1"), NetnsFate::Stays).unwrap();
        assert_eq!((socket.rules_by_source().unwrap().len(), table(&mut socket, 77).len()), (0, 1));

        let (_, second) = two_interfaces(bed, json!({ "type": "sbr", "gateways": ["10.62.0.9"] }));
        attach_as(&caller, &second, &one, "eth1");
        let default = table(&mut socket, 100).into_iter().find(|route| route.destination.prefix == 0);
        assert_eq!(default.unwrap().gateway, Some("10.62.0.9".parse().unwrap()));
        caller.check(&second.name, &one.id, &interface("eth1")).unwrap();
        caller.detach(&second.name, &one.id, &interface("eth1"), NetnsFate::Stays).unwrap();
        for (options, says) in [
            (
                json!({ "type": "sbr", "gateways": ["10.62.0.8", "10.62.0.9"] }),
                "more than one address of a family",
            ),
            (json!({ "type": "sbr", "addSourceHints": true }), "does not know \"addSourceHints\""),
        ] {
            let (_, second) = two_interfaces(bed, options);
            let error = caller.attach(&second, &one.attachment()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        bed.assert_clean("second");
    });
}

#[test]
fn b16_vrf_takes_an_interface_in_with_its_routes_and_goes_with_the_last() {
    on_a_host(|bed| {
        if !have_kind("vrf", LinkKind::Vrf { table: 10 }) {
            return;
        }
        let caller = bed.caller(Prefer::Builtin);
        let (first, second) = two_interfaces(bed, json!({ "type": "vrf", "vrfname": "blue" }));
        let one = bed.container("one");
        attach_as(&caller, &first, &one, "eth0");
        attach_as(&caller, &second, &one, "eth1");
        let mut socket = inside(&one);
        let blue = socket.link("blue").unwrap();
        let eth1 = socket.link("eth1").unwrap();
        assert_eq!((eth1.master, blue.table), (Some(blue.index), Some(1000)));
        let routes = socket.all_routes().unwrap();
        let default = routes.iter().find(|route| route.table == blue.table && route.destination.prefix == 0);
        assert_eq!(default.unwrap().gateway, Some("10.62.0.1".parse().unwrap()));
        caller.check(&first.name, &one.id, &eth0()).unwrap();
        caller.check(&second.name, &one.id, &interface("eth1")).unwrap();
        caller.detach(&second.name, &one.id, &interface("eth1"), NetnsFate::Stays).unwrap();
        assert_eq!(socket.find_link("blue").unwrap(), None);
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        bed.assert_clean("second");
    });
}

#[test]
fn b15_host_device_moves_a_link_in_and_back_and_releases_its_address_whatever_became_of_the_namespace() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let network = bed.network("device", json!([{ "type": "host-device", "device": "down",
            "ipam": { "type": "host-local", "dataDir": "LEASES", "ranges": [[{ "subnet": "203.0.113.0/24" }]] } }]));
        let outside = bed.outside();
        let one = bed.container("one");
        let result = caller.attach(&network, &one.attachment()).unwrap();
        assert_eq!(result.interfaces[0].name, "eth0");
        let mut host = Socket::route().unwrap();
        assert_eq!(host.find_link("down").unwrap(), None);
        outside.serve("[::]:70");
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        let back = |caller: &Caller| {
            caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
            assert_eq!(bed.leased("device").len(), 0);
            assert_eq!(Socket::route().unwrap().link("down").unwrap().alias, "");
        };
        back(&caller);
        back(&caller);
        // Killed after the link was marked, and the same after the kernel had moved it back and not yet renamed it.
        for name in ["down", "eth0"] {
            caller.attach(&network, &one.attachment()).unwrap();
            let mut inside = Socket::route_in(one.netns.as_fd()).unwrap();
            let index = inside.link("eth0").unwrap().index;
            inside.move_link(index, bed.host.as_fd(), name).unwrap();
            assert_ne!(host.link(name).unwrap().alias, "");
            caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
            let link = host.link(name).unwrap();
            assert_eq!(link.alias, "");
            if name != "down" {
                let renamed = LinkChange { up: Some(false), ..LinkChange::default() };
                host.change_link(link.index, &renamed).unwrap();
                host.move_link(link.index, bed.host.as_fd(), "down").unwrap();
            }
        }
        // The name is taken: the link stays on the host.
        caller.attach(&network, &one.attachment()).unwrap();
        let other = bed.network("other", json!([{ "type": "host-device", "device": "lo" }]));
        assert!(caller.attach(&other, &one.attachment()).is_err());
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        assert!(host.find_link("lo").unwrap().is_some_and(|lo| lo.alias.is_empty()));
        let id = one.id.clone();
        drop(one);
        caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap();
        assert_eq!(bed.leased("device").len(), 0);
        let error = caller.attach(&network, &bed.container("two").attachment()).unwrap_err();
        assert!(error.to_string().contains("the host has no link down"), "{error}");
        assert_eq!(bed.leased("device").len(), 0);
    });
}

#[test]
fn b14_tuning_sets_and_restores_and_refuses_what_is_no_setting_of_the_namespace() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let data = bed.dir.path().join("tuning");
        let tuned = bed.network("net", json!([
            { "type": "host-device", "device": "down", "ipam": { "type": "static", "addresses": [{ "address": "203.0.113.1/24" }] } },
            { "type": "tuning", "dataDir": data, "mtu": 1300, "mac": "02:00:00:00:00:77", "promisc": true, "allmulti": true,
              "txQLen": 77, "sysctl": { "net.ipv4.conf.IFNAME.log_martians": "1", "net.core.somaxconn": "500" } },
        ]));
        let _outside = bed.outside();
        let before = Socket::route().unwrap().link("down").unwrap();
        let one = bed.container("one");
        let result = caller.attach(&tuned, &one.attachment()).unwrap();
        assert_eq!(
            (result.interfaces[0].mtu, result.interfaces[0].mac.as_str()),
            (Some(1300), "02:00:00:00:00:77")
        );
        let link = inside(&one).link("eth0").unwrap();
        assert_eq!(
            (link.mtu, link.promiscuous, link.all_multicast, link.queue_length),
            (1300, true, true, 77)
        );
        let setting = |text: &str| {
            let path = format!("/proc/sys/net/{text}");
            cofferdam_linux::namespace::with_netns(one.netns.as_fd(), || {
                std::fs::read_to_string(path).unwrap()
            })
            .unwrap()
        };
        assert_eq!(
            (setting("ipv4/conf/eth0/log_martians").trim(), setting("core/somaxconn").trim()),
            ("1", "500")
        );
        caller.check(&tuned.name, &one.id, &eth0()).unwrap();
        cofferdam_linux::namespace::with_netns(one.netns.as_fd(), || {
            std::fs::write("/proc/sys/net/core/somaxconn", "7").unwrap()
        })
        .unwrap();
        let error = caller.check(&tuned.name, &one.id, &eth0()).unwrap_err().to_string();
        assert!(error.contains("core/somaxconn is 7 instead of 500"), "{error}");
        caller.detach(&tuned.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        let after = Socket::route().unwrap().link("down").unwrap();
        assert_eq!(
            (after.mtu, after.mac, after.promiscuous, after.all_multicast, after.queue_length),
            (before.mtu, before.mac, before.promiscuous, before.all_multicast, before.queue_length)
        );
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);

        for bad in ["kernel.hostname", "net/../kernel/hostname", "net.ipv4.conf.IFNAME./etc"] {
            let network = bed.network(
                "bad",
                json!([{ "type": "loopback" }, { "type": "tuning", "sysctl": { bad: "1" } }]),
            );
            let error = caller.attach(&network, &one.attachment()).unwrap_err().to_string();
            assert!(error.contains("is no setting of a network namespace"), "{error}");
        }
        // What only the arguments ask for.
        let network = bed.network(
            "args",
            json!([{ "type": "loopback" },
            { "type": "tuning", "args": { "cni": { "sysctl": { "net.core.somaxconn": "600" } } } }]),
        );
        caller.attach(&network, &one.attachment()).unwrap();
        assert_eq!(setting("core/somaxconn").trim(), "600");
    });
}

#[test]
fn addresses_of_static_come_from_the_configuration_the_arguments_or_the_caller() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let network = bed.network(
            "net",
            json!([{ "type": "bridge", "bridge": "static0", "capabilities": { "ips": true },
            "ipam": { "type": "static", "addresses": [{ "address": "10.9.0.5/24", "gateway": "10.9.0.1" }],
                "routes": [{ "dst": "0.0.0.0/0" }], "dns": { "nameservers": ["10.9.0.1"] } } }]),
        );
        let one = bed.container("one");
        let configured = caller.attach(&network, &one.attachment()).unwrap();
        assert_eq!(configured.ips[0].address.to_string(), "10.9.0.5/24");
        assert_eq!(configured.dns.nameservers, ["10.9.0.1"]);
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        let mut asked = one.attachment();
        asked.args = vec![("IP".into(), "10.9.0.6/24".into()), ("GATEWAY".into(), "10.9.0.2".into())];
        let result = caller.attach(&network, &asked).unwrap();
        assert_eq!(
            (result.ips[0].address.to_string(), result.ips[0].gateway.unwrap().to_string()),
            ("10.9.0.6/24".into(), "10.9.0.2".into())
        );
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        asked.capabilities.ips = vec!["10.9.0.7/24".into()];
        assert_eq!(caller.attach(&network, &asked).unwrap().ips[0].address.to_string(), "10.9.0.7/24");
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        asked.capabilities.ips = vec!["10.9.0.8".into()];
        assert_eq!(caller.attach(&network, &asked).unwrap_err().kind(), Kind::InvalidInput);
        bed.assert_clean("net");
    });
}
