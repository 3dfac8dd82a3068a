//! The OCI runtime's operations (runtime-spec 1.3, `runtime.md`), on our runtime and on a peer, with a census.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::oci::{self, Runtime};
use cofferdam_tests::process;
use serde_json::{Value, json};

/// Runs a test's body for every runtime, and checks that each leaves the host as it was.
fn on_every_runtime(body: impl Fn(&Runtime, &Path)) {
    oci::on_each(|_| true, body).unwrap();
}

fn sleeper(bundles: &Path) -> Bundle {
    Bundle::make(&bundles.join("sleeper"), &["sleep", "1000"], |_| {}).unwrap()
}

/// runtime.md, "Lifecycle": created, then running, then stopped, then gone.
#[test]
fn a_container_goes_from_created_to_running_to_stopped() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.create("c1", bundle.path()).unwrap();
        let state = runtime.state("c1").unwrap();
        assert_eq!(state["status"], "created");
        assert_eq!(state["id"], "c1");
        assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
        assert!(state["pid"].as_i64().unwrap() > 0);
        assert!(state["ociVersion"].is_string());
        runtime.succeed(&["start", "c1"]).unwrap();
        assert_eq!(runtime.state("c1").unwrap()["status"], "running");
        runtime.succeed(&["kill", "c1", "KILL"]).unwrap();
        runtime.wait("c1", "stopped").unwrap();
        runtime.succeed(&["delete", "c1"]).unwrap();
        assert_ne!(runtime.call(&["state", "c1"]).unwrap().status, Some(0));
    });
}

#[test]
fn the_exit_status_of_run_is_the_process_s() {
    on_every_runtime(|runtime, bundles| {
        for (name, script, status) in
            [("zero", "exit 0", 0), ("some", "exit 42", 42), ("signal", "kill -TERM $$; sleep 9", 128 + 15)]
        {
            // The shell is not pid 1: a first process ignores signals that it does not handle.
            let script = format!("sh -c '{script}'; exit $?");
            let bundle = Bundle::make(&bundles.join(name), &["sh", "-c", &script], |_| {}).unwrap();
            let outcome = runtime.run(name, bundle.path()).unwrap();
            assert_eq!(outcome.status, Some(status), "{name}: {outcome:?}");
        }
    });
}

#[test]
fn a_process_sees_its_arguments_environment_folder_and_host_name() {
    on_every_runtime(|runtime, bundles| {
        let bundle = Bundle::make(
            &bundles.join("see"),
            &["sh", "-c", "echo $0:$1:$WORD; pwd; hostname", "a b", "c"],
            |config| {
                config["process"]["env"] = json!(["PATH=/bin", "WORD=two words"]);
                config["process"]["cwd"] = json!("/tmp");
            },
        )
        .unwrap();
        let outcome = runtime.run("see", bundle.path()).unwrap();
        assert_eq!(outcome.stdout, "a b:c:two words\n/tmp\nisolated\n", "{outcome:?}");
    });
}

#[test]
fn a_process_is_alone_in_its_namespaces() {
    on_every_runtime(|runtime, bundles| {
        let script = "echo $$; cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' \\n'; echo; ls /proc | grep -c '^[0-9]'";
        let bundle = Bundle::make(&bundles.join("alone"), &["sh", "-c", script], |_| {}).unwrap();
        let outcome = runtime.run("alone", bundle.path()).unwrap();
        let lines: Vec<_> = outcome.stdout.lines().collect();
        assert_eq!(lines[0], "1", "{outcome:?}");
        assert!(lines[1].contains("lo") && !lines[1].contains("eth"), "{outcome:?}");
        assert!(lines[2].parse::<u32>().unwrap() <= 4, "{outcome:?}");
    });
}

#[test]
fn masked_and_read_only_paths_are_so() {
    on_every_runtime(|runtime, bundles| {
        let script = "wc -c < /etc/group; ls /root | wc -l; echo 1 > /proc/sys/kernel/domainname; echo $?; touch /sys/x; echo $?";
        let bundle = Bundle::make(&bundles.join("masked"), &["sh", "-c", script], |config| {
            config["linux"]["maskedPaths"] = json!(["/etc/group", "/root", "/etc/absent"]);
        })
        .unwrap();
        let outcome = runtime.run("masked", bundle.path()).unwrap();
        assert_eq!(outcome.stdout, "0\n0\n1\n1\n", "{outcome:?}");
    });
}

