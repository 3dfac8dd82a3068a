//! Whole chains: what a container reaches, and what is left when something goes wrong.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_cni::{
    Bandwidth, Caller, Kind, NetnsFate, NetworkList, Options, PortMapping, Prefer, Protocol, Valid,
};
use cofferdam_cni_plugins::BUILTINS;
use cofferdam_linux::netlink::Socket;
use cofferdam_tests::pace;
use serde_json::{Value, json};

use crate::bed::{Bed, Container, ask, eth0, interface, ip, is_cut_off, list, on_a_host, wait_until};
use crate::ports::{TCP, map};

fn host_local(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    json!({ "type": "host-local", "dataDir": "LEASES", "ranges": ranges,
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] })
}

/// Everything that leaves something on the host.
fn everything(bed: &Bed, name: &str, bridge: &str, subnet: u8) -> NetworkList {
    let subnets = [format!("10.{subnet}.0.0/24"), format!("fd00:{subnet}::/64")];
    bed.network(
        name,
        json!([
            { "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
              "ipam": host_local(&[&subnets[0], &subnets[1]]) },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall" },
        ]),
    )
}

fn busy(container: &Container, name: &str, port: u16) -> cofferdam_cni::Attachment {
    let mut attachment = map(container, &[(port, 80, TCP, None)]);
    attachment.if_name = interface(name);
    let (rate, burst) = (800_000_000, 80_000_000);
    attachment.capabilities.bandwidth =
        Some(Bandwidth { ingress_rate: rate, ingress_burst: burst, egress_rate: rate, egress_burst: burst });
    attachment
}

pub(crate) fn ifbs() -> usize {
    let links = Socket::route().unwrap().links().unwrap();
    links.iter().filter(|link| link.kind.as_deref() == Some("ifb")).count()
}

#[test]
fn b1_without_a_single_program_a_whole_chain_connects_a_container_to_everything() {
    on_a_host(|bed| {
        let state = bed.dir.path().join("state");
        let caller = Caller::open(Options { builtins: BUILTINS, ..Options::new(state) }).unwrap();
        let data = bed.dir.path().join("tuning");
        let network = bed.network(
            "whole",
            json!([
                { "type": "bridge", "bridge": "whole0", "isGateway": true, "isDefaultGateway": true, "ipMasq": true,
                  "hairpinMode": true, "ipam": host_local(&["10.41.0.0/24", "fd41::/64"]) },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "firewall" },
                { "type": "tuning", "dataDir": data, "mtu": 1400, "sysctl": { "net.core.somaxconn": "500" } },
                { "type": "loopback" },
            ]),
        );
        caller.status(&network).unwrap();
        let (one, two) = (bed.container("one"), bed.container("two"));
        let mut inside = Socket::route_in(one.netns.as_fd()).unwrap();
        let lo = inside.link("lo").unwrap().index;
        let down = cofferdam_linux::netlink::LinkChange { up: Some(false), ..Default::default() };
        inside.change_link(lo, &down).unwrap();
        caller.attach(&network, &map(&one, &[(8080, 80, TCP, None)])).unwrap();
        caller.attach(&network, &two.attachment()).unwrap();
        assert!(inside.link("lo").unwrap().up);
        one.serve("[::]:80");
        two.serve("[::]:80");
        crate::bed::serve(&bed.host, "[::]:90");
        for (who, what) in [
            (&one.netns, "10.41.0.1:90"),
            (&one.netns, "[fd41::1]:90"),
            (&one.netns, "10.41.0.3:80"),
            (&one.netns, "[fd41::3]:80"),
            (&one.netns, "10.41.0.1:8080"),
            (&one.netns, "[fd41::1]:8080"),
            (&two.netns, "10.41.0.1:8080"),
            (&bed.host, "127.0.0.1:8080"),
            (&bed.host, "10.41.0.1:8080"),
            (&bed.host, "[fd41::1]:8080"),
        ] {
            ask(who, what).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        for container in [&one, &two] {
            caller.check(&network.name, &container.id, &eth0()).unwrap();
            caller.detach(&network.name, &container.id, &eth0(), NetnsFate::Stays).unwrap();
        }
        bed.assert_clean("whole");
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    });
}

