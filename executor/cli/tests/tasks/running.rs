//! What tasks do, seen through `run` and its kin.

use std::io::{Read, Write};
use std::process::Stdio;

use cofferdam_tests::world::World;
use serde_json::Value;

use crate::host::{call, cofferdam, run, settle, settled_world, succeed};

fn events(world: &World) -> Vec<Value> {
    let text = succeed(world, &["events", "--no-stream", "--format", "json"]);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The statuses of the last task, in order.
fn last_states(world: &World) -> Vec<String> {
    let events = events(world);
    let task = events.last().unwrap()["task"].clone();
    let own = events.iter().filter(|event| event["task"] == task);
    own.map(|event| event["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_exit_code_of_run_is_the_tasks() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    for (command, code) in [
        (&["exit", "0"][..], 0),
        (&["exit", "7"], 7),
        (&["nosuch"], 127),
        (&["/etc/passwd"], 126),
        (&["/tmp"], 126),
    ] {
        let answer = run(&world, &[], command);
        assert_eq!(answer.code, Some(code), "{command:?}: {answer:?}");
    }
    run(&world, &[], &["true"]);
    assert_eq!(last_states(&world), ["STAGING", "STARTING", "RUNNING", "FINISHED"]);
    run(&world, &[], &["false"]);
    assert_eq!(last_states(&world), ["STAGING", "STARTING", "RUNNING", "FAILED"]);
    settle(&watch);
}

#[test]
fn output_of_any_size_arrives_whole_and_input_reaches_the_task() {
    let Some(world) = settled_world() else { return };
    let bytes: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let mut child = cofferdam(&world, &["run", "--rm", "-i", "--network", "none", "demo", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut received = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(received == bytes, "{} bytes of {}", received.len(), bytes.len());
}

#[test]
fn a_detached_task_outlives_its_command_and_tells_its_end_later() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let id = succeed(&world, &["run", "-d", "--name", "later", "--network", "none", "demo", "exit", "3"]);
    assert_eq!(succeed(&world, &["wait", "later"]), "3");
    let found: Value = serde_json::from_str(&succeed(&world, &["inspect", &id])).unwrap();
    assert_eq!(found[0]["status"]["state"], "FAILED");
    assert_eq!(found[0]["status"]["exit"]["code"], 3);
    assert_eq!(succeed(&world, &["wait", &id[..12]]), "3");
    succeed(&world, &["rm", "later"]);
    settle(&watch);
}

#[test]
fn stop_sends_the_stop_signal_and_then_kills() {
    let Some(world) = settled_world() else { return };
    for (options, code) in [(&["--init"][..], 143), (&[], 137)] {
        let words = [&["run", "-d", "--name", "s", "--network", "none"], options, &["demo", "sleep", "1000"]]
            .concat();
        succeed(&world, &words);
        succeed(&world, &["stop", "-t", "1", "s"]);
        assert_eq!(call(&world, &["wait", "s"]).stdout.trim(), code.to_string(), "{options:?}");
        assert_eq!(last_states(&world).last().unwrap(), "KILLED");
        succeed(&world, &["rm", "s"]);
    }
}

#[test]
fn more_memory_than_the_limit_is_reported_as_such() {
    let Some(world) = settled_world() else { return };
    let answer = run(&world, &["-m", "16m"], &["hog", "64"]);
    assert_eq!(answer.code, Some(137), "{answer:?}");
    assert!(answer.stderr.contains("more memory than its limit of 16.0MiB"), "{answer:?}");
    let last = events(&world).pop().unwrap();
    assert_eq!(last["reason"], "memory-limit");
    assert_eq!(last["limitation"]["memory"]["limit_bytes"], 16 << 20);
}

#[test]
fn a_failing_task_is_started_again_as_often_as_asked() {
    let Some(world) = settled_world() else { return };
    let words = ["run", "--restart", "on-failure:2", "--name", "again", "--network", "none", "demo", "false"];
    assert_eq!(call(&world, &words).code, Some(1));
    assert_eq!(last_states(&world).iter().filter(|state| *state == "RUNNING").count(), 3);
    succeed(&world, &["rm", "again"]);
}

#[test]
fn exec_runs_beside_and_confined_as_the_task() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    succeed(&world, &["run", "-d", "--name", "x", "--network", "none", "-e", "A=1", "demo", "sleep", "1000"]);
    let own = succeed(&world, &["exec", "x", "id"]);
    assert!(own.contains("NoNewPrivs 1") && own.contains("Seccomp 2"), "{own}");
    let guest = succeed(&world, &["exec", "-u", "guest", "x", "id"]);
    assert!(
        guest.contains("Uid 1000 1000 1000 1000") && guest.contains("CapEff 0000000000000000"),
        "{guest}"
    );
    let env = succeed(&world, &["exec", "-e", "B=2", "x", "env"]);
    assert!(env.contains("A=1") && env.contains("B=2"), "{env}");
    assert_eq!(call(&world, &["exec", "x", "exit", "5"]).code, Some(5));
    assert_eq!(call(&world, &["exec", "x", "nosuch"]).code, Some(127));
    succeed(&world, &["rm", "-f", "x"]);
    settle(&watch);
}

#[test]
fn what_is_given_is_what_the_task_sees() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let shared = world.files().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("note"), "from the host").unwrap();
    let volume = format!("{}:/data:ro", shared.display());
    assert_eq!(run(&world, &["-v", &volume], &["cat", "/data/note"]).stdout, "from the host");
    assert_ne!(run(&world, &["-v", &volume], &["write", "/data/other", "1"]).code, Some(0));
    assert_ne!(run(&world, &["--read-only"], &["write", "/etc/other", "1"]).code, Some(0));
    assert!(run(&world, &["-u", "guest"], &["id"]).stdout.contains("Uid 1000"));
    assert!(run(&world, &["-w", "/tmp"], &["id"]).stdout.contains("Cwd /tmp"));
    assert!(run(&world, &["--hostname", "host-x"], &["cat", "/etc/hostname"]).stdout.contains("host-x"));
    assert!(run(&world, &["--entrypoint", "cat"], &["/etc/group"]).stdout.contains("guest:x:1000"));
    assert!(run(&world, &["--cap-drop", "ALL"], &["id"]).stdout.contains("CapBnd 0000000000000000"));
    std::fs::remove_dir_all(shared).unwrap();
    settle(&watch);
}

