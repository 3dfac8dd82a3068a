//! EX: processes that join a container which does what it can against them.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_tests::oci::Runtime;
use serde_json::json;

use crate::{RAN, assert_ran, assert_refused, attack, bundle, mount, reconfigure, sleeper};

/// How long anything may take that hostile containers could hold up; everything is slow on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn start(runtime: &Runtime, bundle: &cofferdam_tests::bundle::Bundle) {
    runtime.create("c", bundle.path()).unwrap();
    runtime.succeed(&["start", "c"]).unwrap();
}

/// What a program says of itself, `/proc/self/exe`, is the runtime while it joins.
#[test]
fn ex_02_the_runtime_s_program_cannot_be_written_from_inside() {
    attack(|runtime, files| {
        let program = runtime.command(&[]).get_program().to_owned();
        let before = std::fs::read(&program).unwrap();
        let itself = bundle(files, "itself", "", |config| {
            config["process"]["args"] = json!(["/proc/self/exe", "--version"])
        });
        let _ = runtime.run("c", itself.path()).unwrap();
        let script = "while :; do for p in /proc/[0-9]*; do (exec 3>>$p/exe) 2>/dev/null && \
            case $(readlink $p/exe) in /bin/busybox) ;; *) echo wrote $(readlink $p/exe) >> /tmp/result;; esac; done; done";
        let writer = bundle(files, "writer", script, |_| {});
        start(runtime, &writer);
        for program in ["/proc/self/exe", "/tmp/script", "true"] {
            std::fs::write(writer.rootfs().join("tmp/script"), "#!/proc/self/exe\n").unwrap();
            std::fs::set_permissions(
                writer.rootfs().join("tmp/script"),
                std::os::unix::fs::PermissionsExt::from_mode(0o755),
            )
            .unwrap();
            for _ in 0..8 {
                let _ = runtime.call(&["exec", "c", program, "--version"]).unwrap();
            }
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        let result = std::fs::read_to_string(writer.rootfs().join("tmp/result")).unwrap_or_default();
        assert_eq!(result, "", "opened for writing");
        assert!(std::fs::read(&program).unwrap() == before, "the program was changed");
    });
}

/// While a process joins, nobody inside can look into it.
#[test]
fn ex_04_a_joining_process_cannot_be_looked_into() {
    attack(|runtime, files| {
        let script = "while :; do for p in /proc/[0-9]*; do \
            case $(readlink $p/exe) in ''|/bin/busybox) ;; *) echo $p $(readlink $p/exe) $(readlink $p/cwd) >> /tmp/result;; esac; \
            done 2>/dev/null; done";
        let bundle = bundle(files, "looker", script, |_| {});
        start(runtime, &bundle);
        for _ in 0..25 {
            runtime.succeed(&["exec", "c", "true"]).unwrap();
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        let result = std::fs::read_to_string(bundle.rootfs().join("tmp/result")).unwrap_or_default();
        assert_eq!(result, "", "looked into");
    });
}

/// What an attacker writes down of each process that it could look into: program, capabilities in force, mode of seccomp,
/// whether the runtime's caller's secret was in it, descriptors that lead somewhere.
const LOOKED: &str = "tmp/looked";

/// Stands in the environment of whoever calls the runtime.
const SECRET: &str = "the-caller-s-own-secret";

/// The attacker of the test below, in the container: looks into whoever comes, for as long as it lives.
#[test]
#[ignore = "started by the test below"]
fn looks_into_whoever_comes() {
    let own = std::process::id().to_string();
    let mut looked = std::fs::File::create(Path::new("/").join(LOOKED)).unwrap();
    loop {
        let names = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
        for pid in names.filter_map(|name| name.into_string().ok()).filter(|name| *name != own) {
            if pid.parse::<u32>().is_ok()
                && let Ok(found) = look_into(&Path::new("/proc").join(pid))
            {
                writeln!(looked, "{found}").unwrap();
            }
        }
    }
}

/// Reads another process's memory by the check that PTRACE_ATTACH, process_vm_readv and pidfd_getfd make too.
fn look_into(process: &Path) -> std::io::Result<String> {
    // First what it is: by the time that the memory is open, it may have given up more.
    let status = std::fs::read_to_string(process.join("status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim();
    let program = std::fs::read_link(process.join("exe"))?;
    let memory = std::fs::File::open(process.join("mem"))?;
    let maps = std::fs::read_to_string(process.join("maps"))?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).and_then(|line| line.split_once('-'));
    let begin = stack.and_then(|(begin, _)| u64::from_str_radix(begin, 16).ok()).unwrap_or(0);
    let mut bytes = vec![0; 256 << 10];
    let read = memory.read_at(&mut bytes, begin).unwrap_or(0);
    let found = match read {
        0 => "unread",
        _ if bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()) => "found",
        _ => "none",
    };
    let others =
        |entry: &std::fs::DirEntry| !["0", "1", "2"].iter().any(|number| entry.file_name() == *number);
    let descriptors = std::fs::read_dir(process.join("fd"))?.flatten().filter(others);
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let leads: Vec<_> = links.filter(|link| link.starts_with("/")).collect();
    // The runtime's own has no name: it lies on a mount that is attached nowhere.
    let program = program.file_name().map_or("none".into(), std::ffi::OsStr::to_string_lossy);
    Ok(format!("{program} {} {} {found} {leads:?}", field("CapEff:"), field("Seccomp:")))
}

/// In a container that may trace, by a capability that holds over the host, a process that joins can be seen only when it is
/// as confined as those who see it.
#[test]
fn ex_04_a_container_that_may_trace_finds_joining_processes_confined() {
    const MAY: u64 = 1 << 19 | 1 << 5;
    attack(|runtime, files| {
        let bundle = bundle(files, "tracer", "", |config| {
            config["process"]["args"] =
                json!(["/attacker", "joining::looks_into_whoever_comes", "--exact", "--include-ignored"]);
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE", "CAP_KILL"]);
            }
            config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] });
        });
        std::fs::copy(std::env::current_exe().unwrap(), bundle.rootfs().join("attacker")).unwrap();
        start(runtime, &bundle);
        let result = bundle.rootfs().join(LOOKED);
        let deadline = Instant::now() + SOON;
        while !result.exists() {
            assert!(Instant::now() < deadline, "the attacker did not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..cofferdam_tests::pace::rounds(30, 5) {
            // Long enough to be seen by whoever looks at one process after the other.
            let seen = cofferdam_tests::pace::limit(Duration::from_millis(20)).as_micros().to_string();
            let mut exec = runtime.command(&["exec", "c", "usleep", &seen]);
            assert!(exec.env("SECRET", SECRET).status().unwrap().success());
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        let looked = std::fs::read_to_string(result).unwrap();
        assert!(
            looked.lines().any(|line| line.starts_with("busybox ") && line.contains(" 2 none ")),
            "the recipe itself: {looked}"
        );
        for line in looked.lines().filter(|line| !line.starts_with("attacker ")) {
            let words: Vec<&str> = line.splitn(5, ' ').collect();
            let capabilities = u64::from_str_radix(words[1], 16).unwrap();
            assert!(capabilities & !MAY == 0 && words[2] == "2", "not confined: {line}");
            assert!(words[3] != "found", "the caller's environment: {line}");
            assert!(words[4] == "[]", "descriptors: {line}");
        }
    });
}

