//! config.md, "Process" and "Linux Process".

use serde_json::json;

use crate::case::{Case, case, chapter, check, same, sampled};

#[test]
fn the_process_is_as_the_specification_says() {
    chapter("config.md: process", sampled(cases()));
}

fn cases() -> Vec<Case> {
    let mut cases = ordinary();
    cases.extend(scheduling());
    cases.extend(rights());
    cases
}

fn ordinary() -> Vec<Case> {
    vec![
        case("arguments and environment arrive as they are", "config.md, Process, args and env")
            .set("/process/args", json!(["sh", "-c", "echo \"$0|$1|$WORDS\"", "a b", ""]))
            .set("/process/env", json!(["PATH=/bin", "WORDS=two words", "HOME=/"]))
            .prints("a b||two words"),
        case("the working directory is the one given", "config.md, Process, cwd")
            .set("/process/cwd", json!("/tmp"))
            .probe("pwd")
            .prints("/tmp"),
        case("a relative working directory is refused", "config.md, Process, cwd: MUST be absolute")
            .set("/process/cwd", json!("tmp"))
            .refused("/process/cwd"),
        case("no arguments are refused", "config.md, Process, args: at least one entry")
            .set("/process/args", json!([]))
            .refused("/process/args"),
        case("a program that is missing is refused", "runtime.md, Create: MUST generate an error")
            .set("/process/args", json!(["/absent"]))
            .refused("no such file"),
        case("HOME comes from the container's users", "as runc and crun do; config.md leaves it open")
            .file("rootfs/etc/passwd", "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n")
            .set("/process/user/uid", json!(1000))
            .set("/process/env", json!(["PATH=/bin"]))
            .probe("echo $HOME")
            .prints("/home/u"),
        case("commandLine is ignored", "config.md, Process, commandLine: Windows only")
            .set("/process/commandLine", json!("cmd /c dir"))
            .probe("echo here")
            .prints("here"),
        case("limits are soft and hard", "config.md, POSIX process, rlimits")
            .set(
                "/process/rlimits",
                json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]),
            )
            .probe("ulimit -Sn; ulimit -Hn; ulimit -c")
            .prints("100\n200\n0"),
        case(
            "a limit that is listed twice is refused",
            "config.md, rlimits: MUST generate an error on duplicated entries",
        )
        .set(
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
                { "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }]),
        )
        .refused("/process/rlimits/1"),
        case("a limit of an unknown kind is refused", "config.md, rlimits, type: MUST generate an error")
            .set("/process/rlimits", json!([{ "type": "RLIMIT_TEST", "soft": 1, "hard": 1 }]))
            .refused("rlimits"),
        case("oomScoreAdj is set", "config.md, Linux Process, oomScoreAdj")
            .set("/process/oomScoreAdj", json!(137))
            .probe("cat /proc/self/oom_score_adj")
            .prints("137"),
        profile(),
        case("an SELinux label is no error where SELinux is off", "config.md, selinuxLabel")
            .set("/process/selinuxLabel", json!("system_u:system_r:container_t:s0"))
            .set("/linux/mountLabel", json!("system_u:object_r:container_file_t:s0"))
            .probe("echo here")
            .prints("here"),
    ]
}

/// A profile that nobody has loaded: passed over where AppArmor is off, an error where it is on.
fn profile() -> Case {
    const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
    let is_on = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'));
    let asks = |name| {
        case(name, "config.md, apparmorProfile")
            .set("/process/apparmorProfile", json!("acme"))
            .probe("echo here")
    };
    match is_on {
        true => asks("an AppArmor profile that is not there is refused").refused("/process/apparmorProfile"),
        false => asks("an AppArmor profile is no error where AppArmor is off").prints("here"),
    }
}

