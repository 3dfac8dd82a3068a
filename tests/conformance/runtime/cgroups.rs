//! config-linux.md, "Control groups".

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::case::{Bench, Case, case, chapter, check, same};

#[test]
fn control_groups_are_as_the_specification_says() {
    chapter("config-linux.md: control groups", cases());
}

/// A file of a hierarchy: (version 1's controller and file, its content), (version 2's file, its content).
type Files = ((&'static str, &'static str, &'static str), (&'static str, &'static str));

/// Limits and where they are found.
const LIMITS: &[(&str, &str, &str, Files)] = &[
    (
        "a memory limit",
        "Memory, limit",
        r#"{"memory":{"limit":67108864}}"#,
        (("memory", "memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
    ),
    (
        "a memory reservation",
        "Memory, reservation",
        r#"{"memory":{"reservation":33554432}}"#,
        (("memory", "memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432")),
    ),
    (
        "no out-of-memory killer",
        "Memory, disableOOMKiller",
        r#"{"memory":{"limit":67108864,"disableOOMKiller":true}}"#,
        (("memory", "memory.oom_control", "oom_kill_disable 1"), ("memory.max", "67108864")),
    ),
    (
        "swappiness",
        "Memory, swappiness",
        r#"{"memory":{"swappiness":10}}"#,
        (("memory", "memory.swappiness", "10"), ("cgroup.type", "domain")),
    ),
    (
        "a limit of tcp buffers",
        "Memory, kernelTCP",
        r#"{"memory":{"kernelTCP":33554432}}"#,
        (("memory", "memory.kmem.tcp.limit_in_bytes", "33554432"), ("cgroup.type", "domain")),
    ),
    (
        "shares of the processor",
        "CPU, shares",
        r#"{"cpu":{"shares":2048}}"#,
        (("cpu", "cpu.shares", "2048"), ("cpu.weight", "")),
    ),
    (
        "quota and period",
        "CPU, quota and period",
        r#"{"cpu":{"quota":50000,"period":200000}}"#,
        (("cpu", "cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 200000")),
    ),
    (
        "burst",
        "CPU, burst",
        r#"{"cpu":{"quota":50000,"period":100000,"burst":20000}}"#,
        (("cpu", "cpu.cfs_burst_us", "20000"), ("cpu.max.burst", "20000")),
    ),
    ("idle", "CPU, idle", r#"{"cpu":{"idle":1}}"#, (("cpu", "cpu.idle", "1"), ("cpu.idle", "1"))),
    (
        "processors",
        "CPU, cpus",
        r#"{"cpu":{"cpus":"0","mems":"0"}}"#,
        (("cpuset", "cpuset.cpus", "0"), ("cpuset.cpus", "0")),
    ),
    (
        "processes",
        "PIDs, limit",
        r#"{"pids":{"limit":77}}"#,
        (("pids", "pids.max", "77"), ("pids.max", "77")),
    ),
    (
        "any number of processes",
        "PIDs, limit: -1",
        r#"{"pids":{"limit":-1}}"#,
        (("pids", "pids.max", "max"), ("pids.max", "max")),
    ),
    (
        "no process but one",
        "PIDs, limit: 0 is a limit, the least that can be kept to",
        r#"{"pids":{"limit":0}}"#,
        (("pids", "pids.max", "1"), ("pids.max", "1")),
    ),
    (
        "a limit of processes without a figure",
        "PIDs, limit: OPTIONAL",
        r#"{"pids":{}}"#,
        (("pids", "pids.max", "max"), ("pids.max", "max")),
    ),
];

/// The container's folder in the hierarchy of a controller.
fn folder(cgroup: &str, controller: &str) -> (PathBuf, bool) {
    let root = Path::new("/sys/fs/cgroup");
    let is_unified = root.join("cgroup.controllers").exists();
    let base = if is_unified { root.to_owned() } else { root.join(controller) };
    (base.join(cgroup.trim_start_matches('/')), is_unified)
}

/// Creates a container with these resources and looks into its cgroup.
fn found(bench: &Bench<'_>, resources: &str, controller: &str, files: [&str; 2]) -> Result<(String, bool)> {
    let mut path = String::new();
    bench.created("sleep 100", |config| {
        let asked: Value = serde_json::from_str(resources).unwrap_or_default();
        for (name, value) in asked.as_object().into_iter().flatten() {
            config["linux"]["resources"][name] = value.clone();
        }
        path = config["linux"]["cgroupsPath"].as_str().unwrap_or_default().to_owned();
    })?;
    let (folder, is_unified) = folder(&path, controller);
    let file = folder.join(files[usize::from(is_unified)]);
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok((text, is_unified))
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = LIMITS
        .iter()
        .map(|(name, clause, resources, (first, second))| {
            check(name, clause, move |bench| {
                let (text, is_unified) = found(bench, resources, first.0, [first.1, second.0])?;
                let expected = if is_unified { second.1 } else { first.2 };
                ensure!(
                    text.lines().any(|line| line == expected || expected.is_empty()),
                    "{text:?}, not {expected:?}"
                );
                Ok(())
            })
        })
        .collect();
    cases.extend(rest());
    cases
}

fn rest() -> Vec<Case> {
    vec![
        check(
            "the path is below the root of every hierarchy",
            "Cgroups Path: MUST be relative to the mount point",
            |bench| {
                let (text, _) = found(bench, "{}", "pids", ["cgroup.procs", "cgroup.procs"])?;
                ensure!(text.lines().count() >= 1, "nobody is in it");
                Ok(())
            },
        ),
        check("the cgroup goes with the container", "runtime.md, Delete", |bench| {
            let mut path = String::new();
            bench.created("sleep 100", |config| {
                path = config["linux"]["cgroupsPath"].as_str().unwrap_or_default().to_owned();
            })?;
            let (folder, _) = folder(&path, "pids");
            ensure!(folder.exists(), "it was never there");
            bench.succeed(&["delete", "--force"])?;
            same("existence", folder.exists(), false)
        }),
        case("a memory limit that is negative is refused", "Memory: -1 is unlimited")
            .set("/linux/resources/memory", json!({ "limit": -5 }))
            .refused("/linux/resources/memory/limit"),
        case("files of version 2 are refused on version 1, and written on it", "Unified")
            .set("/linux/resources/unified", json!({ "pids.max": "55" }))
            .outcome(|_, outcome| {
                let is_unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
                same("success", outcome.status == Some(0), is_unified)
            }),
        case("a file of no controller is refused", "Unified: MUST generate an error")
            .set("/linux/resources/unified", json!({ "absent.max": "55" }))
            .refused("/linux/resources/unified"),
        case("block input and output of a device that is none is refused", "Block IO, throttleReadBpsDevice")
            .set(
                "/linux/resources/blockIO",
                json!({ "throttleReadBpsDevice": [{ "major": 4096, "minor": 0, "rate": 1 }] }),
            )
            .refused("/linux/resources/blockIO/throttleReadBpsDevice/0"),
        case("pages of a size that is none are refused", "Huge page limits, pageSize")
            .set("/linux/resources/hugepageLimits", json!([{ "pageSize": "lots", "limit": 1 }]))
            .refused("/linux/resources/hugepageLimits/0"),
        case("a class of the network is refused where there is no such controller", "Network, classID")
            .set("/linux/resources/network", json!({ "classID": 1_048_577 }))
            .refused("/linux/resources/network/classID"),
        case("devices of rdma are refused where there is no such controller", "RDMA")
            .set("/linux/resources/rdma", json!({ "mlx5_1": { "hcaHandles": 3 } }))
            .outcome(|bench, outcome| {
                let has = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                    .unwrap_or_default()
                    .contains("rdma");
                let named =
                    !bench.runtime.is_ours() || has || outcome.stderr.contains("/linux/resources/rdma");
                ensure!((outcome.status != Some(0) || has) && named, "{outcome:?}");
                Ok(())
            }),
    ]
}
