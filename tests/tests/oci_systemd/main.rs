//! `--systemd-cgroup`: the container's cgroup is a scope of systemd's. Against systemd itself, run as a user's manager below
//! a cgroup of the test's, and against a manager of our own that records every call and misbehaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fake;
mod manager;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::needs;
use cofferdam_tests::oci::{Outcome, Runtime, outcome};
use cofferdam_tests::world::World;
use serde_json::json;

use fake::{Fake, Manner};
use manager::Manager;

/// Where the runtime is told to find the manager.
const ADDRESS: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// A runtime that speaks to the manager at a socket.
struct Driver<'a> {
    runtime: Runtime,
    socket: &'a Path,
}

impl Driver<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.runtime.command(arguments);
        command.env(ADDRESS, format!("unix:path={}", self.socket.display()));
        command
    }

    fn call(&self, arguments: &[&str]) -> Outcome {
        outcome(&mut self.command(arguments)).unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> Outcome {
        let outcome = self.call(arguments);
        assert_eq!(outcome.status, Some(0), "{arguments:?}: {outcome:?}");
        outcome
    }

    fn create(&self, id: &str, bundle: &Bundle) -> Outcome {
        self.call(&["--systemd-cgroup", "create", "--bundle", bundle.path().to_str().unwrap(), id])
    }
}

fn world() -> Option<World> {
    (needs::root() && needs::programs(&["busybox", "ip"])).then(|| World::enter().unwrap())
}

fn sleeper(world: &World, name: &str) -> Bundle {
    Bundle::make(&world.files().join(name), &["sleep", "1000"], |config| {
        config["linux"]["cgroupsPath"] = json!("cofferdam-suite.slice:libpod:c1");
        config["linux"]["resources"]["pids"] = json!({ "limit": 33 });
        config["linux"]["resources"]["memory"] = json!({ "limit": 128 << 20 });
        config["annotations"] = json!({ "org.systemd.property.TimeoutStopSec": "7" });
    })
    .unwrap()
}

/// The container's folder in a hierarchy: the one of `controller`, or the version 2 tree.
fn folder(controller: &str, below: &str) -> PathBuf {
    let first = Path::new("/sys/fs/cgroup");
    let unified = first.join("cgroup.controllers").exists();
    let root = if unified { first.to_owned() } else { first.join(controller) };
    root.join(below.trim_start_matches('/'))
}

fn in_cgroup(pid: i64) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[test]
fn systemd_makes_the_scope_and_forgets_it() {
    let Some(world) = world() else { return };
    let Some(manager) = Manager::start(&world.files()) else { return };
    let driver = Driver { runtime: Runtime::ours(&world.state()), socket: manager.socket() };
    let bundle = sleeper(&world, "real");
    let created = driver.create("c1", &bundle);
    assert_eq!(created.status, Some(0), "{created:?}");
    let scope = format!("{}/cofferdam.slice/cofferdam-suite.slice/libpod-c1.scope", manager.cgroup());
    let pid = driver.runtime.state("c1").unwrap()["pid"].as_i64().unwrap();
    for line in in_cgroup(pid).lines() {
        // On a hybrid host systemd knows some hierarchies only: we are in the others too.
        assert!(line.ends_with(&scope), "{line}");
    }
    assert_eq!(manager.property("libpod-c1.scope", "TasksMax"), "33");
    assert_eq!(manager.property("libpod-c1.scope", "TimeoutStopUSec"), "7s");
    assert_eq!(manager.property("libpod-c1.scope", "Delegate"), "yes");
    driver.succeed(&["start", "c1"]);
    driver.succeed(&["exec", "c1", "true"]);
    driver.succeed(&["update", "--pids-limit", "44", "c1"]);
    assert_eq!(manager.property("libpod-c1.scope", "TasksMax"), "44");
    let limit = || std::fs::read_to_string(folder("pids", &scope).join("pids.max")).unwrap();
    assert_eq!(limit().trim(), "44");
    // The manager reads everything again, and writes what it was told.
    manager.reload();
    assert_eq!(limit().trim(), "44");
    driver.succeed(&["exec", "c1", "true"]);
    driver.succeed(&["pause", "c1"]);
    driver.succeed(&["resume", "c1"]);
    driver.succeed(&["delete", "--force", "c1"]);
    assert!(!folder("systemd", &scope).exists() && !folder("pids", &scope).exists());
    assert_eq!(manager.property("libpod-c1.scope", "LoadState"), "not-found");
    // And the same again, under the same name.
    assert_eq!(driver.create("c1", &bundle).status, Some(0));
    driver.succeed(&["delete", "c1"]);
}

