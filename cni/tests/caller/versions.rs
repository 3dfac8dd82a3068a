//! VERSION: which versions plugins speak, and which one is spoken with them.

use std::time::{Duration, Instant};

use cofferdam_cni::{Deadlines, Error, Kind};
use cofferdam_tests::pace;

use crate::bed::{Bed, list, plain};

fn answering(bed: &Bed, name: &str, answer: &str) {
    bed.plugin(name, &format!("[ $CNI_COMMAND = VERSION ] && {{ {answer}; exit; }}"));
}

#[test]
fn v16_a_plugin_that_is_asked_for_its_versions_may_be_old_talk_nonsense_or_hang() {
    let bed = Bed::with(|options| {
        options.deadlines = Deadlines { status: pace::limit(Duration::from_secs(1)), ..Deadlines::default() }
    });
    let network = list(r#"{"name":"net","cniVersion":"0.1.0","plugins":[{"type":"a"}]}"#);
    let versions = |answer: &str| {
        answering(&bed, "a", answer);
        let facts = bed.caller.validate(&network)?;
        Ok::<_, Error>(facts[0].versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(versions(r#"echo '{"cniVersion":"0.2.0"}'"#).unwrap(), "0.1.0 0.2.0");
    let old = r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#;
    assert_eq!(versions(old).unwrap(), "0.1.0");
    let junk = versions("echo rubbish; echo why >&2; exit 3").unwrap_err().to_string();
    for part in ["plugin a", "VERSION", "net", "exit status: 3", "rubbish", "why"] {
        assert!(junk.contains(part), "{part} in {junk}");
    }
    let begun = Instant::now();
    let hang = versions("exec sleep 300").unwrap_err();
    assert_eq!(hang.kind(), Kind::Interrupted);
    assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", begun.elapsed());
    // Old plugins look for these first; what they are told is the newest version that we speak.
    assert_eq!(bed.input("a", "VERSION"), r#"{"cniVersion":"1.1.0"}"#);
    for name in ["CNI_NETNS", "CNI_IFNAME", "CNI_CONTAINERID"] {
        assert_eq!(bed.plugins.variable("a", "VERSION", name).as_deref(), Some("dummy"), "{name}");
    }
}

#[test]
fn v16_an_answer_is_kept_until_the_program_changes() {
    let bed = Bed::new();
    let network = list(r#"{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#);
    answering(&bed, "a", r#"echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'"#);
    for _ in 0..3 {
        assert_eq!(bed.caller.validate(&network).unwrap()[0].versions.len(), 2);
    }
    assert_eq!(bed.log(), ["a VERSION"]);
    answering(&bed, "a", r#"echo '{"cniVersion":"0.4.0","supportedVersions":["0.4.0"]}'"#);
    let error = bed.caller.validate(&network).unwrap_err();
    assert!(matches!(&error, Error::NoCommonVersion { .. }), "{error}");
    assert!(error.to_string().contains("plugin a knows 0.4.0"), "{error}");
}

#[test]
fn a_network_with_a_choice_is_spoken_to_in_a_version_that_its_plugins_know() {
    let bed = Bed::new();
    answering(&bed, "a", r#"echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'"#);
    answering(&bed, "b", r#"echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}'"#);
    let choice = |versions: &str| {
        list(&format!(r#"{{"name":"net",{versions},"plugins":[{{"type":"a"}},{{"type":"b"}}]}}"#))
    };
    let network = choice(r#""cniVersions":["0.4.0","1.0.0","1.1.0"]"#);
    bed.caller.attach(&network, &plain("one")).unwrap();
    assert!(bed.input("b", "ADD").contains(r#""cniVersion":"0.4.0""#));
    bed.detach().unwrap();
    assert!(bed.input("a", "DEL").contains(r#""cniVersion":"0.4.0""#), "{}", bed.input("a", "DEL"));
    let error = bed.caller.attach(&choice(r#""cniVersions":["1.0.0","1.1.0"]"#), &plain("one")).unwrap_err();
    assert!(error.to_string().contains("plugin b knows 0.3.1, 0.4.0"), "{error}");
    assert!(!bed.has_records());
    // Without a choice nobody is asked.
    bed.log();
    bed.caller.attach(&choice(r#""cniVersion":"1.0.0""#), &plain("one")).unwrap();
    assert_eq!(bed.log(), ["a ADD", "b ADD"]);
}
