//! The built-in plugins and the caller against a kernel: every test has a network namespace that plays the host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod bandwidth;
mod bed;
mod bridge;
mod chain;
mod crowd;
mod kills;
mod kinds;
mod nodes;
mod peers;
mod policy;
mod ports;
mod processes;
mod tamper;

use std::os::fd::AsFd;

use bed::{Bed, ask, eth0, ip, list, on_a_host, wait_until};
use cofferdam_cni::{Capabilities, Error, Kind, NetnsFate, Prefer, RecordState, Valid};
use cofferdam_cni_plugins::{DefaultNetwork, remove_host_parts};
use cofferdam_linux::netlink::Socket;

#[test]
fn two_containers_reach_each_other_the_host_and_the_world_and_leave_nothing() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, two) = (bed.container("one"), bed.container("two"));
        let first = caller.attach(&network, &one.attachment()).unwrap();
        let second = caller.attach(&network, &two.attachment()).unwrap();
        assert_eq!(ip(&first, true).to_string(), "10.88.0.2");
        assert_eq!(ip(&second, true).to_string(), "10.88.0.3");
        assert_eq!(first.interfaces[0].name, "cofferdam0");
        two.serve("[::]:80");
        // Neighbours see each other's own address.
        assert_eq!(ask(&one.netns, "10.88.0.3:80").unwrap().to_string(), "::ffff:10.88.0.2");
        assert_eq!(ask(&one.netns, "[fd00:88::3]:80").unwrap().to_string(), "fd00:88::2");
        assert_eq!(ask(&bed.host, "10.88.0.3:80").unwrap().to_string(), "::ffff:10.88.0.1");
        bed::serve(&bed.host, "0.0.0.0:90");
        assert_eq!(ask(&one.netns, "10.88.0.1:90").unwrap().to_string(), "10.88.0.2");
        // The world sees the host's.
        let outside = bed.outside();
        outside.serve("[::]:70");
        assert_eq!(ask(&one.netns, "203.0.113.2:70").unwrap().to_string(), "::ffff:203.0.113.1");
        assert_eq!(ask(&one.netns, "[fd00:113::2]:70").unwrap().to_string(), "fd00:113::1");

        for container in [&one, &two] {
            caller.check(&network.name, &container.id, &eth0()).unwrap();
            caller.detach(&network.name, &container.id, &eth0(), NetnsFate::Stays).unwrap();
            caller.detach(&network.name, &container.id, &eth0(), NetnsFate::Stays).unwrap();
        }
        Socket::route().unwrap().delete_link("down").unwrap();
        bed.assert_clean("bridge");
        remove_host_parts(Some(DefaultNetwork::BRIDGE)).unwrap();
        assert_eq!(Socket::route().unwrap().find_link(DefaultNetwork::BRIDGE).unwrap(), None);
    });
}

#[test]
fn a_detach_before_the_namespace_ends_is_quick_and_leaks_nothing() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let one = bed.container("one");
        caller.attach(&network, &one.attachment()).unwrap();
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Ends).unwrap();
        drop(one);
        wait_until("the end of the veth pair", || bed.veths().is_empty());
        bed.assert_clean("bridge");
    });
}

#[test]
fn b5_a_namespace_that_vanished_does_not_stop_the_detach() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let one = bed.container("one");
        caller.attach(&network, &one.attachment()).unwrap();
        let id = one.id.clone();
        drop(one);
        caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap();
        wait_until("the end of the veth pair", || bed.veths().is_empty());
        bed.assert_clean("bridge");
    });
}