/// The exact call, and nothing that is missing after it: runtime-spec config-linux.md, "cgroupsPath"; systemd's own
/// documentation of `StartTransientUnit`.
#[test]
fn the_scope_is_asked_for_with_its_process_and_its_limits() {
    let Some(world) = world() else { return };
    let fake = Fake::listen(&world.files(), Manner::Works);
    let driver = Driver { runtime: Runtime::ours(&world.state()), socket: &fake.socket };
    driver.runtime.make_root().unwrap();
    let watch = world.watch();
    let bundle = sleeper(&world, "exact");
    let created = driver.create("c1", &bundle);
    assert_eq!(created.status, Some(0), "{created:?}");
    let pid = driver.runtime.state("c1").unwrap()["pid"].as_i64().unwrap();
    let call = fake.take("StartTransientUnit");
    assert_eq!(call.words, ["libpod-c1.scope", "replace"]);
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let limit = if unified { "MemoryMax" } else { "MemoryLimit" };
    for (name, value) in [
        ("PIDs", format!("[uint32 {pid}]")),
        ("Slice", "\"cofferdam-suite.slice\"".into()),
        ("Delegate", "true".into()),
        ("DefaultDependencies", "false".into()),
        ("TasksMax", "uint64 33".into()),
        (limit, format!("uint64 {}", 128 << 20)),
        ("DevicePolicy", "\"strict\"".into()),
        ("TimeoutStopUSec", "uint64 7000000".into()),
    ] {
        assert_eq!(call.properties.get(name), Some(&value), "{name} in {:?}", call.properties);
    }
    assert!(call.properties["DeviceAllow"].contains("/dev/char/1:3"), "{:?}", call.properties);
    driver.succeed(&["update", "--pids-limit", "44", "c1"]);
    let call = fake.take("SetUnitProperties");
    assert_eq!(call.words, ["libpod-c1.scope"]);
    assert_eq!(
        call.properties.iter().collect::<Vec<_>>(),
        [(&"TasksMax".to_owned(), &"uint64 44".to_owned())]
    );
    driver.succeed(&["delete", "--force", "c1"]);
    assert_eq!(fake.take("StopUnit").words, ["libpod-c1.scope", "replace"]);
    assert_eq!(fake.take("ResetFailedUnit").words, ["libpod-c1.scope"]);
    fake.remove_folders();
    watch.end();
}

/// Whatever the manager does, create ends, in words, and leaves nothing.
#[test]
fn a_manager_that_fails_leaves_nothing_behind() {
    let Some(world) = world() else { return };
    for (manner, words) in [
        (Manner::JobFails, "ended as \"failed\""),
        (Manner::Refuses, "no such luck"),
        (Manner::HangsUp, "closes the connection"),
        (Manner::SaysNonsense, "no message"),
        (Manner::IsSilent, "no answer to StartTransientUnit in 10 s"),
    ] {
        let fake = Fake::listen(&world.files(), manner);
        let driver = Driver { runtime: Runtime::ours(&world.state()), socket: &fake.socket };
        driver.runtime.make_root().unwrap();
        let watch = world.watch();
        let bundle = sleeper(&world, &format!("{manner:?}"));
        let begin = Instant::now();
        let outcome = driver.create("c1", &bundle);
        assert!(outcome.status == Some(1) && outcome.stderr.contains(words), "{manner:?}: {outcome:?}");
        assert!(begin.elapsed() < Duration::from_secs(100), "{manner:?}: {:?}", begin.elapsed());
        assert!(driver.call(&["state", "c1"]).stderr.contains("does not exist"));
        assert!(!outcome.stderr.contains("left behind"), "{manner:?}: {outcome:?}");
        if manner == Manner::JobFails {
            assert_eq!(fake.take("StopUnit").words[0], "libpod-c1.scope");
        }
        fake.remove_folders();
        watch.end();
    }
    // Nobody there: named with every address that was tried, before anything is touched.
    let nowhere = world.files().join("nowhere");
    let driver = Driver { runtime: Runtime::ours(&world.state()), socket: &nowhere };
    let outcome = driver.create("c1", &sleeper(&world, "nobody"));
    assert!(
        outcome.stderr.contains("systemd cannot be reached") && outcome.stderr.contains("nowhere"),
        "{outcome:?}"
    );
}

/// A scope that has failed keeps its name until it is forgotten.
#[test]
fn a_name_that_a_failed_scope_holds_is_taken_over() {
    let Some(world) = world() else { return };
    let fake = Fake::listen(&world.files(), Manner::HasFailedUnit);
    let driver = Driver { runtime: Runtime::ours(&world.state()), socket: &fake.socket };
    let created = driver.create("c1", &sleeper(&world, "failed"));
    assert_eq!(created.status, Some(0), "{created:?}");
    assert_eq!(fake.take("ResetFailedUnit").words, ["libpod-c1.scope"]);
    driver.succeed(&["delete", "--force", "c1"]);
    fake.remove_folders();
}
