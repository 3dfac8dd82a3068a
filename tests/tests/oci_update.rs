//! update: other limits for a container that runs, on our runtime and on a peer, by the files of its cgroup.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::oci::{self, Runtime};
use serde_json::{Value, json};

/// Runs a test's body for every runtime, and checks that each leaves the host as it was.
fn on_every_runtime(body: impl Fn(&Runtime, &Path)) {
    oci::on_each(|_| true, body).unwrap();
}

/// A container that runs until it is deleted.
struct Running<'a> {
    runtime: &'a Runtime,
    id: &'a str,
    cgroup: String,
    unified: bool,
}

impl<'a> Running<'a> {
    fn start(
        runtime: &'a Runtime,
        bundles: &Path,
        id: &'a str,
        script: &str,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let mut cgroup = String::new();
        let bundle = Bundle::make(&bundles.join(id), &["sh", "-c", script], |config| {
            change(config);
            cgroup = config["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
        })
        .unwrap();
        runtime.create(id, bundle.path()).unwrap();
        runtime.succeed(&["start", id]).unwrap();
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Self { runtime, id, cgroup, unified }
    }

    /// What a file of its cgroup says, named for each version as `controller/file` and `file`.
    fn says(&self, v1: &str, v2: &str) -> String {
        let path: PathBuf = match v1.split_once('/') {
            Some((controller, file)) if !self.unified => {
                Path::new("/sys/fs/cgroup").join(controller).join(&self.cgroup[1..]).join(file)
            }
            _ => Path::new("/sys/fs/cgroup").join(&self.cgroup[1..]).join(v2),
        };
        std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .into()
    }

    fn update(&self, options: &[&str]) {
        self.runtime.succeed(&[&["update"], options, &[self.id]].concat()).unwrap();
    }

    fn end(self) {
        self.runtime.succeed(&["delete", "--force", self.id]).unwrap();
    }
}

#[test]
fn every_option_changes_its_file() {
    on_every_runtime(|runtime, bundles| {
        let container = Running::start(runtime, bundles, "options", "sleep 1000", |_| {});
        const MIB: u64 = 1 << 20;
        let (memory, both, low) = ((64 * MIB).to_string(), (128 * MIB).to_string(), (32 * MIB).to_string());
        container.update(&["--memory", &memory, "--memory-swap", &both, "--memory-reservation", &low]);
        assert_eq!(container.says("memory/memory.limit_in_bytes", "memory.max"), memory);
        let swap = if container.unified { &memory } else { &both };
        assert_eq!(&container.says("memory/memory.memsw.limit_in_bytes", "memory.swap.max"), swap);
        assert_eq!(container.says("memory/memory.soft_limit_in_bytes", "memory.low"), low);
        // Both up, both down, and without limits: the kernel wants another order each time.
        for factor in [4, 1] {
            let (memory, both) = ((factor * 64 * MIB).to_string(), (factor * 128 * MIB).to_string());
            container.update(&["--memory", &memory, "--memory-swap", &both]);
            assert_eq!(container.says("memory/memory.limit_in_bytes", "memory.max"), memory);
        }
        container.update(&["--memory", "-1"]);
        let limit = container.says("memory/memory.limit_in_bytes", "memory.max");
        assert!(limit == "max" || limit.parse::<u64>().unwrap() > 1 << 60, "{limit}");

        container.update(&["--pids-limit", "33", "--cpuset-cpus", "0", "--cpuset-mems=0"]);
        assert_eq!(container.says("pids/pids.max", "pids.max"), "33");
        assert_eq!(container.says("cpuset/cpuset.cpus", "cpuset.cpus"), "0");
        container.update(&["--cpu-period", "50000", "--cpu-quota", "20000", "--cpu-share", "2"]);
        if container.unified {
            assert_eq!(container.says("", "cpu.max"), "20000 50000");
            assert_eq!(container.says("", "cpu.weight"), "1");
        } else {
            assert_eq!(container.says("cpu/cpu.cfs_quota_us", ""), "20000");
            assert_eq!(container.says("cpu/cpu.cfs_period_us", ""), "50000");
            assert_eq!(container.says("cpu/cpu.shares", ""), "2");
        }
        container.end();
    });
}

/// What containerd and CRI-O pipe in, and podman writes to a file.
#[test]
fn resources_come_from_a_file_or_from_standard_input() {
    on_every_runtime(|runtime, bundles| {
        let container = Running::start(runtime, bundles, "files", "sleep 1000", |_| {});
        let file = bundles.join("resources.json");
        std::fs::write(&file, r#"{ "pids": { "limit": 44 }, "cpu": { "shares": 0, "cpus": "" } }"#).unwrap();
        container.update(&["--resources", file.to_str().unwrap()]);
        assert_eq!(container.says("pids/pids.max", "pids.max"), "44");
        let mut command = runtime.command(&["update", "--resources", "-", container.id]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(br#"{ "pids": { "limit": 45 } }"#).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(container.says("pids/pids.max", "pids.max"), "45");
        container.end();
    });
}

/// Ours: what is refused is refused whole, in words, and a stopped container has no limits to change.
#[test]
fn a_bad_value_changes_nothing() {
    on_every_runtime(|runtime, bundles| {
        if !runtime.is_ours() {
            return;
        }
        let container = Running::start(runtime, bundles, "bad", "sleep 1000", |config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": 128 << 20, "checkBeforeUpdate": true });
        });
        container.update(&["--pids-limit", "50"]);
        for (options, words) in [
            (&["--pids-limit", "51", "--cpu-period", "7"][..], "/linux/resources/cpu/period"),
            (&["--pids-limit", "51", "--cpuset-cpus", "999"], "/linux/resources/cpu/cpus"),
            (&["--pids-limit", "51", "--memory", "64q"], "invalid value for memory"),
            (&["--pids-limit", "51", "--blkio-weight", "9"], "/linux/resources/blockIO/weight"),
            // One page is in use, whatever the program does.
            (&["--pids-limit", "51", "--memory", "4k"], "unable to set memory limit"),
            (&["--pids-limit", "51", "--l3-cache-schema", "L3:0=f"], "l3 cache schema is not enabled"),
            (&["--pids-limit", "51", "--no-such-option"], "no-such-option"),
        ] {
            let outcome = runtime.call(&[&["update"], options, &["bad"]].concat()).unwrap();
            assert!(outcome.status != Some(0) && outcome.stderr.contains(words), "{options:?}: {outcome:?}");
            assert_eq!(container.says("pids/pids.max", "pids.max"), "50", "{options:?}");
        }
        runtime.succeed(&["kill", "bad", "KILL"]).unwrap();
        runtime.wait("bad", "stopped").unwrap();
        let outcome = runtime.call(&["update", "--pids-limit", "51", "bad"]).unwrap();
        assert!(outcome.stderr.contains("cannot update a container that is stopped"), "{outcome:?}");
        container.end();
    });
}

/// Device rules change while a program tries its luck all the time: at no moment is more allowed, or less, than before and
/// after. Peers leave the device rules alone in an update.
#[test]
fn device_rules_are_replaced_without_a_gap() {
    on_every_runtime(|runtime, bundles| {
        if !runtime.is_ours() {
            return;
        }
        // The kernel's log may be opened for writing by anybody whom the device rules let.
        let script = "mknod /log c 1 11; touch /tried
            while test ! -e /stop; do
                (exec 3>/log) 2>/dev/null && echo opened >>/said
                (exec 3<>/dev/null) 2>/dev/null || echo denied >>/said
            done; touch /stopped; sleep 1000";
        let container = Running::start(runtime, bundles, "devices", script, |_| {});
        let root = bundles.join("devices/rootfs");
        await_file(&root.join("tried"));
        let rules = |minor: u32| {
            let rule = json!({ "allow": true, "type": "c", "major": 10, "minor": minor, "access": "rw" });
            let path = bundles.join(format!("rules-{minor}.json"));
            std::fs::write(&path, json!({ "devices": [rule] }).to_string()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (first, second) = (rules(229), rules(200));
        for _ in 0..20 {
            container.update(&["-r", &first]);
            container.update(&["-r", &second]);
        }
        if !container.unified {
            let list = container.says("devices/devices.list", "");
            assert!(list.contains("c 10:200 rw") && !list.contains("c 10:229"), "{list}");
        }
        let said = std::fs::read_to_string(root.join("said")).unwrap_or_default();
        assert_eq!(said, "");
        // And the recipe bites.
        let rule = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" });
        let path = bundles.join("log.json");
        std::fs::write(&path, json!({ "devices": [rule] }).to_string()).unwrap();
        container.update(&["-r", path.to_str().unwrap()]);
        await_file(&root.join("said"));
        std::fs::write(root.join("stop"), "").unwrap();
        await_file(&root.join("stopped"));
        assert!(std::fs::read_to_string(root.join("said")).unwrap().starts_with("opened"));
        container.end();
    });
}

fn await_file(path: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !path.exists() {
        assert!(std::time::Instant::now() < deadline, "{} never came", path.display());
        // A file that another mount namespace makes tells nobody.
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
