//! The plugins as the program that other runtimes execute: links to it by name in a folder of theirs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cofferdam_cni_plugins::BUILTINS;
use cofferdam_linux::namespace::{create_pinned_netns, remove_pinned_netns, with_new_netns};
use cofferdam_linux::netlink::Socket;
use serde_json::{Value, json};

/// The program, which `COFFERDAM_BIN_DIR` may have elsewhere.
fn program() -> PathBuf {
    match std::env::var_os("COFFERDAM_BIN_DIR") {
        Some(folder) => PathBuf::from(folder).join("cofferdam-cni"),
        None => env!("CARGO_BIN_EXE_cofferdam-cni").into(),
    }
}

fn install(arguments: &[&str]) -> Output {
    Command::new(program()).arg("install").args(arguments).output().unwrap()
}

fn call(plugin: &Path, verb: &str, netns: &Path, config: &Value) -> Output {
    let mut child = Command::new(plugin)
        .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "one"), ("CNI_IFNAME", "eth0")])
        .env("CNI_NETNS", netns)
        .env("CNI_PATH", plugin.parent().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn the_program_installs_itself_with_a_link_for_each_plugin_and_keeps_what_is_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("bridge"), "another's").unwrap();
    let refused = install(&[path]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--replace"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(folder.path().join("bridge")).unwrap(), "another's");

    // Twice: an upgrade.
    for arguments in [&["--replace", path][..], &[path]] {
        let done = install(arguments);
        assert!(done.status.success(), "{done:?}");
    }
    for plugin in BUILTINS {
        let link = folder.path().join(plugin.kind());
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("cofferdam-cni"));
        let output = Command::new(&link).env("CNI_COMMAND", "VERSION").output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["cniVersion"], "1.1.0", "{}", plugin.kind());
    }
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, BUILTINS.len() + 1, "nothing but the program and its links");
    let unasked = Command::new(program()).env("CNI_COMMAND", "VERSION").output().unwrap();
    assert!(!unasked.status.success(), "called as itself it is no plugin: {unasked:?}");
}

#[test]
fn a_bridge_with_addresses_comes_and_goes_by_links() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(install(&[folder.path().to_str().unwrap()]).status.success());
    let (bridge, netns) = (folder.path().join("bridge"), folder.path().join("netns"));
    let leases = folder.path().join("leases");
    // Programs that write configurations may say null for what they leave out.
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "linked", "type": "bridge", "bridge": "br-linked", "isGateway": true,
        "mtu": null, "hairpinMode": null, "args": null, "capabilities": null, "runtimeConfig": null, "prevResult": null,
        "dns": { "nameservers": null, "search": null },
        "ipam": {
            "type": "host-local", "dataDir": &leases, "routes": null, "resolvConf": null,
            "ranges": [[{ "subnet": "10.44.0.0/29", "gateway": null, "rangeStart": null }]],
        },
    });
    with_new_netns(|| {
        create_pinned_netns(&netns).unwrap();
        let added = call(&bridge, "ADD", &netns, &config);
        assert!(added.status.success(), "{added:?}");
        let result: Value = serde_json::from_slice(&added.stdout).unwrap();
        assert_eq!(result["ips"][0]["address"], "10.44.0.2/29");
        config["prevResult"] = result;
        let checked = call(&bridge, "CHECK", &netns, &config);
        assert!(checked.status.success() && checked.stdout.is_empty(), "{checked:?}");
        for _ in 0..2 {
            let deleted = call(&bridge, "DEL", &netns, &config);
            assert!(deleted.status.success() && deleted.stdout.is_empty(), "{deleted:?}");
        }
        let links = Socket::route().unwrap().links().unwrap();
        assert!(links.iter().all(|link| link.kind.as_deref() != Some("veth")), "{links:?}");
        assert!(!leases.join("linked/10.44.0.2").exists());
        let failed = call(&bridge, "CHECK", &netns, &config);
        assert_eq!(serde_json::from_slice::<Value>(&failed.stdout).unwrap()["code"], 102, "{failed:?}");
        remove_pinned_netns(&netns).unwrap();
    })
    .unwrap();
}
