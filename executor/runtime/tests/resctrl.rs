//! linux.intelRdt on a folder that plays resctrl: what is written where. Few machines have the hardware.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cofferdam_linux::cgroup::Layout;
use cofferdam_plan::HostFeatures;
use cofferdam_runtime::{Change, ContainerId, Create, Exec, Options, Runtime, Spec};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};

struct Place {
    directory: tempfile::TempDir,
    runtime: Runtime,
}

impl Place {
    /// `None` for those who may not launch.
    fn make() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let rootfs = directory.path().join("bundle/rootfs");
        std::fs::create_dir_all(&rootfs).unwrap();
        std::fs::create_dir(directory.path().join("resctrl")).unwrap();
        std::fs::write(rootfs.join("guest"), cofferdam_guest::PROGRAM).unwrap();
        std::fs::set_permissions(rootfs.join("guest"), PermissionsExt::from_mode(0o755)).unwrap();
        let cgroups = Layout::probe().unwrap();
        let resctrl = directory.path().join("resctrl").to_str().map(String::from);
        let host = HostFeatures { resctrl, ..cofferdam_apply::probe::host(&cgroups) };
        let state = directory.path().join("state");
        let runtime = Runtime::with_host(&state, Options::default(), host, cgroups).unwrap();
        Some(Self { directory, runtime })
    }

    /// A group, as the kernel makes it: with its files.
    fn group(&self, name: &str, schemata: &str) -> PathBuf {
        let group = self.directory.path().join("resctrl").join(name);
        std::fs::create_dir_all(group.join("mon_groups")).unwrap();
        std::fs::write(group.join("schemata"), schemata).unwrap();
        group
    }

    fn create(&self, name: &str, rdt: &Value) -> Result<i32, String> {
        let mut config: Value = serde_json::from_str(cofferdam_runtime::example::CONFIG).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/guest", "sleep"]);
        config["linux"]["cgroupsPath"] = json!(format!("/cofferdam-resctrl-{}-{name}", std::process::id()));
        if !rdt.is_null() {
            config["linux"]["intelRdt"] = rdt.clone();
        }
        let spec: Spec = serde_json::from_value(config).unwrap();
        let id = ContainerId::parse(name).unwrap();
        let create = Create::new(id, self.directory.path().join("bundle"), spec);
        self.runtime.create(create).map(|created| created.pid).map_err(|error| error.to_string())
    }

    fn delete(&self, name: &str, pid: i32) {
        self.runtime.delete(&ContainerId::parse(name).unwrap(), true).unwrap();
        waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap();
    }
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| format!("{}: {error}", path.as_ref().display()))
}

/// What the kernel does by itself when such a directory is removed.
fn clear(group: &Path) {
    for file in ["schemata", "tasks"] {
        let _ = std::fs::remove_file(group.join(file));
    }
    let _ = std::fs::remove_dir(group.join("mon_groups"));
}

/// config-linux.md, "IntelRdt": without closID the class is the container's own.
#[test]
fn a_class_of_its_own_is_made_with_its_limits_and_goes_with_the_container() {
    let Some(place) = Place::make() else { return };
    let pid = place.create("own", &json!({ "l3CacheSchema": "L3:0=f;1=3" })).unwrap();
    let class = place.directory.path().join("resctrl/own");
    assert_eq!(text(class.join("schemata")), "L3:0=f;1=3\n");
    assert_eq!(text(class.join("tasks")), pid.to_string());
    clear(&class);
    place.delete("own", pid);
    assert!(!class.exists());
}

