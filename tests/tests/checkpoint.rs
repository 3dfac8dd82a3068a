//! checkpoint and restore over CRIU: processes go on where they stopped. On ours and on runc, with a census.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::callers::podman::Podman;
use cofferdam_tests::callers::{Called, Caller, Ground, step};
use cofferdam_tests::criu;
use cofferdam_tests::needs;
use cofferdam_tests::oci::{Outcome, Runtime, outcome};
use cofferdam_tests::world::World;
use serde_json::json;

/// Writes a number a tenth of a second apart, from 0, each once.
const COUNT: &str = "i=0; while :; do echo $i >> /count; i=$((i+1)); usleep 100000; done";

/// How long a counter may take to write one more line.
const LIMIT: Duration = Duration::from_secs(20);

/// A runtime that finds CRIU.
struct Restoring<'a> {
    runtime: &'a Runtime,
    path: String,
}

impl Restoring<'_> {
    fn call(&self, arguments: &[&str]) -> Outcome {
        outcome(self.runtime.command(arguments).env("PATH", &self.path)).unwrap()
    }

    /// Starts the bundle's container in the background. Its output is a file of the host that is gone already, which ours
    /// gives to CRIU as something outside and the control cannot.
    fn start(&self, place: &Place, id: &str) {
        let arguments = ["run", "--detach", "--bundle", &place.bundle, id];
        if self.runtime.is_ours() {
            return self.succeed(&arguments);
        }
        let mut command = self.runtime.command(&arguments);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{} {arguments:?}: {status}", self.runtime.name());
    }

    fn succeed(&self, arguments: &[&str]) {
        let outcome = self.call(arguments);
        assert_eq!(outcome.status, Some(0), "{} {arguments:?}: {outcome:?}", self.runtime.name());
    }
}

fn on_every_runtime(body: impl Fn(&Restoring, &Path)) {
    let Some(folder) = criu::folder().filter(|_| needs::programs(&["busybox", "ip"])) else { return };
    let path = criu::search_path(&folder);
    let world = World::enter().unwrap();
    for runtime in Runtime::all(&world.state()) {
        println!("on {}", runtime.name());
        runtime.make_root().unwrap();
        let bundles = world.files().join(runtime.name());
        std::fs::create_dir(&bundles).unwrap();
        let watch = world.watch();
        body(&Restoring { runtime: &runtime, path: path.clone() }, &bundles);
        watch.end();
    }
}

fn counter(bundles: &Path) -> Bundle {
    Bundle::make(&bundles.join("counter"), &["sh", "-c", COUNT], |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 33 });
    })
    .unwrap()
}

