//! Tasks with ids of their own, seen through `run --userns`: who they are on the host, what they cannot reach there, and
//! whose their files are.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::host::{Answer, Scene, program, settle, world};

/// The first of the ids that are given out here, and how many there are: enough for two tasks.
const FIRST: u32 = 7_000_000;
const COUNT: u32 = 140_000;

/// A world with subordinate ids.
fn with_subordinate_ids() -> Option<Scene> {
    let world = world()?;
    for file in ["subuid", "subgid"] {
        let (own, copy) = (PathBuf::from("/etc").join(file), world.files().join(file));
        if !own.exists() {
            std::fs::write(&own, "").unwrap();
        }
        std::fs::write(&copy, format!("somebody:1:5\ncontainers:{FIRST}:{COUNT}\n")).unwrap();
        let bound = Command::new("mount").arg("--bind").args([&copy, &own]).status().unwrap();
        assert!(bound.success());
    }
    Some(world)
}

/// A store and its tasks in such a world, on one way of keeping layers.
struct Place<'a> {
    world: &'a Scene,
    layers: &'static str,
}

impl<'a> Place<'a> {
    /// One after the other, the ways that can be mapped here; of the others a line says so.
    fn each(world: &'a Scene) -> impl Iterator<Item = Place<'a>> {
        ["overlay-dir", "copy"].into_iter().filter_map(|layers| Place::make(world, layers))
    }

    fn make(world: &'a Scene, layers: &'static str) -> Option<Place<'a>> {
        let place = Place { world, layers };
        let first = place.call(&["run", "--rm", "--network", "none", "--userns", "auto", "demo", "true"]);
        if first.stderr.contains("needs Linux 6.13") {
            println!("skipped: {}", first.stderr.trim());
            return None;
        }
        assert_eq!(first.code, Some(0), "{first:?}");
        Some(place)
    }

    /// A store of its own, or the layers that are there would be used as they are.
    fn root(&self) -> PathBuf {
        self.world.root().join(self.layers)
    }

    fn call(&self, words: &[&str]) -> Answer {
        let world = self.world;
        let mut command = Command::new(program());
        command.arg("--state").arg(world.state()).arg("--root").arg(self.root());
        command.arg("--cni-config").arg(world.files()).args(["--layers", self.layers]);
        command.args(words).stdin(Stdio::null()).output().unwrap().into()
    }

    fn succeed(&self, words: &[&str]) -> String {
        let answer = self.call(words);
        assert_eq!(answer.code, Some(0), "{words:?}: {answer:?}");
        answer.stdout.trim_end().to_owned()
    }

    /// Runs a command as the root of a task with ids of its own, without a capability, and removes the task.
    fn run(&self, options: &[&str], command: &[&str]) -> Answer {
        let ids = ["run", "--rm", "--userns", "auto", "--user", "root"];
        self.call(&[&ids, options, &["demo"], command].concat())
    }

    /// What the kernel says of a running task's first process.
    fn status(&self, task: &str) -> String {
        let found: Value = serde_json::from_str(&self.succeed(&["inspect", task])).unwrap();
        let pid = found[0]["status"]["pid"].as_i64().unwrap_or_else(|| panic!("{found}"));
        std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
    }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap()
}

