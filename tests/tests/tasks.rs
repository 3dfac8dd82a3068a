//! `cofferdam` as an operator uses it: images that other programs made, pulled from Debian's docker-registry and run.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_tests::census::Watch;
use cofferdam_tests::images::Images;
use cofferdam_tests::killed::{Moments, kill_after};
use cofferdam_tests::oci::{Outcome, outcome};
use cofferdam_tests::registry::Registry;
use cofferdam_tests::world::{World, succeed};
use cofferdam_tests::{needs, pace};

/// A world in which a registry serves the fixture images.
struct Bed {
    // Dropped in this order: the world's end ends what still runs.
    registry: Registry,
    world: World,
}

impl Bed {
    fn make() -> Option<Bed> {
        if !needs::root() || !needs::programs(&["ip", "docker-registry"]) || !Images::are_available() {
            return None;
        }
        let images = Images::get().unwrap();
        let world = World::enter().unwrap();
        Some(Bed { registry: images.serve().unwrap(), world })
    }

    /// A bed whose folders are as they are after a first task, so that a census sees only what stays behind.
    fn warm() -> Option<Bed> {
        let bed = Bed::make()?;
        bed.succeed(&["run", "--rm", "--quiet", "--init", &bed.image("busybox"), "true"]);
        Some(bed)
    }

    /// A census from which the leftovers of ended pulls, which the next command removes, are gone.
    fn watch(&self) -> Watch {
        self.succeed(&["images"]);
        self.world.watch()
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.address())
    }

    fn call(&self, arguments: &[&str]) -> Outcome {
        outcome(&mut self.world.cofferdam(arguments)).unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let outcome = self.call(arguments);
        assert_eq!(outcome.status, Some(0), "{arguments:?}: {outcome:?}");
        outcome.stdout
    }
}

/// Tries until it succeeds: a server in a task says by nothing but its answers that it is ready.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + pace::limit(Duration::from_secs(30));
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < deadline, "{what} does not come about");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn images_of_other_programs_are_pulled_and_run() {
    let Some(bed) = Bed::make() else { return };
    for (image, command, expected) in [
        ("busybox:latest", &["echo", "hello"][..], "hello\n"),
        ("busybox:docker", &["sh", "-c", "echo $0", "x"], "x\n"),
        ("busybox:zstd", &["cat", "/etc/group"], "root:x:0:\nnogroup:x:65534:\n"),
        ("debian:latest", &["sh", "-c", ". /etc/os-release; echo $ID"], "debian\n"),
        ("debian:latest", &["dpkg", "--audit"], ""),
        ("nginx:latest", &["sh", "-c", "nginx -v 2>&1 | cut -d/ -f1"], "nginx version: nginx\n"),
    ] {
        let image = bed.image(image);
        let mut arguments = vec!["run", "--rm", "--quiet", &image];
        arguments.extend(command);
        assert_eq!(bed.succeed(&arguments), expected, "{image}");
    }
    let images = bed.succeed(&["images"]);
    for name in ["busybox", "debian", "nginx"] {
        assert!(images.contains(name), "{images}");
    }
}

#[test]
fn curl_reaches_nginx_through_a_published_port() {
    if !needs::programs(&["curl"]) {
        return;
    }
    let Some(bed) = Bed::warm() else { return };
    bed.succeed(&["pull", "--quiet", &bed.image("nginx")]);
    let watch = bed.watch();
    bed.succeed(&["run", "-d", "--name", "web", "-p", "8080:80", &bed.image("nginx")]);
    let page = eventually("an answer on port 8080", || {
        succeed(Command::new("curl").args([
            "--silent",
            "--fail",
            "--max-time",
            "5",
            "http://127.0.0.1:8080/",
        ]))
        .ok()
    });
    assert!(page.contains("nginx"), "{page}");
    assert!(bed.succeed(&["ps"]).contains("web"));
    bed.succeed(&["stop", "web"]);
    bed.succeed(&["rm", "web"]);
    watch.end();
}

#[test]
fn two_tasks_reach_each_other_by_address() {
    let Some(bed) = Bed::warm() else { return };
    let watch = bed.watch();
    let busybox = bed.image("busybox");
    let serve = "mkdir /tmp/www; echo from the other task > /tmp/www/file; httpd -f -p 80 -h /tmp/www";
    bed.succeed(&["run", "-d", "--name", "server", &busybox, "sh", "-c", serve]);
    let addresses = bed.succeed(&["exec", "server", "ip", "-4", "-o", "addr", "show", "dev", "eth0"]);
    let address = addresses.split_whitespace().find_map(|word| word.split_once('/')).unwrap().0.to_owned();
    let url = format!("http://{address}/file");
    let answer = eventually("an answer of the other task", || {
        let outcome = bed.call(&["run", "--rm", &busybox, "wget", "-q", "-O", "-", &url]);
        (outcome.status == Some(0)).then_some(outcome.stdout)
    });
    assert_eq!(answer, "from the other task\n");
    bed.succeed(&["rm", "--force", "server"]);
    watch.end();
}

