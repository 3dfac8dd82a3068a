//! ST, HK and CO: the state folder, hooks and consoles, once more.

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use cofferdam_tests::oci::{Runtime, outcome};
use cofferdam_tests::world::succeed;
use serde_json::{Value, json};

use crate::{Canary, assert_ran, assert_refused, attack, bundle, configuration, reconfigure, sleeper};

fn lives(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn st_03_a_state_root_that_others_could_write_is_refused() {
    attack(|_, files| {
        let root = files.join("root");
        let runtime = Runtime::ours(&root);
        let state = runtime.root();
        std::fs::create_dir(&root).unwrap();
        let bundle = sleeper(files, "modes", |_| {});
        runtime.create("c", bundle.path()).unwrap();
        assert_eq!(std::fs::metadata(state).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(state.join("c")).unwrap().permissions().mode() & 0o777, 0o700);
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        for mode in [0o770, 0o707, 0o777, 0o1777] {
            std::fs::set_permissions(state, PermissionsExt::from_mode(mode)).unwrap();
            assert_refused(&runtime.call(&["list"]).unwrap(), &format!("mode {mode:o}"));
        }
        std::fs::remove_dir(state).unwrap();
        for shape in ["file", "link", "somebody's"] {
            match shape {
                "file" => std::fs::write(state, "").unwrap(),
                "link" => symlink(files, state).unwrap(),
                _ => {
                    std::fs::create_dir(state).unwrap();
                    std::os::unix::fs::chown(state, Some(65534), Some(65534)).unwrap();
                }
            }
            assert_refused(&runtime.call(&["list"]).unwrap(), shape);
            let _ = std::fs::remove_file(state);
        }
        std::fs::remove_dir(state).unwrap();
    });
}

/// Where nothing else leads to the first process, a state file that anybody has edited must not make us forget it.
#[test]
fn st_05_without_cgroups_an_edited_state_file_does_not_hide_the_first_process() {
    attack(|runtime, files| {
        for (index, pid) in
            [json!(0), json!(1), json!(i32::MAX), json!(std::process::id())].into_iter().enumerate()
        {
            let bundle = sleeper(files, &format!("forged{index}"), |_| {});
            let path = bundle.path().to_str().unwrap();
            let call = |arguments: &[&str]| {
                let mut all = vec!["--cgroup-manager", "disabled"];
                all.extend(arguments);
                runtime.call(&all).unwrap()
            };
            let created = call(&["create", "--bundle", path, "c"]);
            assert_eq!(created.status, Some(0), "{created:?}");
            assert_eq!(call(&["start", "c"]).status, Some(0));
            let init = runtime.state("c").unwrap()["pid"].as_i64().unwrap();
            let file = runtime.root().join("c/state.json");
            let mut value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            value["pid"] = pid.clone();
            std::fs::write(&file, value.to_string()).unwrap();
            assert_refused(&call(&["kill", "c", "KILL"]), &format!("kill by pid {pid}"));
            let deleted = call(&["delete", "--force", "c"]);
            assert_eq!(deleted.status, Some(0), "{deleted:?}");
            assert!(!lives(init), "pid {pid}: the first process was forgotten");
            cofferdam_tests::process::reap();
        }
    });
}

#[test]
fn st_07_files_for_pids_and_logs_are_not_written_through_links() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = sleeper(files, "outputs", |_| {});
        let path = bundle.path().to_str().unwrap();
        let place = files.join("place");
        let device = files.join("device");
        succeed(Command::new("mknod").arg(&device).args(["c", "1", "3"])).unwrap();
        for shape in
            ["link", "dangling link", "fifo", "folder", "absent folder", "device", "link to a device"]
        {
            match shape {
                "link" => symlink(canary.path().join("secret"), &place).unwrap(),
                "dangling link" => symlink(canary.path().join("new"), &place).unwrap(),
                "fifo" => drop(succeed(Command::new("mkfifo").arg(&place)).unwrap()),
                "folder" => std::fs::create_dir(&place).unwrap(),
                "link to a device" => symlink(&device, &place).unwrap(),
                _ => {}
            }
            let file = match shape {
                "absent folder" => place.join("pid"),
                "device" => device.clone(),
                _ => place.clone(),
            };
            let created = runtime
                .call(&["create", "--pid-file", file.to_str().unwrap(), "--bundle", path, "c"])
                .unwrap();
            canary.assert_intact(shape);
            assert!(device.metadata().unwrap().file_type().is_char_device(), "{shape}");
            assert!(shape != "link to a device" || place.is_symlink(), "{shape}");
            if created.status == Some(0) {
                let pid = std::fs::read_to_string(&file).unwrap();
                assert_eq!(pid, runtime.state("c").unwrap()["pid"].to_string(), "{shape}");
                assert!(!file.symlink_metadata().unwrap().is_symlink(), "{shape}");
                runtime.succeed(&["delete", "--force", "c"]).unwrap();
            } else {
                assert_refused(&created, shape);
                assert_ne!(runtime.call(&["state", "c"]).unwrap().status, Some(0), "{shape}");
            }
            let _ = std::fs::remove_file(&place);
            let _ = std::fs::remove_dir(&place);
        }
    });
}

