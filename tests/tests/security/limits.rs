//! CG, FD, ID and SC: limits, what is inherited, and who somebody is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use std::time::{Duration, Instant};

use cofferdam_tests::oci::{Runtime, outcome};
use cofferdam_tests::pace;
use serde_json::{Value, json};

use crate::{RAN, assert_ran, assert_refused, attack, bundle, configuration, mount, reconfigure, sleeper};

/// How long a limit that cannot work may take to say so.
const SOON: Duration = Duration::from_secs(60);

fn start(runtime: &Runtime, id: &str, bundle: &cofferdam_tests::bundle::Bundle) {
    runtime.create(id, bundle.path()).unwrap();
    runtime.succeed(&["start", id]).unwrap();
}

/// A stopped container's cgroup may be another's by now: that one is not ended with it.
#[test]
fn cg_05_a_cgroup_that_was_taken_over_is_not_the_stopped_container_s_to_kill() {
    attack(|runtime, files| {
        let first = bundle(files, "first", "true", |_| {});
        let path = configuration(&first)["linux"]["cgroupsPath"].clone();
        let second = sleeper(files, "second", |config| config["linux"]["cgroupsPath"] = path.clone());
        for force in [false, true] {
            start(runtime, "first", &first);
            runtime.wait("first", "stopped").unwrap();
            start(runtime, "second", &second);
            runtime.succeed(&["kill", "--all", "first", "KILL"]).unwrap();
            let delete = if force { &["delete", "--force", "first"][..] } else { &["delete", "first"] };
            runtime.succeed(delete).unwrap();
            assert_eq!(runtime.state("second").unwrap()["status"], "running", "force {force}");
            runtime.succeed(&["exec", "second", "true"]).unwrap();
            runtime.succeed(&["delete", "--force", "second"]).unwrap();
            cofferdam_tests::process::reap();
        }
    });
}

/// State roots do not know of one another, but their containers may be given the same cgroup.
#[test]
fn cg_05_a_cgroup_of_another_state_root_s_container_is_refused_or_taken_over_when_it_is_free() {
    attack(|runtime, files| {
        let other = Runtime::ours(&files.join("other-root"));
        std::fs::create_dir_all(other.root().parent().unwrap()).unwrap();
        let first = bundle(files, "first", "read line", |_| {});
        let path = configuration(&first)["linux"]["cgroupsPath"].clone();
        let second = sleeper(files, "second", |config| config["linux"]["cgroupsPath"] = path.clone());
        let refused = |case: &str| {
            let outcome =
                other.call(&["create", "--bundle", second.path().to_str().unwrap(), "second"]).unwrap();
            assert_refused(&outcome, case);
            assert!(outcome.stderr.contains("cgroup"), "{case}: {outcome:?}");
            assert_eq!(other.call(&["list", "-q"]).unwrap().stdout, "", "{case}: left behind");
        };
        runtime.create("first", first.path()).unwrap();
        refused("created");
        // Somebody moved the process out: what holds then is whose the cgroup is.
        let folder = cgroup_folder(path.as_str().unwrap());
        let pid = runtime.state("first").unwrap()["pid"].to_string();
        std::fs::write(folder.parent().unwrap().join("cgroup.procs"), pid).unwrap();
        refused("created, and elsewhere");
        runtime.succeed(&["start", "first"]).unwrap();
        runtime.wait("first", "stopped").unwrap();
        start(&other, "second", &second);
        runtime.succeed(&["delete", "--force", "first"]).unwrap();
        assert_eq!(other.state("second").unwrap()["status"], "running");
        other.succeed(&["delete", "--force", "second"]).unwrap();
        assert!(!folder.exists(), "left behind");
        cofferdam_tests::process::reap();
    });
}

/// The cgroup in the hierarchy that lists processes first.
fn cgroup_folder(path: &str) -> std::path::PathBuf {
    let base = Path::new("/sys/fs/cgroup");
    let unified = base.join("unified");
    (if unified.exists() { unified.as_path() } else { base }).join(&path[1..])
}

