//! config-linux.md, "Namespaces", "User namespace mappings", "Offset for Time Namespace" and "Network Devices".

use std::process::{Child, Command};

use anyhow::{Result, ensure};
use cofferdam_tests::{pace, world};
use serde_json::{Value, json};

use crate::case::{Bench, Case, case, chapter, check, same, sampled};

#[test]
fn namespaces_are_as_the_specification_says() {
    chapter("config-linux.md: namespaces, mappings, offsets, network devices", sampled(cases()));
}

fn link(path: &str) -> Result<String> {
    Ok(std::fs::read_link(path)?.to_string_lossy().into_owned())
}

/// Two ends of a new pair of network devices; the first has an address.
fn devices(bench: &Bench<'_>) -> Result<(String, String)> {
    let number = bench.id.trim_start_matches("case-").to_owned();
    let (one, other) = (
        format!("a{number}{}", &bench.runtime.name()[..2]),
        format!("b{number}{}", &bench.runtime.name()[..2]),
    );
    let ip = |words: &[&str]| world::succeed(Command::new("ip").args(words)).map(drop);
    ip(&["link", "add", &one, "type", "veth", "peer", "name", &other])?;
    ip(&["address", "add", "192.0.2.7/24", "dev", &one])?;
    ip(&["link", "set", &one, "up"])?;
    Ok((one, other))
}

fn removed(device: &str) {
    let _ = Command::new("ip").args(["link", "delete", device]).output();
}

fn lend(config: &mut Value, device: &str, settings: Value) {
    config["linux"]["netDevices"] = json!({ device: settings });
    let capabilities = json!(["CAP_NET_ADMIN"]);
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = capabilities.clone();
    }
}

fn cases() -> Vec<Case> {
    let mut cases = kinds();
    cases.extend(mappings());
    cases.extend(network_devices());
    cases
}

/// A process in namespaces of its own, by options of unshare(1).
fn holder(options: &str) -> Result<Child> {
    let mut holder = Command::new("unshare").args([options, "sleep", "60"]).spawn()?;
    let name = format!("/proc/{}/comm", holder.id());
    let deadline = std::time::Instant::now() + pace::limit(std::time::Duration::from_secs(30));
    while std::fs::read_to_string(&name)?.trim() != "sleep" {
        if std::time::Instant::now() >= deadline {
            let _ = holder.kill();
            holder.wait()?;
            anyhow::bail!("unshare {options} does not come to its program");
        }
        std::thread::yield_now();
    }
    Ok(holder)
}

