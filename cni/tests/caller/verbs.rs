//! ADD, CHECK, DEL, GC and STATUS over a list: order, failure, undoing, retrying.

use std::sync::Mutex;
use std::time::Instant;

use cofferdam_cni::{
    Attachment, Call, Capabilities, Error, IfName, Kind, NetnsFate, Observer, Options, RecordState, Valid,
};

use crate::bed::{Bed, attachment, eth0, id, list, network, plain, three};

/// Fails the verb with an error object.
fn failing(verb: &str, code: u32) -> String {
    format!(
        r#"[ $CNI_COMMAND = {verb} ] && {{ echo '{{"code":{code},"msg":"bad","details":"very"}}'; exit 1; }}"#
    )
}

#[test]
fn v1_add_check_status_and_gc_go_forward_and_del_goes_back() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    assert_eq!(bed.log(), ["a ADD", "b ADD", "c ADD"]);
    bed.check().unwrap();
    assert_eq!(bed.log(), ["a CHECK", "b CHECK", "c CHECK"]);
    bed.caller.status(&three()).unwrap();
    assert_eq!(bed.log(), ["a STATUS", "b STATUS", "c STATUS"]);
    bed.caller.gc(&three(), &Valid::Only(vec![(id("one"), eth0())])).unwrap();
    assert_eq!(bed.log(), ["a GC", "b GC", "c GC"]);
    bed.detach().unwrap();
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL"]);
    assert!(!bed.has_records());
}

