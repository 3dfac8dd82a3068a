//! Port maps and forwarding.

use std::net::{TcpListener, UdpSocket};

use cofferdam_cni::{Attachment, Kind, NetnsFate, PortMapping, Prefer, Protocol};
use cofferdam_linux::netlink::Socket;
use cofferdam_linux::nft::{Batch, ChainHook, Family, Hook, Policy, Priority};

use crate::bed::{Container, ask, eth0, is_cut_off, on_a_host};

pub(crate) fn map(container: &Container, mappings: &[(u16, u16, Protocol, Option<&str>)]) -> Attachment {
    let mut attachment = container.attachment();
    attachment.capabilities.port_mappings = mappings
        .iter()
        .map(|(host_port, container_port, protocol, host_ip)| PortMapping {
            host_port: *host_port,
            container_port: *container_port,
            protocol: *protocol,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        })
        .collect();
    attachment
}

pub(crate) const TCP: Protocol = Protocol::Tcp;

#[test]
fn a_mapped_port_answers_from_everywhere() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, two, outside) = (bed.container("one"), bed.container("two"), bed.outside());
        caller
            .attach(&network, &map(&one, &[(8080, 80, TCP, None), (9090, 80, TCP, Some("127.0.0.1"))]))
            .unwrap();
        caller.attach(&network, &two.attachment()).unwrap();
        one.serve("[::]:80");
        assert_eq!(ask(&outside.netns, "203.0.113.1:8080").unwrap().to_string(), "::ffff:203.0.113.2");
        assert_eq!(ask(&outside.netns, "[fd00:113::1]:8080").unwrap().to_string(), "fd00:113::2");
        assert!(ask(&bed.host, "127.0.0.1:8080").is_ok());
        assert!(ask(&bed.host, "203.0.113.1:8080").is_ok());
        assert!(ask(&bed.host, "[fd00:113::1]:8080").is_ok());
        assert!(ask(&bed.host, "127.0.0.1:9090").is_ok());
        // A neighbour and the container itself.
        assert_eq!(ask(&two.netns, "203.0.113.1:8080").unwrap().to_string(), "::ffff:10.88.0.1");
        assert_eq!(ask(&one.netns, "10.88.0.1:8080").unwrap().to_string(), "::ffff:10.88.0.1");
        assert_eq!(ask(&one.netns, "[fd00:113::1]:8080").unwrap().to_string(), "fd00:88::1");
        // Only where it was asked for.
        assert!(is_cut_off(&outside.netns, "203.0.113.1:9090"));
        caller.check(&network.name, &one.id, &eth0()).unwrap();

        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        assert!(is_cut_off(&outside.netns, "203.0.113.1:8080"));
        caller.detach(&network.name, &two.id, &eth0(), NetnsFate::Stays).unwrap();
        Socket::route().unwrap().delete_link("down").unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn b9_a_taken_port_is_refused_and_its_holder_named() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, two) = (bed.container("one"), bed.container("two"));
        caller.attach(&network, &map(&one, &[(8080, 80, TCP, None), (53, 53, Protocol::Udp, None)])).unwrap();
        let refused = |mappings: &[_], says: &[&str]| {
            let error = caller.attach(&network, &map(&two, mappings)).unwrap_err();
            assert_eq!(error.kind(), Kind::Conflict, "{error}");
            for part in says {
                assert!(error.to_string().contains(part), "{part} in {error}");
            }
            assert_eq!(bed.veths().len(), 1);
            assert!(bed.nft_marks().iter().all(|mark| mark == "bridge/one/eth0"));
        };
        refused(
            &[(7000, 80, TCP, None), (8080, 81, TCP, None)],
            &["port 8080/tcp is already in use", "container one"],
        );
        refused(
            &[(8080, 81, TCP, Some("127.0.0.1"))],
            &["127.0.0.1:8080/tcp is already in use", "container one"],
        );
        refused(&[(53, 53, Protocol::Udp, None)], &["port 53/udp is already in use", "container one"]);
        let _listener = TcpListener::bind("0.0.0.0:7070").unwrap();
        refused(&[(7070, 80, TCP, None)], &["port 7070/tcp is already in use", "program on this host"]);
        let _socket = UdpSocket::bind("[::]:7071").unwrap();
        refused(
            &[(7071, 80, Protocol::Udp, None)],
            &["port 7071/udp is already in use", "program on this host"],
        );

        // The same port in another protocol, and of two addresses, is fine.
        let both = [
            (8080, 80, Protocol::Udp, None),
            (6000, 80, TCP, Some("127.0.0.1")),
            (6000, 81, TCP, Some("127.0.0.2")),
        ];
        caller.attach(&network, &map(&two, &both)).unwrap();
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        caller.detach_all(&two.id, NetnsFate::Stays).unwrap();
        let twice = [(8080, 80, TCP, None), (8080, 81, TCP, None)];
        let error = caller.attach(&network, &map(&two, &twice)).unwrap_err();
        assert!(error.to_string().contains("8080/tcp is mapped twice"), "{error}");
        bed.assert_clean("bridge");
    });
}