#[test]
fn a_terminal_is_one_inside() {
    let Some(world) = settled_world() else { return };
    let answer = run(&world, &["-t"], &["tty"]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(!run(&world, &[], &["tty"]).stdout.contains("/dev/pts"), "no terminal was asked for");
}

#[test]
fn logs_keep_what_was_written_and_follow_to_the_end() {
    let Some(world) = settled_world() else { return };
    succeed(&world, &["run", "--name", "l", "--network", "none", "demo", "args", "one", "two"]);
    let log = succeed(&world, &["logs", "l"]);
    assert!(log.contains("one") && log.contains("two"), "{log}");
    assert_eq!(succeed(&world, &["logs", "-f", "l"]), log);
    assert_eq!(succeed(&world, &["logs", "--tail", "1", "l"]), log.lines().last().unwrap());
    assert_eq!(succeed(&world, &["logs", "--since", "2100-01-01T00:00:00Z", "l"]), "");
    succeed(&world, &["rm", "l"]);
}

#[test]
fn a_command_of_the_hosts_runs_without_an_image() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let answer =
        call(&world, &["run", "--rm", "--host-rootfs", "--memory", "64m", "/bin/sh", "-c", "exit 9"]);
    assert_eq!(answer.code, Some(9), "{answer:?}");
    settle(&watch);
}

#[test]
fn a_port_of_the_host_leads_to_a_task_and_two_tasks_reach_each_other() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    succeed(&world, &["run", "-d", "--name", "server", "-p", "18080:9000", "demo", "listen", "9000"]);
    let reached = std::net::TcpStream::connect("127.0.0.1:18080");
    assert!(reached.is_ok(), "{reached:?}");
    drop(reached);
    let hosts = succeed(&world, &["exec", "server", "cat", "/etc/hosts"]);
    let address = hosts.lines().last().unwrap().split_whitespace().next().unwrap();
    succeed(&world, &["run", "--rm", "demo", "connect", address, "9000"]);
    succeed(&world, &["rm", "-f", "server"]);
    settle(&watch);
}
