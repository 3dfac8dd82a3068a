//! ST: ids and the state folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cofferdam_tests::oci::Runtime;
use cofferdam_tests::pace;
use serde_json::{Value, json};

use crate::{Canary, assert_refused, attack, bundle, sleeper};

#[test]
fn st_01_hostile_ids_are_refused_by_every_verb() {
    attack(|_, files| {
        // The state root lies deep in a folder whose every level is watched.
        let canary = Canary::make(files);
        let runtime = Runtime::ours(&canary.path().join("folder"));
        let bundle = bundle(files, "ids", "", |_| {});
        runtime.make_root().unwrap();
        let before = crate::entries(canary.path());
        let path = bundle.path().to_str().unwrap();
        let long = "x".repeat(1025);
        for id in [
            "",
            ".",
            "..",
            "../..",
            "a/b",
            "../x",
            "/",
            "/etc",
            "a/..",
            "a\nb",
            "a b",
            "a\tb",
            "-rf",
            "--",
            "é",
            "a;b",
            "a*",
            "a\u{1b}[2J",
            "\\",
            "%",
            &long,
            "...",
            ".hidden",
            "~",
            "$(id)",
        ] {
            for verb in [
                &["create", "--bundle", path][..],
                &["run", "--bundle", path],
                &["start"],
                &["state"],
                &["kill"],
                &["delete"],
                &["delete", "--force"],
                &["ps"],
                &["pause"],
                &["resume"],
            ] {
                for dashes in [&[][..], &["--"]] {
                    let arguments = [verb, dashes, &[id]].concat();
                    let outcome = runtime.call(&arguments).unwrap();
                    assert_refused(&outcome, &format!("{arguments:?}"));
                }
            }
            assert_refused(&runtime.call(&["exec", id, "true"]).unwrap(), &format!("exec {id:?}"));
            assert_refused(&runtime.call(&["kill", "--all", id, "KILL"]).unwrap(), &format!("kill {id:?}"));
            assert_eq!(crate::entries(canary.path()), before, "{id:?}");
        }
    });
}

/// A container that sleeps, and its state file.
fn running(runtime: &Runtime, files: &Path, name: &str) -> (i32, PathBuf) {
    let bundle = sleeper(files, name, |_| {});
    runtime.create("c", bundle.path()).unwrap();
    runtime.succeed(&["start", "c"]).unwrap();
    let pid = i32::try_from(runtime.state("c").unwrap()["pid"].as_i64().unwrap()).unwrap();
    let root = runtime.command(&[]).get_args().nth(1).unwrap().to_owned();
    (pid, PathBuf::from(root).join("c/state.json"))
}

/// Whether a process is there and no zombie.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn assert_ended(pid: i32, case: &str) {
    let deadline = Instant::now() + pace::limit(Duration::from_secs(5));
    while lives(pid) {
        assert!(Instant::now() < deadline, "the first process was forgotten: {case}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `delete --force` either ends what the container was, or says that it could not and keeps the state.
fn delete_by_force(runtime: &Runtime, state: &Path, init: i32, case: &str) -> bool {
    let outcome = runtime.call(&["delete", "--force", "c"]).unwrap();
    if outcome.status == Some(0) {
        assert_ended(init, case);
        return true;
    }
    assert_refused(&outcome, case);
    assert!(state.parent().unwrap().exists(), "the state is gone but delete failed: {case}");
    false
}

#[test]
fn st_04_poisoned_state_files_are_told_and_never_followed() {
    attack(|runtime, files| {
        let (init, path) = running(runtime, files, "poisoned");
        let good = std::fs::read(&path).unwrap();
        let refuse = |case: &str| {
            for arguments in [
                &["state", "c"][..],
                &["kill", "c", "KILL"],
                &["start", "c"],
                &["exec", "c", "true"],
                &["ps", "c"],
                &["delete", "c"],
            ] {
                assert_refused(&runtime.call(arguments).unwrap(), &format!("{case}: {arguments:?}"));
            }
            assert_eq!(runtime.call(&["list"]).unwrap().status, Some(0), "{case}");
            assert!(lives(init), "{case}");
        };
        let steps = (0..good.len()).step_by(good.len() / 24).chain([1, 2, good.len() - 2, good.len() - 1]);
        for length in steps {
            std::fs::write(&path, &good[..length]).unwrap();
            refuse(&format!("{length} of {} bytes", good.len()));
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let value: Value = serde_json::from_slice(&good).unwrap();
        let changed = |key: &str, new: Value| {
            let mut value = value.clone();
            value[key] = new;
            value.to_string()
        };
        for (case, text) in [
            ("not JSON", "\u{0}\u{0}\u{0}".to_owned()),
            ("an array", "[]".to_owned()),
            ("deep", deep),
            ("large", format!("{}{}", " ".repeat(40 << 20), value)),
            ("a future version", changed("version", json!(999))),
            ("version 0", changed("version", json!(0))),
            ("a pid that is text", changed("pid", json!("1"))),
            ("a pid beyond its type", changed("pid", json!(4_294_967_297_u64))),
            ("another id", changed("id", json!("../x"))),
        ] {
            std::fs::write(&path, text).unwrap();
            refuse(case);
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", &path).unwrap();
        refuse("a link to a secret");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        refuse("a folder");
        std::fs::remove_dir(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        refuse("a fifo");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &good).unwrap();
        assert_eq!(runtime.state("c").unwrap()["status"], "running");
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        assert_ended(init, "restored");
    });
}

#[test]
fn st_05_a_torn_state_file_does_not_make_delete_forget_the_container() {
    attack(|runtime, files| {
        for (name, length) in [("empty", 0), ("torn", 200)] {
            let (init, path) = running(runtime, files, name);
            let good = std::fs::read(&path).unwrap();
            std::fs::write(&path, &good[..length]).unwrap();
            if !delete_by_force(runtime, &path, init, name) {
                std::fs::write(&path, &good).unwrap();
                runtime.succeed(&["delete", "--force", "c"]).unwrap();
            }
        }
    });
}

/// A stranger that a wrong pid points to.
struct Stranger(Child);

impl Stranger {
    fn start() -> Stranger {
        Stranger(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn st_05_a_wrong_pid_kills_no_stranger_and_the_first_process_is_not_forgotten() {
    attack(|runtime, files| {
        let stranger = Stranger::start();
        let ours = i32::try_from(std::process::id()).unwrap();
        for (index, pid) in [stranger.pid(), ours, 1, 0, -1, i32::MAX, 2].into_iter().enumerate() {
            let (init, path) = running(runtime, files, &format!("wrong{index}"));
            let good = std::fs::read(&path).unwrap();
            let mut value: Value = serde_json::from_slice(&good).unwrap();
            value["pid"] = json!(pid);
            std::fs::write(&path, value.to_string()).unwrap();
            let case = format!("pid {pid}");
            let _ = runtime.call(&["kill", "c", "KILL"]).unwrap();
            let _ = runtime.call(&["exec", "c", "true"]).unwrap();
            assert!(lives(stranger.pid()), "{case}");
            if !delete_by_force(runtime, &path, init, &case) {
                std::fs::write(&path, &good).unwrap();
                runtime.succeed(&["delete", "--force", "c"]).unwrap();
            }
            assert!(lives(stranger.pid()), "{case}");
        }
        drop(stranger);
    });
}
