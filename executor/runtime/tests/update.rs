//! update through the library: every step failed once, and what the record knows afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use cofferdam_runtime::{Change, ContainerId, Create, Fault, Options, Runtime, Spec, foreground};
use rustix::io::Errno;
use serde_json::{Value, json};

/// Files whose content is what the limits are, by version 1's controller; what a host lacks is left out.
const FILES: [(&str, &str); 18] = [
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("memory", "memory.soft_limit_in_bytes"),
    ("memory", "memory.swappiness"),
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpuset", "cpuset.cpus"),
    ("pids", "pids.max"),
    ("devices", "devices.list"),
    ("", "memory.max"),
    ("", "memory.swap.max"),
    ("", "memory.low"),
    ("", "cpu.max"),
    ("", "cpu.weight"),
    ("", "cpuset.cpus"),
    ("", "pids.max"),
    ("", "hugetlb.2MB.max"),
];

fn resources(value: Value) -> Change {
    serde_json::from_value::<cofferdam_runtime::LinuxResources>(value).unwrap().into()
}

#[test]
fn an_update_that_fails_at_any_step_is_taken_back_whole() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("bundle");
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    let program = bundle.join("rootfs/guest");
    std::fs::write(&program, cofferdam_guest::PROGRAM).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = Runtime::open(&directory.path().join("state"), Options::default()).unwrap();
    let mut config: Value = serde_json::from_str(cofferdam_runtime::example::CONFIG).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/guest", "sleep"]);
    config["linux"]["cgroupsPath"] = json!(format!("/cofferdam-update-{}", std::process::id()));
    config["linux"]["resources"] = json!({
        "devices": [
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" },
        ],
        "memory": { "limit": 128 << 20, "swap": 256 << 20, "reservation": 64 << 20 },
        "cpu": { "quota": 50_000, "period": 100_000, "shares": 512 },
        "pids": { "limit": 100 },
    });
    let spec: Spec = serde_json::from_value(config).unwrap();
    let id = ContainerId::parse("updated").unwrap();
    let created = runtime.create(Create::new(id.clone(), bundle, spec)).unwrap();
    let cgroup = runtime.cgroup(&id).unwrap();
    let take = || -> Vec<(&str, String)> {
        let read = |(controller, file)| {
            let text: String = cgroup.read(controller, file).ok()?;
            // An empty list means the parent's, which is what Linux 6.1 lets it be set back to.
            let inherited = || cgroup.read(controller, &format!("{file}.effective")).ok();
            let is_inherited = file == "cpuset.cpus" && text.trim().is_empty();
            Some((file, if is_inherited { inherited().unwrap_or(text) } else { text }))
        };
        let mut all: Vec<_> = FILES.into_iter().filter_map(read).collect();
        // The order of the device list is that of its writes.
        for (_, text) in all.iter_mut().filter(|(file, _)| *file == "devices.list") {
            let mut lines: Vec<_> = text.lines().collect();
            lines.sort_unstable();
            *text = lines.join("\n");
        }
        all
    };
    let change = resources(json!({
        "devices": [{ "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw" }],
        "memory": { "limit": 64 << 20, "swap": 512 << 20, "reservation": 32 << 20 },
        "cpu": { "quota": 20_000, "period": 50_000, "shares": 2048, "cpus": "0" },
        "pids": { "limit": 50 },
    }));
    let (before, known) = (take(), runtime.spec(&id).unwrap());
    let mut failures = 0;
    for step in 0.. {
        let fault = Fault { step, errno: Errno::NOSPC };
        let Err(error) = runtime.update_with(&id, &change, Some(fault)) else { break };
        assert!(error.to_string().contains(&format!("step {step}")), "{error}");
        assert!(!error.to_string().contains("left behind"), "{error}");
        assert_eq!(take(), before, "after {error}");
        assert_eq!(runtime.spec(&id).unwrap(), known);
        failures += 1;
    }
    assert!(failures > 8, "{failures}");
    // Without a fault it is in force, and the next one builds on it.
    let after = take();
    assert!(before.iter().zip(&after).filter(|(before, after)| before != after).count() >= 7, "{after:?}");
    let record = runtime.spec(&id).unwrap();
    let limits = record.linux().as_ref().unwrap().resources().as_ref().unwrap();
    assert_eq!(limits.memory().unwrap().limit(), Some(64 << 20));
    assert_eq!(limits.devices().as_ref().unwrap().len(), 1);
    runtime.update(&id, &resources(json!({ "cpu": { "quota": 30_000 } }))).unwrap();
    let (quota, period) = (cgroup.read("cpu", "cpu.cfs_quota_us"), cgroup.read("cpu", "cpu.cfs_period_us"));
    match (quota, period) {
        (Ok(quota), Ok(period)) => assert_eq!((quota.trim(), period.trim()), ("30000", "50000")),
        _ => assert_eq!(cgroup.read("", "cpu.max").unwrap().trim(), "30000 50000"),
    }
    runtime.delete(&id, true).unwrap();
    let _ = foreground::reap(created.pidfd.as_fd());
}
