//! Records: what they hold, who can read them, and what becomes of them when somebody is killed.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cofferdam_cni::{NetnsFate, NetworkList, RecordState};
use cofferdam_tests::{needs, pace};
use serde_json::{Value, json};

use crate::bed::{Bed, NETNS, attachment, eth0, id, list, plain, three, throw_away};
use crate::jobs::keeping;

const PEERS: &str = "/usr/lib/cni";

/// What libcni 1.3.0 has left of an ADD by cnitool, and under which name.
const BY_CNITOOL: (&str, &str) =
    ("net-cnitool-20b4ff582526573bbe7d-eth0", include_str!("libcni/net-cnitool-20b4ff582526573bbe7d-eth0"));

/// The same with other contents.
fn written_by_libcni(config: &str) -> Value {
    json!({
        "kind": "cniCacheV1",
        "containerId": "one",
        "config": STANDARD.encode(config),
        "ifName": "eth0",
        "networkName": "net",
        "netns": NETNS,
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "p"]],
        "capabilityArgs": { "mac": "02:00:00:00:00:01" },
        "result": { "cniVersion": "1.0.0", "by": "go", "ips": [{ "address": "10.0.0.2/24" }] },
    })
}

#[test]
fn t1_what_libcni_has_cached_can_be_deleted() {
    let bed = Bed::new();
    bed.three_plugins();
    let config = three().to_text().replace("1.1.0", "1.0.0");
    let mut nulls = written_by_libcni(&config);
    (nulls["cniArgs"], nulls["capabilityArgs"]) = (Value::Null, Value::Null);
    for (record, mac) in [(written_by_libcni(&config), true), (nulls, false)] {
        std::fs::write(bed.record(), serde_json::to_string(&record).unwrap()).unwrap();
        let (records, problems) = bed.caller.records().unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!((records[0].state(), records[0].container().as_str()), (RecordState::Added, "one"));
        bed.check().unwrap();
        bed.log();
        bed.detach().unwrap();
        assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL"]);
        let sent = bed.input("b", "DEL");
        assert!(sent.contains(r#""by":"go""#) && sent.contains("runtimeConfig") == mac, "{sent}");
        assert!(!bed.has_records());
    }
    // A single plugin is kept as the file says it, and before there were records it was the bare result.
    let single = written_by_libcni(r#"{"name":"net","cniVersion":"1.0.0","type":"a"}"#);
    let bare = json!({ "cniVersion": "1.0.0", "by": "go" });
    for record in [single, bare] {
        std::fs::write(bed.record(), serde_json::to_string(&record).unwrap()).unwrap();
        let list = list(r#"{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#);
        bed.caller.detach_with(&list, &plain("one"), NetnsFate::Stays).unwrap();
        assert_eq!(bed.log(), ["a DEL"]);
        assert!(bed.input("a", "DEL").contains(r#""by":"go""#), "{}", bed.input("a", "DEL"));
        assert!(!bed.has_records());
    }
    let (file, text) = BY_CNITOOL;
    std::fs::write(bed.record().with_file_name(file), text).unwrap();
    let container = id("cnitool-20b4ff582526573bbe7d");
    bed.caller.detach(&three().name, &container, &eth0(), NetnsFate::Stays).unwrap();
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL"]);
    let sent = bed.input("b", "DEL");
    assert!(sent.contains(r#""address":"10.0.0.2/24""#) && sent.contains("02:00:00:00:00:01"), "{sent}");
    assert_eq!(bed.plugins.variable("a", "DEL", "CNI_NETNS").as_deref(), Some(""), "it is gone");
    assert!(!bed.has_records());
}

#[test]
fn t1_what_we_record_is_what_libcni_reads() {
    /// The fields that libcni decodes, with the types that it decodes them into.
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Cached {
        kind: String,
        container_id: String,
        config: String,
        if_name: String,
        network_name: String,
        netns: String,
        cni_args: Vec<[String; 2]>,
        capability_args: std::collections::BTreeMap<String, Value>,
        result: Value,
    }
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    let cached: Cached = serde_json::from_str(&std::fs::read_to_string(bed.record()).unwrap()).unwrap();
    assert_eq!((cached.kind.as_str(), cached.container_id.as_str()), ("cniCacheV1", "one"));
    assert_eq!((cached.if_name.as_str(), cached.network_name.as_str()), ("eth0", "net"));
    assert_eq!(cached.netns, NETNS);
    assert_eq!(cached.cni_args, [["K8S_POD_NAME".to_owned(), "p".to_owned()]]);
    assert_eq!(cached.capability_args["mac"], "02:00:00:00:00:01");
    assert_eq!(cached.result["by"], "c");
    let config = String::from_utf8(STANDARD.decode(&cached.config).unwrap()).unwrap();
    assert_eq!(NetworkList::parse(&config, None).unwrap().to_text(), three().to_text());
}

#[test]
fn t2_two_attachments_whose_joined_names_are_equal_have_a_record_each() {
    let bed = Bed::new();
    bed.three_plugins();
    let of =
        |name: &str| list(&format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"a"}}]}}"#));
    bed.caller.attach(&of("net-a"), &plain("b")).unwrap();
    bed.caller.attach(&of("net"), &plain("a-b")).unwrap();
    assert_eq!(bed.caller.records().unwrap().0.len(), 2);
    for (network, container) in [("net-a", "b"), ("net", "a-b")] {
        bed.caller.check(&of(network).name, &id(container), &eth0()).unwrap();
        bed.caller.detach(&of(network).name, &id(container), &eth0(), NetnsFate::Stays).unwrap();
    }
    assert!(!bed.has_records());
}

#[test]
fn t3_a_record_is_absent_old_or_new_whenever_its_writer_is_killed() {
    let dir = throw_away();
    let (bed, list) = keeping(dir.path());
    let mut seen = [0_u32; 3];
    for round in 0..pace::rounds(500, 25) {
        let mut writer = bed.start("write");
        let working = || dir.path().join("leases/one.eth0.lease").exists() || bed.record().exists();
        crate::bed::wait_until("the writer", || working() || bed.has_records());
        // Any moment is a good one; these are spread over several writes.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 37 % 3000));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let (records, problems) = bed.caller.records().unwrap();
        assert!(problems.is_empty(), "round {round}: {problems:?}");
        match records.as_slice() {
            [] => seen[0] += 1,
            [record] if record.state() == RecordState::Adding => seen[1] += 1,
            [record] => {
                assert!(record.network_list().is_ok() && record.result().is_some());
                seen[2] += 1;
            }
            more => panic!("{more:?}"),
        }
        bed.caller.detach_all(&id("one"), NetnsFate::Stays).unwrap();
        assert!(std::fs::read_dir(dir.path().join("state/results")).unwrap().next().is_none());
        let kept: Vec<_> = std::fs::read_dir(dir.path().join("leases")).unwrap().flatten().collect();
        // The plugin's own mark of being at work is the plugin's.
        for entry in kept.iter().filter(|entry| entry.path().extension().is_some_and(|it| it == "busy")) {
            std::fs::remove_dir(entry.path()).unwrap();
        }
        assert!(!dir.path().join("leases/one.eth0.lease").exists(), "round {round}");
    }
    println!("absent {}, old {}, new {}", seen[0], seen[1], seen[2]);
    let _ = list;
}

/// The reference's host-local, which needs neither privileges nor a namespace.
fn leasing(bed: &Bed) -> (NetworkList, std::path::PathBuf) {
    let data = bed.folder.join("leases");
    let text = format!(
        r#"{{"name":"net","cniVersion":"1.0.0","plugins":[{{"type":"host-local",
            "ipam":{{"type":"host-local","subnet":"10.9.0.0/24","dataDir":"{}"}}}},{{"type":"c"}}]}}"#,
        data.display()
    );
    (list(&text), data.join("net"))
}