/// A pid is a number that others get in their turn: the start time tells them apart.
#[test]
fn ex_05_a_recycled_pid_is_not_the_container() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "recycled", |_| {});
        start(runtime, &bundle);
        let pid = runtime.state("c").unwrap()["pid"].as_i64().unwrap();
        runtime.succeed(&["kill", "c", "KILL"]).unwrap();
        runtime.wait("c", "stopped").unwrap();
        cofferdam_tests::process::reap();
        // Others on this machine take numbers too: tried until it is ours.
        let mut stranger = None;
        for _ in 0..200 {
            std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
            if i64::from(child.id()) == pid {
                stranger = Some(child);
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        if let Some(mut stranger) = stranger {
            assert_eq!(runtime.state("c").unwrap()["status"], "stopped");
            assert_refused(&runtime.call(&["kill", "c", "KILL"]).unwrap(), "kill");
            assert_refused(&runtime.call(&["exec", "c", "true"]).unwrap(), "exec");
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
            assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
            stranger.kill().unwrap();
            stranger.wait().unwrap();
        } else {
            println!("skipped: the pid was never free");
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
        }
    });
}

#[test]
fn ex_07_an_added_capability_is_not_inheritable() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "inheritable", |_| {});
        start(runtime, &bundle);
        for user in ["0", "1000"] {
            let show =
                ["exec", "--user", user, "--cap", "CAP_SYS_NICE", "c", "grep", "^Cap", "/proc/self/status"];
            let outcome = runtime.succeed(&show).unwrap();
            assert!(outcome.stdout.contains("CapInh:\t0000000000000000"), "{user}: {outcome:?}");
            assert!(
                user == "0"
                    || outcome.stdout.contains("CapEff:\t0000000000000000")
                    || outcome.stdout.contains("CapAmb:\t0000000000800000"),
                "{outcome:?}"
            );
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

/// The first process may go where it likes; nobody follows it into a world of its making.
#[test]
fn ex_10_a_first_process_that_left_its_namespaces_is_not_joined() {
    attack(|runtime, files| {
        for (name, arguments) in [
            ("mount", &["unshare", "-m", "sleep", "1000"][..]),
            ("network", &["unshare", "-n", "sleep", "1000"]),
            ("user", &["unshare", "-U", "-m", "sleep", "1000"]),
        ] {
            let bundle = sleeper(files, name, |config| {
                config["process"]["args"] = json!(arguments);
                for set in ["bounding", "effective", "permitted"] {
                    config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
                }
            });
            start(runtime, &bundle);
            let pid = runtime.state("c").unwrap()["pid"].as_i64().unwrap();
            let comm = format!("/proc/{pid}/comm");
            let deadline = Instant::now() + SOON;
            while std::fs::read_to_string(&comm).unwrap().trim() != "sleep" {
                assert!(Instant::now() < deadline, "{name}: it did not leave");
                std::thread::sleep(Duration::from_millis(5));
            }
            let outcome = runtime.call(&["exec", "c", "echo", RAN]).unwrap();
            assert_refused(&outcome, name);
            assert!(outcome.stderr.contains("namespace"), "{name}: {outcome:?}");
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
        }
    });
}

#[test]
fn ex_11_joining_while_the_container_comes_and_goes_leaves_nothing() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "races", |_| {});
        for _ in 0..4 {
            start(runtime, &bundle);
            std::thread::scope(|scope| {
                let verbs: [&[&str]; 5] = [
                    &["exec", "c", "sleep", "0.01"],
                    &["pause", "c"],
                    &["resume", "c"],
                    &["state", "c"],
                    &["kill", "c", "USR1"],
                ];
                for arguments in verbs {
                    scope.spawn(move || {
                        for _ in 0..6 {
                            let outcome = runtime.call(arguments).unwrap();
                            assert!(
                                outcome.status.is_some() && !outcome.stderr.contains("panicked"),
                                "{outcome:?}"
                            );
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(150));
                runtime.succeed(&["delete", "--force", "c"]).unwrap();
            });
            assert_ne!(runtime.call(&["state", "c"]).unwrap().status, Some(0));
            cofferdam_tests::process::reap();
        }
    });
}