#[test]
fn a_read_only_root_refuses_writes_and_a_mount_on_it_takes_them() {
    on_every_runtime(|runtime, bundles| {
        let script = "echo x > /file; echo $?; echo y > /tmp/file && cat /tmp/file";
        let bundle = Bundle::make(&bundles.join("readonly"), &["sh", "-c", script], |config| {
            config["root"]["readonly"] = json!(true);
            let tmpfs =
                json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"] });
            config["mounts"].as_array_mut().unwrap().push(tmpfs);
        })
        .unwrap();
        let outcome = runtime.run("readonly", bundle.path()).unwrap();
        assert_eq!(outcome.stdout, "1\ny\n", "{outcome:?}");
    });
}

#[test]
fn a_user_has_the_ids_and_no_capabilities() {
    on_every_runtime(|runtime, bundles| {
        let script = "id -u; id -g; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status";
        let bundle = Bundle::make(&bundles.join("user"), &["sh", "-c", script], |config| {
            config["process"]["user"] = json!({ "uid": 1234, "gid": 2345, "additionalGids": [77] });
        })
        .unwrap();
        let outcome = runtime.run("user", bundle.path()).unwrap();
        let words: Vec<_> = outcome.stdout.split_whitespace().collect();
        assert_eq!(words, ["1234", "2345", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"], "{outcome:?}");
    });
}

#[test]
fn devices_are_the_default_ones_and_no_others_open() {
    on_every_runtime(|runtime, bundles| {
        let script = "head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo null; mknod /dev/mem2 c 1 1 && head -c 1 /dev/mem2; echo $?";
        let bundle = Bundle::make(&bundles.join("devices"), &["sh", "-c", script], |_| {}).unwrap();
        let outcome = runtime.run("devices", bundle.path()).unwrap();
        assert_eq!(outcome.stdout, "4\nnull\n1\n", "{outcome:?}");
    });
}

#[test]
fn limits_of_memory_and_processes_are_in_the_cgroup() {
    on_every_runtime(|runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("limits"), &["sleep", "1000"], |config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
            config["linux"]["resources"]["pids"] = json!({ "limit": 33 });
        })
        .unwrap();
        runtime.create("limits", bundle.path()).unwrap();
        let pid = runtime.state("limits").unwrap()["pid"].as_i64().unwrap();
        let read = |v1: (&str, &str), v2: &str| cgroup_value(pid, v1, v2);
        assert_eq!(read(("memory", "memory.limit_in_bytes"), "memory.max"), (64 << 20).to_string());
        assert_eq!(read(("pids", "pids.max"), "pids.max"), "33");
        runtime.succeed(&["delete", "--force", "limits"]).unwrap();
    });
}

/// Reads a value of a process's cgroup, in the v1 hierarchy of a controller, or in the v2 hierarchy.
fn cgroup_value(pid: i64, (controller, v1_file): (&str, &str), v2_file: &str) -> String {
    let membership = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let v1 = membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        (fields.next()?.split(',').any(|name| name == controller)).then(|| fields.next())?
    });
    let path = match v1 {
        Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1_file}"),
        None => {
            let path = membership.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
            format!("/sys/fs/cgroup{path}/{v2_file}")
        }
    };
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

#[test]
fn exec_joins_the_container_and_returns_its_own_status() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.create("ex", bundle.path()).unwrap();
        runtime.succeed(&["start", "ex"]).unwrap();
        // A peer's start returns when the gate is open, ours when the program runs: the peer is waited for.
        let script = "until read name < /proc/1/comm && [ $name = sleep ]; do :; done; \
                      hostname; tr '\\0' ' ' < /proc/1/cmdline; exit 7";
        let outcome = runtime.call(&["exec", "ex", "sh", "-c", script]).unwrap();
        assert_eq!(
            (outcome.status, outcome.stdout.as_str()),
            (Some(7), "isolated\nsleep 1000 "),
            "{outcome:?}"
        );
        let outcome = runtime
            .call(&[
                "exec",
                "--env",
                "WORD=x",
                "--cwd",
                "/tmp",
                "--user",
                "5:6",
                "ex",
                "/bin/sh",
                "-c",
                "echo $WORD; pwd; id -u; id -g",
            ])
            .unwrap();
        assert_eq!(outcome.stdout, "x\n/tmp\n5\n6\n", "{outcome:?}");
        runtime.succeed(&["delete", "--force", "ex"]).unwrap();
    });
}

