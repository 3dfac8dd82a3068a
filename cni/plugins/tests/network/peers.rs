//! Side by side with the reference plugins of Debian's containernetworking-plugins.

use cofferdam_cni::{Implementation, NetnsFate, PortMapping, Prefer, Protocol};

use crate::bed::{Bed, ask, eth0, exists, ip, list, on_a_host};

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
        let (ours, theirs) = (bed.caller(Prefer::Builtin), bed.caller(Prefer::External));
        let containers: Vec<_> = (0..12).map(|n| bed.container(&format!("c{n}"))).collect();
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
        assert_eq!(addresses.len(), 12);
        // Each is freed by the other: drop the record's word on who did it.
        for (at, container) in containers.iter().enumerate() {
            let caller = if at % 2 == 0 { &theirs } else { &ours };
            caller.detach_with(&network, &container.attachment(), NetnsFate::Stays).unwrap();
        }
        bed.assert_clean("shared");
    });
}
