//! What is refused before a handler is called, and what becomes of handlers that misbehave.

use serde_json::{Value, json};

use crate::{Netns, call};

const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"double"}"#;

/// Verb, variables that differ, standard input, the code, and words that the answer must hold.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u64, &'a [&'a str]);

fn cases() -> Vec<Case<'static>> {
    vec![
        ("LIST", &[], CONFIG, 4, &["LIST"]),
        ("add", &[], CONFIG, 4, &["add"]),
        (
            "ADD",
            &[("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_PATH", "")],
            CONFIG,
            4,
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
        ),
        (
            "CHECK",
            &[("CNI_CONTAINERID", ""), ("CNI_NETNS", "")],
            CONFIG,
            4,
            &["CNI_CONTAINERID", "CNI_NETNS"],
        ),
        ("DEL", &[("CNI_CONTAINERID", ""), ("CNI_NETNS", "")], CONFIG, 4, &["CNI_CONTAINERID"]),
        ("GC", &[("CNI_PATH", "")], CONFIG, 4, &["CNI_PATH"]),
        ("STATUS", &[("CNI_PATH", "")], CONFIG, 4, &["CNI_PATH"]),
        ("ADD", &[("CNI_CONTAINERID", "../x")], CONFIG, 4, &["CNI_CONTAINERID", "../x"]),
        ("DEL", &[("CNI_CONTAINERID", "a b")], CONFIG, 4, &["CNI_CONTAINERID"]),
        ("ADD", &[("CNI_IFNAME", "eth%d")], CONFIG, 4, &["CNI_IFNAME"]),
        ("ADD", &[("CNI_IFNAME", "a/b")], CONFIG, 4, &["CNI_IFNAME"]),
        ("DEL", &[("CNI_IFNAME", "sixteen-letters-")], CONFIG, 4, &["CNI_IFNAME"]),
        ("ADD", &[("CNI_ARGS", "A;B=1")], CONFIG, 4, &["CNI_ARGS"]),
        ("ADD", &[], "", 6, &[]),
        ("ADD", &[], r#"{"cniVersion":"1.1.0","na"#, 6, &[]),
        ("ADD", &[], "[]", 6, &[]),
        ("ADD", &[], "null", 6, &[]),
        ("ADD", &[], "{\"name\":\"a\u{0}\"}", 6, &[]),
        ("ADD", &[], r#"{"cniVersion":1,"name":"net"}"#, 6, &["cniVersion"]),
        ("ADD", &[], r#"{"cniVersion":{},"name":"net"}"#, 6, &["cniVersion"]),
        ("ADD", &[], r#"{"cniVersion":"1.1.0"}"#, 7, &["name"]),
        ("ADD", &[], r#"{"cniVersion":"1.1.0","name":""}"#, 7, &["network name"]),
        ("ADD", &[], r#"{"cniVersion":"1.1.0","name":"../x"}"#, 7, &["../x"]),
        ("ADD", &[], r#"{"cniVersion":"1.1.0","name":7}"#, 7, &["name"]),
        ("ADD", &[], r#"{"cniVersion":"9.0.0","name":"net"}"#, 1, &["9.0.0", "0.1.0", "1.1.0"]),
        ("DEL", &[], r#"{"cniVersion":"1.1.1","name":"net"}"#, 1, &["1.1.1"]),
        ("ADD", &[], r#"{"cniVersion":"new","name":"net"}"#, 1, &["new"]),
        ("CHECK", &[], r#"{"cniVersion":"0.3.1","name":"net"}"#, 1, &["CHECK", "0.3.1", "0.4.0"]),
        ("GC", &[], r#"{"cniVersion":"1.0.0","name":"net"}"#, 1, &["GC", "1.0.0", "1.1.0"]),
        ("STATUS", &[], r#"{"cniVersion":"1.0.0","name":"net"}"#, 1, &["STATUS"]),
        ("STATUS", &[], r#"{"name":"net"}"#, 1, &["0.1.0"]),
        ("GC", &[], CONFIG, 7, &["cni.dev/valid-attachments"]),
        ("ADD", &[], CONFIG, 8, &["/nowhere"]),
        ("CHECK", &[], CONFIG, 8, &["/nowhere"]),
        ("ADD", &[("CNI_NETNS", "/etc/passwd")], CONFIG, 8, &["/etc/passwd"]),
        ("ADD", &[("CNI_NETNS", "/proc/self/ns/mnt")], CONFIG, 8, &["kind"]),
    ]
}

#[test]
fn a1_whatever_is_wrong_with_a_call_has_its_code_in_one_object_with_a_version() {
    for (verb, variables, stdin, code, words) in cases() {
        let said = call("double", verb, variables, stdin.as_bytes());
        let object = said.object();
        let what = format!("{verb} {variables:?} {stdin}: {said:?}");
        assert_eq!(said.status, Some(1), "{what}");
        assert_eq!(object["code"], code, "{what}");
        assert!(object["cniVersion"].is_string() && object["msg"].is_string(), "{what}");
        assert!(words.iter().all(|word| said.stdout.contains(word)), "{what}");
    }
}

#[test]
fn a1_standard_input_that_cannot_be_read_is_code_5_and_no_command_prints_what_the_plugin_is() {
    let unreadable = std::process::Command::new(crate::example("double"))
        .env_clear()
        .envs([("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/nowhere")])
        .stdin(std::fs::File::open("/").unwrap())
        .output()
        .unwrap();
    assert_eq!(unreadable.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&unreadable.stdout).unwrap()["code"], 5);

    let about = call("double", "", &[], b"");
    assert_eq!((about.status, about.stdout.as_str()), (Some(0), ""), "{about:?}");
    assert!(about.stderr.contains("double") && about.stderr.contains("0.1.0, "), "{about:?}");
}

#[test]
fn s5_gc_takes_null_for_no_valid_attachments_as_libcni_says_it() {
    for valid in ["[]", "null"] {
        let config = format!(r#"{{"cniVersion":"1.1.0","name":"net","cni.dev/valid-attachments":{valid}}}"#);
        let said = call("double", "GC", &[], config.as_bytes());
        assert_eq!((said.status, said.stdout.as_str()), (Some(0), ""), "{valid}: {said:?}");
    }
}

#[test]
fn a1_version_needs_nothing_and_lists_what_is_spoken() {
    let nothing = [("CNI_CONTAINERID", ""), ("CNI_IFNAME", ""), ("CNI_NETNS", ""), ("CNI_PATH", "")];
    for stdin in ["", "junk", r#"{"cniVersion":"0.4.0"}"#] {
        let said = call("double", "VERSION", &nothing, stdin.as_bytes());
        assert_eq!(said.status, Some(0), "{said:?}");
        let all = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(said.object(), json!({ "cniVersion": "1.1.0", "supportedVersions": all }));
    }
}

#[test]
fn a2_a_call_aimed_at_the_plugins_own_namespace_is_code_8_and_reaches_no_handler() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let config = json!({ "cniVersion": "1.1.0", "name": "net", "type": "double", "log": log }).to_string();
    for verb in ["ADD", "DEL", "CHECK"] {
        let said = call("double", verb, &[("CNI_NETNS", "/proc/self/ns/net")], config.as_bytes());
        assert_eq!((said.status, &said.object()["code"]), (Some(1), &json!(8)), "{verb}: {said:?}");
    }
    assert!(!log.exists(), "{}", std::fs::read_to_string(&log).unwrap());
    // The same with a namespace that is another's does reach it, and DEL does without any.
    let Some(netns) = Netns::make() else { return };
    for (verb, path) in [("ADD", netns.path()), ("DEL", ""), ("DEL", "/nowhere"), ("DEL", "/etc/passwd")] {
        let said = call("double", verb, &[("CNI_NETNS", path)], config.as_bytes());
        assert_eq!(said.status, Some(0), "{verb}: {said:?}");
    }
    let calls = std::fs::read_to_string(&log).unwrap();
    let given: Vec<Value> =
        calls.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["netns"].clone()).collect();
    assert_eq!(given, [json!(netns.path()), Value::Null, Value::Null, Value::Null]);
}

#[test]
fn a3_a_panic_is_an_error_and_a_print_does_not_reach_standard_output() {
    let Some(netns) = Netns::make() else { return };
    let script = |steps: Value| {
        let config = json!({ "cniVersion": "1.0.0", "name": "net", "script": { "ADD": steps } });
        call("double", "ADD", &[("CNI_NETNS", netns.path())], config.to_string().as_bytes())
    };
    let said = script(json!({ "panic": "on purpose" }));
    let object = said.object();
    assert_eq!((said.status, &object["code"]), (Some(1), &json!(999)), "{said:?}");
    assert_eq!(object["cniVersion"], "1.0.0");
    assert!(object["msg"].as_str().unwrap().contains("on purpose"), "{said:?}");
    assert!(said.stderr.contains("backtrace") || said.stderr.contains("0:"), "{said:?}");

    let said =
        script(json!({ "print": "a stray line", "result": { "ips": [{ "address": "10.0.0.2/24" }] } }));
    assert_eq!(said.status, Some(0), "{said:?}");
    assert_eq!(said.object(), json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.2/24" }] }));
    assert!(said.stderr.contains("a stray line"), "{said:?}");
}