#[test]
fn root_of_a_task_with_ids_of_its_own_is_nobody_on_the_host() {
    let Some(world) = with_subordinate_ids() else { return };
    for place in Place::each(&world) {
        let watch = place.world.watch();
        let start = ["run", "-d", "--network", "none", "--user", "root", "--userns"];
        let launch = |name: &str, userns: &str| {
            place.succeed(&[&start, &[userns, "--name", name, "demo", "sleep"][..]].concat());
            place.status(name)
        };
        let (one, two) = (launch("one", "auto"), launch("two", "auto"));
        assert_eq!((field(&one, "Uid"), field(&one, "Gid")), ("7000000", "7000000"));
        assert_eq!(field(&two, "Uid"), "7065536", "no id belongs to two tasks");
        assert_eq!(field(&launch("small", "auto:size=1000"), "Uid"), "7131072");
        let full = place.call(&[&start, &["auto", "demo", "true"][..]].concat());
        assert!(full.code == Some(125) && full.stderr.contains("65536 ids in a row are free"), "{full:?}");
        // Who joins is who is there.
        let map = place.succeed(&["exec", "one", "cat", "/proc/self/uid_map"]);
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "7000000", "65536"]);
        // Kept with the task when it is over, and given to the next when it is removed.
        place.succeed(&["kill", "one"]);
        place.succeed(&["wait", "one"]);
        assert!(place.call(&[&start, &["auto", "demo", "true"][..]].concat()).stderr.contains("are free"));
        place.succeed(&["rm", "one"]);
        assert_eq!(field(&launch("three", "auto"), "Uid"), "7000000");
        for task in ["two", "small", "three"] {
            place.succeed(&["rm", "--force", task]);
        }
        settle(&watch);
    }
}

/// What a task that broke out would be: an attacker with every capability in his own namespace, and files of the host.
#[test]
fn the_hosts_files_are_not_the_tasks_and_the_tasks_own_are() {
    let Some(world) = with_subordinate_ids() else { return };
    for place in Place::each(&world) {
        let watch = place.world.watch();
        let host = world.files().join(format!("{}-host", place.layers));
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("secret"), "secret").unwrap();
        std::fs::set_permissions(host.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        let (closed, open) = (format!("{}:/host", host.display()), format!("{}:/host:idmap", host.display()));
        let none = &["--network", "none"];
        let all = &["--network", "none", "--cap-add", "ALL", "--allow-new-privs"];
        let with = |options: &[&str], volume: &str, command: &[&str]| {
            place.run(&[options, &["-v", volume]].concat(), command)
        };
        for command in
            [&["cat", "/host/secret"][..], &["write", "/host/secret", "x"], &["write", "/host/new", "x"]]
        {
            for rights in [&none[..], all] {
                let refused = with(rights, &closed, command);
                assert_ne!(refused.code, Some(0), "{command:?} {rights:?}: {refused:?}");
                assert!(refused.stderr.contains("ermission denied"), "{command:?}: {refused:?}");
            }
        }
        assert_eq!(std::fs::read_to_string(host.join("secret")).unwrap(), "secret");
        // What it may write to is its own, and not root's.
        let writable = host.join("writable");
        std::fs::create_dir(&writable).unwrap();
        std::fs::set_permissions(&writable, PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(with(none, &closed, &["write", "/host/writable/x", "words"]).code, Some(0));
        assert_eq!(writable.join("x").metadata().unwrap().uid(), FIRST);
        // Only where the request says so is it the host's root.
        assert_eq!(with(none, &open, &["cat", "/host/secret"]).stdout.trim_end(), "secret");
        // The image's files are its root's: without a capability it writes where only the owner may.
        let bare = &["--network", "none", "--cap-drop", "ALL", "--name", "owner"];
        let written = place.call(
            &[&["run", "--userns", "auto", "--user", "root"], &bare[..], &["demo", "write", "/new", "words"]]
                .concat(),
        );
        assert_eq!(written.code, Some(0), "{written:?}");
        let mut find = Command::new("find");
        find.arg(place.root().join("images/snapshots")).args(["-name", "new"]);
        let left = String::from_utf8(find.output().unwrap().stdout).unwrap();
        let left = std::fs::metadata(left.trim()).unwrap_or_else(|error| panic!("{left:?}: {error}"));
        assert_eq!(
            (left.uid(), left.gid()),
            (0, 0),
            "on the disk there are the image's ids, whatever the map"
        );
        place.succeed(&["rm", "owner"]);
        for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"] {
            let answer = place.run(&bare[..4], &["write", file, "mine"]);
            assert_eq!(answer.code, Some(0), "{file}: {answer:?}");
        }
        settle(&watch);
    }
}