#[test]
fn delete_of_a_running_container_is_refused_without_force() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.create("busy", bundle.path()).unwrap();
        runtime.succeed(&["start", "busy"]).unwrap();
        let refused = runtime.call(&["delete", "busy"]).unwrap();
        assert_ne!(refused.status, Some(0), "{refused:?}");
        assert_eq!(runtime.state("busy").unwrap()["status"], "running");
        runtime.succeed(&["delete", "--force", "busy"]).unwrap();
    });
}

#[test]
fn a_second_container_of_the_same_name_is_refused() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.create("twin", bundle.path()).unwrap();
        let refused = runtime.call(&["create", "--bundle", bundle.path().to_str().unwrap(), "twin"]).unwrap();
        assert_ne!(refused.status, Some(0), "{refused:?}");
        assert_eq!(runtime.state("twin").unwrap()["status"], "created");
        runtime.succeed(&["delete", "--force", "twin"]).unwrap();
    });
}

#[test]
fn a_container_that_was_never_started_can_be_deleted_by_force() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.create("waiting", bundle.path()).unwrap();
        runtime.succeed(&["delete", "--force", "waiting"]).unwrap();
    });
}

#[test]
fn operations_on_an_unknown_container_fail() {
    on_every_runtime(|runtime, _| {
        for arguments in [
            &["state", "nobody"][..],
            &["start", "nobody"],
            &["kill", "nobody", "KILL"],
            &["delete", "nobody"],
        ] {
            let outcome = runtime.call(arguments).unwrap();
            assert_ne!(outcome.status, Some(0), "{arguments:?}");
            assert!(!outcome.stderr.is_empty(), "{arguments:?}");
        }
    });
}

#[test]
fn a_command_that_does_not_exist_fails_create_and_leaves_nothing() {
    on_every_runtime(|runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("absent"), &["/bin/absent"], |_| {}).unwrap();
        let outcome = runtime.run("absent", bundle.path()).unwrap();
        assert_ne!(outcome.status, Some(0), "{outcome:?}");
        assert!(outcome.stderr.contains("/bin/absent"), "{outcome:?}");
        let _ = runtime.call(&["delete", "--force", "absent"]);
    });
}

#[test]
fn hooks_run_at_their_moments_and_see_the_state() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        let log = bundle.path().join("log");
        let hook = |moment: &str| -> Value {
            let script = format!(
                "echo {moment} $(grep -o '\"status\": *\"[a-z]*\"' | cut -d'\"' -f4) >> {}",
                log.display()
            );
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
        };
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
        config["hooks"] = json!({
            "createRuntime": hook("createRuntime"), "poststart": hook("poststart"), "poststop": hook("poststop")
        });
        bundle.configure(&config).unwrap();
        runtime.create("hooked", bundle.path()).unwrap();
        // runc 1.1 runs poststart when it creates, against the specification.
        if runtime.is_ours() {
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "createRuntime creating\n");
        }
        runtime.succeed(&["start", "hooked"]).unwrap();
        runtime.succeed(&["kill", "hooked", "KILL"]).unwrap();
        runtime.wait("hooked", "stopped").unwrap();
        runtime.succeed(&["delete", "hooked"]).unwrap();
        let moments: Vec<_> = std::fs::read_to_string(&log)
            .unwrap()
            .lines()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(moments, ["createRuntime", "poststart", "poststop"]);
    });
}

#[test]
fn pause_stops_the_processes_and_resume_continues_them() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.create("frozen", bundle.path()).unwrap();
        runtime.succeed(&["start", "frozen"]).unwrap();
        runtime.succeed(&["pause", "frozen"]).unwrap();
        assert_eq!(runtime.state("frozen").unwrap()["status"], "paused");
        runtime.succeed(&["resume", "frozen"]).unwrap();
        assert_eq!(runtime.state("frozen").unwrap()["status"], "running");
        runtime.succeed(&["delete", "--force", "frozen"]).unwrap();
    });
}

#[test]
fn the_pid_file_names_the_process() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        let file = bundle.path().join("pid");
        runtime
            .succeed(&[
                "create",
                "--bundle",
                bundle.path().to_str().unwrap(),
                "--pid-file",
                file.to_str().unwrap(),
                "p",
            ])
            .unwrap();
        let pid: i64 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        assert_eq!(runtime.state("p").unwrap()["pid"], pid);
        assert!(process::descendants().iter().any(|process| i64::from(process.pid) == pid));
        runtime.succeed(&["delete", "--force", "p"]).unwrap();
    });
}

