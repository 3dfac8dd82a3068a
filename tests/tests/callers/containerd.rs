//! containerd through `ctr`: its shim calls with `--root DIR/NS --log BUNDLE/log.json --log-format json` before every verb.

use cofferdam_tests::callers::containerd::{Containerd, IMAGE};
use cofferdam_tests::callers::{step, take};

use crate::{On, POLITE, with_callers};

#[test]
fn containerd_runs_execs_pauses_kills_and_deletes() {
    with_callers(&["containerd", "ctr", "containerd-shim-runc-v2"], On::Both, |ground, runtime| {
        let containerd = Containerd::start(ground, runtime).unwrap();
        let options = containerd.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let run = |flags: &[&'static str], id: &'static str, command: &[&'static str]| {
            step(&[&["run"][..], flags, &options, &[IMAGE, id], command].concat())
        };
        let exec = |id: &'static str, command: &[&'static str]| {
            step(&[&["task", "exec", "--exec-id", id, "polite"], command].concat())
        };
        let terminal = [
            "task",
            "exec",
            "--tty",
            "--exec-id",
            "terminal",
            "polite",
            "sh",
            "-c",
            "tty; sleep 1; stty size",
        ];
        let steps = [
            run(&["--rm"], "out", &["echo", "out"]).says("out\n"),
            run(&["--rm"], "seven", &["sh", "-c", "exit 7"]).ends(7),
            // Its descriptor for this only reads.
            run(&["--rm", "--null-io"], "quiet", &["echo", "out"]),
            run(&["--rm"], "absent", &["absent"]).ends(1).says("executable file not found in $PATH"),
            run(&["--rm", "--read-only", "--privileged", "--net-host"], "more", &["true"]),
            run(
                &["--rm", "--memory-limit", "50000000", "--seccomp", "--rootfs-propagation", "slave"],
                "limited",
                &["true"],
            ),
            run(&["--detach"], "polite", &["sh", "-c", POLITE]),
            exec("in", &["echo", "in"]).says("in\n"),
            exec("nine", &["sh", "-c", "exit 9"]).ends(9),
            exec("absent", &["absent"]).ends(1).says("executable file not found in $PATH"),
            step(&terminal).on_terminal().says("/dev/pts/").says("33 77"),
            step(&["task", "pause", "polite"]),
            step(&["task", "list"]).says("PAUSED"),
            step(&["task", "resume", "polite"]),
            step(&["task", "metrics", "polite"]).says("pids.current"),
            step(&["task", "ps", "polite"]).says("INFO"),
            step(&["task", "kill", "--signal", "TERM", "polite"]),
            step(&["task", "list"]).says("STOPPED").eventually(),
            step(&["task", "delete", "polite"]).says("exit code 3"),
            step(&["container", "delete", "polite"]),
            run(&["--detach"], "deaf", &["sleep", "1000"]),
            step(&["task", "kill", "--all", "--signal", "KILL", "deaf"]),
            step(&["task", "delete", "--force", "deaf"]).eventually(),
            step(&["container", "delete", "deaf"]),
        ];
        take(&containerd, runtime, &steps).unwrap();
    });
}
