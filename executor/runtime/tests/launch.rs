//! Launching for real: every step failed once, and a thousand launches in a row, with the host as it was afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "launch/deadlines.rs"]
mod deadlines;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cofferdam_runtime::{ContainerId, Create, Fault, Limits, Options, Runtime, Spec, foreground};
use cofferdam_tests::pace;
use rustix::io::Errno;
use serde_json::{Value, json};

/// The census counts this process's descriptors and children: one test at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// A throw-away state root and bundle whose program is the guest's `true`.
struct Place {
    _directory: tempfile::TempDir,
    bundle: PathBuf,
    runtime: Runtime,
}

impl Place {
    fn make() -> Self {
        Self::make_with(Limits::default())
    }

    fn make_with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("bundle");
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let program = bundle.join("rootfs/guest");
        std::fs::write(&program, cofferdam_guest::PROGRAM).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let runtime =
            Runtime::open(&directory.path().join("state"), Options { limits, ..Options::default() }).unwrap();
        Self { bundle, runtime, _directory: directory }
    }

    fn create(&self, name: &str, change: impl Fn(&mut Value)) -> Create {
        let mut config: Value = serde_json::from_str(cofferdam_runtime::example::CONFIG).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/guest", "true"]);
        config["linux"]["cgroupsPath"] = json!(format!("/cofferdam-launch-{}-{name}", std::process::id()));
        change(&mut config);
        let spec: Spec = serde_json::from_value(config).unwrap();
        let mut create = Create::new(ContainerId::parse(name).unwrap(), self.bundle.clone(), spec);
        create.start = true;
        create
    }
}

/// What of the host a launch could leave behind, as this process sees it.
#[derive(Debug, PartialEq, Eq)]
struct Census {
    descriptors: usize,
    mounts: String,
    cgroups: BTreeSet<PathBuf>,
    states: usize,
    children: String,
}

impl Census {
    fn take(place: &Place) -> Self {
        let ours = format!("cofferdam-launch-{}-", std::process::id());
        let mut cgroups = BTreeSet::new();
        let own =
            |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&ours));
        let list =
            |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        for first in list(Path::new("/sys/fs/cgroup")).filter(|path| path.is_dir()) {
            cgroups.extend(list(&first).chain([first]).filter(|path| own(path)));
        }
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            mounts: std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap(),
            cgroups,
            states: std::fs::read_dir(place.runtime.root()).unwrap().count(),
            children: std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default(),
        }
    }
}

/// A mount namespace of this thread's own, so that what others on this host mount meanwhile is no difference.
fn own_mounts() {
    const CLONE_NEWNS: u64 = 0x2_0000;
    const MS_PRIVATE: u64 = 1 << 18;
    cofferdam_linux::process::unshare_directory().unwrap();
    cofferdam_linux::process::unshare(CLONE_NEWNS).unwrap();
    let root = std::fs::File::open("/").unwrap();
    cofferdam_linux::mount::set_attributes(root.as_fd(), 0, 0, MS_PRIVATE, true, None).unwrap();
}

fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

fn run(place: &Place, create: Create) -> i32 {
    let id = create.id.clone();
    let created = place.runtime.create(create).unwrap();
    let ended = foreground::reap(created.pidfd.as_fd()).unwrap();
    place.runtime.delete(&id, true).unwrap();
    match ended {
        foreground::Ended::Exited(status) => status,
        foreground::Ended::Signalled(signal) => 128 + signal,
    }
}

fn plain(_config: &mut Value) {}

fn limited(config: &mut Value) {
    config["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20 }, "pids": { "limit": 20 }, "cpu": { "shares": 512 },
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    config["process"]["noNewPrivileges"] = json!(false);
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["getcwd"], "action": "SCMP_ACT_ERRNO" }],
    });
}

fn in_user_namespace(config: &mut Value) {
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    for kind in ["user", "cgroup", "time"] {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": kind }));
    }
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    config["linux"]["timeOffsets"] = json!({ "monotonic": { "secs": 7 } });
    config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
}

fn hooked(config: &mut Value) {
    let hook = json!([{ "path": "/bin/true" }]);
    config["hooks"] =
        json!({ "prestart": hook, "createRuntime": hook, "createContainer": hook, "poststart": hook });
    config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/etc/data", "type": "bind", "source": "/etc", "options": ["rbind", "ro"],
    }));
    config["root"]["readonly"] = json!(false);
}

/// Acceptance: every step of a plan is failed once; afterwards the host is as it was, and the error names the step, what it
/// was about, and the reason in words.
#[test]
fn every_step_failed_once_leaves_the_host_as_it_was() {
    if !privileged() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    own_mounts();
    let place = Place::make();
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 4] =
        [("plain", plain), ("limited", limited), ("user", in_user_namespace), ("hooked", hooked)];
    for (name, change) in cases {
        assert_eq!(run(&place, place.create(name, change)), 0, "{name} runs when nothing fails");
        for gate in [false, true] {
            let mut create = place.create(name, change);
            create.start = !gate;
            let steps = place.runtime.plan(&create).unwrap().steps;
            let before = Census::take(&place);
            for (index, step) in steps.iter().enumerate() {
                // Steps behind the gate fail in `start`, which the gateless form covers here.
                if gate && step.stage >= cofferdam_plan::Stage::Gate {
                    continue;
                }
                let mut create = place.create(name, change);
                create.start = !gate;
                create.fault = Some(Fault { step: index, errno: Errno::NOSPC });
                let error = place.runtime.create(create).expect_err("the fault was not noticed").to_string();
                assert!(
                    error.contains(&format!("step {index}")),
                    "{name}: step {index} {:?}: {error}",
                    step.op
                );
                assert!(error.contains("no space left on device"), "{name}: {error}");
                assert!(!error.contains("left behind"), "{name}: {error}");
                assert_eq!(Census::take(&place), before, "{name}: after {error}");
            }
        }
    }
}

/// Acceptance: 1,000 launches in a row leave memory, descriptors and the census where they were.
#[test]
fn a_thousand_launches_leave_memory_descriptors_and_host_where_they_were() {
    if !privileged() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    own_mounts();
    let place = Place::make();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4
    };
    for _ in 0..20 {
        assert_eq!(run(&place, place.create("many", limited)), 0);
    }
    let (census, kib) = (Census::take(&place), resident());
    let launches = pace::rounds(1000, 200);
    for _ in 0..launches {
        assert_eq!(run(&place, place.create("many", limited)), 0);
    }
    assert_eq!(Census::take(&place), census);
    let grown = resident().saturating_sub(kib);
    assert!(grown < 512, "resident memory grew by {grown} KiB over {launches} launches");
}
