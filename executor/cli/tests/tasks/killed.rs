//! kill -9 of the command at random moments: what leaks, the next start cleans; what runs, goes on; exit codes are kept.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_tests::needs;
use cofferdam_tests::registry::{Options, Registry};
use cofferdam_tests::world::World;
use serde_json::Value;

use crate::host::{call, cofferdam, settle, settled_world, succeed};

/// Moments at which the command is killed.
const ROUNDS: u32 = 100;

/// Longest time a launch is given before it is killed; about twice what it takes.
const SPAN: Duration = Duration::from_millis(250);

/// How much longer a launch takes that has to pull its image first.
const PULL_TIMES: u32 = 2;

/// Moments that are spread over the span and the same on every run: multiples of the golden section.
fn moment(round: u32) -> Duration {
    let fraction = (f64::from(round) * 0.618_033_988_75).fract();
    SPAN.mul_f64(fraction)
}

/// Starts a command and kills it after a while, however far it is.
fn kill_after(mut command: Command, pause: Duration) {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(pause.saturating_sub(start.elapsed()));
    child.kill().unwrap();
    child.wait().unwrap();
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
    let mut survived = 0;
    for round in 0..ROUNDS {
        let words = ["run", "-d", "--name", "victim", "-p", "18081:9000", "demo", "sleep", "1000"];
        kill_after(cofferdam(&world, &words), moment(round));
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
    println!("{survived} of {ROUNDS} launches had come through");
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
    let name = format!("{}/big:latest", registry.address());
    push_image(&world, &name);
    let whole = |round: u32| {
        let answer = call(&world, &["run", "--rm", &name, "/bin/guest", "exit", "4"]);
        assert_eq!(answer.code, Some(4), "round {round}: {answer:?}");
        succeed(&world, &["rmi", &name]);
    };
    whole(0);
    let watch = world.watch();
    let mut survived = 0;
    for round in 0..ROUNDS {
        let words = ["run", "-d", "--name", "victim", &name, "/bin/guest", "sleep", "1000"];
        kill_after(cofferdam(&world, &words), moment(round) * PULL_TIMES);
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
    println!("{survived} of {ROUNDS} launches had come through");
    settle(&watch);
    assert_eq!(succeed(&world, &["ps", "-a", "-q"]), "");
}

/// An image with some megabytes that do not compress, so that a pull takes a while.
fn push_image(world: &World, name: &str) {
    let mut noise = vec![0u8; 8 << 20];
    let mut state = 1u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let image = cofferdam_executor::ImageBuilder::new()
        .file("bin/guest", 0o755, cofferdam_guest::PROGRAM)
        .file("noise", 0o644, noise)
        .build()
        .unwrap();
    let archive = world.files().join("image.tar");
    std::fs::write(&archive, image).unwrap();
    let status = Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci-archive:{}", archive.display()))
        .arg(format!("docker://{name}"))
        .status();
    assert!(status.unwrap().success());
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
    for round in 0..ROUNDS / 3 {
        let words = ["run", "-d", "--name", "v", "-p", "18083:9000", "demo", "sleep", "1000"];
        let mut child =
            cofferdam(&world, &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let found = loop {
            let found = shims(&world);
            if !found.is_empty() || Instant::now() > deadline {
                break found;
            }
        };
        std::thread::sleep(moment(round) / 5);
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
