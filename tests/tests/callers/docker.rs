//! Docker's daemon with the runtime as its default, alone and as a Swarm of one node.

use cofferdam_tests::callers::docker::{Docker, PROGRAMS};
use cofferdam_tests::callers::{Step, step, take};
use cofferdam_tests::needs;

use crate::{On, POLITE, with_callers};

fn on_docker(on: On, steps: &[Step]) {
    with_callers(&[PROGRAMS[0], PROGRAMS[1], "containerd"], on, |ground, runtime| {
        let docker = Docker::start(ground, runtime).unwrap();
        take(&docker, runtime, steps).unwrap();
    });
}

fn run<'a>(flags: &[&'a str], command: &[&'a str]) -> Step<'a> {
    step(&[&["run", "--network", "none"][..], flags, &["busybox"], command].concat())
}

#[test]
fn docker_runs_execs_and_updates() {
    if !needs::full("Docker's daemon with two runtimes") {
        return;
    }
    on_docker(
        On::Both,
        &[
            step(&["info", "--format", "{{.DefaultRuntime}}"]).says("called"),
            run(&["--rm"], &["echo", "out"]).says("out\n"),
            run(&["--rm"], &["sh", "-c", "exit 7"]).ends(7),
            run(&["--rm"], &["absent"]).ends(127).says("executable file not found in $PATH"),
            run(&["--rm"], &["/etc/passwd"]).ends(126).says("permission denied"),
            run(&["--rm", "--read-only", "--tmpfs", "/t"], &["sh", "-c", "touch /t/x && touch /x"]).ends(1),
            run(&["--rm", "--privileged"], &["grep", "Seccomp:", "/proc/self/status"]).says("0").ours_alone(),
            run(&["--rm", "--init"], &["ps"]).says("docker-init"),
            run(&["--rm", "-it"], &["sh", "-c", "tty; sleep 1; stty size"])
                .on_terminal()
                .says("/dev/pts/")
                .says("33 77"),
            run(&["-d", "--name", "polite"], &["sh", "-c", POLITE]),
            step(&["exec", "polite", "echo", "in"]).says("in\n"),
            step(&["exec", "polite", "sh", "-c", "exit 9"]).ends(9),
            step(&["exec", "polite", "absent"]).ends(126).says("executable file not found in $PATH"),
            step(&["exec", "-it", "polite", "tty"]).on_terminal().says("/dev/pts/"),
            step(&["stats", "--no-stream", "polite"]).says("polite"),
            step(&["top", "polite"]).says("sleep 1"),
            step(&["update", "--memory", "64m", "--memory-swap", "64m", "--pids-limit", "50", "polite"]),
            step(&["exec", "polite", "cat", "/sys/fs/cgroup/pids/pids.max"]).says("50\n"),
            step(&["pause", "polite"]),
            step(&["ps"]).says("(Paused)"),
            step(&["unpause", "polite"]),
            step(&["stop", "--time", "5", "polite"]),
            step(&["logs", "polite"]).says("bye\n"),
            step(&["start", "polite"]),
            step(&["restart", "--time", "5", "polite"]),
            step(&["kill", "--signal", "KILL", "polite"]),
            step(&["wait", "polite"]).says("137"),
            step(&["rm", "polite"]),
            run(
                &["-d", "--name", "sick", "--health-cmd", "true", "--health-interval", "1s"],
                &["sleep", "100"],
            ),
            step(&["inspect", "--format", "{{.State.Health.Status}}", "sick"]).says("healthy").eventually(),
            step(&["rm", "--force", "sick"]),
        ],
    );
}

#[test]
fn a_swarm_of_one_node_scales_and_updates_a_service() {
    if !needs::full("a Swarm of one node") {
        return;
    }
    let service =
        ["service", "create", "--detach", "--no-resolve-image", "--name", "web", "--network", "host"];
    let more = [
        "--replicas",
        "2",
        "--limit-memory",
        "50m",
        "--stop-grace-period",
        "2s",
        "busybox",
        "sh",
        "-c",
        POLITE,
    ];
    let replicas = ["service", "list", "--format", "{{.Name}} {{.Replicas}}"];
    on_docker(
        On::Ours,
        &[
            step(&["swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377"]),
            step(&[&service[..], &more].concat()),
            step(&replicas).says("web 2/2").eventually(),
            step(&["service", "scale", "--detach", "web=4"]),
            step(&replicas).says("web 4/4").eventually(),
            step(&[
                "service",
                "update",
                "--detach",
                "--env-add",
                "WORD=x",
                "--update-parallelism",
                "0",
                "web",
            ]),
            step(&["service", "inspect", "--format", "{{.UpdateStatus.State}}", "web"])
                .says("completed")
                .eventually(),
            step(&["service", "rm", "web"]),
            step(&["ps", "--quiet", "--filter", "status=running"]).says("\n\n").eventually(),
            step(&["swarm", "leave", "--force"]),
        ],
    );
}
