//! Limits of throughput.

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cofferdam_cni::{Bandwidth, NetnsFate, Prefer, Valid};
use cofferdam_linux::namespace::with_netns;
use cofferdam_linux::netlink::Socket;
use serde_json::{Value, json};

use crate::bed::{Bed, eth0, interface, on_a_host};

const MEGABIT: u64 = 1_000_000;
/// Headers of Ethernet, IP and UDP, which are counted as well.
const HEADER_BYTES: usize = 42;
const WARM_UP: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(600);

fn socket(netns: &OwnedFd, address: &str) -> UdpSocket {
    with_netns(netns.as_fd(), || UdpSocket::bind(address).unwrap()).unwrap()
}

/// What arrives in bits a second of more than twice as much as may.
fn throughput(from: (&OwnedFd, &str), to: (&OwnedFd, &str), limit: u64) -> f64 {
    const STEP: Duration = Duration::from_millis(5);
    let (sender, receiver) = (socket(from.0, from.1), socket(to.0, to.1));
    receiver.set_read_timeout(Some(STEP * 4)).unwrap();
    let target = receiver.local_addr().unwrap();
    let packet = [0_u8; 1400];
    let a_step = (limit as f64 / 8.0 * STEP.as_secs_f64() * 2.5 / packet.len() as f64) as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            while begun.elapsed() < WARM_UP + MEASURED {
                (0..a_step).for_each(|_| drop(sender.send_to(&packet, target)));
                std::thread::sleep(STEP);
            }
        });
        let (begun, mut bytes, mut buffer) = (Instant::now(), 0, [0; 2000]);
        while begun.elapsed() < WARM_UP + MEASURED {
            let Ok(length) = receiver.recv(&mut buffer) else { continue };
            if begun.elapsed() > WARM_UP {
                bytes += length + HEADER_BYTES;
            }
        }
        bytes as f64 * 8.0 / MEASURED.as_secs_f64()
    })
}

fn network(bed: &Bed, name: &str, subnet: &str) -> cofferdam_cni::NetworkList {
    let ipam = json!({ "type": "host-local", "dataDir": "LEASES", "ranges": [[{ "subnet": subnet }]] });
    let plugins: Value = json!([
        { "type": "bridge", "bridge": name, "isGateway": true, "ipam": ipam },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
    ]);
    bed.network(name, plugins)
}

#[test]
fn b13_both_interfaces_of_a_container_are_limited_in_both_directions() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let networks = [network(bed, "slow", "10.71.0.0/24"), network(bed, "fast", "10.72.0.0/24")];
        let one = bed.container("one");
        let limits = [(8 * MEGABIT, 16 * MEGABIT), (32 * MEGABIT, 24 * MEGABIT)];
        for (at, (network, (ingress_rate, egress_rate))) in networks.iter().zip(limits).enumerate() {
            let mut attachment = one.attachment();
            attachment.if_name = interface(&format!("eth{at}"));
            let (ingress_burst, egress_burst) = (200_000, 200_000);
            attachment.capabilities.bandwidth =
                Some(Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst });
            caller.attach(network, &attachment).unwrap();
        }
        for (subnet, (to_container, from_container)) in ["10.71.0", "10.72.0"].iter().zip(limits) {
            let (host, container) = (format!("{subnet}.1:0"), format!("{subnet}.2:0"));
            let into = throughput((&bed.host, &host), (&one.netns, &container), to_container);
            let out = throughput((&one.netns, &container), (&bed.host, &host), from_container);
            for (measured, limit) in [(into, to_container), (out, from_container)] {
                let ratio = measured / limit as f64;
                assert!((0.85..=1.15).contains(&ratio), "{measured} bits a second instead of {limit}");
            }
        }

        let mut host = Socket::route().unwrap();
        let ifbs = |host: &mut Socket| {
            let links = host.links().unwrap();
            links.into_iter().filter(|link| link.kind.as_deref() == Some("ifb")).collect::<Vec<_>>()
        };
        let all = ifbs(&mut host);
        assert_eq!(all.len(), 2);
        let check = || caller.check(&networks[0].name, &one.id, &eth0());
        check().unwrap();
        let before = bed.facts(&one);
        check().unwrap();
        assert_eq!(bed.facts(&one), before);
        let slow = all.iter().find(|link| link.alias == "slow/one/eth0").unwrap();
        let inner = Socket::route_in(one.netns.as_fd()).unwrap().link("eth0").unwrap().peer.unwrap();
        let fails = |what: &str| {
            let error = check().unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        host.delete_queues(inner).unwrap();
        fails("is not limited instead of 1000000");
        host.add_token_bucket(inner, host_bucket()).unwrap();
        fails("does not go through ifb");
        host.redirect_ingress(inner, slow.index).unwrap();
        check().unwrap();
        host.delete_link(&slow.name).unwrap();
        fails("is gone or down");

        caller.gc(&networks[1], &Valid::Only(vec![(one.id.clone(), interface("eth1"))])).unwrap();
        caller.check(&networks[1].name, &one.id, &interface("eth1")).unwrap();
        std::fs::remove_file(bed.dir.path().join("state/results/fast-one-eth1")).unwrap();
        caller.gc(&networks[1], &Valid::Nothing).unwrap();
        assert_eq!(ifbs(&mut host), []);
        caller.detach(&networks[0].name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        bed.assert_clean("slow");
        bed.assert_clean("fast");
    });
}

fn host_bucket() -> cofferdam_linux::netlink::TokenBucket {
    let rate_bytes = MEGABIT;
    cofferdam_linux::netlink::TokenBucket { rate_bytes, burst_bytes: 25_000, limit_bytes: 50_000 }
}

#[test]
fn a_limit_without_a_burst_is_refused_and_none_at_all_makes_nothing() {
    on_a_host(|bed| {
        let (caller, one) = (bed.caller(Prefer::Builtin), bed.container("one"));
        let network = network(bed, "slow", "10.71.0.0/24");
        let mut attachment = one.attachment();
        attachment.capabilities.bandwidth = Some(Bandwidth { ingress_rate: MEGABIT, ..Bandwidth::default() });
        let error = caller.attach(&network, &attachment).unwrap_err().to_string();
        assert!(error.contains("ingressRate and ingressBurst"), "{error}");
        bed.assert_clean("slow");
        caller.attach(&network, &one.attachment()).unwrap();
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        bed.assert_clean("slow");
    });
}
