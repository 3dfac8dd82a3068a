//! What reaches a plugin: its input byte for byte, and its environment.

use std::path::Path;

use cofferdam_cni::{
    Capabilities, ContainerId, Error, IfName, Kind, NetnsFate, PortMapping, Protocol, Undeclared, Valid,
};

use crate::bed::{Bed, NETNS, attachment, eth0, id, list, network, plain, three};

#[test]
fn s1_numbers_escapes_and_the_order_of_keys_reach_a_plugin_unchanged() {
    let bed = Bed::new();
    bed.plugin("a", "");
    let odd =
        r#""z":12345678901234567890,"f":1.0,"big":1e400,"s":"<&>\u00e9é\/","o":{"y":1, "x":[ 2]},"a":-0"#;
    bed.caller.attach(&network(&format!(r#"{{"type":"a",{odd}}}"#)), &plain("one")).unwrap();
    let expected = format!(r#"{{"type":"a",{odd},"cniVersion":"1.1.0","name":"net"}}"#);
    assert_eq!(bed.input("a", "ADD"), expected);
    // The same bytes through the record.
    bed.detach().unwrap();
    let sent = bed.input("a", "DEL");
    assert!(sent.starts_with(expected.strip_suffix('}').unwrap()), "{sent}");
}

#[test]
fn s2_capabilities_never_reach_a_plugin_and_arguments_are_what_is_declared_and_given() {
    let bed = Bed::new();
    bed.three_plugins();
    let list = network(
        r#"{"type":"a","capabilities":{"mac":true,"ips":true,"aliases":false}},
           {"type":"b","capabilities":{"aliases":"true"}},{"type":"c"}"#,
    );
    let mut attachment = attachment();
    attachment.capabilities.aliases = vec!["web".into()];
    bed.caller.attach(&list, &attachment).unwrap();
    bed.check().unwrap();
    bed.detach().unwrap();
    for verb in ["ADD", "CHECK", "DEL"] {
        let sent = bed.input("a", verb);
        assert!(sent.contains(r#""runtimeConfig":{"mac":"02:00:00:00:00:01"}"#), "{sent}");
        for plugin in ["a", "b", "c"] {
            assert!(!bed.input(plugin, verb).contains("capabilities"), "{plugin} {verb}");
        }
        assert!(!bed.input("b", verb).contains("runtimeConfig"));
        assert!(!bed.input("c", verb).contains("runtimeConfig"));
    }
    bed.caller.gc(&list, &Valid::Nothing).unwrap();
    bed.caller.status(&list).unwrap();
    for verb in ["GC", "STATUS"] {
        let sent = bed.input("a", verb);
        assert!(!sent.contains("capabilities") && !sent.contains("runtimeConfig"), "{sent}");
    }
}

#[test]
fn s3_what_the_caller_writes_never_comes_from_a_file_and_that_is_told() {
    let bed = Bed::new();
    bed.plugin("a", "");
    let list = network(
        r#"{"type":"a","runtimeConfig":{"mac":"x"},"prevResult":{"ips":[]},"cni.dev/x":1,"cni.dev/attachments":[]}"#,
    );
    assert_eq!(list.warnings.len(), 4, "{:?}", list.warnings);
    bed.caller.attach(&list, &plain("one")).unwrap();
    assert_eq!(bed.input("a", "ADD"), r#"{"type":"a","cniVersion":"1.1.0","name":"net"}"#);
}

#[test]
fn s4_everybody_gets_the_previous_result_that_the_specification_gives_them() {
    let bed = Bed::new();
    // The second answers in an older version than the network's.
    bed.plugin("a", r#"[ $CNI_COMMAND = ADD ] && { echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{},"by":"a"}'; exit 0; }"#);
    bed.plugin("b", "");
    let text = |version: &str| {
        format!(r#"{{"name":"net","cniVersion":"{version}","plugins":[{{"type":"a"}},{{"type":"b"}}]}}"#)
    };
    let newest = list(&text("1.1.0"));
    bed.caller.attach(&newest, &plain("one")).unwrap();
    assert!(!bed.input("a", "ADD").contains("prevResult"));
    let converted = r#""prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}],"by":"a"}"#;
    assert!(bed.input("b", "ADD").contains(converted), "{}", bed.input("b", "ADD"));
    bed.check().unwrap();
    bed.detach().unwrap();
    for (plugin, verb) in [("a", "CHECK"), ("b", "CHECK"), ("a", "DEL"), ("b", "DEL")] {
        let sent = bed.input(plugin, verb);
        assert!(sent.contains(r#""prevResult":{"cniVersion":"1.1.0","by":"b""#), "{plugin} {verb}: {sent}");
    }
    let old = list(&text("0.3.1"));
    bed.plugin("b", r#"[ $CNI_COMMAND = ADD ] && { echo '{"cniVersion":"0.3.1","dns":{}}'; exit 0; }"#);
    bed.caller.attach(&old, &plain("one")).unwrap();
    let sent = bed.input("b", "ADD");
    assert!(sent.contains(r#""prevResult":{"cniVersion":"0.3.1""#), "{sent}");
    bed.detach().unwrap();
    assert!(!bed.input("a", "DEL").contains("prevResult") && !bed.input("b", "DEL").contains("prevResult"));
}

#[test]
fn s5_gc_is_told_the_valid_attachments_under_both_names() {
    let bed = Bed::new();
    bed.plugin("a", "");
    let list = network(r#"{"type":"a"}"#);
    bed.caller.gc(&list, &Valid::Only(vec![(id("one"), eth0())])).unwrap();
    let valid = r#"[{"containerID":"one","ifname":"eth0"}]"#;
    let both =
        |valid: &str| format!(r#""cni.dev/attachments":{valid},"cni.dev/valid-attachments":{valid}}}"#);
    assert!(bed.input("a", "GC").ends_with(&both(valid)), "{}", bed.input("a", "GC"));
    for nothing in [Valid::Nothing, Valid::Only(Vec::new())] {
        bed.caller.gc(&list, &nothing).unwrap();
        assert!(bed.input("a", "GC").ends_with(&both("[]")), "{}", bed.input("a", "GC"));
    }
}

#[test]
fn s6_a_plugin_sees_what_is_listed_of_our_environment_and_nothing_else() {
    // Cargo sets these for its tests: the one plays a secret, the other is listed.
    let bed = Bed::with(|options| options.pass_environment = vec!["CARGO_PKG_NAME".into()]);
    bed.plugin("a", "");
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    let environment = bed.plugins.read("env.a.ADD");
    assert!(std::env::var("CARGO_PKG_VERSION").is_ok_and(|it| !it.is_empty()));
    assert!(!environment.contains("CARGO_PKG_VERSION"), "{environment}");
    assert_eq!(bed.plugins.variable("a", "ADD", "CARGO_PKG_NAME"), std::env::var("CARGO_PKG_NAME").ok());
    let path = bed.plugins.variable("a", "ADD", "PATH").unwrap();
    assert!(
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().all(|one| path.split(':').any(|it| it == *one)),
        "{path}"
    );
    for (name, value) in [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "one"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", NETNS),
        ("CNI_PATH", &bed.plugins.bin().display().to_string()),
    ] {
        assert_eq!(bed.plugins.variable("a", "ADD", name).as_deref(), Some(value), "{name}");
    }
    bed.caller.status(&network(r#"{"type":"a"}"#)).unwrap();
    assert_eq!(bed.plugins.variable("a", "STATUS", "CNI_CONTAINERID").as_deref(), Some(""));
}

#[test]
fn s7_arguments_begin_with_ignore_unknown_and_what_they_cannot_carry_is_refused() {
    let bed = Bed::new();
    bed.three_plugins();
    bed.caller.attach(&three(), &attachment()).unwrap();
    let seen = bed.plugins.variable("a", "ADD", "CNI_ARGS");
    assert_eq!(seen.as_deref(), Some("IgnoreUnknown=1;K8S_POD_NAME=p"));
    bed.detach().unwrap();
    assert_eq!(bed.plugins.variable("a", "DEL", "CNI_ARGS"), seen);
    bed.log();
    for (key, value) in [("A", "b;c"), ("A", "b=c"), ("A=B", "c"), ("", "c")] {
        let mut attachment = plain("one");
        attachment.args = vec![(key.into(), value.into())];
        let error = bed.caller.attach(&three(), &attachment).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{key}={value}: {error}");
    }
    assert!(bed.log().is_empty());
}

#[test]
fn s8_asking_in_vain_for_ports_is_an_error_or_by_choice_a_warning() {
    let bed = Bed::new();
    bed.plugin("a", "");
    let list = network(r#"{"type":"a"}"#);
    let mut attachment = plain("one");
    let port = PortMapping { host_port: 80, container_port: 80, protocol: Protocol::Tcp, host_ip: None };
    attachment.capabilities = Capabilities { port_mappings: vec![port], ..Capabilities::default() };
    let error = bed.caller.attach(&list, &attachment).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("network net: portMappings"), "{error}");
    assert!(bed.log().is_empty() && bed.told.all().is_empty());
    attachment.undeclared = Undeclared::Warn;
    bed.caller.attach(&list, &attachment).unwrap();
    assert!(bed.told.all().contains("network net: portMappings"), "{}", bed.told.all());
    bed.detach().unwrap();
    // An alias that nobody serves is worth a warning only.
    let mut attachment = plain("one");
    attachment.capabilities.aliases = vec!["web".into()];
    bed.caller.attach(&list, &attachment).unwrap();
    assert!(bed.told.all().contains("aliases"), "{}", bed.told.all());
}

#[test]
fn s9_del_with_a_namespace_that_is_gone_or_is_none_has_no_namespace() {
    let bed = Bed::new();
    bed.three_plugins();
    let netns = bed.folder.join("netns");
    for plain_file in [false, true] {
        std::os::unix::fs::symlink(NETNS, &netns).unwrap();
        let mut attachment = attachment();
        attachment.netns.clone_from(&netns);
        bed.caller.attach(&three(), &attachment).unwrap();
        assert_eq!(bed.plugins.variable("a", "ADD", "CNI_NETNS").unwrap(), netns.display().to_string());
        std::fs::remove_file(&netns).unwrap();
        if plain_file {
            std::fs::write(&netns, "").unwrap();
        }
        bed.detach().unwrap();
        for plugin in ["a", "b", "c"] {
            assert_eq!(bed.plugins.variable(plugin, "DEL", "CNI_NETNS").as_deref(), Some(""));
        }
        let _ = std::fs::remove_file(&netns);
    }
    // ADD needs one.
    let mut attachment = attachment();
    attachment.netns = netns;
    assert!(matches!(bed.caller.attach(&three(), &attachment), Err(Error::Netns { .. })));
}

/// The verbs take names that were parsed, and nothing else parses: so one test holds for every verb.
#[test]
fn s10_names_that_could_leave_a_directory_or_confuse_the_kernel_are_no_names() {
    for bad in ["../../x", "", "a b", "a/b", "-a", ".a", "a\n", &"x".repeat(101)] {
        assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
    }
    for bad in ["eth%d", "a/b", "0123456789abcdef", "", ".", "..", "a:b", "a b", "all", "default"] {
        assert!(IfName::parse(bad).is_err(), "{bad:?}");
    }
    let bed = Bed::new();
    bed.plugin("a", "");
    bed.plugin("loopback", "");
    let mut attachment = plain("one");
    attachment.if_name = IfName::parse("lo").unwrap();
    let error = bed.caller.attach(&network(r#"{"type":"a"}"#), &attachment).unwrap_err();
    assert!(matches!(error, Error::Loopback { .. }), "{error}");
    assert!(bed.log().is_empty());
    bed.caller.attach(&network(r#"{"type":"loopback"}"#), &attachment).unwrap();
    let (name, lo) = (&network(r#"{"type":"a"}"#).name, &attachment.if_name);
    bed.caller.detach(name, &attachment.container, lo, NetnsFate::Stays).unwrap();
}

#[test]
fn a7_explain_tells_byte_for_byte_what_add_then_sends() {
    let bed = Bed::new();
    bed.three_plugins();
    let explained = bed.caller.explain(&three(), &attachment(), &[]).unwrap();
    assert!(bed.log().is_empty());
    assert!(explained.plugins[1].input.contains(r#""prevResult":"(what a will have answered)""#));
    bed.caller.attach(&three(), &attachment()).unwrap();
    assert_eq!(bed.input("a", "ADD"), explained.plugins[0].input);
    let result = |name: &str| {
        let text = format!(r#"{{"cniVersion":"1.1.0","by":"{name}","n":12345678901234567890}}"#);
        serde_json::value::RawValue::from_string(text).unwrap()
    };
    let explained = bed.caller.explain(&three(), &attachment(), &[result("a"), result("b")]).unwrap();
    for (plugin, name) in explained.plugins.iter().zip(["a", "b", "c"]) {
        assert_eq!((plugin.kind.as_str(), &plugin.input), (name, &bed.input(name, "ADD")));
        assert!(matches!(&plugin.implementation,
            cofferdam_cni::Implementation::Path(path) if path.starts_with(Path::new(&bed.plugins.bin()))));
    }
}