#[test]
fn ex_12_joining_a_container_that_cannot_take_it_fails_soon_and_leaves_nothing() {
    attack(|runtime, files| {
        let full = sleeper(files, "full", |config| {
            config["linux"]["resources"]["pids"] = json!({ "limit": 1 });
        });
        start(runtime, &full);
        let begin = Instant::now();
        // On cgroup v1 a process that is moved in counts, but is not kept out: pids(7) of the kernel's documentation.
        let outcome = runtime.call(&["exec", "c", "sh", "-c", "true & true"]).unwrap();
        assert!(matches!(outcome.status, Some(status) if status != 0), "no room for a fork: {outcome:?}");
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        let frozen = sleeper(files, "frozen", |_| {});
        start(runtime, &frozen);
        runtime.succeed(&["pause", "c"]).unwrap();
        assert_refused(&runtime.call(&["exec", "c", "echo", RAN]).unwrap(), "paused");
        runtime.succeed(&["resume", "c"]).unwrap();
        runtime.succeed(&["kill", "c", "KILL"]).unwrap();
        runtime.wait("c", "stopped").unwrap();
        assert_refused(&runtime.call(&["exec", "c", "echo", RAN]).unwrap(), "stopped");
        runtime.succeed(&["delete", "c"]).unwrap();
        runtime.create("c", frozen.path()).unwrap();
        runtime.succeed(&["pause", "c"]).unwrap();
        assert_refused(&runtime.call(&["start", "c"]).unwrap(), "created and paused");
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    });
}

