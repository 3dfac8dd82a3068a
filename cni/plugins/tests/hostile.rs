//! Calls that make no sense, to the plugins as programs: each gets the code that the specification has for it, and the
//! reference plugins, where they are installed, refuse it too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cofferdam_cni::Object;
use cofferdam_cni_plugins::BUILTINS;
use cofferdam_linux::namespace::{create_pinned_netns, remove_pinned_netns, with_new_netns};
use cofferdam_linux::netlink::Socket;
use serde_json::{Value, json};

const REFERENCE: &str = "/usr/lib/cni";
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The program, which `COFFERDAM_BIN_DIR` may have elsewhere.
fn program() -> PathBuf {
    match std::env::var_os("COFFERDAM_BIN_DIR") {
        Some(folder) => PathBuf::from(folder).join("cofferdam-cni"),
        None => env!("CARGO_BIN_EXE_cofferdam-cni").into(),
    }
}

/// One call: of our plugin by its name as first argument, or of another program.
fn call(own: Option<&str>, other: &Path, verb: &str, variables: &[(&str, &str)], input: &str) -> Output {
    let mut command = match own {
        Some(kind) => {
            let mut command = Command::new(program());
            command.arg(kind);
            command
        }
        None => Command::new(other),
    };
    let mut child = command
        .envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "one"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", REFERENCE),
        ])
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who has seen enough stops reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn ours(kind: &str, verb: &str, variables: &[(&str, &str)], input: &str) -> Output {
    call(Some(kind), Path::new(""), verb, variables, input)
}

fn code(output: &Output) -> Option<u64> {
    serde_json::from_slice::<Value>(&output.stdout).ok()?["code"].as_u64()
}

/// A configuration with these keys besides what every one has.
fn config(kind: &str, version: &str, keys: &Value) -> String {
    let mut config = json!({ "cniVersion": version, "name": "hostile", "type": kind });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

/// What is wrong, for which plugin, and the code.
fn wrong_configurations() -> Vec<(&'static str, Value, u64)> {
    vec![
        ("bridge", json!({ "mtu": "big" }), 6),
        ("bridge", json!({ "mtu": -1 }), 6),
        ("bridge", json!({ "isGateway": "yes" }), 6),
        ("bridge", json!({ "bridge": 7 }), 6),
        ("bridge", json!({ "ipam": [] }), 6),
        ("bridge", json!({ "ipam": { "type": 7 } }), 6),
        ("bridge", json!({ "ipam": { "type": "../evil" } }), 7),
        ("bridge", json!({ "ipam": { "type": "no-such-plugin" } }), 7),
        ("bridge", json!({ "vlan": 5000 }), 7),
        ("bridge", json!({ "vlanTrunk": [{ "minID": 9, "maxID": 3 }] }), 7),
        ("bridge", json!({ "hairpinMode": true, "promiscMode": true }), 7),
        ("bridge", json!({ "runtimeConfig": { "mac": "no address" } }), 7),
        ("bridge", json!({ "args": { "cni": { "mac": "no address" } } }), 7),
        ("bridge", json!({ "bridge": "a-name-that-no-link-can-have" }), 103),
        ("ptp", json!({ "ipam": {} }), 7),
        ("macvlan", json!({ "master": "no-such-link" }), 7),
        ("macvlan", json!({ "mode": "sideways", "master": "lo" }), 7),
        ("host-device", json!({}), 7),
        ("host-device", json!({ "device": "no-such-link" }), 7),
        ("vlan", json!({ "master": "lo", "vlanId": 5000 }), 7),
        ("host-local", json!({}), 7),
        ("host-local", json!({ "ipam": { "type": "host-local" } }), 7),
        ("host-local", json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/99" }]] } }), 6),
        ("host-local", json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/31" }]] } }), 7),
        ("static", json!({ "ipam": { "addresses": [{ "address": "nowhere" }] } }), 6),
        (
            "portmap",
            json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 80, "containerPort": 80 }] } }),
            7,
        ),
        ("firewall", json!({}), 7),
        ("tuning", json!({ "mtu": 1400 }), 7),
        ("bandwidth", json!({}), 7),
        ("sbr", json!({}), 7),
        ("firewall", json!({ "prevResult": [] }), 6),
        ("firewall", json!({ "prevResult": { "ips": "none" } }), 6),
    ]
}

/// What Debian's reference plugins, 1.1.1, make something of all the same.
const ACCEPTED_BY_THE_REFERENCE: &[&str] =
    &["bridge {\"mtu\":-1}", "bridge {\"vlanTrunk\":[{\"minID\":9,\"maxID\":3}]}"];