fn counted(bundle: &Bundle) -> Vec<u32> {
    let text = std::fs::read_to_string(bundle.rootfs().join("count")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Waits until there are more lines than `least`.
fn counts_past(bundle: &Bundle, least: usize) -> usize {
    let deadline = Instant::now() + LIMIT;
    loop {
        let count = counted(bundle).len();
        if count > least {
            return count;
        }
        assert!(Instant::now() < deadline, "no more than {count} lines");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every number once, in order: nothing was done twice or left out.
fn assert_in_sequence(bundle: &Bundle) {
    let counted = counted(bundle);
    let expected: Vec<u32> = (0..counted.len() as u32).collect();
    assert_eq!(counted, expected);
}

struct Place {
    images: String,
    work: String,
    bundle: String,
}

fn place(bundle: &Bundle) -> Place {
    let at = |name: &str| bundle.path().join(name).display().to_string();
    Place { images: at("images"), work: at("work"), bundle: bundle.path().display().to_string() }
}

impl Place {
    fn words(&self) -> [&str; 4] {
        ["--image-path", &self.images, "--work-path", &self.work]
    }
}

#[test]
fn a_counter_goes_on_where_it_stopped_and_is_a_container_like_any_other() {
    on_every_runtime(|runtime, bundles| {
        let bundle = counter(bundles);
        let place = place(&bundle);
        runtime.start(&place, "counter");
        counts_past(&bundle, 3);
        runtime.succeed(&[&["checkpoint"][..], &place.words(), &["counter"]].concat());
        assert_ne!(runtime.call(&["state", "counter"]).status, Some(0), "it is still there");
        let stopped_at = counted(&bundle).len();
        let pid_file = bundle.path().join("pid");
        let restore =
            ["restore", "--detach", "--bundle", &place.bundle, "--pid-file", pid_file.to_str().unwrap()];
        runtime.succeed(&[&restore[..], &place.words(), &["counter"]].concat());
        counts_past(&bundle, stopped_at + 3);
        assert_in_sequence(&bundle);

        let state = runtime.runtime.state("counter").unwrap();
        assert_eq!(state["status"], "running");
        assert_eq!(std::fs::read_to_string(pid_file).unwrap(), state["pid"].to_string());
        let inside = runtime.call(&["exec", "counter", "sh", "-c", "hostname; cat /proc/1/cmdline"]);
        assert!(inside.stdout.starts_with("isolated\nsh\0-c\0"), "{inside:?}");
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", state["pid"])).unwrap();
        assert!(cgroup.lines().all(|line| line.contains("/cofferdam-suite-")), "{cgroup}");
        runtime.succeed(&["pause", "counter"]);
        assert_eq!(runtime.runtime.state("counter").unwrap()["status"], "paused");
        runtime.succeed(&["resume", "counter"]);
        runtime.succeed(&["kill", "counter", "KILL"]);
        runtime.runtime.wait("counter", "stopped").unwrap();
        runtime.succeed(&["delete", "counter"]);
    });
}

#[test]
fn a_container_left_running_goes_on_and_its_image_can_be_restored_later() {
    on_every_runtime(|runtime, bundles| {
        let bundle = counter(bundles);
        let place = place(&bundle);
        runtime.start(&place, "counter");
        counts_past(&bundle, 3);
        runtime.succeed(&[&["checkpoint", "--leave-running"][..], &place.words(), &["counter"]].concat());
        assert_eq!(runtime.runtime.state("counter").unwrap()["status"], "running");
        let then = counted(&bundle).len();
        counts_past(&bundle, then + 2);
        assert_in_sequence(&bundle);
        runtime.succeed(&["delete", "--force", "counter"]);
        // The file is from after the checkpoint, so the count appears to go back: the process is the older one.
        let last = *counted(&bundle).last().unwrap();
        runtime
            .succeed(&[&["restore", "-d", "-b", &place.bundle][..], &place.words(), &["counter"]].concat());
        let lines = counted(&bundle).len();
        counts_past(&bundle, lines);
        assert!(counted(&bundle)[lines] <= last + 1, "{:?}", counted(&bundle));
        runtime.succeed(&["delete", "--force", "counter"]);
    });
}

#[test]
fn memory_is_written_before_and_only_its_changes_with_the_checkpoint() {
    // proc_pid_pagemap(5), bit 55: a page that was written to stays marked until told otherwise, on kernels with that.
    if !needs::met(tracks_memory(), "a kernel that tracks changes of memory (CONFIG_MEM_SOFT_DIRTY)") {
        return;
    }
    on_every_runtime(|runtime, bundles| {
        let bundle = counter(bundles);
        let place = place(&bundle);
        let before = bundle.path().join("before").display().to_string();
        runtime.start(&place, "counter");
        counts_past(&bundle, 3);
        let pre =
            ["checkpoint", "--pre-dump", "--image-path", &before, "--work-path", &place.work, "counter"];
        runtime.succeed(&pre);
        assert_eq!(runtime.runtime.state("counter").unwrap()["status"], "running");
        let dump = [&["checkpoint", "--parent-path", "../before"][..], &place.words(), &["counter"]].concat();
        runtime.succeed(&dump);
        let stopped_at = counted(&bundle).len();
        runtime
            .succeed(&[&["restore", "-d", "-b", &place.bundle][..], &place.words(), &["counter"]].concat());
        counts_past(&bundle, stopped_at);
        assert_in_sequence(&bundle);
        runtime.succeed(&["delete", "--force", "counter"]);
    });
}

/// Whether a page that this process has just written to is marked.
fn tracks_memory() -> bool {
    use std::os::unix::fs::FileExt;
    let page = vec![1u8; 8192];
    let size = rustix::param::page_size() as u64;
    let mut entry = [0; 8];
    let number = page.as_ptr() as u64 / size;
    let read =
        std::fs::File::open("/proc/self/pagemap").and_then(|map| map.read_exact_at(&mut entry, number * 8));
    read.is_ok() && u64::from_ne_bytes(entry) >> 55 & 1 == 1
}

/// Standard streams that are pipes: whoever restores gives others, and hears what is said from there on.
#[test]
fn a_restore_in_the_foreground_hears_the_container_and_ends_with_its_status() {
    on_every_runtime(|runtime, bundles| {
        let script = "i=0; while [ ! -e /stop ]; do echo line $i; i=$((i+1)); echo $i >> /count; usleep 50000; done; exit 7";
        let bundle = Bundle::make(&bundles.join("talker"), &["sh", "-c", script], |_| {}).unwrap();
        let place = place(&bundle);
        let mut run = runtime.runtime.command(&["run", "--bundle", &place.bundle, "talker"]);
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        counts_past(&bundle, 3);
        runtime.succeed(&[&["checkpoint"][..], &place.words(), &["talker"]].concat());
        run.wait().unwrap();
        drop(run);
        let mut restore = runtime
            .runtime
            .command(&[&["restore", "--bundle", &place.bundle][..], &place.words(), &["talker"]].concat());
        let restore = restore.env("PATH", &runtime.path).stdout(Stdio::piped()).stderr(Stdio::piped());
        let restore = restore.spawn().unwrap();
        let count = counted(&bundle).len();
        counts_past(&bundle, count + 2);
        std::fs::write(bundle.rootfs().join("stop"), "").unwrap();
        let output = restore.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.starts_with("line ") && !said.contains("line 0\n"), "{output:?}");
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_ne!(runtime.call(&["state", "talker"]).status, Some(0));
    });
}

#[test]
fn without_criu_both_commands_say_what_is_missing_and_touch_nothing() {
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    let runtime = Runtime::ours(&world.state());
    let bundle = counter(&world.files());
    let place = place(&bundle);
    runtime.succeed(&["run", "--detach", "--bundle", &place.bundle, "counter"]).unwrap();
    for arguments in [
        [&["checkpoint"][..], &place.words(), &["counter"]].concat(),
        [&["restore", "-d", "--bundle", &place.bundle][..], &place.words(), &["other"]].concat(),
    ] {
        let outcome = outcome(runtime.command(&arguments).env("PATH", "/nowhere")).unwrap();
        assert_eq!(outcome.status, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains("criu is not installed: "), "{outcome:?}");
    }
    assert!(!Path::new(&place.images).exists());
    assert_eq!(runtime.state("counter").unwrap()["status"], "running");
    runtime.succeed(&["delete", "--force", "counter"]).unwrap();
}

#[test]
fn podman_checkpoints_a_container_and_restores_it() {
    let Some(folder) = criu::folder().filter(|_| Ground::is_there(&["podman", "conmon"])) else { return };
    let ground = Ground::enter().unwrap();
    ground.archive().unwrap();
    let watch = ground.watch();
    {
        let podman = Podman::start(&ground, &Called::ours()).unwrap().with_path(&criu::search_path(&folder));
        let options = Podman::options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let take = |arguments: &[&str]| step(arguments).take(&podman).unwrap();
        let count = || {
            let said = podman.call(&["exec", "counter", "cat", "/count"]).unwrap();
            said.stdout.lines().map(|line| line.parse::<usize>().unwrap()).collect::<Vec<_>>()
        };
        take(&[&["run", "-d", "--name", "counter"][..], &options, &["busybox", "sh", "-c", COUNT]].concat());
        step(&["exec", "counter", "grep", "-x", "5", "/count"]).eventually().take(&podman).unwrap();
        take(&["container", "checkpoint", "--keep", "counter"]);
        step(&["ps", "--all"]).says("Exited").take(&podman).unwrap();
        take(&["container", "restore", "--keep", "counter"]);
        let numbers = count();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
        let further = numbers.len().to_string();
        step(&["exec", "counter", "grep", "-x", &further, "/count"]).eventually().take(&podman).unwrap();
        take(&["rm", "--force", "--time", "0", "counter"]);
    }
    ground.sweep();
    watch.end();
}
