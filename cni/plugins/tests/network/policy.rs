//! Who may forward to whom.

use std::process::Command;

use cofferdam_cni::{NetnsFate, NetworkList, Prefer, Valid};
use cofferdam_linux::netlink::Socket;
use cofferdam_tests::needs;
use serde_json::json;

use crate::bed::{Bed, ask, eth0, is_cut_off, on_a_host};
use crate::ports::{TCP, map};

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn b19_containers_forward_although_iptables_drops_by_policy_in_both_families() {
    if !needs::programs(&["iptables-nft", "ip6tables-nft"]) {
        return;
    }
    on_a_host(|bed| {
        const PROGRAMS: [&str; 2] = ["iptables-nft", "ip6tables-nft"];
        for program in PROGRAMS {
            run(program, "-P FORWARD DROP");
        }
        let before = PROGRAMS.map(|program| run(program, "-S"));
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, outside) = (bed.container("one"), bed.outside());
        caller.attach(&network, &map(&one, &[(8080, 80, TCP, None)])).unwrap();
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        one.serve("[::]:80");
        outside.serve("[::]:70");
        for (who, what) in [
            (&one.netns, "203.0.113.2:70"),
            (&one.netns, "[fd00:113::2]:70"),
            (&outside.netns, "203.0.113.1:8080"),
            (&outside.netns, "[fd00:113::1]:8080"),
        ] {
            ask(who, what).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        // iptables reads what we wrote, in its own words.
        let rules = run("iptables-nft", "-S FORWARD");
        assert!(rules.contains("-A FORWARD -s 10.88.0.2/32") && rules.contains("-j ACCEPT"), "{rules}");
        run("iptables-nft", "-D FORWARD 1");
        let error = caller.check(&network.name, &one.id, &eth0()).unwrap_err().to_string();
        assert!(error.contains("FORWARD drops by policy"), "{error}");
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        assert_eq!(PROGRAMS.map(|program| run(program, "-S")), before);

        caller.attach(&network, &one.attachment()).unwrap();
        std::fs::remove_file(bed.dir.path().join("state/results/bridge-one-eth0")).unwrap();
        caller.gc(&network, &Valid::Nothing).unwrap();
        assert_eq!(PROGRAMS.map(|program| run(program, "-S")), before);
        Socket::route().unwrap().delete_link("down").unwrap();
        bed.assert_clean("bridge");
    });
}

fn network(bed: &Bed, name: &str, subnet: u8, policy: &str) -> NetworkList {
    bed.network(
        name,
        json!([
            { "type": "bridge", "bridge": name, "isGateway": true, "ipMasq": true, "hairpinMode": true,
              "ipam": { "type": "host-local", "dataDir": "LEASES",
                "ranges": [[{ "subnet": format!("10.{subnet}.0.0/24") }], [{ "subnet": format!("fd{subnet}::/64") }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall", "ingressPolicy": policy },
        ]),
    )
}

#[test]
fn b19_an_ingress_policy_keeps_other_containers_out_and_lets_mapped_ports_and_answers_in() {
    // Policy, and whether a neighbour on the same bridge and one on another reach the container.
    for (policy, same, other) in
        [("open", true, true), ("same-bridge", true, false), ("isolated", false, false)]
    {
        on_a_host(|bed| {
            let caller = bed.caller(Prefer::Builtin);
            let (guarded, open) = (network(bed, "guarded", 51, policy), network(bed, "other", 52, "open"));
            let [one, two, three] = ["one", "two", "three"].map(|name| bed.container(name));
            let outside = bed.outside();
            caller.attach(&guarded, &map(&one, &[(8080, 80, TCP, None)])).unwrap();
            caller.attach(&guarded, &two.attachment()).unwrap();
            caller.attach(&open, &three.attachment()).unwrap();
            one.serve("[::]:80");
            three.serve("[::]:80");
            outside.serve("[::]:80");
            for address in ["10.51.0.2:80", "[fd51::2]:80"] {
                for (who, may) in [(&two.netns, same), (&three.netns, other)] {
                    let does = if may { ask(who, address).is_ok() } else { !is_cut_off(who, address) };
                    assert_eq!(does, may, "{policy}: {address}");
                }
            }
            // What the container asks for is answered, and a mapped port is for everybody.
            assert!(ask(&one.netns, "10.52.0.2:80").is_ok(), "{policy}");
            assert!(ask(&one.netns, "203.0.113.2:80").is_ok(), "{policy}");
            for who in [&three, &outside] {
                assert!(ask(&who.netns, "203.0.113.1:8080").is_ok(), "{policy}");
            }
            // From an isolated port it depends on whether bridges are filtered.
            if policy != "isolated" {
                assert!(ask(&one.netns, "10.51.0.1:8080").is_ok(), "{policy}: itself by its port");
                assert!(ask(&two.netns, "203.0.113.1:8080").is_ok(), "{policy}");
            }
            caller.check(&guarded.name, &one.id, &eth0()).unwrap();
            if policy == "isolated" {
                let mut host = Socket::route().unwrap();
                let end =
                    host.links().unwrap().into_iter().find(|link| link.alias == "guarded/one/eth0").unwrap();
                let port = cofferdam_linux::netlink::BridgePort { isolated: false, ..end.port.unwrap() };
                host.set_port(end.index, port).unwrap();
                let error = caller.check(&guarded.name, &one.id, &eth0()).unwrap_err().to_string();
                assert!(error.contains("is not isolated"), "{error}");
            }
            for container in [&one, &two, &three] {
                caller.detach_all(&container.id, NetnsFate::Stays).unwrap();
            }
            Socket::route().unwrap().delete_link("down").unwrap();
            bed.assert_clean("guarded");
        });
    }
}
