//! Two nodes: the namespace that plays the host, and another. Their pods reach each other.

use std::os::fd::{AsFd, OwnedFd};

use cofferdam_cni::{Caller, NetnsFate, NetworkList, Prefer};
use cofferdam_linux::namespace::with_netns;
use cofferdam_linux::netlink::{Link, LinkKind, NewLink, Route, Socket, VethPeer};
use serde_json::{Value, json};

use crate::bed::{Bed, Container, address, ask, eth0, have_kind, on_a_host};
use crate::ports::{TCP, map};

/// Both nodes, joined by a cable: 192.0.2.1 and fd02::1 here, 192.0.2.2 and fd02::2 there.
fn two_nodes(bed: &Bed) -> Container {
    let there = bed.container("node");
    let mut here = Socket::route().unwrap();
    let peer = VethPeer { name: "cable", netns: there.netns.as_fd(), mac: None };
    here.add_link(&NewLink::new("cable", LinkKind::Veth(peer))).unwrap();
    for (mut socket, last) in [(here, 1), (Socket::route_in(there.netns.as_fd()).unwrap(), 2)] {
        let cable = socket.link("cable").unwrap().index;
        socket.add_address(cable, address(&format!("192.0.2.{last}"), 24)).unwrap();
        socket.add_address(cable, address(&format!("fd02::{last}"), 64)).unwrap();
        socket.set_up(cable).unwrap();
    }
    there
}

/// The network of one node: its own subnets, and the plugin that connects pods to them.
fn network(
    bed: &Bed,
    name: &str,
    mut plugin: Value,
    subnets: [&str; 2],
    range: Option<[&str; 2]>,
) -> NetworkList {
    let mut ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    for (range, start) in ranges.iter_mut().zip(range.into_iter().flatten()) {
        range[0]["rangeStart"] = json!(start);
    }
    plugin["ipam"] = json!({ "type": "host-local", "dataDir": "LEASES", "ranges": ranges,
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] });
    bed.network(
        name,
        json!([
            plugin,
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall" },
        ]),
    )
}

/// Does something as the other node.
fn on_node<T: Send>(node: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    with_netns(node.as_fd(), work).unwrap()
}

struct Pods {
    caller: Caller,
    networks: [NetworkList; 2],
    here: Container,
    there: Container,
}

impl Pods {
    /// A pod on each node, each with its port 80 as 8080 of its node.
    fn start(bed: &Bed, node: &Container, networks: [NetworkList; 2]) -> Self {
        let pods = Self {
            caller: bed.caller(Prefer::Builtin),
            networks,
            here: bed.container("here"),
            there: bed.container("there"),
        };
        let ports = [(8080, 80, TCP, None)];
        pods.caller.attach(&pods.networks[0], &map(&pods.here, &ports)).unwrap();
        on_node(&node.netns, || pods.caller.attach(&pods.networks[1], &map(&pods.there, &ports)).unwrap());
        pods.here.serve("[::]:80");
        pods.there.serve("[::]:80");
        pods
    }

