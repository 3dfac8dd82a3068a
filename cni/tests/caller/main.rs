//! The caller with scripted plugins: order of calls, exact input and environment, retries, deadlines, undoing.
//!
//! Needs no privileges: the plugins only write down what they were asked, and any namespace file serves as the container's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_cni::{
    Attachment, Caller, Capabilities, ContainerId, Deadlines, Error, IfName, Kind, NetnsFate, NetworkList,
    Options, RecordState, Valid,
};

const NETNS: &str = "/proc/self/ns/net";

struct Bed {
    dir: tempfile::TempDir,
    caller: Caller,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let mut options = Options::new(dir.path().join("state"));
        options.plugin_path = vec![dir.path().join("bin")];
        options.deadlines = Deadlines { add: Duration::from_secs(2), ..Deadlines::default() };
        let caller = Caller::open(options).unwrap();
        Self { dir, caller }
    }

    /// A plugin that logs its verb and keeps its last input and environment; `extra` decides its answer.
    fn plugin(&self, name: &str, extra: &str) {
        let path = self.dir.path().join("bin").join(name);
        let d = self.dir.path().display();
        let text = format!(
            "#!/bin/sh\ncat > {d}/stdin.{name}.$CNI_COMMAND; env > {d}/env.{name}.$CNI_COMMAND\n\
             echo {name} $CNI_COMMAND >> {d}/log\n{extra}\n\
             [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"1.1.0\",\"by\":\"{name}\",\"n\":12345678901234567890}}'\nexit 0\n"
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(file)).unwrap_or_default()
    }

    fn log(&self) -> Vec<String> {
        let log = self.read("log").lines().map(str::to_owned).collect();
        let _ = std::fs::remove_file(self.dir.path().join("log"));
        log
    }

    fn has_records(&self) -> bool {
        !self.caller.records().unwrap().0.is_empty()
    }
}