#[test]
fn ex_13_a_fork_bomb_is_ended() {
    attack(|runtime, files| {
        let script = "trap '' TERM HUP INT; bomb() { setsid sh -c 'sleep 100 & sleep 100 & sleep 100' & bomb & bomb; }; bomb 2>/dev/null; sleep 1000";
        for own_pids in [true, false] {
            let bomb = bundle(files, &format!("bomb-{own_pids}"), script, |config| {
                config["linux"]["resources"]["pids"] = json!({ "limit": 64 });
                if !own_pids {
                    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "pid");
                }
            });
            start(runtime, &bomb);
            std::thread::sleep(Duration::from_millis(300));
            let begin = Instant::now();
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
            assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
            cofferdam_tests::process::reap();
        }
    });
}

#[test]
fn ex_14_processes_that_hide_are_ended_too() {
    attack(|runtime, files| {
        let script =
            "(setsid sh -c 'setsid sleep 1001 & setsid sleep 1002 &' &) ; echo > /tmp/hidden; sleep 1000";
        let hiding = bundle(files, "hiding", script, |config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "pid");
        });
        for first_alone in [false, true] {
            start(runtime, &hiding);
            let wait = "until test -e /tmp/hidden; do usleep 10000; done; rm /tmp/hidden";
            runtime.succeed(&["exec", "c", "sh", "-c", wait]).unwrap();
            if first_alone {
                runtime.succeed(&["kill", "c", "KILL"]).unwrap();
                runtime.wait("c", "stopped").unwrap();
            }
            let pids = runtime.call(&["ps", "--format", "json", "c"]).unwrap();
            assert!(first_alone || pids.stdout.matches(',').count() >= 2, "the recipe itself: {pids:?}");
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
            cofferdam_tests::process::reap();
        }
    });
}