fn kinds() -> Vec<Case> {
    vec![
        check(
            "a namespace that is listed is a new one",
            "config-linux.md, Namespaces, path: MUST create a new one",
            |bench| {
                let all = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
                let listed: Vec<Value> = all.iter().map(|kind| json!({ "type": kind })).collect();
                let state =
                    bench.created("sleep 100", |config| config["linux"]["namespaces"] = json!(listed))?;
                for file in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
                    let theirs = link(&format!("/proc/{}/ns/{file}", state["pid"]))?;
                    ensure!(theirs != link(&format!("/proc/thread-self/ns/{file}"))?, "{file} is ours");
                }
                Ok(())
            },
        ),
        check(
            "a namespace that is not listed is the runtime's",
            "config-linux.md, Namespaces: MUST inherit",
            |bench| {
                let state = bench.created("sleep 100", |config| {
                    config["linux"]["namespaces"] =
                        json!([{ "type": "pid" }, { "type": "mount" }, { "type": "uts" }]);
                })?;
                for file in ["ipc", "net"] {
                    let theirs = link(&format!("/proc/{}/ns/{file}", state["pid"]))?;
                    same(file, theirs, link(&format!("/proc/thread-self/ns/{file}"))?)?;
                }
                Ok(())
            },
        ),
        check("a namespace is joined by path", "config-linux.md, Namespaces, path: MUST join", |bench| {
            let mut holder = holder("-ni")?;
            let path = |file: &str| format!("/proc/{}/ns/{file}", holder.id());
            let state = bench.created("sleep 100", |config| {
                config["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "mount" }, { "type": "uts" },
                    { "type": "network", "path": path("net") }, { "type": "ipc", "path": path("ipc") }]);
            });
            let compare = || -> Result<()> {
                let state = state?;
                for file in ["net", "ipc"] {
                    same(file, link(&format!("/proc/{}/ns/{file}", state["pid"]))?, link(&path(file))?)?;
                }
                Ok(())
            };
            let result = compare();
            let _ = holder.kill();
            holder.wait()?;
            result
        }),
        check(
            "a namespace is joined whose owner is not the user namespace that is joined",
            "config-linux.md, Namespaces, path: MUST join",
            |bench| {
                let (mut owner, mut other) = (holder("-U")?, holder("-n")?);
                let compare = || -> Result<()> {
                    let path = |holder: &Child, file: &str| format!("/proc/{}/ns/{file}", holder.id());
                    for file in ["uid_map", "gid_map"] {
                        std::fs::write(format!("/proc/{}/{file}", owner.id()), "0 70000 1000")?;
                    }
                    let (user, network) = (path(&owner, "user"), path(&other, "net"));
                    let state = bench.created("sleep 100", |config| {
                        config["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "mount" }, { "type": "uts" },
                            { "type": "ipc" }, { "type": "user", "path": user }, { "type": "network", "path": network }]);
                        // A new sysfs takes a network namespace of one's own.
                        config["mounts"].as_array_mut().into_iter()
                            .for_each(|mounts| mounts.retain(|mount| mount["type"] != "sysfs"));
                    })?;
                    bench.succeed(&["start"])?;
                    for (file, path) in [("user", &user), ("net", &network)] {
                        let expected = link(path)?;
                        same(file, link(&format!("/proc/{}/ns/{file}", state["pid"]))?, expected.clone())?;
                        let own = format!("/proc/self/ns/{file}");
                        let joined = bench.runtime.succeed(&["exec", &bench.id, "readlink", &own])?;
                        same("exec's", joined.stdout.trim(), expected.as_str())?;
                    }
                    Ok(())
                };
                let result = compare();
                for holder in [&mut owner, &mut other] {
                    let _ = holder.kill();
                    holder.wait()?;
                }
                result
            },
        ),
        case(
            "a path of another kind is refused",
            "config-linux.md, Namespaces, path: MUST generate an error",
        )
        .set("/linux/namespaces/1", json!({ "type": "network", "path": "/proc/self/ns/uts" }))
        .refused("not of kind net"),
        case("a relative path is refused", "config-linux.md, Namespaces, path: MUST be absolute")
            .set("/linux/namespaces/1", json!({ "type": "network", "path": "proc/1/ns/net" }))
            .refused("/linux/namespaces/1/path"),
        case(
            "a kind that is listed twice is refused",
            "config-linux.md, Namespaces: MUST error out on duplicates",
        )
        .push("/linux/namespaces", json!({ "type": "uts" }))
        .refused("listed twice"),
        case("an unknown kind is refused", "config-linux.md, Namespaces, type")
            .push("/linux/namespaces", json!({ "type": "space" }))
            .refused("namespaces"),
        case("clocks are offset", "config-linux.md, Offset for Time Namespace")
            .push("/linux/namespaces", json!({ "type": "time" }))
            .set(
                "/linux/timeOffsets",
                json!({ "monotonic": { "secs": 172_800, "nanosecs": 5 }, "boottime": { "secs": 604_800 } }),
            )
            .probe("cat /proc/self/timens_offsets | tr -s ' '")
            .prints("monotonic 172800 5\nboottime 604800 0"),
        case("offsets without a time namespace are refused", "config-linux.md, Offset for Time Namespace")
            .set("/linux/timeOffsets", json!({ "boottime": { "secs": 1 } }))
            .refused("/linux/timeOffsets/boottime"),
    ]
}

