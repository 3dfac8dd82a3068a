//! Operations of several processes on one state directory.

use std::time::Duration;

use cofferdam_cni::{Deadlines, Error, NetnsFate, Networks, Valid};

use crate::bed::{Bed, attachment, eth0, id, plain, three, throw_away, wait_until};
use crate::jobs::keeping;

/// Waits in the middle of a verb until the test lets it go on.
fn waiting(verb: &str) -> String {
    format!(
        r#"[ $CNI_COMMAND = {verb} ] && {{ : > "$0.waits"; while [ ! -e "$0.go" ]; do sleep 0.01; done; }}"#
    )
}

#[test]
fn v13_gc_waits_for_a_running_add_of_another_process_and_names_it_when_it_gives_up() {
    let bed = Bed::with(|options| {
        options.deadlines = Deadlines { lock: Duration::from_millis(200), ..Deadlines::default() }
    });
    bed.three_plugins();
    bed.plugin("b", &waiting("ADD"));
    let waits = bed.plugins.bin().join("b.waits");
    let mut other = bed.start("attach");
    wait_until("the other's ADD", || waits.exists());
    let error = bed.caller.gc(&three(), &Valid::Nothing).unwrap_err();
    let Error::Locked { what, holder, .. } = &error else { panic!("{error}") };
    assert_eq!((what.as_str(), holder.as_str()), ("network net", other.id().to_string().as_str()));
    // Another container of the network is nobody's business; the same container is.
    bed.plugin("d", "");
    let d = crate::bed::network(r#"{"type":"d"}"#);
    bed.caller.attach(&d, &plain("two")).unwrap();
    let error = bed.detach().unwrap_err();
    assert!(matches!(&error, Error::Locked { holder, .. } if *holder == other.id().to_string()), "{error}");
    bed.caller.detach(&d.name, &id("two"), &eth0(), NetnsFate::Stays).unwrap();
    bed.log();

    let mut collector = bed.start("gc");
    std::fs::write(bed.plugins.bin().join("b.go"), "").unwrap();
    assert!(other.wait().unwrap().success() && collector.wait().unwrap().success());
    let log = bed.log();
    assert_eq!(log, ["c ADD", "c DEL", "b DEL", "a DEL", "a GC", "b GC", "c GC"]);
    assert!(!bed.has_records());
}

#[test]
fn v13_an_add_waits_for_a_running_gc_of_another_process() {
    let bed = Bed::with(|options| {
        options.deadlines = Deadlines { lock: Duration::from_millis(200), ..Deadlines::default() }
    });
    bed.three_plugins();
    bed.plugin("b", &waiting("GC"));
    let waits = bed.plugins.bin().join("b.waits");
    let mut collector = bed.start("gc");
    wait_until("the other's GC", || waits.exists());
    let error = bed.caller.attach(&three(), &attachment()).unwrap_err();
    assert!(
        matches!(&error, Error::Locked { holder, .. } if *holder == collector.id().to_string()),
        "{error}"
    );
    let mut other = bed.start("attach");
    std::fs::write(bed.plugins.bin().join("b.go"), "").unwrap();
    assert!(collector.wait().unwrap().success() && other.wait().unwrap().success());
    assert_eq!(bed.log(), ["a GC", "b GC", "c GC", "a ADD", "b ADD", "c ADD"]);
    bed.detach().unwrap();
}

#[test]
fn v14_a_thousand_random_calls_of_four_processes_never_meet_on_a_container() {
    let dir = throw_away();
    let (bed, list) = keeping(dir.path());
    let mut others: Vec<_> = (0..4).map(|_| bed.start("collide")).collect();
    for other in &mut others {
        assert!(other.wait().unwrap().success());
    }
    assert!(!dir.path().join("leases/overlap").exists());
    // What is on record and what the plugin keeps is the same, and all of it can be taken away.
    let leases = || std::fs::read_dir(dir.path().join("leases")).unwrap().count();
    assert_eq!(bed.caller.records().unwrap().0.len(), leases());
    bed.caller.gc(&list, &Valid::Nothing).unwrap();
    assert_eq!(leases(), 0);
    assert!(!bed.has_records());
}

#[test]
fn of_a_network_that_is_configured_no_more_nothing_stays_when_its_last_attachment_is_gone() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    let lock = bed.folder.join("state/locks/network-net");
    let none = Networks::default();
    assert!(bed.caller.forget_networks_but(&none).unwrap().is_empty(), "it is in use");
    let record = std::fs::read(bed.record()).unwrap();
    std::fs::write(bed.record(), &record[..record.len() / 2]).unwrap();
    assert!(
        bed.caller.forget_networks_but(&none).unwrap().is_empty(),
        "somebody used it, and its record is torn"
    );
    std::fs::write(bed.record(), record).unwrap();
    bed.detach().unwrap();
    let mut configured = Networks::default();
    configured.add_default(three());
    assert!(bed.caller.forget_networks_but(&configured).unwrap().is_empty() && lock.exists());
    assert_eq!(bed.caller.forget_networks_but(&none).unwrap(), [three().name]);
    assert!(!lock.exists());
}
