//! Results: every version against what the reference plugins print, and answers that are none.

use std::path::Path;
use std::sync::{Arc, Mutex};

use cofferdam_cni::{AddResult, Call, Error, Observer, ResultError, Version};
use cofferdam_tests::needs;
use serde_json::Value;

use crate::bed::{Bed, list, network, plain};

#[derive(Default)]
struct Answers(Mutex<Vec<String>>);

impl Observer for Answers {
    fn called(&self, call: &Call<'_>) {
        if call.verb == cofferdam_cni::Verb::Add {
            self.0.lock().unwrap().push(call.output.to_owned());
        }
    }
}

fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What the reference's `static` prints in each version that it speaks.
fn printed_by_the_peer(ipam: &str) -> Vec<(String, String)> {
    let answers = Arc::new(Answers::default());
    let observer = answers.clone();
    let bed = Bed::with(|options| {
        options.plugin_path = vec!["/usr/lib/cni".into()];
        options.observer = Some(observer);
    });
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"];
    for version in versions {
        let text = format!(
            r#"{{"name":"net","cniVersion":"{version}","plugins":[{{"type":"static","ipam":{{"type":"static",{ipam}}}}}]}}"#
        );
        let list = list(&text);
        bed.caller.attach(&list, &plain("one")).unwrap();
        bed.caller.detach_all(&plain("one").container, cofferdam_cni::NetnsFate::Stays).unwrap();
    }
    let answers = answers.0.lock().unwrap().clone();
    versions.iter().map(ToString::to_string).zip(answers).collect()
}

#[test]
fn r1_every_version_is_converted_into_every_other_as_the_reference_plugins_print_it() {
    let there = Path::new("/usr/lib/cni/static").exists();
    if !needs::met(there, "needs the reference CNI plugins") {
        return;
    }
    let addresses = r#""addresses":[{"address":"10.9.0.2/24","gateway":"10.9.0.1"},{"address":"fd00:9::2/64","gateway":"fd00:9::1"}]"#;
    let routes = r#""routes":[{"dst":"0.0.0.0/0","gw":"10.9.0.1"},{"dst":"10.1.0.0/16","gw":"10.9.0.3"},{"dst":"::/0","gw":"fd00:9::1"}]"#;
    let dns = r#""dns":{"nameservers":["10.9.0.1","fd00:9::1"],"domain":"d.example","search":["a.example","b.example"],"options":["ndots:2"]}"#;
    for ipam in [
        format!("{addresses},{routes},{dns}"),
        format!("{addresses},{routes}"),
        r#""addresses":[{"address":"10.9.0.2/24"}]"#.to_owned(),
        r#""addresses":[{"address":"fd00:9::2/64"}]"#.to_owned(),
    ] {
        let mut printed = printed_by_the_peer(&ipam);
        // From 1.0.0 on nothing is said of a name service that there is not; Go prints the empty object all the same.
        for (_, text) in printed.iter_mut().filter(|(version, _)| version == "1.0.0") {
            let mut value = parsed(text);
            value
                .as_object_mut()
                .unwrap()
                .retain(|key, value| key != "dns" || *value != serde_json::json!({}));
            *text = value.to_string();
        }
        // The peer does not speak the newest version, which differs from the one before in its number when there is nothing new to say.
        let newest = printed.last().unwrap().1.replacen("1.0.0", "1.1.0", 1);
        printed.push(("1.1.0".into(), newest));
        for (from, text) in &printed {
            let result = AddResult::parse(text, version(from)).unwrap();
            for (to, expected) in &printed {
                let converted = result.to_text(version(to)).unwrap();
                assert_eq!(parsed(&converted), parsed(expected), "{from} → {to}");
            }
        }
    }
}