/// Whoever enters a frozen cgroup stops for good: it is refused, and left as it was found.
#[test]
fn cg_05_a_frozen_cgroup_is_refused_and_not_left_with_anybody_in_it() {
    attack(|runtime, files| {
        let bundle = bundle(files, "frozen", "", |_| {});
        let path = configuration(&bundle)["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
        let v1 = Path::new("/sys/fs/cgroup/freezer");
        let (folder, file, on) = if v1.exists() {
            (v1.join(&path[1..]), "freezer.state", "FROZEN")
        } else {
            (Path::new("/sys/fs/cgroup").join(&path[1..]), "cgroup.freeze", "1")
        };
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(file), on).unwrap();
        let begin = Instant::now();
        assert_refused(&runtime.run("c", bundle.path()).unwrap(), "a frozen cgroup");
        assert!(begin.elapsed() < pace::limit(SOON));
        assert_eq!(std::fs::read_to_string(folder.join("cgroup.procs")).unwrap(), "");
        assert!(folder.exists(), "a stranger's cgroup was removed");
        std::fs::remove_dir(&folder).unwrap();
    });
}

#[test]
fn cg_07_limits_that_nothing_can_live_under_are_told_soon() {
    attack(|runtime, files| {
        let bundle = bundle(files, "small", "", |_| {});
        for resources in [
            json!({ "memory": { "limit": 4096 } }),
            json!({ "memory": { "limit": 1 << 20 } }),
            json!({ "memory": { "limit": 0 } }),
            json!({ "pids": { "limit": 0 } }),
            json!({ "cpu": { "quota": 1000, "period": 1_000_000 } }),
            json!({ "cpu": { "quota": 1, "period": 1 } }),
            json!({ "cpu": { "cpus": "99999" } }),
            json!({ "cpu": { "cpus": "" } }),
            json!({ "cpu": { "cpus": "0-", "mems": "x" } }),
        ] {
            reconfigure(&bundle, |config| config["linux"]["resources"] = resources.clone());
            let begin = Instant::now();
            let outcome = runtime.run("c", bundle.path()).unwrap();
            // A thousandth of an emulated processor is little.
            assert!(begin.elapsed() < pace::limit(SOON), "{resources} took {:?}", begin.elapsed());
            assert!(outcome.status.is_some(), "{resources}: {outcome:?}");
            assert!(outcome.stdout.contains(RAN) || outcome.status != Some(0), "{resources}: {outcome:?}");
            let _ = runtime.call(&["delete", "--force", "c"]).unwrap();
        }
    });
}

#[test]
fn cg_10_updates_open_no_device_for_a_moment() {
    attack(|runtime, files| {
        let script =
            "mknod /node c 1 2; while :; do (exec 3<>/node) 2>/dev/null && echo opened >> /tmp/result; done";
        let bundle = bundle(files, "window", script, |_| {});
        start(runtime, "c", &bundle);
        for round in 0..20 {
            let outcome =
                runtime.call(&["update", "--pids-limit", &format!("{}", 100 + round), "c"]).unwrap();
            assert_eq!(outcome.status, Some(0), "{outcome:?}");
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        assert!(!bundle.rootfs().join("tmp/result").exists(), "a device was open");
    });
}

/// Whatever a container has made below its cgroup goes with it.
#[test]
fn cg_14_deep_and_many_cgroups_below_are_removed() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "nested", |_| {});
        let path = configuration(&bundle)["linux"]["cgroupsPath"].as_str().unwrap().to_owned();
        start(runtime, "c", &bundle);
        for hierarchy in ["pids", "freezer", "unified", "."] {
            let own = Path::new("/sys/fs/cgroup").join(hierarchy).join(&path[1..]);
            if own.exists() {
                let mut deep = own.clone();
                for depth in 0..40 {
                    deep = deep.join(format!("d{depth}"));
                    std::fs::create_dir(&deep).unwrap();
                    std::fs::create_dir(own.join(format!("w{depth}"))).unwrap();
                }
            }
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

/// What a caller ignores, blocks or masks is not the container's.
#[test]
fn fd_08_the_caller_s_signals_umask_and_terminal_stay_outside() {
    attack(|runtime, files| {
        let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; umask; cut -d' ' -f7 /proc/self/stat";
        let bundle = bundle(files, "attributes", script, |_| {});
        let run = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        let caller = "trap '' HUP INT QUIT TERM USR1 USR2 CHLD PIPE WINCH TSTP TTIN TTOU RTMIN; umask 0";
        let outcome = outcome(&mut crate::after_shell(caller, &run)).unwrap();
        assert_ran(&outcome, "attributes");
        for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "0022"] {
            assert!(outcome.stdout.lines().any(|found| found == line), "{line}: {outcome:?}");
        }
    });
}

