//! Side by side with the reference plugins of Debian's containernetworking-plugins.

use std::os::fd::AsFd;

use cofferdam_cni::{Implementation, NetnsFate, PortMapping, Prefer, Protocol, Valid};
use cofferdam_linux::netlink::Socket;

use crate::bed::{Bed, ask, eth0, exists, ip, list, on_a_host};
use crate::chain::ifbs;

pub(crate) fn have_peers() -> bool {
    let there = exists("/usr/lib/cni/bridge") && exists("/usr/sbin/iptables");
    if !there {
        println!("skipped: needs containernetworking-plugins and iptables");
    }
    there
}

pub(crate) fn reference_network(bed: &Bed) -> cofferdam_cni::NetworkList {
    list(&format!(
        r#"{{"name":"peers","cniVersion":"1.0.0","plugins":[
            {{"type":"bridge","bridge":"peer0","isGateway":true,"ipMasq":true,
              "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.77.0.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
            {{"type":"portmap","capabilities":{{"portMappings":true}}}},
            {{"type":"firewall"}}]}}"#,
        bed.leases().display()
    ))
}

#[test]
fn the_reference_plugins_run_in_our_chain_and_leave_nothing() {
    if !have_peers() {
        return;
    }
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::External), reference_network(bed));
        let one = bed.container("one");
        let mut attachment = one.attachment();
        attachment.capabilities.port_mappings =
            vec![PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip: None }];
        let result = caller.attach(&network, &attachment).unwrap();
        assert_eq!(ip(&result, true).to_string(), "10.77.0.2");
        let (records, _) = caller.records().unwrap();
        assert!(records[0].plugins().iter().all(|plugin| matches!(plugin, Implementation::Path(_))));
        one.serve("0.0.0.0:80");
        assert!(ask(&bed.host, "127.0.0.1:8080").is_ok());
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        bed.assert_clean("peers");
    });
}

#[test]
fn b2_both_give_the_same_addresses_and_routes() {
    if !have_peers() {
        return;
    }
    let one_run = |prefer: Prefer| {
        let mut answer = None;
        on_a_host(|bed| {
            let (caller, network) = (bed.caller(prefer), reference_network(bed));
            let one = bed.container("one");
            let mut result = caller.attach(&network, &one.attachment()).unwrap();
            for interface in &mut result.interfaces {
                interface.mac.clear();
                interface.sandbox.clear();
            }
            result.interfaces[1].name.clear();
            caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
            answer = Some(result);
        });
        answer
    };
    assert_eq!(one_run(Prefer::Builtin), one_run(Prefer::External));
}

#[test]
fn b17_both_host_locals_share_one_directory() {
    if !have_peers() {
        return;
    }
    on_a_host(|bed| {
        let network = list(&format!(
            r#"{{"name":"shared","cniVersion":"1.0.0","plugins":[{{"type":"host-local",
                "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.66.0.0/24"}}]]}}}}]}}"#,
            bed.leases().display()
        ));
        let (ours, theirs) =
            (bed.caller_in("ours", Prefer::Builtin), bed.caller_in("theirs", Prefer::External));
        let containers: Vec<_> = (0..40).map(|n| bed.container(&format!("c{n}"))).collect();
        let addresses = std::thread::scope(|scope| {
            let threads: Vec<_> = containers
                .iter()
                .enumerate()
                .map(|(at, container)| {
                    let caller = if at % 2 == 0 { &ours } else { &theirs };
                    let network = &network;
                    scope.spawn(move || {
                        caller.attach(network, &container.attachment()).unwrap().ips[0].address
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap().to_string())
                .collect::<std::collections::BTreeSet<_>>()
        });
        assert_eq!(addresses.len(), 40);
        // Each is freed by the other, who knows of it by the configuration alone.
        for (at, container) in containers.iter().enumerate() {
            let caller = if at % 2 == 0 { &theirs } else { &ours };
            caller.detach_with(&network, &container.attachment(), NetnsFate::Stays).unwrap();
        }
        bed.assert_clean("shared");
    });
}

/// Chains of single attachments that the reference plugins have in iptables.
fn their_chains() -> Vec<String> {
    let output = std::process::Command::new("nft").args(["list", "chains"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.split(' ').next());
    let shared =
        ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ", "CNI-FORWARD", "CNI-ADMIN"];
    names.filter(|name| name.starts_with("CNI-") && !shared.contains(name)).map(str::to_owned).collect()
}

/// How the deleting caller comes to know of an attachment that another has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// By the configuration alone.
    Nothing,
    /// By the record that libcni would have left.
    Libcni,
}