#[test]
fn ex_15_a_process_file_is_checked_as_a_configuration_is() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "process", |_| {});
        start(runtime, &bundle);
        let file = files.join("process.json");
        let good = json!({ "args": ["sh", "-c", format!("echo {RAN}; grep CapEff /proc/self/status")], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
        let call = |text: String| {
            std::fs::write(&file, text).unwrap();
            runtime.call(&["exec", "--process", file.to_str().unwrap(), "c"]).unwrap()
        };
        let plain = call(good.to_string());
        assert_ran(&plain, "the recipe itself");
        let changed = |key: &str, value: serde_json::Value| {
            let mut process = good.clone();
            process[key] = value;
            call(process.to_string())
        };
        for (key, value) in [
            ("args", json!([])),
            ("args", json!([""])),
            ("args", json!(["echo", "a\u{0}b"])),
            ("args", json!(["echo", RAN, "x".repeat(3 << 20)])),
            ("env", json!(["PATH=/bin", format!("LARGE={}", "x".repeat(3 << 20))])),
            ("env", json!(["A=\u{0}"])),
            ("cwd", json!("relative")),
            ("cwd", json!("")),
            ("capabilities", json!({ "bounding": ["CAP_NONSENSE"], "effective": ["CAP_NONSENSE"] })),
            ("rlimits", json!([{ "type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1 }])),
            ("user", json!({ "uid": -1, "gid": 0 })),
        ] {
            let case = format!("{key} {:.40}", value.to_string());
            let outcome = changed(key, value);
            if key != "capabilities" {
                assert_refused(&outcome, &case);
            }
        }
        for text in ["", "[]", "{", "null", "{\"args\":[\"echo\"]"] {
            assert_refused(&call(text.to_owned()), text);
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

#[test]
fn ex_16_a_program_that_cannot_be_executed_is_named_and_no_container_is_left() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "programs", |config| {
            mount(config, "/noexec", "tmpfs", "tmpfs", &["noexec"]);
        });
        let root = bundle.rootfs();
        std::fs::create_dir(root.join("folder")).unwrap();
        let file = |name: &str, bytes: &[u8], mode: u32| {
            std::fs::write(root.join(name), bytes).unwrap();
            std::fs::set_permissions(root.join(name), std::os::unix::fs::PermissionsExt::from_mode(mode))
                .unwrap();
        };
        file("plain", b"x", 0o644);
        file("no-interpreter", b"#!/absent\n", 0o755);
        file("wrong-machine", b"\x7fELF\x02\x02\x01\x00wrong", 0o755);
        file("empty", b"", 0o755);
        cofferdam_tests::world::succeed(Command::new("mkfifo").arg(root.join("fifo"))).unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        let programs = [
            "/absent",
            "absent",
            "/folder",
            "/plain",
            "/no-interpreter",
            "/wrong-machine",
            "/fifo",
            "/loop",
            "/dev/full",
            "/plain/x",
        ];
        for program in programs {
            reconfigure(&bundle, |config| config["process"]["args"] = json!([program]));
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_refused(&outcome, program);
            assert!(outcome.stderr.contains(program), "not named: {outcome:?}");
            assert_ne!(runtime.call(&["state", "c"]).unwrap().status, Some(0), "{program}");
        }
        reconfigure(&bundle, |config| config["process"]["args"] = json!(["sleep", "1000"]));
        start(runtime, &bundle);
        for program in programs {
            assert_refused(&runtime.call(&["exec", "c", program]).unwrap(), &format!("exec {program}"));
        }
        runtime.succeed(&["exec", "c", "cp", "/bin/busybox", "/noexec/busybox"]).unwrap();
        assert_refused(&runtime.call(&["exec", "c", "/noexec/busybox", "echo", RAN]).unwrap(), "noexec");
        assert_eq!(runtime.state("c").unwrap()["status"], "running");
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

#[test]
fn ex_20_a_namespace_by_path_is_a_namespace_of_its_kind() {
    attack(|runtime, files| {
        let bundle = bundle(files, "namespaces", "", |_| {});
        let fifo = files.join("fifo");
        cofferdam_tests::world::succeed(Command::new("mkfifo").arg(&fifo)).unwrap();
        let (fifo, folder) = (fifo.to_str().unwrap(), files.to_str().unwrap());
        for (kind, path) in [
            ("network", "/proc/self/ns/pid"),
            ("network", "/proc/self/ns/mnt"),
            ("network", "/etc/passwd"),
            ("network", "/dev/null"),
            ("network", fifo),
            ("network", folder),
            ("network", "/absent"),
            ("network", "relative"),
            ("network", "/proc/self/ns/net/"),
            ("ipc", "/proc/self/ns/uts"),
            ("pid", "/proc/self/ns/net"),
            ("user", "/proc/self/ns/net"),
            ("time", "/proc/self/ns/net"),
            ("cgroup", "/proc/self/ns/net"),
            ("mount", "/proc/self/ns/net"),
        ] {
            reconfigure(&bundle, |config| {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|one| one["type"] != kind);
                namespaces.push(json!({ "type": kind, "path": path }));
            });
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), &format!("{kind} at {path}"));
            reconfigure(&bundle, |config| {
                config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one.get("path").is_none());
            });
        }
    });
}
