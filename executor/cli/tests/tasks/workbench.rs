//! `cofferdam cni`: the verbs of the specification for whoever writes a network or a plugin.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cofferdam_tests::pace;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::host::{Answer, Scene, cofferdam, world};

const NETNS: &str = "/proc/self/ns/net";

/// A folder with a network of two plugins that write down what they are sent.
struct Bench {
    folder: PathBuf,
}

impl Bench {
    fn new(world: &Scene) -> Bench {
        let bench = Bench { folder: world.files().join("workbench") };
        std::fs::create_dir_all(bench.folder.join("bin")).unwrap();
        std::fs::create_dir_all(bench.folder.join("conf")).unwrap();
        let network = r#"{"name":"net","cniVersions":["1.0.0","1.1.0"],"plugins":[
            {"type":"a","big":12345678901234567890,"capabilities":{"mac":true,"vendor":true}},{"type":"b","z":1.0}]}"#;
        std::fs::write(bench.folder.join("conf/net.conflist"), network).unwrap();
        ["a", "b"].iter().for_each(|name| bench.plugin(name, "exit 0"));
        bench
    }

    fn plugin(&self, name: &str, rest: &str) {
        let d = self.folder.display();
        let text = format!(
            r#"#!/bin/sh
cat > {d}/stdin.{name}.$CNI_COMMAND; env > {d}/env.{name}.$CNI_COMMAND
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}}';;
ADD) echo '{{"cniVersion":"1.1.0","by":"{name}"}}';;
esac
{rest}
"#
        );
        let path = self.folder.join("bin").join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, world: &Scene, arguments: &[&str]) -> Command {
        let mut command = cofferdam(world, &[&["cni"], arguments].concat());
        command.env("NETCONFPATH", self.folder.join("conf")).env("CNI_PATH", self.folder.join("bin"));
        command
    }

    fn call(&self, world: &Scene, arguments: &[&str]) -> Answer {
        self.command(world, arguments).output().unwrap().into()
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }
}