#[test]
fn a_configuration_that_is_not_json_is_refused_with_its_place() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        std::fs::write(bundle.path().join("config.json"), "{ \"ociVersion\": \"1.0.2\", \"process\": 7 }")
            .unwrap();
        let outcome = runtime.run("broken", bundle.path()).unwrap();
        assert_ne!(outcome.status, Some(0));
        if runtime.is_ours() {
            assert!(outcome.stderr.contains("process"), "{outcome:?}");
        }
    });
}

/// What every runtime does and no specification asks for: programs that listen on 127.0.0.1 count on it.
#[test]
fn a_new_network_namespace_has_its_loopback_up() {
    on_every_runtime(|runtime, bundles| {
        let script = "cat /sys/class/net/lo/flags";
        let bundle = Bundle::make(&bundles.join("loopback"), &["sh", "-c", script], |_| {}).unwrap();
        let outcome = runtime.run("loopback", bundle.path()).unwrap();
        assert_eq!(outcome.stdout, "0x9\n", "IFF_UP and IFF_LOOPBACK: {outcome:?}");
    });
}

/// Programs open `/dev/stdout` and `/dev/stderr` again, as web servers do for their logs.
#[test]
fn a_user_may_open_the_standard_descriptors_again() {
    on_every_runtime(|runtime, bundles| {
        let script = "echo out > /dev/stdout && echo err > /dev/stderr";
        let bundle = Bundle::make(&bundles.join("again"), &["sh", "-c", script], |config| {
            config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        })
        .unwrap();
        let outcome = runtime.run("again", bundle.path()).unwrap();
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(0), "out\n"), "{outcome:?}");
    });
}

/// containerd's `--null-io` gives a null device that only reads as standard output too. And it is the host's: whoever holds it
/// could change its mode.
#[test]
fn a_null_device_among_the_standard_descriptors_becomes_the_container_s() {
    on_every_runtime(|runtime, bundles| {
        let script = "echo out && echo err >&2 && chmod 400 /proc/self/fd/0 && stat -c %a /dev/null >/told";
        let bundle = Bundle::make(&bundles.join("null"), &["sh", "-c", script], |_| {}).unwrap();
        let mode = || std::fs::metadata("/dev/null").unwrap().permissions().mode() & 0o777;
        let before = mode();
        let null = || std::fs::File::open("/dev/null").unwrap();
        let path = bundle.path().to_string_lossy();
        let mut command = runtime.command(&["run", "--detach", "--bundle", &path, "null"]);
        let status = command.stdout(null()).stderr(null()).status().unwrap();
        runtime.wait("null", "stopped").unwrap();
        let after = mode();
        std::fs::set_permissions("/dev/null", PermissionsExt::from_mode(before)).unwrap();
        runtime.succeed(&["delete", "null"]).unwrap();
        assert_eq!((status.code(), after), (Some(0), before), "{}", runtime.name());
        assert_eq!(std::fs::read_to_string(bundle.rootfs().join("told")).unwrap(), "400\n");
    });
}

/// Docker tells its users what they have mixed up by the kernel's words for it.
#[test]
fn a_folder_on_a_file_and_a_file_on_a_folder_are_no_directories() {
    on_every_runtime(|runtime, bundles| {
        let file = bundles.join("file");
        std::fs::write(&file, "").unwrap();
        for (source, destination) in [(bundles, "/file"), (file.as_path(), "/tmp")] {
            let bundle = Bundle::make(&bundles.join("mixed"), &["true"], |config| {
                let mount = json!({ "destination": destination, "source": source, "options": ["rbind"] });
                config["mounts"].as_array_mut().unwrap().push(mount);
            })
            .unwrap();
            std::fs::write(bundle.rootfs().join("file"), "").unwrap();
            let outcome = runtime.run("mixed", bundle.path()).unwrap();
            assert!(outcome.status != Some(0), "{outcome:?}");
            assert!(outcome.stderr.to_lowercase().contains("not a directory"), "{outcome:?}");
            std::fs::remove_dir_all(bundle.path()).unwrap();
        }
    });
}

/// The kernel ends it before it can tell, or does not make it: then what is known is said.
#[test]
fn a_start_that_the_memory_limit_ends_says_so() {
    oci::on_each(Runtime::is_ours, |runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("tight"), &["true"], |config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": 4096 });
        })
        .unwrap();
        let outcome = runtime.run("tight", bundle.path()).unwrap();
        assert!(outcome.status != Some(0), "{outcome:?}");
        let words = ["memory limit", "cannot allocate memory"];
        assert!(words.iter().any(|words| outcome.stderr.contains(words)), "{outcome:?}");
    })
    .unwrap();
}