#[test]
fn the_habits_of_docker_run_hold() {
    let Some(bed) = Bed::warm() else { return };
    let watch = bed.watch();
    let busybox = bed.image("busybox");
    let cases: &[(&[&str], &[&str], i32, &str)] = &[
        (&[], &["sh", "-c", "exit 42"], 42, ""),
        (&[], &["sh", "-c", "sh -c 'kill -KILL $$'; exit $?"], 137, ""),
        (&["-e", "WORD=two words"], &["sh", "-c", "echo $WORD"], 0, "two words\n"),
        (&["-w", "/tmp"], &["pwd"], 0, "/tmp\n"),
        (&["-u", "12:34"], &["sh", "-c", "id -u; id -g"], 0, "12\n34\n"),
        (&["--hostname", "here"], &["hostname"], 0, "here\n"),
        (&["--entrypoint", "echo"], &["from", "entry"], 0, "from entry\n"),
        (&["--read-only"], &["sh", "-c", "touch /x 2>/dev/null || echo refused"], 0, "refused\n"),
        (&["--read-only", "--tmpfs", "/run"], &["sh", "-c", "touch /run/x && echo written"], 0, "written\n"),
        (&["--network", "none"], &["sh", "-c", "ls /sys/class/net | grep -c eth"], 1, "0\n"),
        (
            &["--cap-drop", "ALL"],
            &["sh", "-c", "grep CapEff /proc/self/status | cut -f2"],
            0,
            "0000000000000000\n",
        ),
        (&["--ulimit", "nofile=77:88"], &["sh", "-c", "ulimit -n"], 0, "77\n"),
        (&["--init"], &["sh", "-c", "test $$ -ne 1 && echo init"], 0, "init\n"),
    ];
    for (options, command, status, output) in cases {
        let arguments: Vec<&str> = ["run", "--rm"]
            .iter()
            .chain(*options)
            .chain([&busybox.as_str()])
            .chain(*command)
            .copied()
            .collect();
        let outcome = bed.call(&arguments);
        assert_eq!(
            (outcome.status, outcome.stdout.as_str()),
            (Some(*status), *output),
            "{arguments:?}: {outcome:?}"
        );
    }
    watch.end();
}

#[test]
fn a_detached_task_outlives_its_command_and_tells_its_end() {
    let Some(bed) = Bed::warm() else { return };
    let watch = bed.watch();
    let script = "echo begun; trap 'echo asked; exit 3' TERM; while :; do sleep 0.1; done";
    bed.succeed(&["run", "-d", "--name", "worker", &bed.image("busybox"), "sh", "-c", script]);
    eventually("the first line", || bed.succeed(&["logs", "worker"]).contains("begun").then_some(()));
    bed.succeed(&["stop", "worker"]);
    assert_eq!(bed.succeed(&["logs", "worker"]), "begun\nasked\n");
    assert_eq!(bed.succeed(&["wait", "worker"]).trim(), "3");
    bed.succeed(&["rm", "worker"]);
    assert_ne!(bed.call(&["inspect", "worker"]).status, Some(0));
    watch.end();
}

#[test]
fn a_task_over_its_memory_is_reported_as_such() {
    let Some(bed) = Bed::warm() else { return };
    let watch = bed.watch();
    // The shell's variable grows without end; tail would do, but busybox's does not hold what it reads.
    let script = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done";
    let busybox = bed.image("busybox");
    let outcome = bed.call(&["run", "--name", "greedy", "--memory", "16m", &busybox, "sh", "-c", script]);
    assert_eq!(outcome.status, Some(137), "{outcome:?}");
    let inspected = bed.succeed(&["inspect", "greedy"]);
    assert!(inspected.contains("\"memory-limit\""), "{inspected}");
    bed.succeed(&["rm", "greedy"]);
    watch.end();
}