#[test]
fn st_08_the_gate_opens_once_and_only_for_who_is_behind_it() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "gate", |_| {});
        runtime.create("c", bundle.path()).unwrap();
        let gate = runtime.root().join("c/start.sock");
        let first = runtime.state("c").unwrap()["pid"].as_i64().unwrap();
        std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..4).map(|_| scope.spawn(|| runtime.call(&["start", "c"]).unwrap().status)).collect();
            let won = starts
                .into_iter()
                .filter(|_| true)
                .map(|start| start.join().unwrap())
                .filter(|status| *status == Some(0));
            assert_eq!(won.count(), 1, "started more than once");
        });
        assert!(lives(first) && !gate.exists());
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        cofferdam_tests::process::reap();
        // The process behind the gate is dead, or another listens in its place.
        runtime.create("c", bundle.path()).unwrap();
        runtime.succeed(&["kill", "c", "KILL"]).unwrap();
        runtime.wait("c", "stopped").unwrap();
        let _ = std::fs::remove_file(&gate);
        let listener = UnixListener::bind(&gate).unwrap();
        assert_refused(&runtime.call(&["start", "c"]).unwrap(), "a dead process");
        drop(listener);
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

#[test]
fn st_10_a_great_many_annotations_are_kept_or_refused_and_never_cut() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "annotations", |_| {});
        let plain = configuration(&bundle);
        for (count, runs) in [(1000, true), (400_000, false)] {
            let mut config = plain.clone();
            let all: serde_json::Map<_, _> =
                (0..count).map(|number| (format!("key{number}"), json!("x".repeat(100)))).collect();
            config["annotations"] = Value::Object(all);
            bundle.configure(&config).unwrap();
            let created =
                runtime.call(&["create", "--bundle", bundle.path().to_str().unwrap(), "c"]).unwrap();
            if runs {
                let state = runtime.state("c").unwrap();
                assert_eq!(state["annotations"].as_object().unwrap().len(), count);
                runtime.succeed(&["delete", "--force", "c"]).unwrap();
            } else {
                assert_refused(&created, "40 MB of annotations");
            }
        }
    });
}

#[test]
fn hk_06_a_hook_holds_three_descriptors_and_cannot_be_looked_into_until_it_runs() {
    attack(|runtime, files| {
        let log = files.join("log");
        let hook = |name: &str, log: &str| {
            let script = format!(
                "printf '%s ' {name} >> {log}; ls /proc/self/fd > {log}.fds; tr '\\n' ' ' < {log}.fds >> {log}; echo >> {log}"
            );
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
        };
        const HOST: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
        let bundle = bundle(files, "hooks", "", |config| {
            for name in HOST {
                config["hooks"][name] = hook(name, log.to_str().unwrap());
            }
            config["hooks"]["startContainer"] = hook("startContainer", "/tmp/log");
        });
        let call = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        let leaks = "exec 3</; exec 7</etc/shadow; exec 9</proc/self/ns/net; exec 11</; exec 42</";
        assert_ran(&outcome(&mut crate::after_shell(leaks, &call)).unwrap(), "hooks");
        let text = std::fs::read_to_string(&log).unwrap()
            + &std::fs::read_to_string(bundle.rootfs().join("tmp/log")).unwrap();
        // ls(1) has one more, of the folder that it lists.
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for name in HOST.iter().chain(&["startContainer"]) {
            assert!(lines.contains(&format!("{name} 0 1 2 3").as_str()), "{name}: {text}");
        }
    });
}

/// The image's program runs as a startContainer hook: with no more than the container's process is allowed.
#[test]
fn hk_04_a_start_container_hook_is_confined_as_the_container_is() {
    attack(|runtime, files| {
        let script =
            "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Groups)' /proc/self/status; cat /proc/self/cgroup";
        let bundle = bundle(files, "confined", &format!("{{ {script}; }} > /tmp/own; true"), |config| {
            config["process"]["user"] = json!({ "uid": 0, "gid": 0, "additionalGids": [7] });
            config["linux"]["seccomp"] = crate::seccomp::without(&["mkdir"]);
            config["hooks"]["startContainer"] = json!([
                { "path": "/bin/sh", "args": ["sh", "-c", format!("{{ {script}; }} > /tmp/hook")], "env": ["PATH=/bin"] }
            ]);
        });
        assert_ran(&runtime.run("c", bundle.path()).unwrap(), "the hook");
        let read = |name: &str| std::fs::read_to_string(bundle.rootfs().join("tmp").join(name)).unwrap();
        assert!(read("own").contains("CapEff"), "{}", read("own"));
        assert_eq!(read("hook"), read("own"));
    });
}