/// runtime.md, "Lifecycle", 9 and 12 to 13: stopped, destroyed, and the poststop hooks told.
#[test]
fn a_failing_poststart_hook_destroys_the_container_and_its_poststop_hooks_run() {
    on_every_runtime(|runtime, bundles| {
        // crun 1.8 goes on after a hook that failed.
        if runtime.name() == "crun" {
            return;
        }
        for (id, start) in [("apart", true), ("at-once", false)] {
            let log = bundles.join(format!("{id}.log"));
            let script = format!("echo told >> {}", log.display());
            let bundle = Bundle::make(&bundles.join(id), &["sleep", "1000"], |config| {
                config["hooks"] = json!({
                    "poststart": [{ "path": "/bin/false" }],
                    "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }],
                });
            })
            .unwrap();
            let failed = if start {
                // runc 1.1 runs the hook when it creates.
                runtime.create(id, bundle.path()).is_err()
                    || runtime.call(&["start", id]).unwrap().status != Some(0)
            } else {
                runtime.run(id, bundle.path()).unwrap().status != Some(0)
            };
            assert!(failed, "{id}");
            assert_ne!(runtime.call(&["state", id]).unwrap().status, Some(0), "{id} is still there");
            assert_eq!(std::fs::read_to_string(&log).unwrap_or_default(), "told\n", "{id}");
        }
    });
}

/// Annotations of crun that callers of it use: podman's `--group-add keep-groups`, and where hooks print.
#[test]
fn groups_stay_and_hooks_print_where_annotations_say_so() {
    on_every_runtime(|runtime, bundles| {
        if !runtime.is_ours() {
            return;
        }
        let log = bundles.join("hooks.log");
        let bundle = Bundle::make(&bundles.join("says"), &["id", "-G"], |config| {
            config["annotations"] = json!({
                "run.oci.keep_original_groups": "1",
                "run.oci.hooks.stdout": log, "run.oci.hooks.stderr": log,
            });
            let script = "echo out; echo err >&2";
            config["hooks"] =
                json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
        })
        .unwrap();
        let call = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "says"]);
        let mut grouped = std::process::Command::new("setpriv");
        grouped.args(["--groups", "4242"]).arg(call.get_program()).args(call.get_args());
        let outcome = oci::outcome(&mut grouped).unwrap();
        assert_eq!(outcome.stdout, "0 4242\n", "{outcome:?}");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "out\nerr\n");
        // A FIFO that nobody reads is refused, and nobody is kept waiting for a reader.
        let (fifo, mode) = (bundles.join("fifo"), rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let bundle = Bundle::make(&bundles.join("waits"), &["true"], |config| {
            config["annotations"] = json!({ "run.oci.hooks.stdout": fifo });
            config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }] });
        });
        let outcome = runtime.run("waits", bundle.unwrap().path()).unwrap();
        let told = outcome.stderr.contains("run.oci.hooks.stdout");
        assert!(outcome.status != Some(0) && told, "{outcome:?}");
    });
}

/// podman 4 tells by these words whether a command is not there, 127, or is no program, 126.
#[test]
fn an_exec_of_a_folder_is_denied_and_of_nothing_not_found() {
    on_every_runtime(|runtime, bundles| {
        // crun 1.8 has words of its own.
        if runtime.name() == "crun" {
            return;
        }
        let bundle = sleeper(bundles);
        runtime.create("words", bundle.path()).unwrap();
        runtime.succeed(&["start", "words"]).unwrap();
        for (program, words) in [("/etc", "permission denied"), ("/absent", "no such file or directory")] {
            let outcome = runtime.call(&["exec", "words", program]).unwrap();
            assert!(outcome.status != Some(0) && outcome.stderr.contains(words), "{outcome:?}");
        }
        runtime.succeed(&["delete", "--force", "words"]).unwrap();
    });
}

/// As with every runtime: what has a field is not set as a kernel parameter too.
#[test]
fn a_host_name_among_the_kernel_parameters_is_refused() {
    on_every_runtime(|runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("named"), &["true"], |config| {
            config["linux"]["sysctl"] = json!({ "kernel.hostname": "other" });
        })
        .unwrap();
        let outcome = runtime.run("named", bundle.path()).unwrap();
        assert!(outcome.status != Some(0) && outcome.stderr.contains("hostname"), "{outcome:?}");
    });
}