#[test]
fn b3_addresses_that_cannot_be_had_leave_no_link_no_lease_and_no_rule() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let kinds = [
            json!({ "type": "bridge", "bridge": "dry0", "isGateway": true, "ipMasq": true }),
            json!({ "type": "ptp", "ipMasq": true }),
            json!({ "type": "macvlan", "master": "down" }),
        ];
        let _outside = bed.outside();
        let ranges = [
            // The second family is exhausted, or wrong, after the first has given an address.
            json!([[{ "subnet": "10.42.0.0/24" }], [{ "subnet": "10.43.0.0/30", "gateway": "10.43.0.2", "rangeEnd": "10.43.0.2", "rangeStart": "10.43.0.2" }]]),
            json!([[{ "subnet": "10.42.0.0/24" }], [{ "subnet": "10.43.0.1/24" }]]),
        ];
        for kind in &kinds {
            for (at, ranges) in ranges.iter().enumerate() {
                let mut plugin = kind.clone();
                plugin["ipam"] = json!({ "type": "host-local", "dataDir": "LEASES", "ranges": ranges });
                let network = bed.network("dry", json!([plugin, { "type": "firewall" }]));
                let one = bed.container("one");
                let error = caller.attach(&network, &one.attachment()).unwrap_err();
                let expected = [Kind::Exhausted, Kind::InvalidInput][at];
                assert_eq!(error.kind(), expected, "{error}");
                assert_eq!(Socket::route_in(one.netns.as_fd()).unwrap().find_link("eth0").unwrap(), None);
                assert_eq!(bed.leased("dry").len(), 0);
                assert_eq!(bed.nft_marks(), Vec::<String>::new());
                assert_eq!(bed.veths(), ["down"]);
            }
        }
    });
}

#[test]
fn b5_a_vanished_namespace_leaves_no_masquerade_no_port_no_lease_and_no_ifb() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let network = everything(bed, "gone", "gone0", 44);
        let one = bed.container("one");
        caller.attach(&network, &busy(&one, "eth0", 8080)).unwrap();
        assert_eq!(ifbs(), 1);
        let id = one.id.clone();
        drop(one);
        caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap();
        assert_eq!(ifbs(), 0);
        wait_until("the end of the pair", || bed.veths().is_empty());
        bed.assert_clean("gone");
    });
}

struct EndOfTalk<'a>(&'a AtomicBool);

impl Drop for EndOfTalk<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn b6_gc_takes_what_belongs_to_dead_attachments_while_live_ones_talk() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let network = everything(bed, "busy", "busy0", 45);
        let (live, dead) = (bed.container("live"), bed.container("dead"));
        caller.attach(&network, &busy(&live, "eth0", 8080)).unwrap();
        live.serve("[::]:80");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let talk = scope.spawn(|| {
                let mut answers = 0;
                while !over.load(Ordering::Relaxed) {
                    ask(&bed.host, "127.0.0.1:8080").unwrap();
                    ask(&bed.host, "[fd00:45::1]:8080").unwrap();
                    answers += 2;
                }
                answers
            });
            // Also when something below fails: who talks would go on for ever.
            let end = EndOfTalk(&over);
            for _ in 0..3 {
                caller.attach(&network, &busy(&dead, "eth0", 9090)).unwrap();
                assert_eq!((ifbs(), bed.veths().len(), bed.leased("busy").len()), (2, 2, 4));
                // Nobody remembers it: the plugins find it by themselves.
                std::fs::remove_file(bed.dir.path().join("state/results/busy-dead-eth0")).unwrap();
                caller.gc(&network, &Valid::Only(vec![(live.id.clone(), eth0())])).unwrap();
                assert_eq!((ifbs(), bed.veths().len(), bed.leased("busy").len()), (1, 1, 2));
                assert!(bed.nft_marks().iter().all(|mark| mark == "busy/live/eth0"));
                caller.check(&network.name, &live.id, &eth0()).unwrap();
            }
            drop(end);
            assert!(talk.join().unwrap() > 0);
        });
        caller.detach_all(&live.id, NetnsFate::Stays).unwrap();
        bed.assert_clean("busy");
    });
}