#[test]
fn volumes_keep_the_ids_that_tasks_see_and_networks_belong_to_the_task() {
    let Some(world) = with_subordinate_ids() else { return };
    for place in Place::each(&world) {
        let watch = place.world.watch();
        let named = ["--network", "none", "-v", "data:/data"];
        let written = place.run(&named, &["write", "/data/file", "words"]);
        assert_eq!(written.code, Some(0), "{written:?}");
        let file = place.root().join("volumes/data/file");
        assert_eq!(file.metadata().unwrap().uid(), 0);
        chown(&file, Some(5), Some(5)).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        // Another task, with other ids, finds its user's file; one with the host's does too.
        place.succeed(&[
            "run",
            "-d",
            "--network",
            "none",
            "--userns",
            "auto",
            "--name",
            "first",
            "demo",
            "sleep",
        ]);
        for userns in ["auto", "host"] {
            let words = ["run", "--rm", "--userns", userns, "--user", "5:5"];
            let read = place.call(&[&words, &named[..], &["demo", "cat", "/data/file"]].concat());
            assert_eq!(read.stdout.trim_end(), "words", "{userns}: {read:?}");
        }
        place.succeed(&["rm", "--force", "first"]);
        // One that is empty begins with what the image has, which is the task's.
        for userns in ["auto", "host"] {
            let words =
                ["run", "--rm", "--network", "none", "--userns", userns, "--user", "5:5", "-v", "etc:/etc"];
            let read = place.call(&[&words[..], &["demo", "cat", "/etc/passwd"]].concat());
            assert!(read.stdout.starts_with("root:"), "{userns}: {read:?}");
        }
        assert_eq!(place.root().join("volumes/etc/passwd").metadata().unwrap().uid(), 0);
        // Its own loopback and parameters are its to set, the host's network is not.
        let parameter = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        assert_eq!(place.run(&["--network", "none"], &["cat", parameter]).stdout.trim_end(), "0");
        let host = place.run(&["--network", "host"], &["cat", "/sys/class/net/lo/mtu"]);
        assert_eq!(host.code, Some(0), "{host:?}");
        for name in ["data", "etc"] {
            std::fs::remove_dir_all(place.root().join("volumes").join(name)).unwrap();
        }
        settle(&watch);
    }
}

#[test]
fn maps_that_are_given_hold_and_what_makes_no_sense_is_refused() {
    let Some(world) = with_subordinate_ids() else { return };
    let Some(place) = Place::make(&world, "copy") else { return };
    let watch = place.world.watch();
    let maps = ["--network", "none", "--uidmap", "0:8000000:10", "--uidmap", "10:9000000:70000"];
    let seen = place.call(&[&["run", "--rm"], &maps[..], &["demo", "cat", "/proc/self/uid_map"]].concat());
    let seen: Vec<_> = seen.stdout.split_whitespace().collect();
    assert_eq!(seen, ["0", "8000000", "10", "10", "9000000", "70000"]);
    for (options, words) in [
        (&["--userns", "keep-id"][..], "ordinary users"),
        (&["--userns", "auto", "--uidmap", "0:1:2"], "leave one out"),
        (&["--userns", "auto", "--host-rootfs"], "--host-rootfs"),
        (&["--uidmap", "0:8000000:10", "--user", "11"], "not mapped"),
        (&["--uidmap", "0:8000000:10", "--uidmap", "5:8000100:10"], "overlap"),
    ] {
        let answer =
            place.call(&[&["run", "--rm", "--network", "none"], options, &["demo", "true"]].concat());
        assert_ne!(answer.code, Some(0), "{options:?}: {answer:?}");
        assert!(answer.stderr.contains(words), "{options:?}: {answer:?}");
    }
    settle(&watch);
}