#[test]
fn a6_the_verbs_take_the_environment_of_cnitool_and_end_as_it_does() {
    let Some(world) = world() else { return };
    let bench = Bench::new(&world);
    let watch = world.watch();
    let mut add = bench.command(&world, &["add", "net", NETNS]);
    add.env("CNI_IFNAME", "net7").env("CNI_ARGS", "IgnoreUnknown=1;K=v");
    add.env("CAP_ARGS", r#"{"mac":"02:00:00:00:00:01","vendor":{"x":[1]}}"#);
    let added: Answer = add.output().unwrap().into();
    assert_eq!(added.code, Some(0), "{added:?}");
    let result: Value = serde_json::from_str(&added.stdout).unwrap();
    assert_eq!(result["cniVersion"], "1.1.0");
    let environment = bench.read("env.a.ADD");
    // The name of the container is the one that cnitool makes of this path.
    let id = "CNI_CONTAINERID=cnitool-cd2667f4483f699b01b0";
    for line in [id, "CNI_IFNAME=net7", "CNI_ARGS=IgnoreUnknown=1;K=v", &format!("CNI_NETNS={NETNS}")] {
        assert!(environment.lines().any(|found| found == line), "{line} in {environment}");
    }
    let sent = bench.read("stdin.a.ADD");
    assert!(sent.contains(r#""runtimeConfig":{"mac":"02:00:00:00:00:01","vendor":{"x":[1]}}"#), "{sent}");

    let named = |verb: &str| {
        let output = bench.command(&world, &[verb, "net", NETNS]).env("CNI_IFNAME", "net7").output();
        Answer::from(output.unwrap())
    };
    assert_eq!(named("check").code, Some(0));
    let again = named("add");
    assert!(again.code == Some(1) && again.stderr.contains("already attached"), "{again:?}");
    assert_eq!(bench.call(&world, &["check", "net", NETNS]).code, Some(1), "of another interface");
    assert_eq!(bench.call(&world, &["status", "net"]).code, Some(0));
    let version = bench.call(&world, &["version", "net"]);
    assert!(version.code == Some(0) && version.stdout.contains("1.0.0 1.1.0"), "{version:?}");
    bench.plugin("b", r#"[ $CNI_COMMAND = DEL ] && { echo '{"code":5,"msg":"stuck"}'; exit 1; }; exit 0"#);
    let stuck = named("del");
    assert!(stuck.code == Some(1) && stuck.stderr.contains("plugin b: DEL for network net"), "{stuck:?}");
    bench.plugin("b", "exit 0");
    assert_eq!(named("del").code, Some(0));
    assert_eq!(named("del").code, Some(0));
    for (words, problem) in [
        (&["add", "nowhere", NETNS][..], "there is no network \"nowhere\""),
        (&["add", "net", "/nonexistent"], "/nonexistent"),
        (&["add", "--cap-args", "{", "net", NETNS], "capability arguments"),
        (&["add", "--if-name", "eth%d", "net", NETNS], "eth%d"),
        (&["add", "--container-id", "../x", "net", NETNS], "../x"),
        (&["add", "--cap-args", r#"{"ips":["10.0.0.1"]}"#, "net", NETNS], "network net: ips"),
    ] {
        let refused = bench.call(&world, words);
        assert_eq!(refused.code, Some(1), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(problem), "{words:?}: {refused:?}");
    }
    settle_but_for_the_state(&watch);
}

#[test]
fn v11_gc_without_the_valid_attachments_is_refused() {
    let Some(world) = world() else { return };
    let bench = Bench::new(&world);
    for id in ["one", "two"] {
        assert_eq!(bench.call(&world, &["add", "--container-id", id, "net", NETNS]).code, Some(0));
    }
    let refused = bench.call(&world, &["gc", "net"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("--all"), "{refused:?}");
    assert!(bench.read("stdin.a.GC").is_empty() && bench.read("stdin.a.DEL").is_empty());
    assert_eq!(bench.call(&world, &["gc", "--valid", "one/eth0", "net"]).code, Some(0));
    assert!(bench.read("stdin.a.GC").contains(r#"[{"containerID":"one","ifname":"eth0"}]"#));
    assert_eq!(bench.call(&world, &["check", "--container-id", "one", "net", NETNS]).code, Some(0));
    assert_eq!(bench.call(&world, &["check", "--container-id", "two", "net", NETNS]).code, Some(1));
    assert_eq!(bench.call(&world, &["gc", "--all", "net"]).code, Some(0));
    assert_eq!(bench.call(&world, &["check", "--container-id", "one", "net", NETNS]).code, Some(1));
}

/// The processes that have this word among their arguments.
fn processes_with(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split('\0').any(|argument| argument == word)).count()
}

fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + pace::limit(std::time::Duration::from_secs(60));
    while !there() {
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a5_a_runner_that_is_killed_leaves_no_process_of_its_plugins_and_no_mount() {
    let Some(world) = world() else { return };
    let bench = Bench::new(&world);
    let watch = world.watch();
    let far = format!("7{:07}", std::process::id());
    let d = bench.folder.display();
    let rest = format!(
        "[ $CNI_COMMAND = VERSION ] && exit\nsetsid sleep {far} </dev/null >/dev/null 2>&1 &\nsleep {far}"
    );
    bench.plugin("a", &rest);
    std::fs::write(bench.folder.join("a.json"), r#"{"type":"a"}"#).unwrap();
    let (plugin, config) = (format!("{d}/bin/a"), format!("{d}/a.json"));
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut command = bench.command(&world, &["test", &plugin, "--config", &config, "--only", "4."]);
        let mut runner = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("calls", || processes_with(&far) > 2);
        kill_process(Pid::from_child(&runner), signal).unwrap();
        assert!(!runner.wait().unwrap().success());
        wait_until("the end of what the plugin started", || processes_with(&far) == 0);
    }
    settle_but_for_the_state(&watch);
}

#[test]
fn a7_explain_prints_the_bytes_that_add_then_sends() {
    let Some(world) = world() else { return };
    let bench = Bench::new(&world);
    let asked = ["--cap-args", r#"{"mac":"02:00:00:00:00:01"}"#];
    let result = r#"{"cniVersion":"1.1.0","by":"a"}"#;
    let words = [&["explain", "--result", result], &asked[..], &["net"]].concat();
    let explained = bench.call(&world, &words);
    assert_eq!(explained.code, Some(0), "{explained:?}");
    assert!(bench.read("stdin.a.ADD").is_empty());
    assert_eq!(bench.call(&world, &[&["add"], &asked[..], &["net", NETNS]].concat()).code, Some(0));
    let inputs: Vec<_> = explained.stdout.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(inputs, [bench.read("stdin.a.ADD"), bench.read("stdin.b.ADD")]);
    assert!(
        explained.stdout.starts_with("# network net: version 1.1.0; the configuration allows 1.1.0, 1.0.0\n")
    );
    assert_eq!(bench.call(&world, &["del", "net", NETNS]).code, Some(0));
}

#[test]
fn an_attachment_is_run_from_its_beginning_to_its_end() {
    let Some(world) = world() else { return };
    let bench = Bench::new(&world);
    // The first time makes folders that stay.
    assert_eq!(bench.call(&world, &["run", "net"]).code, Some(0));
    let watch = world.watch();
    let ran = bench.call(&world, &["run", "net", "--", "sh", "-c", "readlink /proc/self/ns/net >&2; exit 9"]);
    assert_eq!(ran.code, Some(9), "{ran:?}");
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert!(ran.stderr.contains("net:[") && !ran.stderr.contains(&*own.to_string_lossy()), "{ran:?}");
    for part in ["ADD a", "ADD b", "CHECK a", "DEL b", "DEL a", "12345678901234567890"] {
        assert!(ran.stderr.contains(part), "{part} in {ran:?}");
    }
    bench.plugin("b", "[ $CNI_COMMAND = CHECK ] && exit 3; exit 0");
    let failed = bench.call(&world, &["run", "net", "--", "true"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    settle_but_for_the_state(&watch);
}

/// Locks of networks and answers about versions stay with the state directory.
fn settle_but_for_the_state(watch: &cofferdam_tests::census::Watch) {
    let left: Vec<_> = watch.settle().iter().map(ToString::to_string).collect();
    let kept = |line: &String| ["/state/cni", "/events"].iter().any(|part| line.contains(part));
    let left: Vec<_> = left.iter().filter(|line| line.starts_with('+') && !kept(line)).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
}