#[test]
fn id_09_set_user_id_programs_gain_nothing_that_was_not_left() {
    attack(|runtime, files| {
        // The shell drops what it did not ask for, id(1) does not.
        let bundle = bundle(files, "setuid", "/su/id -u; /su/grep CapEff /proc/self/status", |_| {});
        let folder = bundle.rootfs().join("su");
        std::fs::create_dir(&folder).unwrap();
        for name in ["id", "grep"] {
            std::fs::copy("/bin/busybox", folder.join(name)).unwrap();
            std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o4755)).unwrap();
        }
        for (no_new_privileges, keep) in [(true, true), (false, true), (false, false)] {
            reconfigure(&bundle, |config| {
                config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
                config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                let kept = if keep { json!(["CAP_KILL"]) } else { json!([]) };
                config["process"]["capabilities"] = json!({ "bounding": kept });
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, "setuid");
            let lines: Vec<&str> = outcome.stdout.lines().skip(1).collect();
            // busybox gives up being root for applets that need not be.
            assert!(!no_new_privileges || lines[0] == "1000", "{no_new_privileges}: {outcome:?}");
            let effective = u64::from_str_radix(lines[1].rsplit('\t').next().unwrap(), 16).unwrap();
            let allowed = if no_new_privileges || !keep { 0 } else { 1 << 5 };
            assert_eq!(effective & !allowed, 0, "{no_new_privileges} {keep}: {outcome:?}");
        }
    });
}

#[test]
fn id_12_a_source_that_the_mapped_root_could_not_reach_is_opened_for_it_and_left_as_it_is() {
    attack(|runtime, files| {
        let secret = files.join("secret");
        std::fs::create_dir_all(secret.join("volume")).unwrap();
        std::fs::write(secret.join("volume/name"), "reached\n").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).unwrap();
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        let bundle = bundle(files, "mapped", "cat /v/name; ls /proc/1/root/ >/dev/null", |config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map.clone();
            mount(config, "/v", "bind", secret.join("volume").to_str().unwrap(), &["rbind", "ro"]);
        });
        // What the mapped root may not make in a root that is not its own has to be there.
        std::fs::create_dir(bundle.rootfs().join("v")).unwrap();
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert!(outcome.stdout.contains("reached"), "{outcome:?}");
        assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o700);
    });
}

#[test]
fn id_15_and_16_limits_and_priorities_out_of_range_are_refused() {
    attack(|runtime, files| {
        let bundle = bundle(files, "ranges", "ulimit -n", |_| {});
        let plain = configuration(&bundle);
        let core = |soft: u64, hard: u64| json!({ "type": "RLIMIT_CORE", "soft": soft, "hard": hard });
        let refused: Vec<(&str, Value)> = vec![
            ("rlimits", json!([core(0, 0), core(0, 0)])),
            ("rlimits", json!([core(1, 0)])),
            ("rlimits", json!([{ "type": "RLIMIT_NOSUCH", "soft": 0, "hard": 0 }])),
            ("rlimits", json!([{ "type": "RLIMIT_CORE", "soft": -1, "hard": 0 }])),
            ("ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 })),
            ("ioPriority", json!({ "class": "IOPRIO_CLASS_NONSENSE", "priority": 1 })),
            ("oomScoreAdj", json!(100_000)),
        ];
        for (key, value) in refused {
            let mut config = plain.clone();
            config["process"][key] = value.clone();
            bundle.configure(&config).unwrap();
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), &format!("{key} {value}"));
        }
        let mut config = plain;
        config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 33, "hard": 44 }]);
        bundle.configure(&config).unwrap();
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert!(outcome.stdout.contains("33"), "{outcome:?}");
    });
}

/// The filter is the container's alone.
#[test]
fn sc_07_the_runtime_itself_is_not_filtered() {
    attack(|runtime, files| {
        let bundle = bundle(files, "own", "echo > /tmp/ready; sleep 1000", |config| {
            config["linux"]["seccomp"] = crate::seccomp::without(&["mkdir"]);
        });
        let mut run =
            runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]).spawn().unwrap();
        let deadline = Instant::now() + pace::limit(SOON);
        while !bundle.rootfs().join("tmp/ready").exists() {
            assert!(Instant::now() < deadline, "it does not run");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mode = |pid: i64| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().find_map(|line| line.strip_prefix("Seccomp:\t")).unwrap().to_owned()
        };
        runtime.wait("c", "running").unwrap();
        assert_eq!(mode(i64::from(run.id())), "0");
        assert_eq!(mode(runtime.state("c").unwrap()["pid"].as_i64().unwrap()), "2");
        runtime.succeed(&["kill", "c", "KILL"]).unwrap();
        run.wait().unwrap();
    });
}