fn network(plugins: &str) -> NetworkList {
    NetworkList::parse(&format!(r#"{{"name":"net","cniVersion":"1.1.0","plugins":[{plugins}]}}"#), None)
        .unwrap()
}

fn three() -> NetworkList {
    network(
        r#"{"type":"a"},{"type":"b","capabilities":{"mac":true},"big":12345678901234567890},{"type":"c"}"#,
    )
}

fn attachment() -> Attachment {
    let mut attachment =
        Attachment::new(ContainerId::parse("one").unwrap(), NETNS, IfName::parse("eth0").unwrap());
    attachment.args = vec![("K8S_POD_NAME".into(), "p".into())];
    attachment.capabilities =
        Capabilities { mac: Some("02:00:00:00:00:01".into()), ..Capabilities::default() };
    attachment
}

fn detach(bed: &Bed) -> Result<(), Error> {
    let attachment = attachment();
    bed.caller.detach(&three().name, &attachment.container, &attachment.if_name, NetnsFate::Stays)
}

#[test]
fn add_goes_forward_del_goes_back_and_everybody_gets_exactly_what_the_specification_says() {
    let bed = Bed::new();
    ["a", "b", "c"].iter().for_each(|name| bed.plugin(name, ""));
    bed.caller.attach(&three(), &attachment()).unwrap();
    assert_eq!(bed.log(), ["a ADD", "b ADD", "c ADD"]);
    assert_eq!(bed.read("stdin.a.ADD"), r#"{"type":"a","cniVersion":"1.1.0","name":"net"}"#);
    assert_eq!(
        bed.read("stdin.b.ADD"),
        concat!(
            r#"{"type":"b","big":12345678901234567890,"cniVersion":"1.1.0","name":"net","#,
            r#""runtimeConfig":{"mac":"02:00:00:00:00:01"},"#,
            r#""prevResult":{"cniVersion":"1.1.0","by":"a","n":12345678901234567890}}"#
        )
    );
    let environment = bed.read("env.a.ADD");
    for line in [
        "CNI_CONTAINERID=one",
        "CNI_IFNAME=eth0",
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=p",
        &format!("CNI_NETNS={NETNS}"),
        &format!("CNI_PATH={}", bed.dir.path().join("bin").display()),
    ] {
        assert!(environment.lines().any(|found| found == line), "{line} in {environment}");
    }
    assert!(environment.contains("/usr/sbin") && !environment.contains("CARGO"), "{environment}");

    bed.caller.check(&three().name, &attachment().container, &attachment().if_name).unwrap();
    assert_eq!(bed.log(), ["a CHECK", "b CHECK", "c CHECK"]);
    detach(&bed).unwrap();
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL"]);
    assert!(bed.read("stdin.a.DEL").contains(r#""prevResult":{"cniVersion":"1.1.0","by":"c""#));
    assert!(bed.read("stdin.b.DEL").contains(r#""runtimeConfig":{"mac""#));
    detach(&bed).unwrap();
    assert!(bed.log().is_empty());
    assert!(!bed.has_records());
}

#[test]
fn a_failure_in_the_middle_runs_del_over_the_whole_list_with_the_last_result() {
    let bed = Bed::new();
    bed.plugin("a", "");
    bed.plugin(
        "b",
        r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":7,"msg":"bad","details":"very"}'; exit 1; }"#,
    );
    bed.plugin("c", "");
    let error = bed.caller.attach(&three(), &attachment()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert!(matches!(&error, Error::Plugin(failure) if failure.plugin == "b" && failure.details == "very"));
    assert_eq!(bed.log(), ["a ADD", "b ADD", "c DEL", "b DEL", "a DEL"]);
    assert!(bed.read("stdin.c.DEL").contains(r#""by":"a""#));
    assert!(!bed.has_records());
}

#[test]
fn a_failed_undo_keeps_the_record_so_that_it_can_be_done_again() {
    let bed = Bed::new();
    bed.plugin("a", r#"[ $CNI_COMMAND = DEL ] && [ ! -e "$0.ok" ] && exit 4"#);
    bed.plugin("b", "[ $CNI_COMMAND = ADD ] && exit 3");
    bed.plugin("c", "");
    let error = bed.caller.attach(&three(), &attachment()).unwrap_err();
    assert!(matches!(error, Error::Undo { .. }), "{error}");
    assert!(error.to_string().contains("undoing it failed as well"), "{error}");
    assert_eq!(bed.caller.records().unwrap().0[0].state(), RecordState::Adding);
    std::fs::write(bed.dir.path().join("bin/a.ok"), "").unwrap();
    detach(&bed).unwrap();
    assert!(!bed.has_records());
}

#[test]
fn try_again_is_tried_again_and_an_unknown_container_needs_no_deleting() {
    let bed = Bed::new();
    let once = r#"[ $CNI_COMMAND = ADD ] && [ ! -e "$0.tried" ] && { : > "$0.tried"; echo '{"code":11,"msg":"later"}'; exit 1; }
        [ $CNI_COMMAND = DEL ] && { echo '{"code":3,"msg":"who?"}'; exit 1; }"#;
    bed.plugin("a", once);
    bed.caller.attach(&network(r#"{"type":"a"}"#), &no_capabilities()).unwrap();
    assert_eq!(bed.log(), ["a ADD", "a ADD"]);
    detach(&bed).unwrap();
    assert!(!bed.has_records());
}

fn no_capabilities() -> Attachment {
    Attachment { capabilities: Capabilities::default(), ..attachment() }
}

#[test]
fn a_plugin_that_hangs_is_ended_with_its_children_and_undone() {
    let bed = Bed::new();
    bed.plugin("a", "[ $CNI_COMMAND = ADD ] && { sleep 30 & echo stuck >&2; wait; }");
    let begun = Instant::now();
    let error = bed.caller.attach(&network(r#"{"type":"a"}"#), &no_capabilities()).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(error.kind(), Kind::Interrupted);
    let text = error.to_string();
    assert!(text.contains("did not finish within") && text.contains("stuck"), "{text}");
    assert_eq!(bed.log(), ["a ADD", "a DEL"]);
    assert!(!bed.has_records());
}

#[test]
fn crashes_and_nonsense_are_told_apart() {
    let bed = Bed::new();
    let said = |script: &str| {
        bed.plugin("a", &format!("[ $CNI_COMMAND = ADD ] || exit 0; {script}"));
        bed.caller.attach(&network(r#"{"type":"a"}"#), &no_capabilities()).unwrap_err().to_string()
    };
    let crash = said("echo dying >&2; kill -SEGV $$");
    assert!(crash.contains("signal: 11") && crash.contains("dying"), "{crash}");
    assert!(said("exit 2").contains("exit status: 2"));
    assert!(said("echo '<html>'; exit 0").contains("<html>"));
    assert!(said(r#"echo '{"code":999,"msg":"lie"}'; exit 0"#).contains("lie"));
    assert!(said(r#"echo '{"cniVersion":"7.0.0"}'; exit 0"#).contains("7.0.0"));
    std::fs::set_permissions(bed.dir.path().join("bin/a"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let missing = bed.caller.attach(&network(r#"{"type":"a"}"#), &no_capabilities()).unwrap_err();
    assert!(missing.to_string().contains("not an executable file"), "{missing}");
    assert_eq!(missing.kind(), Kind::NotFound);
}

#[test]
fn gc_deletes_what_is_not_valid_then_asks_every_plugin_and_status_stops_at_the_first() {
    let bed = Bed::new();
    bed.plugin("a", "[ $CNI_COMMAND = GC ] && exit 5");
    bed.plugin("b", r#"[ $CNI_COMMAND = STATUS ] && { echo '{"code":50,"msg":"not ready"}'; exit 1; }"#);
    bed.plugin("c", "");
    bed.caller.attach(&three(), &attachment()).unwrap();
    bed.log();
    let keep = Valid::Only(vec![(attachment().container, attachment().if_name)]);
    assert!(bed.caller.gc(&three(), &keep).is_err());
    assert_eq!(bed.log(), ["a GC", "b GC", "c GC"]);
    let listed = r#""cni.dev/valid-attachments":[{"containerID":"one","ifname":"eth0"}]"#;
    assert!(bed.read("stdin.c.GC").contains(listed), "{}", bed.read("stdin.c.GC"));
    assert!(bed.caller.gc(&three(), &Valid::Nothing).is_err());
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL", "a GC", "b GC", "c GC"]);
    assert!(bed.read("stdin.c.GC").contains(r#""cni.dev/valid-attachments":[]"#));
    assert!(
        matches!(bed.caller.status(&three()), Err(Error::Plugin(failure)) if failure.code.unwrap().0 == 50)
    );
}

#[test]
fn old_networks_are_spoken_to_in_their_version() {
    let bed = Bed::new();
    let name = Path::new("old");
    bed.plugin("old", r#"[ $CNI_COMMAND = ADD ] && { echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1"}}'; exit 0; }"#);
    let list = NetworkList::parse_single(&format!(
        r#"{{"name":"net","cniVersion":"0.2.0","type":"{}"}}"#,
        name.display()
    ));
    let list = list.unwrap();
    let result = bed.caller.attach(&list, &no_capabilities()).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
    let checked = bed.caller.check(&list.name, &attachment().container, &attachment().if_name);
    assert!(matches!(checked, Err(Error::VerbUnsupported { .. })));
    detach(&bed).unwrap();
    assert!(!bed.read("stdin.old.DEL").contains("prevResult"));
}
