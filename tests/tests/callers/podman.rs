//! podman and buildah. What they run is recorded in the runtime's documentation of its callers: conmon calls create,
//! podman itself start, kill, delete --force, pause, resume, update and exec --process.

use cofferdam_tests::callers::podman::Podman;
use cofferdam_tests::callers::{Called, Caller, Ground, Step, step, take};
use cofferdam_tests::oci::outcome;

use crate::{On, POLITE, with_callers};

const PROGRAMS: &[&str] = &["podman", "conmon"];

fn on_podman(steps: impl Fn(&Ground, &Called, &Podman, &[&str])) {
    with_callers(PROGRAMS, On::Both, |ground, runtime| {
        let podman = Podman::start(ground, runtime).unwrap();
        let options = Podman::options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        steps(ground, runtime, &podman, &options);
    });
}

/// `podman run` or `create` with what every container here needs.
fn make<'a>(verb: &[&'a str], options: &[&'a str], command: &[&'a str]) -> Step<'a> {
    step(&[verb, options, &["busybox"], command].concat())
}

#[test]
fn podman_runs_and_execs_and_reports_how_it_ended() {
    on_podman(|_, runtime, podman, options| {
        let run = |command| make(&["run", "--rm"], options, command);
        let sized = "tty; sleep 1; stty size; id -u";
        let steps = [
            run(&["echo", "out"]).says("out\n"),
            run(&["sh", "-c", "exit 7"]).ends(7),
            run(&["absent"]).ends(127).says("executable file not found in"),
            run(&["/etc/passwd"]).ends(126).says("permission denied"),
            make(&["run", "-d", "--name", "polite"], options, &["sh", "-c", POLITE]),
            step(&["exec", "polite", "echo", "in"]).says("in\n"),
            step(&[
                "exec",
                "-e",
                "WORD=x",
                "-w",
                "/tmp",
                "-u",
                "5:6",
                "polite",
                "sh",
                "-c",
                "echo $WORD; pwd; id -u; id -g",
            ])
            .says("x\n/tmp\n5\n6\n"),
            step(&["exec", "polite", "sh", "-c", "exit 9"]).ends(9),
            step(&["exec", "polite", "sh", "-c", "kill -9 $$"]).ends(137),
            step(&["exec", "polite", "absent"]).ends(127).says("executable file not found in"),
            step(&["exec", "-d", "polite", "sleep", "50"]),
            step(&["exec", "-it", "polite", "sh", "-c", sized]).on_terminal().says("/dev/pts/").says("33 77"),
            make(&["run", "--rm", "-it"], options, &["sh", "-c", sized])
                .on_terminal()
                .says("/dev/pts/")
                .says("33 77"),
            step(&["top", "polite"]).says("sleep 50"),
            step(&["stats", "--no-stream", "polite"]).says("polite"),
            step(&["update", "--memory", "64m", "polite"]),
            step(&["pause", "polite"]),
            step(&["ps", "-a"]).says("Paused"),
            step(&["unpause", "polite"]),
            step(&["inspect", "--format", "{{.State.Status}}", "polite"]).says("running"),
            step(&["stop", "--time", "5", "polite"]),
            step(&["logs", "polite"]).says("bye\n"),
            step(&["ps", "-a"]).says("Exited (3)"),
            step(&["start", "polite"]),
            step(&["restart", "--time", "5", "polite"]),
            step(&["kill", "--signal", "KILL", "polite"]),
            step(&["wait", "polite"]).says("137"),
            step(&["rm", "polite"]),
        ];
        take(podman, runtime, &steps).unwrap();
    });
}

#[test]
fn podman_copies_checks_health_and_starts_what_it_initialised() {
    on_podman(|ground, runtime, podman, options| {
        let file = ground.world().files().join("copied");
        std::fs::write(&file, "a line\n").unwrap();
        let file = file.to_str().unwrap();
        let health = [
            "run",
            "-d",
            "--name",
            "sick",
            "--health-cmd",
            "test -f /tmp/ok",
            "--health-interval",
            "disable",
        ];
        let steps = [
            make(&["create", "--name", "made"], options, &["sleep", "100"]),
            step(&["init", "made"]),
            step(&["start", "made"]),
            step(&["cp", file, "made:/here"]),
            step(&["exec", "made", "cat", "/here"]).says("a line"),
            step(&["rm", "--force", "--time", "0", "made"]),
            make(&health, options, &["sleep", "100"]),
            step(&["healthcheck", "run", "sick"]).ends(1).says("unhealthy"),
            step(&["exec", "sick", "touch", "/tmp/ok"]),
            step(&["healthcheck", "run", "sick"]),
            step(&["rm", "--force", "--time", "0", "sick"]),
        ];
        take(podman, runtime, &steps).unwrap();
        std::fs::remove_file(file).unwrap();
    });
}