#[test]
fn a_second_attachment_of_the_same_interface_is_refused_and_the_first_stays_whole() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let one = bed.container("one");
        caller.attach(&network, &one.attachment()).unwrap();
        let error = caller.attach(&network, &one.attachment()).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        let other =
            DefaultNetwork { bridge: "other0".into(), ..DefaultNetwork::probe(bed.leases()).unwrap() };
        let mut other = other.list().unwrap();
        other.name = cofferdam_cni::NetworkName::parse("other").unwrap();
        let error = caller.attach(&other, &one.attachment()).unwrap_err();
        assert!(error.to_string().contains("already has an interface eth0"), "{error}");
        assert_eq!(bed.leased("other").len(), 0);
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn check_sees_what_was_tampered_with() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let one = bed.container("one");
        caller.attach(&network, &one.attachment()).unwrap();
        let fails = |what: &str| {
            let error = caller.check(&network.name, &one.id, &eth0()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        let mut inside = Socket::route_in(one.netns.as_fd()).unwrap();
        let link = inside.link("eth0").unwrap().index;
        let default =
            inside.routes().unwrap().into_iter().find(|route| route.destination.prefix == 0).unwrap();
        inside.delete_route(&default).unwrap();
        fails("the route to 0.0.0.0/0 is gone");
        inside.delete_address(link, bed::address("10.88.0.2", 16)).unwrap();
        fails("lacks 10.88.0.2/16");
        Socket::route().unwrap().delete_link(&bed.veths()[0]).unwrap();
        fails("is gone");
        std::fs::remove_file(bed.leases().join("bridge/10.88.0.2")).unwrap();
        fails("not leased");
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        bed.assert_clean("bridge");
        let unknown = caller.check(&network.name, &one.id, &eth0()).unwrap_err();
        assert_eq!(unknown.kind(), Kind::NotFound);
    });
}

#[test]
fn a_chain_that_fails_half_way_is_undone_in_reverse_and_the_failure_says_who_and_why() {
    on_a_host(|bed| {
        bed.script("broken", "echo \"$CNI_COMMAND\" >> \"$CNI_PATH_LOG\"; cat >/dev/null
            [ $CNI_COMMAND = ADD ] || exit 0
            echo 'about to fail' >&2
            echo '{\"cniVersion\":\"1.0.0\",\"code\":107,\"msg\":\"no luck\",\"details\":\"none at all\"}'; exit 1"
            .replace("$CNI_PATH_LOG", &bed.dir.path().join("log").display().to_string()).as_str());
        let mut network = bed.default_network();
        let text = network.to_text().replace(r#"{"type":"firewall"}"#, r#"{"type":"broken"}"#);
        network = list(&text);
        let caller = bed.caller(Prefer::Auto);
        let one = bed.container("one");
        let error = caller.attach(&network, &one.attachment()).unwrap_err();
        let said = error.to_string();
        for part in [
            "plugin broken",
            "ADD",
            "network bridge",
            "container one",
            "no luck",
            "none at all",
            "107",
            "about to fail",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert_eq!(std::fs::read_to_string(bed.dir.path().join("log")).unwrap(), "ADD\nDEL\n");
        bed.assert_clean("bridge");
        assert!(Socket::route_in(one.netns.as_fd()).unwrap().find_link("eth0").unwrap().is_none());
    });
}

#[test]
fn b6_gc_keeps_what_is_valid_and_takes_the_rest() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let (one, two) = (bed.container("one"), bed.container("two"));
        caller.attach(&network, &one.attachment()).unwrap();
        caller.attach(&network, &two.attachment()).unwrap();
        // What no record knows is found by the plugins themselves.
        std::fs::remove_file(bed.dir.path().join("state/results/bridge-two-eth0")).unwrap();
        caller.gc(&network, &Valid::Only(vec![(one.id.clone(), eth0())])).unwrap();
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        assert!(bed.nft_marks().iter().all(|mark| mark == "bridge/one/eth0"));
        assert_eq!(bed.leased("bridge").len(), 2, "both addresses of one");
        drop(two);
        caller.gc(&network, &Valid::Nothing).unwrap();
        wait_until("the end of the veth pairs", || bed.veths().is_empty());
        bed.assert_clean("bridge");
    });
}