#[test]
fn a_host_command_is_isolated_without_an_image() {
    let Some(bed) = Bed::warm() else { return };
    let watch = bed.watch();
    let said = bed.succeed(&[
        "run",
        "--rm",
        "--host-rootfs",
        "sh",
        "-c",
        "echo $$; cat /etc/hostname > /dev/null; echo seen",
    ]);
    assert!(said.ends_with("seen\n"), "{said}");
    watch.end();
}

#[test]
fn the_embedded_image_runs_without_any_registry() {
    if !needs::root() || !needs::programs(&["ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    let outcome = outcome(&mut world.cofferdam(&["run", "--rm", "demo"])).unwrap();
    assert_eq!(outcome.status, Some(0), "{outcome:?}");
    assert!(outcome.stdout.to_lowercase().contains("seccomp"), "{outcome:?}");
}

/// Bad input has an error of its own, which names what is wrong, and leaves nothing behind.
#[test]
fn bad_input_is_refused_by_name_and_leaves_nothing() {
    let Some(bed) = Bed::warm() else { return };
    let busybox = bed.image("busybox");
    bed.succeed(&["run", "-d", "--name", "taken", "-p", "8081:80", &busybox, "sleep", "1000"]);
    let watch = bed.watch();
    let (no_image, no_tag) = (bed.image("nothing"), bed.image("busybox:nothing"));
    let no_digest = format!("{busybox}@sha256:{}", "0".repeat(64));
    let run = |words: &[&str]| -> Vec<String> {
        ["run", "--rm"].iter().chain(words).map(|word| (*word).to_owned()).collect()
    };
    let cases: Vec<(Vec<String>, &[&str])> = vec![
        (run(&["127.0.0.1:1/busybox", "true"]), &["127.0.0.1:1"]),
        (run(&[&no_image, "true"]), &["nothing"]),
        (run(&[&no_tag, "true"]), &["nothing"]),
        (run(&[&no_digest, "true"]), &["sha256:000"]),
        (run(&["--pull", "always", "--platform", "linux/s390x", &busybox, "true"]), &["s390x"]),
        (run(&[&busybox, "absent-command"]), &["absent-command"]),
        (run(&[&busybox, "/etc/passwd"]), &["/etc/passwd"]),
        (run(&["--memory", "lots", &busybox, "true"]), &["lots"]),
        (run(&["--cpus", "1000000", &busybox, "true"]), &["1000000"]),
        (run(&["--name", "taken", &busybox, "true"]), &["taken"]),
        (run(&["-p", "8081:80", &busybox, "true"]), &["8081"]),
        (run(&["--network", "nowhere", &busybox, "true"]), &["nowhere"]),
        (run(&["--cap-add", "CAP_NOTHING", &busybox, "true"]), &["NOTHING"]),
        (run(&["-u", "nobody-at-all", &busybox, "true"]), &["nobody-at-all"]),
    ];
    let mut wrong = Vec::new();
    for (arguments, words) in &cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let outcome = bed.call(&arguments);
        let names_it = words.iter().all(|word| outcome.stderr.contains(word));
        if outcome.status == Some(0) || !names_it {
            wrong.push(format!("{arguments:?}: {outcome:?}"));
        }
        wrong.extend(watch.settle().iter().map(|difference| format!("{arguments:?}: {difference}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Killed at any moment, a run leaves nothing that the next command does not clean up, and a task that runs goes on.
#[test]
fn a_run_killed_at_any_moment_leaves_nothing_that_stays() {
    let Some(bed) = Bed::warm() else { return };
    let busybox = bed.image("busybox");
    bed.succeed(&["run", "-d", "--name", "bystander", &busybox, "sh", "-c", "sleep 1000; exit 5"]);
    let run = ["run", "--rm", &busybox, "true"];
    let moments = Moments::measure(pace::rounds(100, 20), || bed.succeed(&run));
    let watch = bed.watch();
    for (_, moment) in moments.iter() {
        let status = kill_after(&mut bed.world.cofferdam(&run), moment).unwrap();
        assert!(status.signal() == Some(9) || status.success(), "{status}");
    }
    // What the killed ones left is for the next to clean up: their tasks end, and were to be removed.
    eventually("a clean host", || {
        bed.succeed(&["ps", "--all"]);
        watch.settle().is_empty().then_some(())
    });
    assert!(bed.succeed(&["ps"]).contains("bystander"));
    // The shell may end, and with it whatever runs beside it, before this has.
    let killed = bed.call(&["exec", "bystander", "killall", "sleep"]);
    assert!(matches!(killed.status, Some(0 | 137)), "{killed:?}");
    assert_eq!(bed.succeed(&["wait", "bystander"]).trim(), "5");
}