    /// Each reaches the other by its own address, and everybody reaches each by the port of its node.
    fn reach_each_other(&self, bed: &Bed, node: &Container, here: [&str; 2], there: [&str; 2]) {
        let host = |address: &str| {
            if address.contains(':') { format!("[{address}]:80") } else { format!("{address}:80") }
        };
        let seen = |address: &str| {
            if address.contains(':') { address.to_owned() } else { format!("::ffff:{address}") }
        };
        for (mine, yours) in here.into_iter().zip(there) {
            for (who, from, to) in [(&self.here, mine, yours), (&self.there, yours, mine)] {
                let answer =
                    ask(&who.netns, &host(to)).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
                assert_eq!(answer.to_string(), seen(from));
            }
        }
        for (who, what) in [
            // From outside: the other node, and its pod.
            (&node.netns, "192.0.2.1:8080"),
            (&node.netns, "[fd02::1]:8080"),
            (&bed.host, "192.0.2.2:8080"),
            (&bed.host, "[fd02::2]:8080"),
            (&self.there.netns, "192.0.2.1:8080"),
            (&self.here.netns, "[fd02::2]:8080"),
            // From the host itself.
            (&bed.host, "127.0.0.1:8080"),
            (&bed.host, "192.0.2.1:8080"),
            (&bed.host, "[fd02::1]:8080"),
            (&node.netns, "127.0.0.1:8080"),
            // By hairpin.
            (&self.here.netns, "192.0.2.1:8080"),
            (&self.here.netns, "[fd02::1]:8080"),
        ] {
            ask(who, what).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }

    fn stop(self, bed: &Bed, node: &Container) {
        let [here, there] = &self.networks;
        self.caller.check(&here.name, &self.here.id, &eth0()).unwrap();
        on_node(&node.netns, || self.caller.check(&there.name, &self.there.id, &eth0()).unwrap());
        self.caller.detach(&here.name, &self.here.id, &eth0(), NetnsFate::Stays).unwrap();
        on_node(&node.netns, || {
            self.caller.detach(&there.name, &self.there.id, &eth0(), NetnsFate::Stays).unwrap();
        });
        Socket::route().unwrap().delete_link("cable").unwrap();
        bed.assert_clean(here.name.as_str());
        bed.assert_clean(there.name.as_str());
    }
}

fn add_routes(socket: &mut Socket, routes: [(&str, u8, &str); 2]) {
    let cable = socket.link("cable").unwrap().index;
    for (to, prefix, via) in routes {
        socket.add_route(&Route::new(address(to, prefix), Some(via.parse().unwrap()), cable)).unwrap();
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other_by_routes_and_their_ports_answer_from_everywhere() {
    on_a_host(|bed| {
        for kind in ["bridge", "ptp"] {
            let node = two_nodes(bed);
            // Hairpin mode for itself; no masquerade, for pods are to see each other's own addresses.
            let plugin = json!({ "type": kind, "bridge": "pods0", "isGateway": true, "hairpinMode": true });
            let networks = [
                network(bed, &format!("{kind}-here"), plugin.clone(), ["10.91.1.0/24", "fd91:1::/64"], None),
                network(bed, &format!("{kind}-there"), plugin, ["10.91.2.0/24", "fd91:2::/64"], None),
            ];
            let pods = Pods::start(bed, &node, networks);
            let mut there = Socket::route_in(node.netns.as_fd()).unwrap();
            add_routes(
                &mut Socket::route().unwrap(),
                [("10.91.2.0", 24, "192.0.2.2"), ("fd91:2::", 64, "fd02::2")],
            );
            add_routes(&mut there, [("10.91.1.0", 24, "192.0.2.1"), ("fd91:1::", 64, "fd02::1")]);
            pods.reach_each_other(bed, &node, ["10.91.1.2", "fd91:1::2"], ["10.91.2.2", "fd91:2::2"]);
            pods.stop(bed, &node);
            cofferdam_cni_plugins::remove_host_parts((kind == "bridge").then_some("pods0")).unwrap();
        }
    });
}

#[test]
fn pods_of_two_nodes_reach_each_other_over_vxlan_and_their_ports_answer_from_everywhere() {
    on_a_host(|bed| {
        let [local, remote] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let kind = |local, remote| LinkKind::Vxlan { id: 42, local, remote, port: 4789 };
        if !have_kind("vxlan", kind(local, remote)) {
            return;
        }
        let node = two_nodes(bed);
        // One network over both: every node its part of the range, the bridges joined by the tunnel.
        let plugin = json!({ "type": "bridge", "bridge": "pods0", "isGateway": true, "hairpinMode": true, "mtu": 1400 });
        let subnets = ["10.92.0.0/16", "fd92::/64"];
        let with_gateway = |name: &str, part: &str, hex: &str| {
            let start = [format!("10.92.{part}.2"), format!("fd92::{hex}:2")];
            let list = network(bed, name, plugin.clone(), subnets, Some([&start[0], &start[1]]));
            let text = list.to_text();
            let text = text.replace(
                r#""subnet":"10.92.0.0/16""#,
                &format!(r#""subnet":"10.92.0.0/16","gateway":"10.92.{part}.1""#),
            );
            crate::bed::list(&text.replace(
                r#""subnet":"fd92::/64""#,
                &format!(r#""subnet":"fd92::/64","gateway":"fd92::{hex}:1""#),
            ))
        };
        let networks = [with_gateway("tunnel-here", "1", "1"), with_gateway("tunnel-there", "2", "2")];
        let pods = Pods::start(bed, &node, networks);
        let tunnel = |socket: &mut Socket, local, remote| {
            let bridge: Link = socket.link("pods0").unwrap();
            let link = NewLink {
                master: Some(bridge.index),
                mtu: Some(1400),
                ..NewLink::new("tunnel0", kind(local, remote))
            };
            socket.add_link(&link).unwrap();
        };
        tunnel(&mut Socket::route().unwrap(), local, remote);
        tunnel(&mut Socket::route_in(node.netns.as_fd()).unwrap(), remote, local);
        pods.reach_each_other(bed, &node, ["10.92.1.2", "fd92::1:2"], ["10.92.2.2", "fd92::2:2"]);
        Socket::route().unwrap().delete_link("tunnel0").unwrap();
        pods.stop(bed, &node);
    });
}