#[test]
fn b4_addresses_and_hardware_addresses_can_be_asked_for_and_a_pool_runs_dry() {
    on_a_host(|bed| {
        let caller = bed.caller(Prefer::Builtin);
        let mut network = DefaultNetwork::probe(bed.leases()).unwrap();
        network.subnets = vec!["10.99.0.0/30".parse().unwrap()];
        let network = network.list().unwrap();
        let (one, two) = (bed.container("one"), bed.container("two"));
        caller.status(&network).unwrap();
        let mut wish = one.attachment();
        wish.capabilities = Capabilities {
            ips: vec!["10.99.0.2".into()],
            mac: Some("02:00:00:00:00:99".into()),
            ..Capabilities::default()
        };
        let result = caller.attach(&network, &wish).unwrap();
        assert_eq!(ip(&result, true).to_string(), "10.99.0.2");
        assert_eq!(result.interfaces[2].mac, "02:00:00:00:00:99");
        wish.container = two.id.clone();
        wish.netns.clone_from(&two.path);
        let error = caller.attach(&network, &wish).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains("10.99.0.2 is already leased to container one"), "{error}");
        let error = caller.attach(&network, &two.attachment()).unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
        assert!(error.to_string().contains("10.99.0.1-10.99.0.2"), "{error}");
        assert!(
            matches!(caller.status(&network), Err(Error::Plugin(failure)) if failure.code.unwrap().0 == 50)
        );
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        caller.status(&network).unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn bad_requests_are_refused_before_anything_is_touched() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let one = bed.container("one");
        let mut missing = one.attachment();
        missing.netns = bed.dir.path().join("nowhere");
        assert!(matches!(caller.attach(&network, &missing), Err(Error::Netns { .. })));
        let mut plain = one.attachment();
        plain.netns = bed.dir.path().join("plain");
        std::fs::write(&plain.netns, "").unwrap();
        assert!(matches!(caller.attach(&network, &plain), Err(Error::Netns { .. })));
        let mut argument = one.attachment();
        argument.args = vec![("K".into(), "a;b=c".into())];
        assert!(matches!(caller.attach(&network, &argument), Err(Error::Argument { .. })));
        let mut bandwidth = one.attachment();
        bandwidth.capabilities.bandwidth = Some(cofferdam_cni::Bandwidth::default());
        let error = caller.attach(&network, &bandwidth).unwrap_err();
        assert!(error.to_string().contains("bandwidth was asked for"), "{error}");
        let own = list(r#"{"name":"own","cniVersion":"1.0.0","plugins":[{"type":"no-such-plugin"}]}"#);
        let error = caller.attach(&own, &one.attachment()).unwrap_err();
        assert!(error.to_string().contains("/usr/lib/cni"), "{error}");
        let mut host = one.attachment();
        host.netns = "/proc/thread-self/ns/net".into();
        let error = caller.attach(&network, &host).unwrap_err();
        assert!(error.to_string().contains("the host's own network namespace"), "{error}");
        bed.assert_clean("bridge");
    });
}