/// Flags of podman that end in different parts of the configuration, many in one run.
#[test]
fn what_podman_asks_for_is_so_inside() {
    on_podman(|_, runtime, podman, options| {
        let run = |flags: &[&'static str], script| {
            make(&[&["run", "--rm"][..], flags].concat(), options, &["sh", "-c", script])
        };
        let limits = ["--memory", "50m", "--pids-limit", "20", "--cpus", "0.5", "--oom-score-adj", "500"];
        let ulimits = ["--ulimit", "nofile=77:77", "--ulimit", "nproc=1000:1000"];
        let things = [
            "--hostname",
            "named",
            "--sysctl",
            "kernel.msgmax=4096",
            "--shm-size",
            "1m",
            "--device",
            "/dev/fuse",
        ];
        let shown = "hostname; cat /proc/sys/kernel/msgmax /proc/self/oom_score_adj; ls /dev/fuse; \
                     df /dev/shm | tail -n 1; ulimit -n";
        let user = ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--user", "1000:1000"];
        let confined = "id; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/cgroup";
        let hosts = ["--pid", "host", "--ipc", "host", "--uts", "host", "--cgroupns", "host"];
        let steps = [
            run(&[&limits[..], &ulimits, &things].concat(), shown)
                .says("named\n4096\n500\n/dev/fuse\n")
                .says(" 1024 ")
                .says("\n77\n"),
            run(&[&user[..], &["--group-add", "77", "--cgroupns", "private"]].concat(), confined)
                .says("groups=77,1000")
                .says("CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n")
                .says(":/\n"),
            run(&[&hosts[..], &["--security-opt", "seccomp=unconfined"]].concat(), confined)
                .says("Seccomp:\t0")
                .says("/libpod-"),
            run(&["--read-only", "--tmpfs", "/scratch"], "touch /scratch/file /tmp/file && touch /file")
                .ends(1)
                .says("/file: Read-only file system"),
            run(&["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"], "cat /proc/self/uid_map")
                .says("100000       1000"),
            run(&["--privileged"], "grep Seccomp: /proc/self/status").says("Seccomp:\t0").ours_alone(),
        ];
        take(podman, runtime, &steps).unwrap();
    });
}

#[test]
fn podman_runs_pods_whose_members_share_namespaces() {
    on_podman(|_, runtime, podman, options| {
        let pod =
            ["pod", "create", "--name", "pod", "--infra-image", "busybox", "--infra-command", "sleep 1000"];
        let pod = [&pod[..], options].concat();
        let member = |flags: &[&'static str], command: &[&'static str]| {
            step(&[&["run"][..], flags, &["--pod", "pod", "busybox"], command].concat())
        };
        let steps = [
            step(&pod),
            member(&["-d", "--name", "one"], &["sleep", "1000"]),
            member(&["--rm"], &["hostname"]).says("pod"),
            member(&["--rm", "--pid", "container:one"], &["ps"]).says("sleep 1000"),
            step(&["pod", "ps"]).says("Running"),
            step(&["pod", "pause", "pod"]),
            step(&["pod", "unpause", "pod"]),
            step(&["pod", "stats", "--no-stream", "pod"]).says("one"),
            step(&["pod", "stop", "--time", "0", "pod"]),
            step(&["pod", "start", "pod"]),
            step(&["exec", "one", "true"]),
            step(&["pod", "rm", "--force", "--time", "0", "pod"]),
        ];
        take(podman, runtime, &steps).unwrap();
    });
}

#[test]
fn podman_and_buildah_build_a_dockerfile_with_run() {
    on_podman(|_, runtime, podman, options| {
        let context = podman.folder().join("context");
        std::fs::create_dir(&context).unwrap();
        let dockerfile = "FROM docker.io/library/busybox\nRUN echo built > /made && id\nUSER 1000\nWORKDIR /tmp\n\
                          RUN id -u > /tmp/user\nCMD [\"cat\", \"/made\", \"/tmp/user\"]\n";
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        let context = context.to_str().unwrap();
        let failing = "FROM docker.io/library/busybox\nRUN exit 5\n";
        let failing_file = format!("{context}/Failing");
        std::fs::write(&failing_file, failing).unwrap();
        // A build's containers use the parent itself, which must have no other container's cgroup below it.
        let parent = format!("{}-build", options[options.len() - 1]);
        let building = [&options[..options.len() - 1], &[&parent]].concat();
        let build = |more: &[&'static str]| {
            step(&[&["build", "--pull=never", "--tag", "built"][..], more, &building, &[context]].concat())
        };
        let steps = [
            build(&[]).says("STEP 6/6"),
            step(&[&["run", "--rm"][..], options, &["localhost/built"]].concat()).says("built\n1000\n"),
            step(&[&["build", "--pull=never", "--file", &failing_file][..], &building, &[context]].concat())
                .ends(5)
                .says("exit status 5"),
        ];
        take(podman, runtime, &steps).unwrap();
        for (arguments, status, says) in [
            (&["from", "--pull-never", "--name", "working", "docker.io/library/busybox"][..], 0, "working"),
            (&["run", "working", "echo", "from run"], 0, "from run"),
            (&["run", "working", "sh", "-c", "exit 6"], 6, ""),
            (&["rm", "working"], 0, ""),
        ] {
            let mut command = podman.buildah(&arguments[..1]);
            if arguments[0] == "run" {
                command.args(["--isolation", "oci", "--network", "none", "--runtime"]).arg(&runtime.path);
            }
            let outcome = outcome(command.args(&arguments[1..])).unwrap();
            assert_eq!(outcome.status, Some(status), "{arguments:?}: {outcome:?}");
            assert!(outcome.stdout.contains(says), "{arguments:?}: {outcome:?}");
        }
    });
}

/// A failed call names its reason once, whatever the name of the runtime's program: podman knows some by name and asks
/// those for JSON on a log file.
#[test]
fn podman_reads_the_reason_of_a_failure_from_the_json_log() {
    with_callers(PROGRAMS, On::Ours, |ground, runtime| {
        let folder = ground.folder("json").unwrap();
        let link = folder.join("crun");
        std::os::unix::fs::symlink(&runtime.path, &link).unwrap();
        let named = Called { path: link, name: "named crun" };
        let podman = Podman::start(ground, &named).unwrap();
        let options = Podman::options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let absent = make(&["run", "--rm"], &options, &["absent"]);
        take(&podman, &named, &[make(&["run", "--rm"], &options, &["true"]), absent.ends(127)]).unwrap();
        let said = podman.call(&[&["run", "--rm"][..], &options, &["busybox", "absent"]].concat()).unwrap();
        assert_eq!(said.stderr.matches("executable file not found").count(), 1, "{said:?}");
    });
}
