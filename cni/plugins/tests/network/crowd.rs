//! What an attachment costs among many: the same requests, the same bytes, the same files, however many others there are.
//!
//! Times would say more and are worth less: others share the machine. What can grow with the number of attachments is
//! counted instead, by strace: every system call of one ADD, CHECK, DEL, and what came back by netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam_cni::{
    Attachment, Caller, ContainerId, NetnsFate, NetworkList, Options, PortMapping, Protocol,
};
use cofferdam_cni_plugins::BUILTINS;
use serde_json::json;

use crate::bed::{Bed, Container, eth0, exists, interface, on_a_host};

/// Interfaces of one container of the crowd: a namespace each would take longer than what is counted.
const INTERFACES: u32 = 50;
/// What is waited by, and memory: they follow the machine's mood.
const NOT_COUNTED: &[&str] =
    &["futex", "mmap", "munmap", "mprotect", "madvise", "brk", "sched_yield", "rt_sigreturn", "mremap"];

/// A file that is not there; who asks for it says that the verb begins, or that it is over.
const MARK: &str = "/cofferdam-counts-from-here";

fn caller(dir: &Path) -> Caller {
    Caller::open(Options { builtins: BUILTINS, ..Options::new(dir.join("state")) }).unwrap()
}

/// What most of the crowd have is a lease, a record and elements of nft sets: a thousand links would keep the kernel's one lock
/// for links from everybody on this machine for seconds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Bridge,
    None,
}

fn network(bed: &Bed, link: Link) -> NetworkList {
    let ipam = json!({ "type": "host-local", "dataDir": "LEASES",
        "ranges": [[{ "subnet": "10.96.0.0/16" }], [{ "subnet": "fd96::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] });
    let first = match link {
        Link::Bridge => {
            json!({ "type": "bridge", "bridge": "crowd0", "isGateway": true, "ipMasq": true, "ipam": ipam })
        }
        Link::None => json!({ "type": "host-local", "ipam": ipam }),
    };
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    bed.network("crowd", json!([first, portmap, { "type": "firewall" }]))
}

fn with_port(mut attachment: Attachment, host_port: u16) -> Attachment {
    attachment.capabilities.port_mappings =
        vec![PortMapping { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip: None }];
    attachment
}

/// Not a test of its own: the process whose system calls are counted.
#[test]
#[ignore = "started by the test below"]
fn a_process_that_is_counted() {
    let Ok(dir) = std::env::var("COFFERDAM_TEST_BED") else { return };
    let dir = Path::new(&dir);
    let caller = caller(dir);
    let id = ContainerId::parse("one").unwrap();
    let network = NetworkList::parse(&std::fs::read_to_string(dir.join("network")).unwrap(), None).unwrap();
    // What a process learns once is no part of the verb, nor is how it begins and ends.
    caller.detach(&network.name, &ContainerId::parse("unknown").unwrap(), &eth0(), NetnsFate::Stays).unwrap();
    let mark = || _ = std::fs::metadata(MARK);
    mark();
    match std::env::var("COFFERDAM_TEST_VERB").unwrap().as_str() {
        "ADD" => {
            let attachment = Attachment::new(id, dir.join("netns-one"), eth0());
            caller.attach(&network, &with_port(attachment, 8080)).unwrap();
        }
        "CHECK" => caller.check(&network.name, &id, &eth0()).unwrap(),
        _ => caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap(),
    }
    cofferdam_cni_plugins::finish_announcements();
    mark();
}

/// What a verb costs: how often each system call was made, and how many bytes netlink sockets gave.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    calls: BTreeMap<String, u32>,
    received_bytes: u64,
}

fn cost(bed: &Bed, verb: &str) -> Cost {
    let trace = bed.dir.path().join("trace");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "crowd::a_process_that_is_counted", "--ignored", "--test-threads", "1"])
        .env("COFFERDAM_TEST_BED", bed.dir.path())
        .env("COFFERDAM_TEST_VERB", verb)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{verb}");
    let text = std::fs::read_to_string(&trace).unwrap();
    if let Some(folder) = std::env::var_os("COFFERDAM_TEST_KEEP") {
        let count = bed.leased("crowd").len();
        std::fs::copy(&trace, Path::new(&folder).join(format!("{verb}-{count}"))).unwrap();
    }
    read_trace(text.split(MARK).nth(1).unwrap())
}

/// Reads lines `PID call(arguments) = result`; one that another thread's call interrupts is two lines,
/// `PID call(arguments <unfinished ...>` and `PID <... call resumed>) = result`.
fn read_trace(text: &str) -> Cost {
    let mut cost = Cost::default();
    let mut waits: BTreeSet<&str> = BTreeSet::new();
    for line in text.lines().skip(1) {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        let line = line.trim_start();
        let name = line.trim_start_matches("<... ").split(['(', ' ']).next().unwrap();
        if NOT_COUNTED.contains(&name) || line.starts_with("+++") {
            continue;
        }
        let is_resumed = line.starts_with("<...");
        // Whoever waits for a link to get carrier hears what becomes of it in as many steps as it takes: neither call counts.
        if name == "setsockopt" && line.contains("SO_RCVTIMEO") {
            waits.insert(thread);
            continue;
        }
        let waited = match (name, is_resumed, line.contains("<unfinished")) {
            ("recvfrom", _, true) => waits.contains(thread),
            ("recvfrom", _, false) => waits.remove(thread),
            _ => {
                waits.remove(thread);
                false
            }
        };
        if waited {
            continue;
        }
        if !is_resumed {
            *cost.calls.entry(name.to_owned()).or_default() += 1;
        }
        if name == "recvfrom" {
            let result = line.rsplit_once(" = ").and_then(|(_, result)| result.split(' ').next());
            cost.received_bytes += result.and_then(|result| result.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    cost
}

#[test]
fn p4_add_check_and_del_cost_the_same_calls_and_bytes_among_a_thousand_as_among_ten() {
    if !exists("/usr/bin/strace") {
        println!("skipped: needs strace");
        return;
    }
    on_a_host(|bed| {
        let caller = caller(bed.dir.path());
        std::fs::write(bed.dir.path().join("network"), network(bed, Link::Bridge).to_text()).unwrap();
        let _one = bed.container("one");
        let mut containers: Vec<Container> = Vec::new();
        let mut crowd = 0_u32..;
        let mut grow = |count: u32, link: Link| {
            let network = network(bed, link);
            for number in crowd.by_ref().take(usize::try_from(count).unwrap()) {
                if number % INTERFACES == 0 {
                    containers.push(bed.container(&format!("c{number}")));
                }
                let mut attachment = containers.last().unwrap().attachment();
                attachment.if_name = interface(&format!("eth{}", number % INTERFACES));
                let port = 20_000 + u16::try_from(number).unwrap();
                caller.attach(&network, &with_port(attachment, port)).unwrap();
            }
        };
        grow(10, Link::Bridge);
        let verbs = ["ADD", "CHECK", "DEL"];
        let few = verbs.map(|verb| cost(bed, verb));
        grow(90, Link::Bridge);
        grow(900, Link::None);
        let many = verbs.map(|verb| cost(bed, verb));
        for ((verb, few), many) in verbs.iter().zip(&few).zip(&many) {
            println!("{verb}: {few:?}");
            assert_eq!(many, few, "{verb} costs more among many");
        }
    });
}