fn leases(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count()
}

fn peers() -> Option<Bed> {
    let there = std::path::Path::new(PEERS).join("host-local").exists();
    needs::met(there, "needs the reference CNI plugins").then(|| {
        let bed = Bed::with(|options| options.plugin_path.push(PEERS.into()));
        bed.plugin("c", "[ $CNI_COMMAND = ADD ] && { echo '{\"cniVersion\":\"1.0.0\"}'; exit; }");
        bed
    })
}

#[test]
fn t4_a_record_of_another_boot_is_deleted_without_a_namespace_and_frees_the_lease() {
    let Some(bed) = peers() else { return };
    let (network, data) = leasing(&bed);
    bed.caller.attach(&network, &plain("one")).unwrap();
    assert_eq!(leases(&data), 1);
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(bed.record()).unwrap()).unwrap();
    record["cofferdam"]["bootId"] = "an earlier one".into();
    std::fs::write(bed.record(), record.to_string()).unwrap();
    bed.detach().unwrap();
    assert_eq!(bed.plugins.variable("c", "DEL", "CNI_NETNS").as_deref(), Some(""));
    assert_eq!(leases(&data), 0);
    assert!(!bed.has_records());
}

#[test]
fn v7_del_succeeds_wherever_the_record_breaks_off_and_frees_the_lease_of_the_reference_plugin() {
    let Some(bed) = peers() else { return };
    let (network, data) = leasing(&bed);
    let mut length = 0;
    loop {
        bed.caller.attach(&network, &plain("one")).unwrap();
        assert_eq!(leases(&data), 1);
        let text = std::fs::read(bed.record()).unwrap();
        std::fs::write(bed.record(), &text[..length.min(text.len())]).unwrap();
        bed.caller.detach_with(&network, &plain("one"), NetnsFate::Stays).unwrap();
        assert_eq!((leases(&data), bed.has_records()), (0, false), "{length}");
        if length >= text.len() {
            break;
        }
        // Every length is the business of the test below; this one shows that the reference plugin is content.
        length += 61;
    }
}

#[test]
fn v7_del_succeeds_wherever_the_record_breaks_off() {
    let dir = throw_away();
    let (bed, network) = keeping(dir.path());
    let lease = dir.path().join("leases/one.eth0.lease");
    bed.caller.attach(&network, &plain("one")).unwrap();
    let whole = std::fs::read(bed.record()).unwrap();
    // What is left may hold the configuration, or the caller helps out with it.
    for length in (0..=whole.len()).step_by(pace::rounds(1, 20) as usize) {
        std::fs::write(&lease, "").unwrap();
        std::fs::write(bed.record(), &whole[..length]).unwrap();
        bed.caller.detach_with(&network, &plain("one"), NetnsFate::Stays).unwrap();
        assert!(!lease.exists() && !bed.has_records(), "{length}");
    }
    // All that a container has, knowing nothing but its name, is the same with the networks at hand.
    let mut networks = cofferdam_cni::Networks::default();
    networks.add_default(network);
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&lease, "").unwrap();
        std::fs::write(bed.record(), &whole[..length]).unwrap();
        bed.caller.detach_all_with(&id("one"), NetnsFate::Stays, &networks).unwrap();
        assert!(!lease.exists() && !bed.has_records(), "{length}");
    }
}