fn scheduling() -> Vec<Case> {
    let policy = "awk '{ print $41 }' /proc/self/stat";
    vec![
        case("a batch policy with a nice value", "config.md, scheduler: policy and nice")
            .set("/process/scheduler", json!({ "policy": "SCHED_BATCH", "nice": 5 }))
            .probe("awk '{ print $41, $19 }' /proc/self/stat")
            .prints("3 5"),
        case("an idle policy", "config.md, scheduler")
            .set("/process/scheduler", json!({ "policy": "SCHED_IDLE" }))
            .probe(policy)
            .prints("5"),
        case("a nice value means nothing to a deadline", "config.md, scheduler: nice; sched_setattr(2)")
            .set(
                "/process/scheduler",
                json!({ "policy": "SCHED_DEADLINE", "nice": 19, "runtime": 42_000, "deadline": 1_000_000,
                "period": 1_000_000 }),
            )
            .probe("exec awk '{ print $41 }' /proc/self/stat")
            .prints("6"),
        case("a deadline on some processors only is refused in words", "sched(7), SCHED_DEADLINE: EPERM")
            .set(
                "/process/scheduler",
                json!({ "policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000 }),
            )
            .set("/linux/resources/cpu", json!({ "cpus": "0" }))
            .refused("process scheduler can't be used together with AllowedCPUs"),
        case("a flag of a policy is taken by its name", "config.md, scheduler: flags")
            .set(
                "/process/scheduler",
                json!({ "policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"] }),
            )
            .probe("exec awk '{ print $41 }' /proc/self/stat")
            .prints("3"),
        case(
            "a priority without real time is refused",
            "config.md, scheduler: priority for SCHED_FIFO and SCHED_RR",
        )
        .set("/process/scheduler", json!({ "policy": "SCHED_OTHER", "priority": 10 }))
        .refused("/process/scheduler/priority"),
        case("a deadline without its policy is refused", "config.md, scheduler: runtime for SCHED_DEADLINE")
            .set("/process/scheduler", json!({ "policy": "SCHED_OTHER", "runtime": 1000 }))
            .refused("/process/scheduler"),
        case("a priority of input and output", "config.md, ioPriority")
            .set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }))
            .probe("ionice -p $$")
            .prints("idle"),
        case("a priority of input and output within its class", "config.md, ioPriority: 0 to 7")
            .set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }))
            .probe("ionice -p $$")
            .prints("best-effort: prio 6"),
        case("a priority of input and output above 7 is refused", "config.md, ioPriority: 0 to 7")
            .set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }))
            .refused("/process/ioPriority/priority"),
        check(
            "an exec'd process ends on its final processors",
            "config.md, execCPUAffinity, final",
            |bench| {
                bench.created("sleep 100", |_| {})?;
                bench.succeed(&["start"])?;
                let process = bench.folder.join("process.json");
                let affinity = json!({ "initial": "0", "final": "0" });
                let document = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "execCPUAffinity": affinity,
                "env": ["PATH=/bin"], "args": ["grep", "Cpus_allowed_list", "/proc/self/status"] });
                std::fs::write(&process, document.to_string())?;
                let outcome = bench.succeed(&["exec", "--process", &process.to_string_lossy()])?;
                same("affinity", outcome.stdout.trim(), "Cpus_allowed_list:\t0")
            },
        ),
    ]
}

fn rights() -> Vec<Case> {
    let none = json!({ "bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": [] });
    let net = || json!(["CAP_NET_RAW"]);
    vec![
        case("no-new-privileges is set", "config.md, noNewPrivileges")
            .probe("grep NoNewPrivs /proc/self/status")
            .prints("NoNewPrivs:\t1"),
        case("no-new-privileges may stay off", "config.md, noNewPrivileges")
            .set("/process/noNewPrivileges", json!(false))
            .probe("grep NoNewPrivs /proc/self/status")
            .prints("NoNewPrivs:\t0"),
        case("no capabilities", "config.md, capabilities")
            .set("/process/capabilities", none)
            .probe("grep -cE 'Cap(Inh|Prm|Eff|Bnd|Amb):.0000000000000000' /proc/self/status")
            .prints("5"),
        case("one capability in every set", "config.md, capabilities")
            .set(
                "/process/capabilities",
                json!({ "bounding": net(), "effective": net(), "permitted": net(),
                "inheritable": net(), "ambient": net() }),
            )
            .probe("grep -cE 'Cap(Inh|Prm|Eff|Bnd|Amb):.0000000000002000' /proc/self/status")
            .prints("5"),
        case("an unknown capability is no error", "config.md, capabilities: SHOULD NOT fail")
            .push("/process/capabilities/bounding", json!("CAP_OF_TOMORROW"))
            .probe("echo here")
            .prints("here"),
        case(
            "a capability that cannot be granted is no error",
            "config.md, capabilities: MUST be logged as a warning",
        )
        .push("/process/capabilities/bounding", json!("CAP_SYS_RESOURCE"))
        .push("/process/capabilities/effective", json!("CAP_SYS_RESOURCE"))
        .push("/process/capabilities/permitted", json!("CAP_SYS_RESOURCE"))
        .probe("echo here")
        .prints("here"),
    ]
}