fn mappings() -> Vec<Case> {
    let map = || json!([{ "containerID": 0, "hostID": 70000, "size": 1000 }]);
    vec![
        case("ids are mapped as the lists say", "config-linux.md, User namespace mappings")
            .push("/linux/namespaces", json!({ "type": "user" }))
            .set("/linux/uidMappings", map())
            .set(
                "/linux/gidMappings",
                json!([{ "containerID": 0, "hostID": 80000, "size": 10 },
                { "containerID": 10, "hostID": 90000, "size": 5 }]),
            )
            .probe("cat /proc/self/uid_map /proc/self/gid_map | awk '{ print $1, $2, $3 }'; id -u")
            .prints("0 70000 1000\n0 80000 10\n10 90000 5\n0"),
        case("mappings without a user namespace are refused", "config-linux.md, User namespace mappings")
            .set("/linux/uidMappings", map())
            .set("/linux/gidMappings", map())
            .refused("/linux/uidMappings"),
        case("devices are there in a user namespace too", "config-linux.md, Default Devices")
            .push("/linux/namespaces", json!({ "type": "user" }))
            .set("/linux/uidMappings", map())
            .set("/linux/gidMappings", map())
            .probe("echo x > /dev/null && head -c 3 /dev/zero | wc -c")
            .prints("3"),
    ]
}

fn network_devices() -> Vec<Case> {
    vec![
        check("a device moves in with its name and addresses", "config-linux.md, Network Devices", |bench| {
            let (device, peer) = devices(bench)?;
            let script = "ip -4 -o address show | grep -o '192.0.2.7/24'; ip link show $DEVICE | grep -c UP";
            let bundle = bench.bundle(script, |config| {
                lend(config, &device, json!({}));
                config["process"]["env"] = json!(["PATH=/bin", format!("DEVICE={device}")]);
            })?;
            let outcome = bench.runtime.run(&bench.id, bundle.path());
            removed(&peer);
            let outcome = outcome?;
            ensure!(outcome.stdout == "192.0.2.7/24\n1\n", "{outcome:?}");
            Ok(())
        }),
        check("a device is renamed", "config-linux.md, Network Devices, name", |bench| {
            let (device, peer) = devices(bench)?;
            let bundle = bench.bundle("ip link show lan0 | grep -c lan0", |config| {
                lend(config, &device, json!({ "name": "lan0" }));
            })?;
            let outcome = bench.runtime.run(&bench.id, bundle.path());
            removed(&peer);
            let outcome = outcome?;
            ensure!(outcome.stdout == "1\n", "{outcome:?}");
            Ok(())
        }),
        check(
            "a device comes back when the container cannot be made",
            "runtime.md, Create: MUST generate an error",
            |bench| {
                let (device, peer) = devices(bench)?;
                let bundle = bench.bundle("true", |config| {
                    lend(config, &device, json!({ "name": "lan0" }));
                    config["process"]["args"] = json!(["/absent"]);
                })?;
                let created = bench.runtime.create(&bench.id, bundle.path());
                let shown =
                    world::succeed(Command::new("ip").args(["-4", "-o", "address", "show", "dev", &device]));
                removed(&peer);
                ensure!(created.is_err(), "created");
                ensure!(shown?.contains("192.0.2.7/24"), "its address is gone");
                Ok(())
            },
        ),
        case("a device without a network namespace is refused", "config-linux.md, Network Devices")
            .set("/linux/namespaces", json!([{ "type": "pid" }, { "type": "uts" }, { "type": "mount" }]))
            .set("/linux/netDevices", json!({ "eth77": {} }))
            .refused("/linux/netDevices/eth77"),
        case(
            "a device that is missing is refused",
            "config-linux.md, Network Devices: MUST generate an error",
        )
        .set("/linux/netDevices", json!({ "eth77": {} }))
        .refused("/linux/netDevices/eth77"),
    ]
}
