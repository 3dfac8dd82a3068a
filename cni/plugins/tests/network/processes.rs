//! Many processes at once on one network and one state directory.

use std::process::{Child, Command, Stdio};

use cofferdam_cni::{
    Attachment, Caller, ContainerId, Kind, NetnsFate, Options, PortMapping, Prefer, Protocol, Valid,
};
use cofferdam_cni_plugins::BUILTINS;

use crate::bed::{Bed, eth0, ip, list, on_a_host};

/// How often GC is called while others come and go.
const COLLECTIONS: usize = 8;

pub(crate) fn port(host_port: u16) -> PortMapping {
    PortMapping { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip: None }
}

/// Not a test of its own: one of the processes of the next test. Its work is `VERB CONTAINER PORT`.
#[test]
#[ignore = "started by the test below"]
fn one_of_many() {
    let (Ok(dir), Ok(work)) = (std::env::var("COFFERDAM_TEST_BED"), std::env::var("COFFERDAM_TEST_WORK"))
    else {
        return;
    };
    let options = Options { builtins: BUILTINS, ..Options::new(format!("{dir}/state")) };
    let caller = Caller::open(options).unwrap();
    let network = list(&std::fs::read_to_string(format!("{dir}/network")).unwrap());
    let [verb, container, host_port] = work.split(' ').collect::<Vec<_>>()[..] else { panic!("{work}") };
    let id = ContainerId::parse(container).unwrap();
    if verb == "del" {
        return caller.detach(&network.name, &id, &eth0(), NetnsFate::Stays).unwrap();
    }
    let mut attachment = Attachment::new(id, format!("{dir}/netns-{container}"), eth0());
    attachment.capabilities.port_mappings = vec![port(host_port.parse().unwrap())];
    match caller.attach(&network, &attachment) {
        Err(error) if error.kind() == Kind::AlreadyExists => {}
        done => drop(done.unwrap()),
    }
}

fn start(bed: &Bed, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::one_of_many", "--ignored"])
        .env("COFFERDAM_TEST_BED", bed.dir.path())
        .env("COFFERDAM_TEST_WORK", work)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn v14_twenty_processes_attach_and_detach_while_gc_runs_and_nothing_is_lost_or_left() {
    on_a_host(|bed| {
        let network = bed.default_network();
        std::fs::write(bed.dir.path().join("network"), network.to_text()).unwrap();
        let caller = bed.caller(Prefer::Builtin);
        let containers: Vec<_> = (0..20).map(|n| bed.container(&format!("c{n}"))).collect();
        let valid =
            || Valid::Only(containers.iter().map(|container| (container.id.clone(), eth0())).collect());
        let work = |verb: &str, n: usize| format!("{verb} {} {}", containers[n].id, 9000 + n);
        let all_at_once = |works: Vec<String>| {
            let mut children: Vec<_> = works.iter().map(|work| start(bed, work)).collect();
            // Whatever is going on, nothing of it may be taken for rubbish.
            for _ in 0..COLLECTIONS {
                caller.gc(&network, &valid()).unwrap();
            }
            for (child, work) in children.iter_mut().zip(works) {
                assert!(child.wait().unwrap().success(), "{work}");
            }
        };
        // Everybody is attached; the first twice at a time; the last is detached at the same time.
        let adds = (0..20).chain([0]).map(|n| work("add", n));
        all_at_once(adds.chain([work("del", 19)]).collect());
        // Whoever of the last two was last counts, and both ends are whole.
        let (records, problems) = caller.records().unwrap();
        assert!(problems.is_empty() && records.len() >= 19, "{} {problems:?}", records.len());
        let addresses: std::collections::BTreeSet<_> =
            records.iter().map(|record| ip(&record.result().unwrap(), true)).collect();
        assert_eq!(addresses.len(), records.len());
        for record in &records {
            caller.check(&network.name, record.container(), &eth0()).unwrap();
        }
        all_at_once((0..20).chain([0, 1]).map(|n| work("del", n)).collect());
        bed.assert_clean("bridge");
    });
}