#[test]
fn a_monitoring_group_takes_every_process_and_goes_with_the_container() {
    let Some(place) = Place::make() else { return };
    let class = place.group("shared", "L3:0=fffff\nMB:0=100\n");
    let asked = json!({ "closID": "shared", "enableMonitoring": true, "schemata": ["MB:0=100"] });
    let pid = place.create("watched", &asked).unwrap();
    let monitor = class.join("mon_groups/watched");
    assert_eq!((text(class.join("tasks")), text(monitor.join("tasks"))), (pid.to_string(), pid.to_string()));
    assert_eq!(text(class.join("schemata")), "L3:0=fffff\nMB:0=100\n", "others are in it too");
    let id = ContainerId::parse("watched").unwrap();
    place.runtime.start(&id).unwrap();
    let process = json!({ "args": ["/guest", "sleep"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    let executed = place.runtime.exec(&id, Exec::new(serde_json::from_value(process).unwrap())).unwrap();
    assert_eq!(text(monitor.join("tasks")), executed.pid.to_string(), "a joining process");
    kill_process(Pid::from_raw(executed.pid).unwrap(), Signal::KILL).unwrap();
    waitpid(Pid::from_raw(executed.pid), WaitOptions::empty()).unwrap();
    clear(&monitor);
    place.delete("watched", pid);
    assert!(!monitor.exists() && class.exists());
}

/// config-linux.md, "IntelRdt": a class that is there has to be what was asked for; one without limits has to be there.
#[test]
fn classes_that_are_not_what_was_asked_for_are_refused_and_nothing_is_left() {
    let Some(place) = Place::make() else { return };
    place.group("shared", "L3:0=fffff\n");
    for (asked, words) in [
        (json!({ "closID": "shared", "l3CacheSchema": "L3:0=f" }), "other limits"),
        (json!({ "closID": "shared", "memBwSchema": "MB:0=10" }), "other limits"),
        (json!({ "closID": "absent" }), "does not exist"),
        (json!({ "closID": "../absent" }), "cannot name a class"),
        (json!({ "closID": "mon_groups" }), "cannot name a class"),
        (json!({ "l3CacheSchema": "MB:0=10" }), "/linux/intelRdt/l3CacheSchema"),
        (json!({ "schemata": ["L3:0=f\nMB:0=1"] }), "/linux/intelRdt/schemata/0"),
    ] {
        let refused = place.create("refused", &asked).unwrap_err();
        assert!(refused.contains(words), "{asked}: {refused}");
    }
    let left: Vec<_> = std::fs::read_dir(place.directory.path().join("resctrl")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let pid = place.create("c", &json!({ "closID": "shared", "l3CacheSchema": "L3:0=0fffff" })).unwrap();
    place.delete("c", pid);
}

/// What `update --l3-cache-schema` and `--mem-bw-schema` do: all of it or nothing, and the record knows.
#[test]
fn a_class_in_use_is_given_other_limits_or_keeps_those_it_had() {
    let Some(place) = Place::make() else { return };
    for resource in ["L3", "MB"] {
        std::fs::create_dir_all(place.directory.path().join("resctrl/info").join(resource)).unwrap();
    }
    let class = place.group("shared", "L3:0=f\nMB:0=100\n");
    let pid = place.create("c", &json!({ "closID": "shared" })).unwrap();
    let plain = place.create("plain", &Value::Null).unwrap();
    let update = |name: &str, l3: Option<&str>, bandwidth: Option<&str>| {
        let (l3_cache_schema, mem_bw_schema) = (l3.map(str::to_owned), bandwidth.map(str::to_owned));
        let change = Change { l3_cache_schema, mem_bw_schema, ..Change::default() };
        let id = ContainerId::parse(name).unwrap();
        place.runtime.update(&id, &change).map_err(|error| error.to_string())
    };
    for (name, l3, bandwidth, words) in [
        ("c", Some("MB:0=10"), None, "/linux/intelRdt/l3CacheSchema"),
        ("c", None, Some("nonsense"), "/linux/intelRdt/memBwSchema"),
        ("plain", Some("L3:0=3"), None, "updating a non-existent Intel RDT configuration is not supported"),
    ] {
        let refused = update(name, l3, bandwidth).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
    // The file that plays the kernel's keeps the last line that was written.
    update("c", Some("L3:0=3"), None).unwrap();
    assert_eq!(text(class.join("schemata")), "L3:0=3\n");
    update("c", None, Some("MB:0=50")).unwrap();
    assert_eq!(text(class.join("schemata")), "MB:0=50\n");
    let known = place.runtime.spec(&ContainerId::parse("c").unwrap()).unwrap();
    let known = serde_json::to_value(known.linux().as_ref().unwrap().intel_rdt()).unwrap();
    assert_eq!((&known["l3CacheSchema"], &known["memBwSchema"]), (&json!("L3:0=3"), &json!("MB:0=50")));
    // Where the processor divides only one of the two, the other is refused as runc does.
    std::fs::remove_dir(place.directory.path().join("resctrl/info/L3")).unwrap();
    std::fs::remove_dir(place.directory.path().join("resctrl/info/MB")).unwrap();
    let refused = update("c", Some("L3:0=1"), None).unwrap_err();
    assert_eq!(refused, "Intel RDT/CAT: l3 cache schema is not enabled");
    let refused = update("c", None, Some("MB:0=10")).unwrap_err();
    assert_eq!(refused, "Intel RDT/MBA: memory bandwidth schema is not enabled");
    place.delete("c", pid);
    place.delete("plain", plain);
}