#[test]
fn v2_a_failure_in_the_middle_is_undone_over_the_whole_list_and_returned_as_it_was() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.plugin("b", &format!("echo moaning >&2; {}", failing("ADD", 7)));
    let error = bed.caller.attach(&three(), &attachment()).unwrap_err();
    assert_eq!(bed.log(), ["a ADD", "b ADD", "c DEL", "b DEL", "a DEL"]);
    for plugin in ["a", "b", "c"] {
        assert!(bed.input(plugin, "DEL").contains(r#""prevResult":{"cniVersion":"1.1.0","by":"a""#));
    }
    assert!(!bed.has_records());
    let Error::Plugin(failure) = &error else { panic!("{error}") };
    assert_eq!((failure.code.unwrap().0, failure.message.as_str()), (7, "bad"));
    assert_eq!(error.kind(), Kind::InvalidInput);
    for part in ["plugin b", "ADD", "network net", "container one", "bad", "very", "code 7", " ms", "moaning"]
    {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
}

#[test]
fn v2_a_failed_undo_keeps_the_record_so_that_it_can_be_done_again() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.plugin("a", r#"[ $CNI_COMMAND = DEL ] && [ ! -e "$0.ok" ] && exit 4"#);
    bed.plugin("b", "[ $CNI_COMMAND = ADD ] && exit 3");
    let error = bed.caller.attach(&three(), &attachment()).unwrap_err();
    assert!(matches!(error, Error::Undo { .. }), "{error}");
    assert!(error.to_string().contains("undoing it failed as well"), "{error}");
    assert_eq!(bed.caller.records().unwrap().0[0].state(), RecordState::Adding);
    std::fs::write(bed.plugins.bin().join("a.ok"), "").unwrap();
    bed.detach().unwrap();
    assert!(!bed.has_records());
}

#[test]
fn v4_a_second_add_is_refused_without_asking_anybody_and_the_first_stays() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    bed.log();
    let error = bed.caller.attach(&three(), &attachment()).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    assert!(bed.log().is_empty());
    bed.check().unwrap();
}

#[test]
fn v5_check_of_what_was_never_added_asks_nobody_and_says_why() {
    let bed = Bed::new();
    bed.three_plugins();
    let check = |text: &str| bed.caller.check_with(&list(text), &id("one"), &eth0());
    let of = |keys: &str| format!(r#"{{"name":"net",{keys},"plugins":[{{"type":"a"}}]}}"#);
    let never = check(&of(r#""cniVersion":"1.0.0""#)).unwrap_err();
    assert!(matches!(never, Error::NotAttached { .. }), "{never}");
    check(&of(r#""cniVersion":"1.0.0","disableCheck":true"#)).unwrap();
    // The flag counts before the version.
    check(&of(r#""cniVersion":"0.3.1","disableCheck":true"#)).unwrap();
    let old = of(r#""cniVersion":"0.3.1""#);
    assert!(matches!(check(&old), Err(Error::VerbUnsupported { .. })));
    bed.plugin("a", r#"[ $CNI_COMMAND = ADD ] && { echo '{"cniVersion":"0.3.1"}'; exit; }"#);
    bed.caller.attach(&list(&old), &plain("one")).unwrap();
    assert!(matches!(bed.check(), Err(Error::VerbUnsupported { .. })));
    assert_eq!(bed.log(), ["a ADD"]);
}

#[test]
fn v5_the_first_plugin_that_finds_something_ends_the_check() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.plugin("b", &failing("CHECK", 102));
    bed.caller.attach(&three(), &attachment()).unwrap();
    bed.log();
    assert!(matches!(bed.check(), Err(Error::Plugin(failure)) if failure.plugin == "b"));
    assert_eq!(bed.log(), ["a CHECK", "b CHECK"]);
}

#[test]
fn v6_del_uses_the_configuration_and_the_programs_of_the_add() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    bed.log();
    // The network is another now; a caller that helps out with it is not listened to.
    let edited = network(r#"{"type":"new","x":1}"#);
    bed.caller.detach_with(&edited, &attachment(), NetnsFate::Stays).unwrap();
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL"]);
    assert!(bed.input("b", "DEL").contains(r#""big":12345678901234567890"#));
    assert!(bed.input("b", "DEL").contains(r#""runtimeConfig":{"mac""#));
    // A file that is gone is no matter: nobody reads it. Neither is another program of that name earlier in the path.
    bed.caller.attach(&three(), &attachment()).unwrap();
    let other = bed.folder.join("other");
    std::fs::create_dir(&other).unwrap();
    bed.plugins.program(&other.join("a"), "exit 1");
    let again = Bed::at(&bed.folder, |options| options.plugin_path = vec![other, bed.plugins.bin()]);
    again.detach().unwrap();
    assert!(!bed.has_records());
}

#[test]
fn v8_del_twice_and_del_of_the_unknown_succeed() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    bed.detach().unwrap();
    bed.log();
    bed.detach().unwrap();
    bed.caller.detach_all(&id("nobody"), NetnsFate::Stays).unwrap();
    assert!(bed.log().is_empty());
    // Whoever has the configuration at hand has DEL asked for all the same: the record may have been lost.
    bed.caller.detach_with(&three(), &attachment(), NetnsFate::Stays).unwrap();
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL"]);
    assert!(!bed.input("a", "DEL").contains("prevResult"));
}

#[test]
fn v8_what_cannot_be_deleted_can_be_forgotten() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    std::fs::remove_file(bed.plugins.bin().join("b")).unwrap();
    let error = bed.detach().unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let text = error.to_string();
    assert!(
        text.contains(r#"plugin "b""#) && text.contains(&bed.plugins.bin().display().to_string()),
        "{text}"
    );
    assert!(bed.has_records());
    bed.caller.forget(&three().name, &id("one"), &eth0()).unwrap();
    assert!(!bed.has_records());
}

#[test]
fn v9_try_again_later_is_tried_again_until_the_deadline() {
    let bed = Bed::new();
    let twice = r#"[ $CNI_COMMAND = ADD ] && [ ! -e "$0.2" ] && { [ -e "$0.1" ] && : > "$0.2"; : > "$0.1"; echo '{"code":11,"msg":"later"}'; exit 1; }"#;
    bed.plugin("a", twice);
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    assert_eq!(bed.log(), ["a ADD", "a ADD", "a ADD"]);
    bed.detach().unwrap();
    bed.log();
    bed.plugin("a", &failing("ADD", 11));
    let begun = Instant::now();
    let error = bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap_err();
    assert!(error.to_string().contains("code 11"), "{error}");
    assert!(begun.elapsed().as_millis() >= 700, "{:?}", begun.elapsed());
    let log = bed.log();
    assert!(log.len() > 3 && log.last().unwrap() == "a DEL", "{log:?}");
}

#[test]
fn v9_an_unknown_container_needs_no_deleting() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.plugin("b", &failing("DEL", 3));
    bed.caller.attach(&three(), &attachment()).unwrap();
    bed.log();
    bed.detach().unwrap();
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL"]);
    assert!(!bed.has_records());
    // The first plugin that does not know the container has nothing to undo either.
    bed.plugin("a", &failing("ADD", 3));
    bed.caller.attach(&three(), &attachment()).unwrap_err();
    assert_eq!(bed.log(), ["a ADD"]);
    assert!(!bed.has_records());
}

#[test]
fn v10_gc_deletes_what_is_not_valid_by_its_stored_configuration_and_tells_every_failure() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.plugin("d", "");
    for container in ["one", "two", "three"] {
        bed.caller.attach(&network(r#"{"type":"a","n":1}"#), &plain(container)).unwrap();
    }
    bed.log();
    bed.plugin("b", &failing("GC", 5));
    bed.plugin("c", &failing("GC", 6));
    let now = network(r#"{"type":"b"},{"type":"c"},{"type":"d"}"#);
    let valid = Valid::Only(vec![(id("one"), eth0()), (id("three"), eth0())]);
    let error = bed.caller.gc(&now, &valid).unwrap_err();
    assert_eq!(bed.log(), ["a DEL", "b GC", "c GC", "d GC"]);
    assert!(bed.input("a", "DEL").contains(r#""n":1"#));
    assert_eq!(bed.plugins.variable("a", "DEL", "CNI_CONTAINERID").as_deref(), Some("two"));
    assert!(error.to_string().contains("code 5") && error.to_string().contains("code 6"), "{error}");
    let left: Vec<_> =
        bed.caller.records().unwrap().0.iter().map(|record| record.container().to_string()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(!left.contains(&"two".to_owned()));
    // An attachment is its container and its interface: another interface of a valid container is not valid.
    let mut eth1 = plain("one");
    eth1.if_name = IfName::parse("eth1").unwrap();
    bed.caller.attach(&network(r#"{"type":"a"}"#), &eth1).unwrap();
    let _ = bed.caller.gc(&now, &valid);
    assert_eq!(bed.caller.records().unwrap().0.len(), 2);
}

/// There is no call without a set of valid attachments: "nothing is valid" has to be said.
#[test]
fn v11_gc_of_everything_has_to_be_asked_for_and_a_network_may_want_none() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    bed.log();
    let off = list(r#"{"name":"net","cniVersion":"1.1.0","disableGC":true,"plugins":[{"type":"a"}]}"#);
    bed.caller.gc(&off, &Valid::Nothing).unwrap();
    assert!(bed.log().is_empty() && bed.has_records());
    bed.caller.gc(&three(), &Valid::Nothing).unwrap();
    assert_eq!(bed.log(), ["c DEL", "b DEL", "a DEL", "a GC", "b GC", "c GC"]);
    assert!(!bed.has_records());
    // A version without the verb still gets its attachments deleted.
    let old = list(r#"{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#);
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    bed.log();
    bed.caller.gc(&old, &Valid::Nothing).unwrap();
    assert_eq!(bed.log(), ["a DEL"]);
}

#[test]
fn v12_gc_touches_neither_another_network_nor_another_callers_records() {
    let (bed, stranger) = (Bed::new(), Bed::new());
    bed.three_plugins();
    stranger.three_plugins();
    let other = list(r#"{"name":"net-2","cniVersion":"1.1.0","plugins":[{"type":"a"}]}"#);
    bed.caller.attach(&other, &plain("one")).unwrap();
    stranger.caller.attach(&three(), &attachment()).unwrap();
    bed.caller.gc(&three(), &Valid::Nothing).unwrap();
    assert_eq!(bed.caller.records().unwrap().0.len(), 1);
    bed.caller.check(&other.name, &id("one"), &eth0()).unwrap();
    stranger.check().unwrap();
}

#[test]
fn v12_gc_helps_out_a_record_that_is_torn() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    std::fs::write(bed.record(), "").unwrap();
    bed.log();
    bed.caller.gc(&three(), &Valid::Only(vec![(id("one"), eth0())])).unwrap();
    assert_eq!(bed.log(), ["a GC", "b GC", "c GC"]);
    bed.caller.gc(&three(), &Valid::Nothing).unwrap();
    assert_eq!(bed.log()[..3], ["c DEL", "b DEL", "a DEL"]);
    assert!(!bed.has_records());
}

#[test]
fn v15_status_passes_codes_on_misses_programs_and_spares_old_versions() {
    let bed = Bed::new();
    bed.three_plugins();
    let code = |text: &str| match bed.caller.status(&network(text)) {
        Err(Error::Plugin(failure)) => failure.code.unwrap().0,
        other => panic!("{other:?}"),
    };
    for wanted in [50, 51, 999] {
        bed.plugin("b", &failing("STATUS", wanted));
        assert_eq!(code(r#"{"type":"a"},{"type":"b"},{"type":"c"}"#), wanted);
        assert_eq!(bed.log(), ["a STATUS", "b STATUS"]);
    }
    assert_eq!(code(r#"{"type":"missing"}"#), 50);
    let old = list(r#"{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"b"}]}"#);
    bed.caller.status(&old).unwrap();
    assert!(bed.log().is_empty());
}

#[test]
fn every_call_is_told_in_full() {
    #[derive(Default)]
    struct Calls(Mutex<Vec<String>>);
    impl Observer for Calls {
        fn called(&self, call: &Call<'_>) {
            assert!(call.elapsed.as_nanos() > 0);
            let text =
                format!("{} {} {} {}", call.plugin, call.verb, call.input.len(), call.stderr_tail.trim());
            self.0.lock().unwrap().push(text);
        }
    }
    let calls = std::sync::Arc::new(Calls::default());
    let observer = calls.clone();
    let bed = Bed::with(|options: &mut Options| options.observer = Some(observer));
    bed.plugin("a", "echo from $CNI_COMMAND >&2");
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    bed.detach().unwrap();
    let (add, del) = (bed.input("a", "ADD").len(), bed.input("a", "DEL").len());
    let expected = [format!("a ADD {add} from ADD"), format!("a DEL {del} from DEL")];
    assert_eq!(*calls.0.lock().unwrap(), expected);
}

#[test]
fn old_networks_are_spoken_to_in_their_version() {
    let bed = Bed::new();
    bed.plugin("old", r#"[ $CNI_COMMAND = ADD ] && { echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1"}}'; exit 0; }"#);
    let list =
        cofferdam_cni::NetworkList::parse_single(r#"{"name":"net","cniVersion":"0.2.0","type":"old"}"#)
            .unwrap();
    let attachment = Attachment { capabilities: Capabilities::default(), ..attachment() };
    let result = bed.caller.attach(&list, &attachment).unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
    bed.detach().unwrap();
    assert!(!bed.input("old", "DEL").contains("prevResult"));
}
