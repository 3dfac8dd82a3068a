//! How long attaching takes, next to the reference plugins. Prints; asserts only what must hold on a loaded machine.

use std::time::{Duration, Instant};

use cofferdam_cni::{NetnsFate, PortMapping, Prefer, Protocol};

use crate::bed::{Bed, eth0, on_a_host};

const ROUNDS: usize = 11;

struct Times {
    add: Vec<Duration>,
    del: Vec<Duration>,
}

impl Times {
    fn medians(mut self) -> (Duration, Duration) {
        self.add.sort();
        self.del.sort();
        (self.add[ROUNDS / 2], self.del[ROUNDS / 2])
    }
}

fn measure(bed: &Bed, prefer: Prefer, fate: NetnsFate) -> (Duration, Duration) {
    let (caller, network) = (bed.caller(prefer), crate::peers::reference_network(bed));
    let mut times = Times { add: Vec::new(), del: Vec::new() };
    for round in 0..ROUNDS {
        let one = bed.container(&format!("c{round}"));
        let mut attachment = one.attachment();
        attachment.capabilities.port_mappings =
            vec![PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip: None }];
        let begun = Instant::now();
        caller.attach(&network, &attachment).unwrap();
        times.add.push(begun.elapsed());
        let begun = Instant::now();
        caller.detach(&network.name, &one.id, &eth0(), fate).unwrap();
        times.del.push(begun.elapsed());
    }
    times.medians()
}

#[test]
fn attaching_in_process_is_quicker_than_the_reference_plugins() {
    if !crate::peers::have_peers() {
        return;
    }
    on_a_host(|bed| {
        let ours = measure(bed, Prefer::Builtin, NetnsFate::Stays);
        let ends = measure(bed, Prefer::Builtin, NetnsFate::Ends);
        let theirs = measure(bed, Prefer::External, NetnsFate::Stays);
        println!("median of {ROUNDS}, bridge + host-local + masquerade + one port: ADD, DEL");
        println!("in-process               {:>10.2?} {:>10.2?}", ours.0, ours.1);
        println!("in-process, netns ends   {:>10.2?} {:>10.2?}", ends.0, ends.1);
        println!("reference plugins        {:>10.2?} {:>10.2?}", theirs.0, theirs.1);
        assert!(ours.0 < theirs.0 && ours.1 < theirs.1, "slower than fifty processes");
    });
}