#[test]
fn hostile_configurations_have_the_specifications_codes_and_leave_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (netns, other) = (folder.path().join("netns"), folder.path().join("other"));
    let path = netns.to_str().unwrap();
    with_new_netns(|| {
        create_pinned_netns(&netns).unwrap();
        let mut accepted = Vec::new();
        for (kind, keys, expected) in wrong_configurations() {
            let input = config(kind, "1.0.0", &keys);
            let said = ours(kind, "ADD", &[("CNI_NETNS", path)], &input);
            assert_eq!(
                (said.status.code(), code(&said)),
                (Some(1), Some(expected)),
                "{kind} {keys}: {said:?}"
            );
            let theirs = Path::new(REFERENCE).join(kind);
            if theirs.exists() {
                // A namespace for each: some leave what they made although they failed.
                create_pinned_netns(&other).unwrap();
                let variables = [("CNI_NETNS", other.to_str().unwrap())];
                if call(None, &theirs, "ADD", &variables, &input).status.success() {
                    accepted.push(format!("{kind} {keys}"));
                }
                call(None, &theirs, "DEL", &variables, &input);
                remove_pinned_netns(&other).unwrap();
            }
        }
        if Path::new(REFERENCE).join("bridge").exists() {
            assert_eq!(accepted, ACCEPTED_BY_THE_REFERENCE);
        }
        let mut inside = Socket::route_in(std::os::fd::AsFd::as_fd(
            &cofferdam_linux::namespace::open_netns(&netns).unwrap(),
        ))
        .unwrap();
        assert_eq!(inside.find_link("eth0").unwrap(), None);
        remove_pinned_netns(&netns).unwrap();
    })
    .unwrap();
}

#[test]
fn hostile_environments_have_the_specifications_codes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let input = config("tuning", "1.0.0", &json!({ "prevResult": { "cniVersion": "1.0.0" } }));
    let rows = [
        (("CNI_NETNS", "/no/such/namespace"), 8),
        (("CNI_NETNS", file.to_str().unwrap()), 8),
        (("CNI_NETNS", "/proc/self/ns/net"), 8),
        (("CNI_NETNS", "/proc/self/ns/uts"), 8),
        (("CNI_NETNS", ""), 4),
        (("CNI_IFNAME", "sixteen-letters-"), 4),
        (("CNI_IFNAME", "eth%d"), 4),
        (("CNI_CONTAINERID", "../../x"), 4),
        (("CNI_ARGS", "nonsense"), 4),
        (("CNI_ARGS", "=;="), 4),
        (("CNI_COMMAND", "DESTROY"), 4),
    ];
    for (variable, expected) in rows {
        // The last of two values of a variable counts.
        let said = ours("tuning", "ADD", &[("CNI_NETNS", "/proc/1/ns/mnt"), variable], &input);
        assert_eq!((said.status.code(), code(&said)), (Some(1), Some(expected)), "{variable:?}: {said:?}");
    }
    for input in [
        "",
        "{",
        "[]",
        "7",
        "\"x\"",
        "{\"name\":\"n\",\"name\":",
        &"[".repeat(100_000),
        &"{\"a\":".repeat(100_000),
    ] {
        let said = ours("tuning", "ADD", &[("CNI_NETNS", "/proc/1/ns/mnt")], input);
        let start: String = input.chars().take(20).collect();
        assert_eq!((said.status.code(), code(&said)), (Some(1), Some(6)), "{start}: {said:?}");
    }
}

#[test]
fn every_plugin_answers_version_and_refuses_gc_and_status_where_they_are_unknown() {
    let versions = usize::try_from(cofferdam_tests::pace::rounds(7, 2)).unwrap();
    for plugin in BUILTINS {
        let kind = plugin.kind();
        for version in VERSIONS.into_iter().rev().take(versions) {
            let input = config(kind, version, &json!({ "cni.dev/valid-attachments": [] }));
            let said = ours(kind, "VERSION", &[], &input);
            let answer: Value = serde_json::from_slice(&said.stdout).unwrap();
            assert!(
                answer["supportedVersions"].as_array().unwrap().contains(&version.into()),
                "{kind}: {answer}"
            );
            if version == "1.1.0" {
                continue;
            }
            for verb in ["GC", "STATUS"] {
                let said = ours(kind, verb, &[], &input);
                assert_eq!(
                    (said.status.code(), code(&said)),
                    (Some(1), Some(1)),
                    "{kind} {verb} {version}: {said:?}"
                );
            }
        }
    }
}