#[test]
fn b5_an_attachment_whose_result_a_later_plugin_replaced_leaves_nothing() {
    const REPLACED: &str = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.0.0.1/24"}]}"#;
    let ends = ["exit 0", "[ $CNI_COMMAND != ADD ] || { umount -l $CNI_NETNS; rm $CNI_NETNS; }; exit 0"];
    for end in ends {
        on_a_host(|bed| {
            bed.script(
                "replaces",
                &format!("cat >/dev/null; [ $CNI_COMMAND = ADD ] && echo '{REPLACED}'\n{end}"),
            );
            let mut text = everything(bed, "busy", "busy0", 48).to_text();
            text.truncate(text.rfind(']').unwrap());
            let tuning = json!({ "type": "tuning", "dataDir": bed.dir.path().join("tuning"), "mtu": 1300 });
            let network = list(&format!(r#"{text},{{"type":"replaces"}},{tuning}]}}"#));
            let (caller, one) = (bed.caller(Prefer::Auto), bed.container("one"));
            // Without a namespace tuning fails, and all is undone.
            if caller.attach(&network, &busy(&one, "eth0", 8080)).is_ok() {
                assert!(!bed.nft_marks().is_empty());
                caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
            }
            bed.assert_clean("busy");
            assert_eq!(ifbs(), 0);
        });
    }
}

#[test]
fn b7_one_of_two_networks_goes_and_the_ports_of_the_other_stay() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let networks = [everything(bed, "first", "first0", 46), everything(bed, "second", "second0", 47)];
        let one = bed.container("one");
        for (at, network) in networks.iter().enumerate() {
            let name = format!("eth{at}");
            caller.attach(network, &busy(&one, &name, 8080 + u16::try_from(at).unwrap())).unwrap();
        }
        one.serve("[::]:80");
        for (at, network) in networks.iter().enumerate() {
            caller.check(&network.name, &one.id, &interface(&format!("eth{at}"))).unwrap();
            assert!(ask(&bed.host, &format!("127.0.0.1:{}", 8080 + at)).is_ok());
        }
        caller.detach(&networks[0].name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        assert!(ask(&bed.host, "127.0.0.1:8081").is_ok());
        assert!(is_cut_off(&bed.host, "127.0.0.1:8080"));
        caller.check(&networks[1].name, &one.id, &interface("eth1")).unwrap();
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        bed.assert_clean("first");
        bed.assert_clean("second");
    });
}

#[test]
fn b8_a_late_del_does_not_touch_the_new_owner_of_its_address() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let network = bed.default_network();
        let (old, new) = (bed.container("old"), bed.container("new"));
        let first = caller.attach(&network, &map(&old, &[(8080, 80, TCP, None)])).unwrap();
        // The address is given away although its owner still has it: a restored disk, or somebody's clean-up.
        for ip in &first.ips {
            std::fs::remove_file(bed.leases().join("bridge").join(ip.address.address.to_string())).unwrap();
        }
        // Its namespace is gone, but nobody has detached it yet.
        let id = old.id.clone();
        drop(old);
        let mut attachment = map(&new, &[(9090, 80, TCP, None)]);
        attachment.capabilities.ips = vec![ip(&first, true).to_string(), ip(&first, false).to_string()];
        let second = caller.attach(&network, &attachment).unwrap();
        assert_eq!(ip(&second, true), ip(&first, true));
        new.serve("[::]:80");
        assert!(ask(&bed.host, "127.0.0.1:9090").is_ok());
        // What was asked of the old one does not reach the new one.
        assert!(ask(&bed.host, "127.0.0.1:8080").is_err());
        assert!(ask(&bed.host, "[fd00:88::1]:8080").is_err());
        caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap();
        assert!(ask(&bed.host, "127.0.0.1:9090").is_ok());
        assert!(ask(&bed.host, "[fd00:88::1]:9090").is_ok());
        caller.check(&network.name, &new.id, &eth0()).unwrap();
        assert_eq!(bed.leased("bridge").len(), 2);
        caller.detach(&network.name, &new.id, &eth0(), NetnsFate::Stays).unwrap();
        wait_until("the end of the old pair", || bed.veths().is_empty());
        bed.assert_clean("bridge");
    });
}