#[test]
fn b19_forwarding_works_although_the_host_drops_it_by_policy() {
    on_a_host(|bed| {
        let mut nft = Socket::netfilter().unwrap();
        let mut batch = Batch::new(Family::Ipv4, "filter");
        batch.create_table();
        let drop = ChainHook { hook: Hook::Forward, priority: Priority::Filter, policy: Policy::Drop };
        batch.add_chain("FORWARD", Some(drop));
        nft.commit(&batch).unwrap();

        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, outside) = (bed.container("one"), bed.outside());
        caller.attach(&network, &map(&one, &[(8080, 80, TCP, None)])).unwrap();
        one.serve("0.0.0.0:80");
        assert!(ask(&outside.netns, "203.0.113.1:8080").is_ok());
        outside.serve("0.0.0.0:70");
        assert!(ask(&one.netns, "203.0.113.2:70").is_ok());
        assert!(is_cut_off(&outside.netns, "10.88.0.2:80"), "only what is mapped");
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        assert_eq!(nft.rules(Family::Ipv4, "filter", "FORWARD").unwrap(), []);
        Socket::route().unwrap().delete_link("down").unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn containers_cannot_reach_the_hosts_loopback() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let one = bed.container("one");
        caller.attach(&network, &map(&one, &[(8080, 80, TCP, None)])).unwrap();
        crate::bed::serve(&bed.host, "127.0.0.1:5000");
        let route = "/proc/sys/net/ipv4/conf/eth0/route_localnet";
        use std::os::fd::AsFd;
        cofferdam_linux::namespace::with_netns(one.netns.as_fd(), || std::fs::write(route, "1").unwrap())
            .unwrap();
        let mut inside = Socket::route_in(one.netns.as_fd()).unwrap();
        let lo = inside.link("lo").unwrap().index;
        inside.delete_address(lo, crate::bed::address("127.0.0.1", 8)).unwrap();
        let eth0_index = inside.link("eth0").unwrap().index;
        let to = crate::bed::address("127.0.0.0", 8);
        let by = Some("10.88.0.1".parse().unwrap());
        inside.add_route(&cofferdam_linux::netlink::Route::new(to, by, eth0_index)).unwrap();
        assert!(is_cut_off(&one.netns, "127.0.0.1:5000"));
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn a_udp_flow_that_began_before_its_port_was_mapped_reaches_the_container() {
    use std::os::fd::AsFd;
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, two, outside) = (bed.container("one"), bed.container("two"), bed.outside());
        caller.attach(&network, &two.attachment()).unwrap();
        let socket = |netns: &std::os::fd::OwnedFd, address: &str| {
            cofferdam_linux::namespace::with_netns(netns.as_fd(), || UdpSocket::bind(address).unwrap())
                .unwrap()
        };
        let client = socket(&outside.netns, "203.0.113.2:5000");
        client.set_read_timeout(Some(crate::bed::PATIENCE)).unwrap();
        client.send_to(b"early", "203.0.113.1:5353").unwrap();

        caller.attach(&network, &map(&one, &[(5353, 53, Protocol::Udp, None)])).unwrap();
        let server = socket(&one.netns, "0.0.0.0:53");
        server.set_read_timeout(Some(crate::bed::PATIENCE)).unwrap();
        client.send_to(b"late", "203.0.113.1:5353").unwrap();
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"late");
        server.send_to(b"answer", from).unwrap();
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.to_string().as_str()), (&b"answer"[..], "203.0.113.1:5353"));
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        caller.detach_all(&two.id, NetnsFate::Stays).unwrap();
        Socket::route().unwrap().delete_link("down").unwrap();
        bed.assert_clean("bridge");
    });
}