#[test]
fn co_03_a_console_socket_that_is_none_or_somebody_else_s_is_refused() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = bundle(files, "console", "", |config| config["process"]["terminal"] = json!(true));
        let path = bundle.path().to_str().unwrap();
        let socket = files.join("socket");
        let long = files.join("x".repeat(120));
        for shape in
            ["absent", "file", "fifo", "folder", "dangling link", "nobody listens", "somebody's", "long"]
        {
            let mut held = None;
            let at = if shape == "long" { &long } else { &socket };
            match shape {
                "file" => std::fs::write(at, "").unwrap(),
                "fifo" => drop(succeed(Command::new("mkfifo").arg(at)).unwrap()),
                "folder" => std::fs::create_dir(at).unwrap(),
                "dangling link" => symlink(canary.path().join("new"), at).unwrap(),
                "nobody listens" => drop(UnixListener::bind(at).unwrap()),
                "somebody's" => {
                    let mut other = Command::new("setpriv");
                    other.args(["--reuid", "65534", "--clear-groups", "socat", "-u"]);
                    other.arg(format!("UNIX-LISTEN:{}", at.display())).arg("/dev/null");
                    std::fs::set_permissions(files, PermissionsExt::from_mode(0o777)).unwrap();
                    let mut world = files.parent();
                    while let Some(folder) = world.filter(|folder| folder.starts_with("/var/tmp/")) {
                        std::fs::set_permissions(folder, PermissionsExt::from_mode(0o777)).unwrap();
                        world = folder.parent().filter(|above| *above != Path::new("/var/tmp"));
                    }
                    held = other.spawn().ok();
                    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
                    while !at.exists() {
                        assert!(std::time::Instant::now() < deadline, "socat does not listen");
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                }
                _ => {}
            }
            let arguments = ["create", "--console-socket", at.to_str().unwrap(), "--bundle", path, "c"];
            let created = runtime.call(&arguments).unwrap();
            assert_refused(&created, shape);
            canary.assert_intact(shape);
            if let Some(mut held) = held {
                let _ = held.kill();
                held.wait().unwrap();
            }
            let _ = std::fs::remove_file(at);
            let _ = std::fs::remove_dir(at);
        }
    });
}

#[test]
fn co_04_what_a_configuration_says_reaches_no_terminal_as_it_is() {
    attack(|runtime, files| {
        let evil = "\u{1b}]52;c;ZXZpbA==\u{7}\u{1b}[2J\u{9b}31m\r";
        let bundle = bundle(files, "escapes", "", |_| {});
        let plain = configuration(&bundle);
        type Change<'a> = &'a dyn Fn(&mut Value);
        let changes: [(&str, Change<'_>); 7] = [
            ("program", &|config| config["process"]["args"] = json!([evil])),
            ("absolute program", &|config| config["process"]["args"] = json!([format!("/{evil}")])),
            ("folder", &|config| config["process"]["cwd"] = json!(format!("/proc/{evil}"))),
            ("destination", &|config| crate::mount(config, &format!("/proc/{evil}"), "tmpfs", "tmpfs", &[])),
            ("option", &|config| crate::mount(config, "/tmp", "tmpfs", "tmpfs", &[evil])),
            ("sysctl", &|config| config["linux"]["sysctl"] = json!({ evil: evil })),
            ("hook", &|config| config["hooks"]["createRuntime"] = json!([{ "path": format!("/{evil}") }])),
        ];
        for (case, change) in changes {
            let mut config = plain.clone();
            change(&mut config);
            bundle.configure(&config).unwrap();
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_refused(&outcome, case);
            let raw = outcome.stderr.chars().find(|c| c.is_control() && !"\n\t".contains(*c));
            assert_eq!(raw, None, "{case}: {:?}", outcome.stderr);
        }
        reconfigure(&bundle, |config| *config = plain.clone());
        for arguments in [&["state", evil][..], &["delete", evil], &["kill", evil, evil], &[evil]] {
            let outcome = runtime.call(arguments).unwrap();
            let raw = outcome.stderr.chars().find(|c| c.is_control() && !"\n\t".contains(*c));
            assert_eq!(raw, None, "{arguments:?}: {:?}", outcome.stderr);
        }
    });
}
