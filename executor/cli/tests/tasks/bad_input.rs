//! What cannot be done is refused with a sentence of its own, and leaves nothing behind.

use std::net::TcpListener;

use cofferdam_tests::world::World;

use crate::host::{call, settle, settled_world, succeed};

/// A command line, the exit code it must give, and what the message must say.
struct Case {
    words: Vec<String>,
    code: i32,
    says: &'static [&'static str],
}

fn case(words: &str, code: i32, says: &'static [&'static str]) -> Case {
    Case { words: words.split(' ').map(str::to_owned).collect(), code, says }
}

fn cases() -> Vec<Case> {
    vec![
        case("run no-such-host.invalid/image", 125, &["no-such-host.invalid"]),
        case("run 127.0.0.1:9/image", 125, &["127.0.0.1:9"]),
        case("run --pull never nosuch", 125, &["nosuch"]),
        case("run UPPER/Case", 125, &["UPPER/Case"]),
        case("run x@sha256:short", 125, &["x@sha256:short"]),
        case("run demo nosuch", 127, &["nosuch", "not found"]),
        case("run demo /etc/passwd", 126, &["/etc/passwd", "permission denied"]),
        case("run --memory 5x demo", 125, &["invalid size \"5x\"", "unit"]),
        case("run --memory 1k demo", 125, &["memory limit", "the least is"]),
        case("run --memory 900t demo", 125, &["memory limit", "the host has only"]),
        case("run --cpus 9999 demo", 125, &["number of CPUs", "the host has only"]),
        case("run --cpuset-cpus 4000 demo", 125, &["list of CPUs", "no CPU 4000"]),
        case("run --pids-limit 0 demo", 125, &["limit of processes"]),
        case("run --name taken demo true", 125, &["the name \"taken\" is taken"]),
        case("run -p 18099:80 demo true", 125, &["18099", "in use"]),
        case("run -p 0:80 demo", 125, &["invalid port mapping", "1 to 65535"]),
        case("run --network nowhere demo", 125, &["there is no network \"nowhere\"", "bridge"]),
        case("run -v relative:../x demo", 125, &["invalid volume"]),
        case("run -v /no/such/place:/x demo", 125, &["/no/such/place", "no such file"]),
        case("run -v /tmp:/proc/sys demo", 125, &["invalid volume", "kernel"]),
        case("run -u nobody-here demo", 125, &["invalid user \"nobody-here\"", "/etc/passwd"]),
        case("run -u 4294967295 demo", 125, &["4294967295"]),
        case("run -w relative demo", 125, &["working directory", "absolute"]),
        case("run --cap-add NOPE demo", 125, &["capability", "NOPE"]),
        case("run --security-opt seccomp=/no/such/file demo", 125, &["/no/such/file"]),
        case("run --security-opt nonsense demo", 125, &["security option", "nonsense"]),
        case("run --ulimit nofile=2:1 demo", 125, &["ulimit", "soft limit"]),
        case("run --restart sometimes demo", 125, &["restart policy", "on-failure"]),
        case("run --stop-signal NOPE demo", 125, &["NOPE", "signal"]),
        case("run --name ../x demo", 125, &["../x", "task name"]),
        case("run --platform linux/m68k --pull never demo2", 125, &["demo2"]),
        case("run --no-such-option demo", 125, &["--no-such-option"]),
        case("--layers copy run --uidmap 1:100000:9 demo", 125, &["0 is not mapped"]),
        case("run --uidmap 0:1:2 --gidmap 0:4294967295:2 demo", 125, &["id map", "the highest id"]),
        case("exec nosuch true", 125, &["no task \"nosuch\""]),
        case("logs nosuch", 125, &["no task \"nosuch\""]),
        case("rmi nosuch", 125, &["nosuch"]),
        case("plan --bundle /no/such/bundle", 125, &["/no/such/bundle"]),
    ]
}

#[test]
fn every_refusal_says_what_is_wrong_and_leaves_nothing_behind() {
    let Some(world) = settled_world() else { return };
    let _port = TcpListener::bind("0.0.0.0:18099").unwrap();
    succeed(&world, &["run", "-d", "--name", "taken", "--network", "none", "demo", "sleep", "1000"]);
    let before = succeed(&world, &["ps", "-a", "-q"]);
    let watch = world.watch();
    let mut failures = Vec::new();
    for case in cases() {
        check(&world, &case, &mut failures);
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(succeed(&world, &["ps", "-a", "-q"]), before);
    settle(&watch);
    succeed(&world, &["rm", "-f", "taken"]);
}

fn check(world: &World, case: &Case, failures: &mut Vec<String>) {
    let words: Vec<&str> = case.words.iter().map(String::as_str).collect();
    let answer = call(world, &words);
    let says_all = case.says.iter().all(|part| answer.stderr.contains(part));
    if answer.code != Some(case.code) || !says_all {
        failures.push(format!(
            "{}: wanted {} and {:?}, got {answer:?}",
            words.join(" "),
            case.code,
            case.says
        ));
    }
}

#[test]
fn a_file_for_the_id_of_a_task_that_never_was_does_not_stay() {
    let Some(world) = settled_world() else { return };
    let file = world.files().join("id");
    for words in ["--pull never nosuch", "--network nowhere demo", "demo nosuch"] {
        let words: Vec<&str> = words.split(' ').collect();
        let answer = call(&world, &[&["run", "--cidfile", file.to_str().unwrap()], &words[..]].concat());
        assert!(answer.code >= Some(125) && !file.exists(), "{words:?}: {answer:?}");
    }
}

/// config.json that is none, or that says something impossible, is refused with its place.
#[test]
fn a_bundle_that_cannot_be_planned_says_where_it_is_wrong() {
    let Some(world) = settled_world() else { return };
    let bundle = world.files().join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    for (content, says) in
        [("{", "config.json"), (r#"{"ociVersion": "1.0.2", "process": {"args": 5}}"#, "process")]
    {
        std::fs::write(bundle.join("config.json"), content).unwrap();
        let answer = call(&world, &["plan", "--bundle", bundle.to_str().unwrap()]);
        assert_eq!(answer.code, Some(125), "{answer:?}");
        assert!(answer.stderr.contains(says), "{answer:?}");
    }
}

#[test]
fn without_privileges_it_says_that_it_needs_them() {
    use std::os::unix::process::CommandExt;
    let Some(world) = settled_world() else { return };
    // The program itself must be reachable for the other user.
    let program = std::env::temp_dir().join(format!("cofferdam-copy-{}", std::process::id()));
    std::fs::copy(crate::host::program(), &program).unwrap();
    let output = std::process::Command::new(&program)
        .args(["--root", "/tmp/nobody-root", "--state", "/tmp/nobody-state", "run", "demo"])
        .uid(65_534)
        .gid(65_534)
        .output();
    std::fs::remove_file(&program).unwrap();
    let answer = crate::host::Answer::from(output.unwrap());
    assert_eq!(answer.code, Some(125), "{answer:?}");
    assert!(answer.stderr.contains("needs to run as root"), "{answer:?}");
    drop(world);
}