/// CF-07: whoever creates a container with hardly a descriptor left is told so, and nothing stays.
#[test]
fn cf_07_a_create_that_runs_out_of_descriptors_leaves_nothing() {
    /// More than a create has open at any time.
    const ENOUGH: usize = 56;
    attack(|runtime, files| {
        let bundle = bundle(files, "few", "true", |_| {});
        let step = pace::rounds(1, 7);
        for limit in (3..=ENOUGH).step_by(step as usize) {
            // A cgroup of its own for each: one that was left would serve the next. Its name is none that a suite beside this one
            // takes for its own and removes while it is empty: clone3 says "no such file" then.
            let cgroup = format!("/few-{}-{limit}", std::process::id());
            reconfigure(&bundle, |config| config["linux"]["cgroupsPath"] = cgroup.as_str().into());
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]).arg(runtime.program());
            shell
                .arg("--root")
                .arg(runtime.root())
                .args(["create", "--bundle"])
                .arg(bundle.path())
                .arg("few");
            let created = outcome(&mut shell).unwrap();
            assert!(
                created.status == Some(0) || created.stderr.contains("too many open files"),
                "{limit}: {created:?}"
            );
            assert!(created.status == Some(0) || limit < ENOUGH, "{created:?}");
            runtime.succeed(&["delete", "--force", "few"]).unwrap();
            cofferdam_tests::process::reap();
            // The census knows cgroups by the name that this one must not have.
            let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
            let left: Vec<_> = hierarchies
                .flat_map(|path| [path.join(&cgroup[1..]), path])
                .filter(|path| path.ends_with(&cgroup[1..]) && path.exists())
                .collect();
            assert!(left.is_empty(), "{limit}: {left:?}");
        }
    });
}

/// A call of the runtime in which some of its own system calls fail, as strace's `-e` says.
fn call_with(runtime: &Runtime, faults: &[&str], arguments: &[&str]) -> cofferdam_tests::oci::Outcome {
    let mut strace = std::process::Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e", "signal=none"]).args(faults);
    strace.arg(runtime.program()).arg("--root").arg(runtime.root()).args(arguments);
    outcome(&mut strace).unwrap()
}

/// CF-13: a hook needs threads that attend to it. Where there can be none it is ended, and delete goes on.
#[test]
fn cf_13_a_delete_without_a_thread_for_its_hook_deletes() {
    if !cofferdam_tests::needs::programs(&["strace"]) {
        return;
    }
    attack(|runtime, files| {
        let bundle = sleeper(files, "hooked", |config| {
            config["hooks"] = json!({ "poststop": [{ "path": "/bin/sleep", "args": ["sleep", "1000"] }] });
        });
        for threads in ["2", "3"] {
            start(runtime, "c", &bundle);
            let fault = format!("inject=clone3:error=EAGAIN:when={threads}");
            let deleted = call_with(runtime, &["-e", &fault], &["delete", "--force", "c"]);
            assert_eq!(deleted.status, Some(0), "{deleted:?}");
            assert!(deleted.stderr.contains("no thread could be started"), "{deleted:?}");
            assert_ne!(runtime.call(&["state", "c"]).unwrap().status, Some(0));
            cofferdam_tests::process::reap();
        }
    });
}

/// LS-01: a module that cannot be asked about is taken to be there, so that its labels are applied or refused.
#[test]
fn ls_01_a_security_module_that_cannot_be_asked_about_is_taken_to_be_there() {
    if !cofferdam_tests::needs::programs(&["strace"]) {
        return;
    }
    attack(|runtime, files| {
        let bundle = bundle(files, "labelled", "true", |config| {
            config["process"]["apparmorProfile"] = json!("profile");
            config["process"]["selinuxLabel"] = json!("u:r:t:s0");
        });
        let plan = ["plan", "--bundle", bundle.path().to_str().unwrap()];
        for (path, label) in [
            ("/sys/module/apparmor/parameters/enabled", "exec profile"),
            ("/sys/fs/selinux/enforce", "u:r:t:s0"),
        ] {
            let calls = "inject=open,openat,statx,newfstatat:error=ENOMEM";
            let planned = call_with(runtime, &["-P", path, "-e", calls], &plan);
            let steps = planned.stdout.lines().filter(|line| line.contains("label") && line.contains(label));
            assert_eq!(steps.count(), 1, "{path}: {planned:?}");
        }
    });
}