/// A result with one address as each version says it.
fn result_of(version: &str) -> Value {
    let address = "10.1.2.3/24";
    match version {
        "0.1.0" | "0.2.0" => json!({ "cniVersion": version, "ip4": { "ip": address }, "dns": {} }),
        "0.3.0" | "0.3.1" | "0.4.0" => {
            json!({ "cniVersion": version, "ips": [{ "version": "4", "address": address }], "dns": {} })
        }
        _ => json!({ "cniVersion": version, "ips": [{ "address": address }] }),
    }
}

#[test]
fn a_chained_plugin_takes_and_gives_the_result_in_the_version_of_the_configuration() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let netns = folder.path().join("netns");
    with_new_netns(|| {
        create_pinned_netns(&netns).unwrap();
        let variables = [("CNI_NETNS", netns.to_str().unwrap())];
        for version in VERSIONS {
            for kind in ["tuning", "portmap", "firewall"] {
                let input = config(kind, version, &json!({ "prevResult": result_of(version) }));
                let said = ours(kind, "ADD", &variables, &input);
                assert!(said.status.success(), "{kind} {version}: {said:?}");
                let given: Value = serde_json::from_slice(&said.stdout).unwrap();
                assert_eq!(given["cniVersion"], version);
                assert!(given.to_string().contains("10.1.2.3/24"), "{kind} {version}: {given}");
                let said = ours(kind, "DEL", &variables, &input);
                assert!(said.status.success() && said.stdout.is_empty(), "{kind} {version}: {said:?}");
            }
        }
        remove_pinned_netns(&netns).unwrap();
    })
    .unwrap();
}

/// Options of the reference plugins and whether they are done here; the others are refused by their names.
#[test]
fn options_of_the_reference_plugins_are_done_or_refused_by_name() {
    let done = [
        (
            "bridge",
            r#"{"vlan":5,"vlanTrunk":[{"id":7}],"preserveDefaultVlan":true,"macspoofchk":true,"enabledad":true}"#,
        ),
        (
            "bridge",
            r#"{"forceAddress":true,"disableContainerInterface":true,"portIsolation":true,"ipMasqBackend":"iptables"}"#,
        ),
        ("ptp", r#"{"ipMasq":true,"ipMasqBackend":"nftables","mtu":1400}"#),
        ("macvlan", r#"{"bcqueuelen":100,"linkInContainer":true,"mac":"02:00:00:00:00:01"}"#),
        ("portmap", r#"{"backend":"iptables","snat":false,"masqAll":true,"markMasqBit":13}"#),
        ("firewall", r#"{"backend":"nftables","ingressPolicy":"isolated"}"#),
        ("sbr", r#"{"table":7,"gateways":["10.0.0.1"]}"#),
        (
            "tuning",
            r#"{"sysctl":{},"mac":"","promisc":true,"mtu":1,"allmulti":true,"txQLen":1,"dataDir":"/x"}"#,
        ),
    ];
    let refused = [
        ("bridge", "ipMasqBackend", r#""magic""#),
        ("ptp", "ipMasqBackend", r#""magic""#),
        ("portmap", "conditionsV4", r#"["-s","10.0.0.1"]"#),
        ("portmap", "conditionsV6", r#"["-s","fd00::1"]"#),
        ("portmap", "externalSetMarkChain", r#""KUBE-MARK-MASQ""#),
        ("portmap", "backend", r#""magic""#),
        ("firewall", "backend", r#""firewalld""#),
        ("firewall", "firewalldZone", r#""trusted""#),
        ("firewall", "iptablesAdminChainName", r#""MINE""#),
        ("sbr", "addSourceHints", "true"),
        ("tap", "bridge", r#""br0""#),
        ("tap", "selinuxContext", r#""x""#),
        ("host-device", "dpdkMode", "true"),
        ("bandwidth", "shapedSubnets", r#"["10.0.0.0/8"]"#),
        ("bandwidth", "unshapedSubnets", r#"["10.0.0.0/8"]"#),
    ];
    let said = |kind: &str, text: &str| {
        let plugin = BUILTINS.iter().find(|plugin| plugin.kind() == kind).unwrap();
        plugin.supports(&serde_json::from_str::<Object>(text).unwrap())
    };
    for (kind, text) in done {
        assert_eq!(said(kind, text), Ok(()), "{kind} {text}");
    }
    for (kind, key, value) in refused {
        let why = said(kind, &format!(r#"{{"{key}":{value}}}"#)).unwrap_err();
        assert!(why.contains(key), "{kind} {key}: {why}");
        // DEL of what was refused is no error: whatever else the chain made has to go.
        let mut config: Value = serde_json::from_str(&config(kind, "1.0.0", &json!({}))).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        let added = ours(kind, "ADD", &[("CNI_NETNS", "/proc/1/ns/mnt")], &config.to_string());
        assert!(!added.status.success());
    }
}