#[test]
fn b9_ports_of_two_addresses_of_the_host_are_two_ports_on_both_families() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, two, outside) = (bed.container("one"), bed.container("two"), bed.outside());
        let addresses = ["203.0.113.1", "fd00:113::1"];
        let both = addresses.map(|address| (8080, 80, TCP, Some(address)));
        caller.attach(&network, &map(&one, &both)).unwrap();
        let other = [(8080, 81, TCP, Some("127.0.0.1"))];
        caller.attach(&network, &map(&two, &other)).unwrap();
        one.serve("[::]:80");
        two.serve("[::]:81");
        assert!(ask(&outside.netns, "203.0.113.1:8080").is_ok());
        assert!(ask(&outside.netns, "[fd00:113::1]:8080").is_ok());
        assert!(ask(&bed.host, "127.0.0.1:8080").is_ok());
        let three = bed.container("three");
        for (address, says) in [("fd00:113::1", "[fd00:113::1]:8080/tcp"), ("203.0.113.1", "8080/tcp")] {
            let error = caller.attach(&network, &map(&three, &[(8080, 80, TCP, Some(address))])).unwrap_err();
            assert_eq!(error.kind(), Kind::Conflict, "{error}");
            for part in [says, "container one"] {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
        for (host_port, container_port) in [(0, 80), (80, 0)] {
            let zero = PortMapping { host_port, container_port, protocol: Protocol::Tcp, host_ip: None };
            let mut attachment = three.attachment();
            attachment.capabilities.port_mappings = vec![zero];
            let error = caller.attach(&network, &attachment).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{error}");
        }
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        caller.detach_all(&two.id, NetnsFate::Stays).unwrap();
        Socket::route().unwrap().delete_link("down").unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn b12_a_bridge_without_addresses_is_attached_checked_and_detached() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        for ipam in [json!({}), Value::Null] {
            let network =
                bed.network("plain", json!([{ "type": "bridge", "bridge": "plain0", "ipam": ipam }]));
            let one = bed.container("one");
            let result = caller.attach(&network, &one.attachment()).unwrap();
            assert_eq!((result.interfaces.len(), result.ips.len()), (3, 0));
            caller.check(&network.name, &one.id, &eth0()).unwrap();
            caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
            assert_eq!(Socket::route_in(one.netns.as_fd()).unwrap().find_link("eth0").unwrap(), None);
            bed.assert_clean("plain");
        }
    });
}

#[test]
fn twenty_detachments_at_once_wait_for_the_kernel_together() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let containers: Vec<Container> = (0..20).map(|n| bed.container(&format!("c{n}"))).collect();
        for container in &containers {
            caller.attach(&network, &container.attachment()).unwrap();
        }
        let begun = std::time::Instant::now();
        caller.detach(&network.name, &containers[0].id, &eth0(), NetnsFate::Stays).unwrap();
        let one = begun.elapsed();
        let begun = std::time::Instant::now();
        std::thread::scope(|scope| {
            for container in &containers[1..] {
                let (caller, network) = (&caller, &network);
                scope.spawn(move || {
                    caller.detach(&network.name, &container.id, &eth0(), NetnsFate::Stays).unwrap();
                });
            }
        });
        let all = begun.elapsed();
        // One after the other they would take nineteen times as long; what is left is each one's own work.
        pace::held("nineteen at once", all, one * 12 + Duration::from_millis(200));
        bed.assert_clean("bridge");
    });
}