#[test]
fn b18_add_by_one_and_del_by_the_other_leave_no_chain_lease_or_link() {
    if !have_peers() {
        return;
    }
    for (add, del, told) in [
        (Prefer::External, Prefer::Builtin, Told::Nothing),
        (Prefer::External, Prefer::Builtin, Told::Libcni),
        (Prefer::External, Prefer::Auto, Told::Libcni),
        (Prefer::Builtin, Prefer::External, Told::Nothing),
    ] {
        on_a_host(|bed| add_and_del(bed, add, del, told));
    }
}

fn add_and_del(bed: &Bed, add: Prefer, del: Prefer, told: Told) {
    // Records are each caller's own: who did the ADD is what they would tell.
    let (adding, deleting) = (bed.caller(add), bed.caller_in("other", del));
    let network = reference_network(bed).to_text();
    let network = list(&match add {
        // Version 1.1.1 cannot delete a masquerade that it has not made; and of each interface ours limits they cannot know.
        Prefer::Builtin => network.replace(r#""ipMasq":true"#, r#""ipMasq":false"#),
        _ => network.replace(
            r#"{"type":"firewall"}"#,
            r#"{"type":"firewall"},{"type":"bandwidth","egressRate":80000000,"egressBurst":8000000}"#,
        ),
    });
    let containers = [bed.container("one"), bed.container("two")];
    let mut attachments = containers.each_ref().map(|container| container.attachment());
    for (host_port, attachment) in (8080..).zip(&mut attachments) {
        attachment.capabilities.port_mappings =
            vec![PortMapping { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip: None }];
        adding.attach(&network, attachment).unwrap();
        let record = format!("results/peers-{}-eth0", attachment.container);
        if told == Told::Libcni {
            let text = std::fs::read(bed.dir.path().join("state").join(&record)).unwrap();
            let mut record_of_ours: serde_json::Value = serde_json::from_slice(&text).unwrap();
            record_of_ours.as_object_mut().unwrap().remove("cofferdam").unwrap();
            std::fs::write(bed.dir.path().join("other").join(&record), record_of_ours.to_string()).unwrap();
        }
    }
    assert_eq!(their_chains().is_empty(), add == Prefer::Builtin, "{:?}", their_chains());
    assert_eq!((bed.veths().len(), ifbs()), (2, if add == Prefer::External { 2 } else { 0 }));
    containers[1].serve("0.0.0.0:80");
    deleting.detach_with(&network, &attachments[0], NetnsFate::Stays).unwrap();
    // The neighbour is as it was.
    assert!(ask(&bed.host, "127.0.0.1:8081").is_ok());
    deleting.detach_with(&network, &attachments[1], NetnsFate::Stays).unwrap();
    let what = format!("{add:?}, {del:?}, {told:?}");
    assert_eq!(their_chains(), Vec::<String>::new(), "{what}");
    assert_eq!(bed.leased("peers"), Vec::<std::net::IpAddr>::new(), "{what}");
    // Without a result nothing tells whose interface it is: it goes with its namespace.
    if (del, told) == (Prefer::Builtin, Told::Nothing) {
        for container in &containers {
            Socket::route_in(container.netns.as_fd()).unwrap().delete_link("eth0").unwrap();
        }
    }
    assert_eq!((bed.veths(), ifbs()), (Vec::new(), 0), "{what}");
    assert!(deleting.records().unwrap().0.is_empty(), "{what}");
    if add == Prefer::Builtin {
        // What only we know of goes when we hear of it.
        assert!(!bed.nft_marks().is_empty());
        adding.gc(&network, &Valid::Nothing).unwrap();
        bed.assert_clean("peers");
    }
}

#[test]
fn b18_chains_of_plugins_from_both_work_and_leave_nothing() {
    if !have_peers() {
        return;
    }
    // Each list takes what is said of ours from the program of the reference, by a name that is only theirs.
    for theirs in [&["bridge"][..], &["portmap"], &["host-local"], &["bridge", "firewall"]] {
        on_a_host(|bed| {
            let (caller, network) = (bed.caller(Prefer::Builtin), reference_network(bed));
            let mut text = network.to_text();
            for kind in theirs {
                let name = format!("reference-{kind}");
                bed.script(&name, &format!("exec /usr/lib/cni/{kind}"));
                text = text.replace(&format!("\"type\":\"{kind}\""), &format!("\"type\":\"{name}\""));
            }
            let network = list(&text);
            let one = bed.container("one");
            let mut attachment = one.attachment();
            attachment.capabilities.port_mappings = vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Tcp,
                host_ip: None,
            }];
            caller.attach(&network, &attachment).unwrap();
            one.serve("0.0.0.0:80");
            assert!(ask(&bed.host, "127.0.0.1:8080").is_ok(), "{theirs:?}");
            caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
            assert_eq!(their_chains(), Vec::<String>::new(), "{theirs:?}");
            bed.assert_clean("peers");
        });
    }
}