/// What only the newest versions have, field by field.
#[test]
fn r1_what_a_version_does_not_know_is_left_out_of_it() {
    let newest = r#"{"cniVersion":"1.1.0",
        "interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","mtu":1400,"sandbox":"/n","socketPath":"/s","pciID":"0000:00:1f.6"}],
        "ips":[{"interface":0,"address":"10.1.2.3/16","gateway":"10.1.0.1"},{"interface":0,"address":"fd00::2/64"}],
        "routes":[{"dst":"0.0.0.0/0","mtu":1300,"advmss":1200,"priority":5,"table":7,"scope":0}]}"#;
    let one_zero = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/n"}],
        "ips":[{"interface":0,"address":"10.1.2.3/16","gateway":"10.1.0.1"},{"interface":0,"address":"fd00::2/64"}],
        "routes":[{"dst":"0.0.0.0/0"}]}"#;
    let three = |version: &str| {
        format!(
            r#"{{"cniVersion":"{version}","interfaces":[{{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/n"}}],
            "ips":[{{"version":"4","interface":0,"address":"10.1.2.3/16","gateway":"10.1.0.1"}},
                   {{"version":"6","interface":0,"address":"fd00::2/64"}}],
            "routes":[{{"dst":"0.0.0.0/0"}}],"dns":{{}}}}"#
        )
    };
    let two = |version: &str| {
        format!(
            r#"{{"cniVersion":"{version}","ip4":{{"ip":"10.1.2.3/16","gateway":"10.1.0.1","routes":[{{"dst":"0.0.0.0/0"}}]}},
            "ip6":{{"ip":"fd00::2/64"}},"dns":{{}}}}"#
        )
    };
    let result = AddResult::parse(newest, Version::NEWEST).unwrap();
    let mut golden = vec![("1.1.0", newest.to_owned()), ("1.0.0", one_zero.to_owned())];
    golden.extend(["0.4.0", "0.3.1", "0.3.0"].map(|version| (version, three(version))));
    golden.extend(["0.2.0", "0.1.0"].map(|version| (version, two(version))));
    for (to, expected) in &golden {
        let text = result.to_text(version(to)).unwrap();
        assert_eq!(parsed(&text), parsed(expected), "1.1.0 → {to}");
        // Whatever is said in a version says the same when it is read and said again.
        let again = AddResult::parse(&text, version(to)).unwrap();
        assert_eq!(parsed(&again.to_text(version(to)).unwrap()), parsed(expected), "{to} → {to}");
    }
}

#[test]
fn r2_what_nobody_knows_in_a_result_reaches_the_next_plugin_and_the_record() {
    let bed = Bed::new();
    let odd = r#""ips":[{"interface":-1,"address":"10.0.0.2/24"},{"interface":9,"address":"10.0.0.3/24"}],"vendor":{"n":12345678901234567890}"#;
    bed.plugin("a", &format!(r#"[ $CNI_COMMAND = ADD ] && {{ echo '{{"cniVersion":"",{odd}}}'; exit; }}"#));
    bed.plugin("b", "[ $CNI_COMMAND = ADD ] && { grep -o '\"prevResult\":.*' \"${0%/bin/b}/stdin.b.ADD\" | sed 's/^\"prevResult\"://; s/}$//'; exit; }");
    let result = bed.caller.attach(&network(r#"{"type":"a"},{"type":"b"}"#), &plain("one")).unwrap();
    assert_eq!(result.ips.len(), 2);
    assert_eq!(result.container_ips().count(), 2);
    assert!(std::fs::read_to_string(bed.record()).unwrap().contains(odd));
    bed.detach().unwrap();
    for empty in ["", "null", "{}"] {
        bed.plugin("a", &format!("[ $CNI_COMMAND = ADD ] && {{ printf '%s' '{empty}'; exit; }}"));
        let result = bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
        assert_eq!(result, AddResult::default(), "{empty:?}");
        bed.detach().unwrap();
    }
}

#[test]
fn r3_a_result_without_addresses_cannot_be_said_in_the_oldest_versions() {
    for old in ["0.1.0", "0.2.0"] {
        let error = AddResult::default().to_text(version(old)).unwrap_err();
        assert!(matches!(error, ResultError::NoAddress(_)), "{error}");
    }
    assert!(AddResult::default().to_text(version("0.3.0")).is_ok());
}

fn failure(script: &str) -> Error {
    let bed = Bed::new();
    bed.plugin("a", &format!("[ $CNI_COMMAND = ADD ] && {{ {script}; }}"));
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap_err()
}

fn code(error: &Error) -> Option<u32> {
    let Error::Plugin(failure) = error else { panic!("{error}") };
    failure.code.map(|code| code.0)
}

#[test]
fn r4_an_error_behind_a_result_counts() {
    let error = failure(
        r#"echo '{"cniVersion":"1.1.0","ips":[]}'; echo '{"code":8,"msg":"wrong namespace"}'; exit 1"#,
    );
    assert_eq!(code(&error), Some(8));
    assert!(error.to_string().contains("wrong namespace"), "{error}");
}

#[test]
fn r5_an_error_with_exit_status_0_is_an_error() {
    let error = failure(r#"echo '{"code":7,"msg":"no"}'; exit 0"#);
    assert_eq!(code(&error), Some(7));
    for (script, part) in
        [("echo '<html>'; exit 0", "<html>"), (r#"echo '{"cniVersion":"7.0.0"}'; exit 0"#, "7.0.0")]
    {
        let error = failure(script);
        assert_eq!(code(&error), None);
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// In a process of its own, whose memory is nobody else's.
#[test]
fn r6_crashes_and_floods_are_told_with_what_they_left_and_cost_little_memory() {
    let bed = Bed::new();
    let output = bed.job("crash").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
}
