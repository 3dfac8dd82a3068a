//! kill -9 at every request to the kernel: what is left is cleaned by DEL, or by GC where even the record is gone.

use std::process::{Command, Stdio};

use cofferdam_cni::{NetnsFate, Prefer, Valid};
use serde_json::json;

use crate::bed::{Bed, eth0, exists, on_a_host};

/// Every call of these may be the last: requests by netlink, and changes of files. They are counted for each thread.
const CALLS: &str = "sendto,write,rename,renameat,renameat2,unlink,unlinkat";
/// More than an ADD or a DEL makes.
const MOST: usize = 400;

/// Runs a test of this program that attaches or detaches, killed at the given call; tells whether it ran to its end.
fn killed_at(bed: &Bed, test: &str, call: usize) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null"])
        .args(["-e", &format!("trace={CALLS}"), "-e", &format!("inject={CALLS}:signal=SIGKILL:when={call}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--test-threads", "1"])
        .env("COFFERDAM_TEST_BED", bed.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success()
}

/// Not a test of its own: the process that the next test kills.
#[test]
#[ignore = "started by the test below"]
fn a_process_that_detaches_and_is_killed() {
    let Ok(dir) = std::env::var("COFFERDAM_TEST_BED") else { return };
    let mut options = cofferdam_cni::Options::new(format!("{dir}/state"));
    options.builtins = cofferdam_cni_plugins::BUILTINS;
    let caller = cofferdam_cni::Caller::open(options).unwrap();
    caller.detach_all(&cofferdam_cni::ContainerId::parse("one").unwrap(), NetnsFate::Stays).unwrap();
}

#[test]
fn v3_a_kill_at_every_request_to_the_kernel_leaves_nothing_that_del_or_gc_does_not_clean() {
    if !exists("/usr/bin/strace") {
        println!("skipped: needs strace");
        return;
    }
    on_a_host(|bed| {
        let network = bed.network(
            "kill",
            json!([
                { "type": "bridge", "bridge": "kill0", "isGateway": true, "ipMasq": true,
                  "ipam": { "type": "host-local", "dataDir": "LEASES",
                    "ranges": [[{ "subnet": "10.95.0.0/24" }], [{ "subnet": "fd95::/64" }]] } },
                { "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
                  "egressRate": 8_000_000, "egressBurst": 800_000 },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "firewall" },
                { "type": "tuning", "mtu": 1400, "dataDir": "LEASES/tuning",
                  "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } },
            ]),
        );
        std::fs::write(bed.dir.path().join("network"), network.to_text()).unwrap();
        let caller = bed.caller(Prefer::Builtin);
        let one = bed.container("one");
        let is_attached = |dir: &Bed| dir.dir.path().join("state/results/kill-one-eth0").exists();
        let (mut attached, mut detached) = (0, 0);
        for call in 1..MOST {
            let through = killed_at(bed, "a_process_that_attaches_and_is_killed", call);
            if call % 2 == 0 && !through {
                // Even the record is lost.
                let _ = std::fs::remove_file(bed.dir.path().join("state/results/kill-one-eth0"));
                caller.gc(&network, &Valid::Nothing).unwrap();
            }
            caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
            bed.assert_clean("kill");
            if through {
                attached = call;
                break;
            }
        }
        for call in 1..MOST {
            let mut attachment = one.attachment();
            attachment.capabilities.port_mappings = vec![crate::processes::port(8080)];
            caller.attach(&network, &attachment).unwrap();
            let through = killed_at(bed, "kills::a_process_that_detaches_and_is_killed", call);
            assert!(!through || !is_attached(bed));
            caller.detach(&network.name, &one.id, &eth0(), NetnsFate::Stays).unwrap();
            caller.detach_all(&one.id, NetnsFate::Stays).unwrap();
            bed.assert_clean("kill");
            if through {
                detached = call;
                break;
            }
        }
        println!("killed at each of {attached} calls of ADD and {detached} of DEL");
        assert!(attached > 10 && detached > 10);
    });
}
