//! kill -9 of the command at random moments: what leaks, the next start cleans; what runs, goes on; exit codes are kept.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_tests::killed::{Moments, kill_after};
use cofferdam_tests::registry::{Options, Registry, noise};
use cofferdam_tests::world::World;
use cofferdam_tests::{needs, pace};
use serde_json::Value;

use crate::host::{call, cofferdam, settle, settled_world, succeed};

/// How often the command is killed.
fn rounds() -> u32 {
    pace::rounds(100, 10)
}

fn remove_all(world: &World) {
    let ids = succeed(world, &["ps", "-a", "-q"]);
    let ids: Vec<&str> = ids.lines().collect();
    if !ids.is_empty() {
        succeed(world, &[&["rm", "-f"][..], &ids].concat());
    }
}

#[test]
fn a_launch_that_is_killed_at_any_moment_leaves_nothing_that_the_next_start_does_not_clean() {
    let Some(world) = settled_world() else { return };
    succeed(&world, &["run", "-d", "--name", "witness", "demo", "sleep", "1000"]);
    let witness = |world: &World| -> Value {
        let found: Value = serde_json::from_str(&succeed(world, &["inspect", "witness"])).unwrap();
        found[0]["status"].clone()
    };
    let before = witness(&world);
    let watch = world.watch();
    let words = ["run", "-d", "--name", "victim", "-p", "18081:9000", "demo", "sleep", "1000"];
    let moments = Moments::measure(rounds(), || succeed(&world, &words));
    succeed(&world, &["rm", "-f", "victim"]);
    let mut survived = 0;
    for (_, moment) in moments.iter() {
        kill_after(&mut cofferdam(&world, &words), moment).unwrap();
        // The next start: it cleans up, and shows what runs.
        let listed = succeed(&world, &["ps", "--filter", "name=victim", "--format", "json"]);
        if let Some(task) = listed.lines().next() {
            // It was launched before the kill: then it runs on.
            let task: Value = serde_json::from_str(task).unwrap();
            assert!(matches!(task["state"].as_str(), Some("RUNNING" | "STARTING")), "{task}");
            survived += 1;
        }
        // A launch that was handed over just now ends by itself; one that runs is removed.
        let removed = call(&world, &["rm", "-f", "victim"]);
        assert!(removed.code == Some(0) || removed.stderr.contains("no task"), "{removed:?}");
    }
    println!("{survived} launches had come through");
    settle(&watch);
    assert_eq!(witness(&world), before, "a task that was running is untouched");
    remove_all(&world);
}

#[test]
fn a_pull_and_run_that_is_killed_at_any_moment_is_taken_up_by_the_next() {
    let Some(world) = settled_world() else { return };
    if !needs::programs(&["docker-registry", "skopeo"]) {
        return;
    }
    let registry = Registry::start(&world.files().join("registry"), Options::default()).unwrap();
    // Some megabytes that do not compress, so that a pull takes a while.
    let image = cofferdam_executor::ImageBuilder::new()
        .file("bin/guest", 0o755, cofferdam_guest::PROGRAM)
        .file("noise", 0o644, noise(8 << 20))
        .build()
        .unwrap();
    let name = registry.push(&image, "big").unwrap();
    let whole = |round: u32| {
        let answer = call(&world, &["run", "--rm", &name, "/bin/guest", "exit", "4"]);
        assert_eq!(answer.code, Some(4), "round {round}: {answer:?}");
        succeed(&world, &["rmi", &name]);
    };
    whole(0);
    let watch = world.watch();
    let words = ["run", "-d", "--name", "victim", &name, "/bin/guest", "sleep", "1000"];
    let moments = Moments::measure(rounds(), || succeed(&world, &words));
    succeed(&world, &["rm", "-f", "victim"]);
    succeed(&world, &["rmi", &name]);
    let mut survived = 0;
    for (round, moment) in moments.iter() {
        kill_after(&mut cofferdam(&world, &words), moment).unwrap();
        let listed = succeed(&world, &["ps", "--filter", "name=victim", "--format", "json"]);
        survived += listed.lines().count();
        let removed = call(&world, &["rm", "-f", "victim"]);
        assert!(removed.code == Some(0) || removed.stderr.contains("no task"), "{removed:?}");
        // What is half pulled is finished now and then; else the next round begins where this one was killed.
        if round % 5 == 4 {
            whole(round);
        } else {
            call(&world, &["rmi", "-f", &name]);
        }
    }
    println!("{survived} launches had come through");
    settle(&watch);
    assert_eq!(succeed(&world, &["ps", "-a", "-q"]), "");
}

#[test]
fn a_task_whose_supervisor_is_killed_is_ended_and_reported() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    succeed(&world, &["run", "-d", "--name", "orphan", "-p", "18082:1", "demo", "sleep", "1000"]);
    let found: Value = serde_json::from_str(&succeed(&world, &["inspect", "orphan"])).unwrap();
    let pid = found[0]["status"]["pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    assert!(Command::new("kill").args(["-9", parent]).status().unwrap().success());
    assert_eq!(succeed(&world, &["wait", "orphan"]), "125");
    let found: Value = serde_json::from_str(&succeed(&world, &["inspect", "orphan"])).unwrap();
    assert_eq!(found[0]["status"]["state"], "FAILED");
    assert_eq!(found[0]["status"]["reason"], "supervisor-lost");
    succeed(&world, &["rm", "orphan"]);
    settle(&watch);
}

/// The shims of a world, found by the state directory that is their argument.
fn shims(world: &World) -> Vec<i32> {
    let state = world.state().display().to_string();
    let is_shim = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.starts_with("cofferdam-shim\0") && line.contains(&state)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_shim).collect()
}

#[test]
fn a_supervisor_that_is_killed_at_any_moment_of_a_launch_takes_everything_along() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let words = ["run", "-d", "--name", "v", "-p", "18083:9000", "demo", "sleep", "1000"];
    let moments = Moments::measure(rounds() / 3, || succeed(&world, &words));
    succeed(&world, &["rm", "-f", "v"]);
    for (_, moment) in moments.iter() {
        let mut child =
            cofferdam(&world, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + pace::limit(Duration::from_secs(10));
        let found = loop {
            let found = shims(&world);
            // A launch may fail at once: what the last one held is on its way back.
            if !found.is_empty() || child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                break found;
            }
        };
        // From the launch's own beginning, of which the supervisor's is the smaller part.
        std::thread::sleep(moment / 4);
        for pid in found {
            // It may have ended by itself.
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        child.wait().unwrap();
        succeed(&world, &["ps"]);
        let removed = call(&world, &["rm", "-f", "v"]);
        assert!(removed.code == Some(0) || removed.stderr.contains("no task"), "{removed:?}");
    }
    settle(&watch);
}
