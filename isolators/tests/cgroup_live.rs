//! Translated limits written for real, in whichever world this host lives, and read back. Needs root.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use cofferdam_isolators::cgroup::devices::{Defaults, DevicePolicy};
use cofferdam_isolators::cgroup::{Controllers, Current, Host, Occasion, Write, translate};
use cofferdam_linux::cgroup::{Cgroup, Layout};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

struct Guard(Cgroup);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

fn make(name: &str) -> Option<(Guard, Host)> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    let layout = Layout::probe().unwrap();
    let controllers = Controllers {
        v1: layout.v1.iter().flat_map(|hierarchy| hierarchy.controllers.iter().cloned()).collect(),
        v2: layout.unified.iter().flat_map(|unified| unified.controllers.iter().cloned()).collect(),
    };
    let path = format!("/cofferdam-limits-{}-{name}", std::process::id());
    match Cgroup::create_in(&layout, &path) {
        Ok(cgroup) => Some((Guard(cgroup), Host { controllers, ..Host::default() })),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn write(cgroup: &Cgroup, writes: &[Write]) {
    for one in writes {
        let result = cgroup.write(&one.controller, &one.file, &one.value, one.optional);
        result.unwrap_or_else(|error| panic!("{}: {error}", one.why));
    }
}

/// Each with the controller it needs on version 1 and 2.
const CASES: [(&str, &str, &str); 8] = [
    ("cpu", "cpu", r#"{"cpu": {"shares": 512, "quota": 20000, "period": 50000, "burst": 10000}}"#),
    ("cpu", "cpu", r#"{"cpu": {"idle": 1}}"#),
    ("cpuset", "cpuset", r#"{"cpu": {"cpus": "0", "mems": "0"}}"#),
    ("memory", "memory", r#"{"memory": {"limit": 67108864, "swap": 134217728, "reservation": 33554432}}"#),
    (
        "memory",
        "memory",
        r#"{"memory": {"limit": -1, "kernel": 50000000, "kernelTCP": 10485760, "swappiness": 50}}"#,
    ),
    ("pids", "pids", r#"{"pids": {"limit": 77}}"#),
    ("hugetlb", "hugetlb", r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#),
    ("blkio", "io", r#"{"blockIO": {"weight": 500}}"#),
];

#[test]
fn the_kernel_takes_what_is_written_and_gives_it_back() {
    for (index, (first, second, json)) in CASES.iter().enumerate() {
        let Some((cgroup, host)) = make(&format!("case{index}")) else { return };
        if !host.controllers.v1.contains(*first) && !host.controllers.v2.contains(*second) {
            println!("skipped: no {second} controller for {json}");
            continue;
        }
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let translation = translate(&resources, &host, Occasion::Create).unwrap();
        write(&cgroup.0, &translation.writes);
        for one in translation.writes.iter().filter(|one| !one.optional && one.value != "-1") {
            let kept = cgroup.0.read(&one.controller, &one.file).unwrap();
            assert!(
                kept.lines().any(|line| line.trim() == one.value),
                "{}: {kept:?} is not {:?}",
                one.file,
                one.value
            );
        }
    }
}

/// Configurations of which each is an update of the one before: up, and down again. The kernel holds the figures of each in
/// order at every moment. The controller is that of version 1 and 2; `None` is one that version 2 lacks.
const UPDATES: [(&str, Option<&str>, [&str; 3]); 3] = [
    (
        "memory",
        Some("memory"),
        [
            r#"{"memory": {"limit": 67108864, "swap": 134217728}}"#,
            r#"{"memory": {"limit": 268435456, "swap": 536870912}}"#,
            r#"{"memory": {"limit": 33554432, "swap": 33554432}}"#,
        ],
    ),
    (
        "cpu",
        Some("cpu"),
        [
            r#"{"cpu": {"quota": 50000, "period": 100000, "burst": 40000}}"#,
            r#"{"cpu": {"quota": 100000, "period": 200000, "burst": 90000}}"#,
            r#"{"cpu": {"quota": 4000, "period": 10000, "burst": 3000}}"#,
        ],
    ),
    (
        "cpu",
        None,
        [
            r#"{"cpu": {"realtimePeriod": 100000, "realtimeRuntime": 1000}}"#,
            r#"{"cpu": {"realtimePeriod": 200000, "realtimeRuntime": 150000}}"#,
            r#"{"cpu": {"realtimePeriod": 10000, "realtimeRuntime": 3000}}"#,
        ],
    ),
];

#[test]
fn raised_and_lowered_limits_are_both_taken() {
    for (index, (first, second, steps)) in UPDATES.iter().enumerate() {
        let Some((cgroup, host)) = make(&format!("update{index}")) else { return };
        if !host.controllers.v1.contains(*first)
            && second.is_none_or(|name| !host.controllers.v2.contains(name))
        {
            println!("skipped: no {first} controller for {}", steps[0]);
            continue;
        }
        let figure = |controller, file| cgroup.0.read(controller, file).ok()?.trim().parse().ok();
        let mut occasion = Occasion::Create;
        for json in steps {
            let translation = translate(&serde_json::from_str(json).unwrap(), &host, occasion).unwrap();
            write(&cgroup.0, &translation.writes);
            let written = translation.writes.last().unwrap();
            let kept = cgroup.0.read(&written.controller, &written.file).unwrap();
            assert_eq!(kept.trim(), written.value, "{json}: {}", written.file);
            occasion = Occasion::Update(Current {
                memory_and_swap_bytes: figure("memory", "memory.memsw.limit_in_bytes"),
                realtime_period_us: figure("cpu", "cpu.rt_period_us"),
            });
        }
    }
}

const RULES: &str = r#"[
    {"allow": false, "access": "rwm"},
    {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    {"allow": true, "type": "b", "major": 8, "minor": 20, "access": "rw"},
    {"allow": true, "type": "b", "major": 10, "minor": 200, "access": "r"}
]"#;

#[test]
fn version_1_lists_the_device_rules_as_they_were_given() {
    let Some((cgroup, host)) = make("devices1") else { return };
    if !host.controllers.v1.contains("devices") {
        println!("skipped: no version 1 devices controller");
        return;
    }
    let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(RULES).unwrap();
    let policy = DevicePolicy::new(&rules, Defaults::Compatible).unwrap();
    write(&cgroup.0, &policy.v1_writes());
    let list = cgroup.0.read("devices", "devices.list").unwrap();
    for line in ["c 10:229 rwm", "b 8:20 rw", "b 10:200 r", "c *:* m", "c 1:3 rwm"] {
        assert!(list.lines().any(|known| known == line), "{line} in {list}");
    }
    assert!(policy.v1_changes(&list).is_empty(), "nothing is left to write");

    let fewer = DevicePolicy::new(&rules[..2], Defaults::Strict).unwrap();
    write(&cgroup.0, &fewer.v1_changes(&list));
    let list = cgroup.0.read("devices", "devices.list").unwrap();
    assert!(fewer.v1_changes(&list).is_empty(), "{list}");
    assert!(!list.contains("b 8:20") && !list.contains("c *:* m"), "{list}");
}

#[test]
fn the_verifier_takes_the_device_program() {
    let Some((cgroup, _)) = make("devices2") else { return };
    if cgroup.0.directory().is_err() {
        println!("skipped: no version 2 tree");
        return;
    }
    let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(RULES).unwrap();
    for (rules, defaults) in [(&rules[..], Defaults::Compatible), (&[][..], Defaults::Strict)] {
        cgroup.0.filter_devices(&DevicePolicy::new(rules, defaults).unwrap().program()).unwrap();
    }
    let mut many = rules.clone();
    for minor in 0..3900_i64 {
        let mut rule = rules[2].clone();
        rule.set_minor(Some(minor));
        many.push(rule);
    }
    cgroup.0.filter_devices(&DevicePolicy::new(&many, Defaults::Strict).unwrap().program()).unwrap();
    let open = br#"[{"allow": true}, {"allow": false, "type": "b", "major": 8, "access": "w"}]"#;
    let open: Vec<LinuxDeviceCgroup> = serde_json::from_slice(open).unwrap();
    cgroup.0.filter_devices(&DevicePolicy::new(&open, Defaults::Strict).unwrap().program()).unwrap();
}