#[test]
fn b21_twenty_first_attachments_at_once_all_succeed_with_addresses_of_their_own() {
    on_a_host(|bed| {
        let (caller, network) = (bed.caller(Prefer::Builtin), bed.default_network());
        let containers: Vec<_> = (0..20).map(|n| bed.container(&format!("c{n}"))).collect();
        let addresses = std::thread::scope(|scope| {
            let threads: Vec<_> = containers
                .iter()
                .map(|container| {
                    let (caller, network) = (&caller, &network);
                    scope.spawn(move || ip(&caller.attach(network, &container.attachment()).unwrap(), true))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<std::collections::BTreeSet<_>>()
        });
        assert_eq!(addresses.len(), 20);
        std::thread::scope(|scope| {
            for container in &containers {
                let (caller, network) = (&caller, &network);
                scope.spawn(move || {
                    caller.detach(&network.name, &container.id, &eth0(), NetnsFate::Stays).unwrap()
                });
            }
        });
        bed.assert_clean("bridge");
    });
}

/// Not a test of its own: the process that the next test kills.
#[test]
#[ignore = "started by the test below"]
fn a_process_that_attaches_and_is_killed() {
    let Ok(dir) = std::env::var("COFFERDAM_TEST_BED") else { return };
    let mut options = cofferdam_cni::Options::new(format!("{dir}/state"));
    options.plugin_path = vec![format!("{dir}/bin").into()];
    options.builtins = cofferdam_cni_plugins::BUILTINS;
    let caller = cofferdam_cni::Caller::open(options).unwrap();
    let network = list(&std::fs::read_to_string(format!("{dir}/network")).unwrap());
    let id = cofferdam_cni::ContainerId::parse("one").unwrap();
    let mut attachment = cofferdam_cni::Attachment::new(id, format!("{dir}/netns-one"), eth0());
    if network.declares("portMappings") {
        attachment.capabilities.port_mappings = vec![processes::port(8080)];
    }
    let _ = caller.attach(&network, &attachment);
}

fn attaching_process(bed: &Bed) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_attaches_and_is_killed", "--ignored"])
        .env("COFFERDAM_TEST_BED", bed.dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

fn killed_in_the_middle(bed: &Bed) -> (bed::Container, cofferdam_cni::NetworkList) {
    let log = bed.dir.path().join("hung");
    bed.script(
        "hang",
        &format!("[ $CNI_COMMAND = ADD ] || exit 0; echo $$ > {}; exec sleep 60", log.display()),
    );
    let network =
        list(&bed.default_network().to_text().replace(r#"{"type":"firewall"}"#, r#"{"type":"hang"}"#));
    std::fs::write(bed.dir.path().join("network"), network.to_text()).unwrap();
    let one = bed.container("one");
    let mut child = attaching_process(bed);
    wait_until("the call of the third plugin", || {
        std::fs::read_to_string(&log).is_ok_and(|pid| pid.ends_with('\n'))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let plugin: i32 = std::fs::read_to_string(&log).unwrap().trim().parse().unwrap();
    let _ = rustix::process::kill_process(
        rustix::process::Pid::from_raw(plugin).unwrap(),
        rustix::process::Signal::KILL,
    );
    (one, network)
}

#[test]
fn what_a_kill_in_the_middle_of_a_chain_leaves_is_cleaned_from_the_record() {
    on_a_host(|bed| {
        let (one, network) = killed_in_the_middle(bed);
        assert_eq!(bed.veths().len(), 1);
        let caller = bed.caller(Prefer::Auto);
        let (records, problems) = caller.records().unwrap();
        assert!(problems.is_empty());
        assert_eq!(records[0].state(), RecordState::Adding);
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn an_attachment_that_was_killed_in_the_middle_can_be_made_again() {
    on_a_host(|bed| {
        let (one, _) = killed_in_the_middle(bed);
        let (caller, network) = (bed.caller(Prefer::Auto), bed.default_network());
        caller.attach(&network, &one.attachment()).unwrap();
        caller.check(&network.name, &one.id, &eth0()).unwrap();
        caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
        bed.assert_clean("bridge");
    });
}

#[test]
fn v3_a_kill_at_any_moment_leaves_nothing_that_the_record_does_not_clean() {
    on_a_host(|bed| {
        let network = bed.default_network();
        std::fs::write(bed.dir.path().join("network"), network.to_text()).unwrap();
        let one = bed.container("one");
        // First run whole, to learn how long it takes and to make what stays.
        let begun = std::time::Instant::now();
        let status = attaching_process(bed).wait().unwrap();
        let whole = begun.elapsed();
        assert!(status.success());
        let caller = bed.caller(Prefer::Builtin);
        const ROUNDS: u32 = 40;
        for round in 0..ROUNDS {
            caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
            bed.assert_clean("bridge");
            let mut child = attaching_process(bed);
            std::thread::sleep(whole * round / ROUNDS);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        caller
            .attach(&network, &one.attachment())
            .or_else(
                |error| {
                    if error.kind() == Kind::AlreadyExists { Ok(Default::default()) } else { Err(error) }
                },
            )
            .unwrap();
        caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
        bed.assert_clean("bridge");
    });
}
