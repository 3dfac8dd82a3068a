//! The OCI runtime's command line as its callers know it from runc: words, exit codes, files and descriptors. What is
//! said of runc is asked of runc too.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::needs;
use cofferdam_tests::oci::{self, Runtime, outcome};
use serde_json::{Value, json};

/// Runs a test's body on ours and on runc, and checks that each leaves the host as it was. crun, the peer where there is
/// cgroup v2 alone, has words and codes of its own.
fn on_every_runtime(body: impl Fn(&Runtime, &Path)) {
    oci::on_each(|runtime| runtime.name() != "crun", body).unwrap();
}

/// Runs a test's body for ours alone, where no peer does the same.
fn on_ours(body: impl Fn(&Runtime, &Path)) {
    on_every_runtime(|runtime, bundles| {
        if runtime.is_ours() {
            body(runtime, bundles)
        }
    });
}

fn sleeper(bundles: &Path) -> Bundle {
    Bundle::make(&bundles.join("sleeper"), &["sleep", "1000"], |_| {}).unwrap()
}

/// A command line: its exit status, and what its standard error says.
type Row<'a> = (&'a [&'a str], i32, &'a str);

/// What callers rely on: containerd's shim, CRI-O and podman look for these words.
const NOBODY: &[Row<'_>] = &[
    (&["state", "nobody"], 1, "container does not exist"),
    (&["start", "nobody"], 1, "container does not exist"),
    (&["--criu", "/usr/sbin/criu", "start", "nobody"], 1, "container does not exist"),
    (&["kill", "nobody", "KILL"], 1, "container does not exist"),
    (&["kill", "--all", "nobody", "9"], 1, "container does not exist"),
    (&["delete", "nobody"], 1, "container does not exist"),
    (&["pause", "nobody"], 1, "container does not exist"),
    (&["ps", "nobody"], 1, "container does not exist"),
    (&["events", "--stats", "nobody"], 1, "container does not exist"),
    (&["delete", "--force", "nobody"], 0, ""),
    (&["exec", "nobody", "sh"], 255, "exec failed: container does not exist"),
    (&["state", "a/b"], 1, "invalid container ID format"),
    (&["bogus"], 3, "No help topic for 'bogus'"),
    (&["--bogus", "list"], 1, "flag provided but not defined: -bogus"),
    (&["state", "--bogus", "c"], 1, "flag provided but not defined: -bogus"),
    (&["state"], 1, "requires exactly 1 argument(s)"),
    (&["state", "a", "b"], 1, "requires exactly 1 argument(s)"),
    (&["kill"], 1, "requires a minimum of 1 argument(s)"),
    (&["kill", "a", "b", "c"], 1, "requires a maximum of 2 argument(s)"),
    (&["list", "a"], 1, "requires exactly 0 argument(s)"),
    (&["list", "--format", "xml"], 1, "invalid format option"),
    (&["--log-format", "xml", "list"], 1, "invalid log-format: xml"),
    (&["list", "--quiet"], 0, ""),
    (&["--help"], 0, ""),
    (&["help", "run"], 0, ""),
    (&["run", "--help"], 0, ""),
];

const RUNNING: &[Row<'_>] = &[
    (&["start", "c"], 1, "cannot start an already running container"),
    (&["delete", "c"], 1, "cannot delete container c that is not stopped: running"),
    (&["kill", "c", "BOGUS"], 1, "unknown signal"),
    (&["kill", "c", "WINCH"], 0, ""),
    (&["kill", "c", "28"], 0, ""),
    (&["exec", "c", "nocmd"], 255, "executable file not found in $PATH"),
    (&["exec", "c", "/nocmd"], 255, "no such file or directory"),
    (&["exec", "c", "/etc/passwd"], 255, "permission denied"),
    (&["exec", "--cwd", "/nodir", "c", "true"], 255, "no such file or directory"),
    (&["exec", "c", "sh", "-c", "exit 7"], 7, ""),
    (&["exec", "c", "sh", "-c", "kill -KILL $$"], 128 + 9, ""),
    (&["exec", "--tty", "--detach", "c", "true"], 255, "cannot allocate tty"),
    (&["exec", "--console-socket", "/nowhere", "c", "true"], 255, "cannot use console socket"),
];

const PAUSED: &[Row<'_>] = &[
    (&["exec", "c", "true"], 255, "cannot exec in a paused container (use --ignore-paused to override)"),
    (&["start", "c"], 1, "cannot start a container in the paused state"),
];

const STOPPED: &[Row<'_>] = &[
    (&["kill", "c", "TERM"], 1, "container not running"),
    (&["start", "c"], 1, "cannot start a container that has stopped"),
    (&["exec", "c", "true"], 255, "cannot exec in a stopped container"),
    (&["delete", "c"], 0, ""),
];

fn check(runtime: &Runtime, rows: &[Row<'_>]) {
    for (arguments, status, words) in rows {
        let outcome = runtime.call(arguments).unwrap();
        assert_eq!(outcome.status, Some(*status), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains(words), "{arguments:?}: {outcome:?}");
        assert!(*status != 0 || outcome.stderr.is_empty(), "{arguments:?}: {outcome:?}");
    }
}

#[test]
fn mistakes_are_told_in_runc_s_words_and_exit_codes() {
    on_every_runtime(|runtime, bundles| {
        check(runtime, NOBODY);
        let bundle = sleeper(bundles);
        let path = bundle.path().to_str().unwrap();
        runtime.create("c", bundle.path()).unwrap();
        check(runtime, &[(&["create", "--bundle", path, "c"], 1, "container with given ID already exists")]);
        runtime.succeed(&["start", "c"]).unwrap();
        // A peer's start returns when the gate is open, ours when the program runs: the peer is waited for.
        let script = "until read name < /proc/1/comm && [ $name = sleep ]; do :; done";
        runtime.succeed(&["exec", "c", "sh", "-c", script]).unwrap();
        check(runtime, RUNNING);
        runtime.succeed(&["pause", "c"]).unwrap();
        check(runtime, PAUSED);
        runtime.succeed(&["resume", "c"]).unwrap();
        runtime.succeed(&["kill", "c", "KILL"]).unwrap();
        runtime.wait("c", "stopped").unwrap();
        check(runtime, STOPPED);
        let _ = runtime.call(&["delete", "--force", "c"]);
        for (program, words) in
            [("/absent", "no such file or directory"), ("/etc/passwd", "permission denied")]
        {
            let folder = bundles.join(program.trim_start_matches('/').replace('/', "-"));
            let bundle = Bundle::make(&folder, &[program], |_| {}).unwrap();
            let create = &["create", "--bundle", bundle.path().to_str().unwrap(), "c"];
            check(
                runtime,
                &[(create, 1, words), (create, 1, "create failed: unable to start container process: ")],
            );
            let _ = runtime.call(&["delete", "--force", "c"]);
        }
        let bundle = Bundle::make(&bundles.join("unmountable"), &["true"], |config| {
            let unknown = json!({ "destination": "/mnt", "type": "nosuchfs", "source": "none" });
            config["mounts"].as_array_mut().unwrap().push(unknown);
        });
        let bundle = bundle.unwrap();
        let words =
            "create failed: unable to start container process: error during container init: error mounting";
        let create = &["create", "--bundle", bundle.path().to_str().unwrap(), "c"];
        check(runtime, &[(create, 1, words), (create, 1, "no such device")]);
    });
}

/// containerd's shim keeps the last line with level "error" and its msg.
#[test]
fn the_log_has_json_lines_and_standard_error_the_message() {
    on_every_runtime(|runtime, bundles| {
        let log = bundles.join("log.json");
        let path = log.to_str().unwrap();
        let arguments = ["--log", path, "--log-format", "json", "state", "nobody"];
        let outcome = runtime.call(&arguments).unwrap();
        assert!(outcome.stderr.contains("not exist"), "{outcome:?}");
        let text = std::fs::read_to_string(&log).unwrap();
        let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(line["level"], "error", "{line}");
        assert!(line["msg"].as_str().unwrap().contains("not exist"), "{line}");
        assert!(line["time"].as_str().unwrap().contains('T'), "{line}");
    });
}

/// podman 4 and buildah 1.28 ask for ambient capabilities in every step of a build, and make none inheritable; of a volume
/// they hand on what they have done themselves. What is said of that to nobody in particular would be part of the build's
/// output.
#[test]
fn what_engines_ask_for_in_vain_is_said_where_there_is_a_log() {
    let rows = [
        (json!([]), "U", false, "CAP_KILL"),
        (json!([]), "U", true, "options: U"),
        (json!(["CAP_CHOWN"]), "U", false, "CAP_KILL"),
        (json!([]), "V", false, "options: V"),
    ];
    on_ours(|runtime, bundles| {
        for (inheritable, option, with_log, word) in &rows {
            let bundle = Bundle::make(&bundles.join("vain"), &["true"], |config| {
                config["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]);
                config["process"]["capabilities"]["inheritable"] = inheritable.clone();
                let volume =
                    json!({ "destination": "/volume", "source": bundles, "options": ["rbind", option] });
                config["mounts"].as_array_mut().unwrap().push(volume);
            })
            .unwrap();
            let (path, file) = (bundle.path().to_str().unwrap(), bundle.path().join("log"));
            let log = ["--log", file.to_str().unwrap()];
            let before = if *with_log { &log[..] } else { &[] };
            let outcome = runtime.call(&[before, &["run", "--bundle", path, "vain"]].concat()).unwrap();
            assert_eq!(outcome.status, Some(0), "{outcome:?}");
            let meant = *option == "V" || *inheritable != json!([]);
            assert_eq!(outcome.stderr.contains(word), meant, "{outcome:?}");
            assert_eq!(outcome.stderr.is_empty(), !meant, "{outcome:?}");
            let logged = std::fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(logged.contains("level=warning") && logged.contains(word), *with_log, "{logged}");
            std::fs::remove_dir_all(bundle.path()).unwrap();
        }
    });
}

#[test]
fn options_stand_on_either_side_of_the_id_and_lists_are_tables_or_json() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        let path = bundle.path().to_str().unwrap();
        let pid = bundles.join("pid");
        runtime.succeed(&["run", "c", "-d", "-b", path, &format!("--pid-file={}", pid.display())]).unwrap();
        assert!(std::fs::read_to_string(&pid).unwrap().bytes().all(|byte| byte.is_ascii_digit()));
        assert_eq!(runtime.succeed(&["list", "-q"]).unwrap().stdout, "c\n");
        let list: Value =
            serde_json::from_str(&runtime.succeed(&["list", "--format=json"]).unwrap().stdout).unwrap();
        assert_eq!((&list[0]["id"], &list[0]["status"]), (&json!("c"), &json!("running")));
        let table = runtime.succeed(&["list"]).unwrap().stdout;
        let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(header, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
        // Not every ps takes the options of procps.
        let hosts = outcome(std::process::Command::new("ps").arg("-ef")).unwrap();
        if hosts.status == Some(0) {
            let ps = runtime.succeed(&["ps", "c"]).unwrap().stdout;
            assert!(ps.contains("PID") && ps.contains("sleep 1000"), "{ps}");
        }
        let pids: Vec<i64> =
            serde_json::from_str(&runtime.succeed(&["ps", "--format", "json", "c"]).unwrap().stdout).unwrap();
        assert_eq!(pids, [runtime.state("c").unwrap()["pid"].as_i64().unwrap()]);
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

#[test]
fn exec_takes_every_option_of_runc() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.succeed(&["run", "-d", "-b", bundle.path().to_str().unwrap(), "c"]).unwrap();
        let script = "id -G; grep -E 'CapEff|NoNewPrivs' /proc/self/status; echo $WORD; pwd";
        let mut arguments =
            vec!["exec", "--no-new-privs", "--cap", "CAP_NET_ADMIN", "-e", "WORD=x", "--cwd=/tmp"];
        arguments.extend(["-g", "77", "--ignore-paused", "c", "sh", "-c", script]);
        let outcome = runtime.succeed(&arguments).unwrap();
        let words: Vec<_> = outcome.stdout.split_whitespace().collect();
        assert!(words.contains(&"77"), "{outcome:?}");
        let effective = u64::from_str_radix(words[words.len() - 5], 16).unwrap();
        assert_eq!(effective >> 12 & 1, 1, "CAP_NET_ADMIN: {outcome:?}");
        assert_eq!(words[words.len() - 3..], ["1", "x", "/tmp"], "{outcome:?}");
        // What no kernel knows is passed over, as in a configuration.
        runtime.succeed(&["exec", "--cap", "CAP_OF_TOMORROW", "c", "true"]).unwrap();
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

/// What a process file does not say of its confinement is the container's: not less, and not more.
#[test]
fn exec_of_a_short_process_file_is_confined_as_the_container_is() {
    on_ours(|runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("sleeper"), &["sleep", "1000"], |config| {
            let kept = json!(["CAP_KILL"]);
            config["process"]["capabilities"] =
                json!({ "bounding": kept, "effective": kept, "permitted": kept });
            config["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 4096 }]);
        })
        .unwrap();
        let folder = bundle.path();
        runtime.succeed(&["run", "-d", "-b", folder.to_str().unwrap(), "c"]).unwrap();
        let script = "grep Cap /proc/self/status; grep 'core file' /proc/self/limits";
        let first = runtime.succeed(&["exec", "c", "sh", "-c", script]).unwrap().stdout;
        assert!(first.contains("CapEff:\t0000000000000020") && first.contains(" 4096 "), "{first}");
        let process = json!({ "cwd": "/", "user": null, "args": ["sh", "-c", script], "env": ["PATH=/bin"] });
        let file = folder.join("process.json");
        std::fs::write(&file, process.to_string()).unwrap();
        let second = runtime.succeed(&["exec", "--process", file.to_str().unwrap(), "c"]).unwrap().stdout;
        assert_eq!(second, first);
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

/// `--cgroup`: below the container's cgroup, which must be there; not out of it.
#[test]
fn exec_goes_to_a_cgroup_below_the_container_s() {
    on_ours(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.succeed(&["run", "-d", "-b", bundle.path().to_str().unwrap(), "c"]).unwrap();
        let state = std::fs::read_to_string(runtime.root().join("c/state.json")).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let paths = state["cgroup_paths"].as_object().unwrap();
        let (controller, path) =
            paths.iter().find(|(name, _)| *name == "pids").or(paths.iter().next()).unwrap();
        let below = Path::new(path.as_str().unwrap()).join("below");
        std::fs::create_dir(&below).unwrap();
        let option = if controller.is_empty() { "below".to_owned() } else { format!("{controller}:below") };
        let outcome =
            runtime.succeed(&["exec", "--cgroup", &option, "c", "cat", "/proc/self/cgroup"]).unwrap();
        assert!(outcome.stdout.lines().any(|line| line.ends_with("/below")), "{outcome:?}");
        // The container's own cgroup, and several controllers with one path.
        let own = runtime.succeed(&["exec", "c", "cat", "/proc/self/cgroup"]).unwrap().stdout;
        let listed = format!("{controller},{controller}:/");
        for same in ["/", if controller.is_empty() { "/" } else { &listed }] {
            let there =
                runtime.succeed(&["exec", "--cgroup", same, "c", "cat", "/proc/self/cgroup"]).unwrap();
            assert_eq!(there.stdout, own, "{same}");
        }
        for (wrong, words) in [
            ("absent", " adding pid to cgroup"),
            ("../..", "not [CONTROLLER:]PATH"),
            ("", "not [CONTROLLER:]PATH"),
            ("whaaat:/", "unknown controller whaaat"),
        ] {
            let outcome = runtime.call(&["exec", "--cgroup", wrong, "c", "true"]).unwrap();
            assert_eq!(outcome.status, Some(255), "{outcome:?}");
            assert!(outcome.stderr.to_lowercase().contains(&words.to_lowercase()), "{outcome:?}");
        }
        std::fs::remove_dir(&below).unwrap();
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

#[test]
fn a_terminal_in_the_foreground_is_ours_with_its_size_and_its_line_ends() {
    if !needs::programs(&["script"]) {
        return;
    }
    on_every_runtime(|runtime, bundles| {
        let script = "tty; stty size; echo -n end";
        let bundle = Bundle::make(&bundles.join("tty"), &["sh", "-c", script], |config| {
            config["process"]["terminal"] = json!(true);
        })
        .unwrap();
        let command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "t"]);
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let line = format!("stty rows 33 cols 99; {}; echo rc=$?", words.join(" "));
        let outcome =
            outcome(std::process::Command::new("script").args(["-qec", &line, "/dev/null"])).unwrap();
        assert!(outcome.stdout.contains("/dev/pts/0"), "{outcome:?}");
        // The peer's terminal has its size only some time after the program has begun.
        assert!(!runtime.is_ours() || outcome.stdout.contains("33 99"), "{outcome:?}");
        assert!(outcome.stdout.contains("end") && outcome.stdout.contains("rc=0"), "{outcome:?}");
        assert!(!outcome.stdout.contains("\r\r\n"), "{outcome:?}");
        let _ = runtime.call(&["delete", "--force", "t"]);
    });
}

#[test]
fn a_terminal_needs_somebody_who_holds_it() {
    on_every_runtime(|runtime, bundles| {
        let with = Bundle::make(&bundles.join("with"), &["sh"], |config| {
            config["process"]["terminal"] = json!(true);
        })
        .unwrap();
        let without = sleeper(bundles);
        let (with, without) = (with.path().to_str().unwrap(), without.path().to_str().unwrap());
        for arguments in [
            &["create", "--bundle", with, "t"][..],
            &["run", "--detach", "--bundle", with, "t"],
            &["create", "--console-socket", "/nowhere", "--bundle", without, "t"],
        ] {
            let outcome = runtime.call(arguments).unwrap();
            assert_ne!(outcome.status, Some(0), "{arguments:?}: {outcome:?}");
            let _ = runtime.call(&["delete", "--force", "t"]);
        }
    });
}

/// sd_listen_fds(3): the caller's listening sockets come first, then what --preserve-fds asks for; everything else is
/// closed, and the variables of the engine's own pipes stay outside.
#[test]
fn descriptors_that_are_passed_on_are_those_and_no_others() {
    on_every_runtime(|runtime, bundles| {
        let script = "echo $LISTEN_FDS:$LISTEN_PID:$_OCI_SYNCPIPE; ls /proc/self/fd | tr '\\n' ' '";
        let bundle = Bundle::make(&bundles.join("fds"), &["sh", "-c", script], |_| {}).unwrap();
        let command = runtime.command(&[
            "run",
            "--preserve-fds",
            "1",
            "--bundle",
            bundle.path().to_str().unwrap(),
            "f",
        ]);
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let line = format!(
            "exec 3</dev/null 4</dev/null 5</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ _OCI_SYNCPIPE=5 exec {}",
            words.join(" ")
        );
        let outcome = outcome(std::process::Command::new("sh").args(["-c", &line])).unwrap();
        if runtime.is_ours() {
            // 5 is what ls reads the folder through.
            assert_eq!(outcome.stdout, "1:1:\n0 1 2 3 4 5 ", "{outcome:?}");
        }
        let _ = runtime.call(&["delete", "--force", "f"]);
    });
}

#[test]
fn a_pidfd_is_sent_to_whoever_listens() {
    on_ours(|runtime, bundles| {
        let bundle = sleeper(bundles);
        let path = bundles.join("pidfd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let option = format!("--pidfd-socket={}", path.display());
        runtime.succeed(&["create", &option, "--bundle", bundle.path().to_str().unwrap(), "c"]).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut word = String::new();
        stream.read_to_string(&mut word).unwrap();
        assert_eq!(word, "standard");
        assert!(stream.as_raw_fd() > 2);
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let bundle = bundle.path().to_str().unwrap();
        assert_ne!(runtime.call(&["create", &option, "--bundle", bundle, "c"]).unwrap().status, Some(0));
        assert_ne!(runtime.call(&["state", "c"]).unwrap().status, Some(0), "nothing is left");
    });
}

/// sd_notify(3): a service manager that waits for the runtime hears of the container's readiness, and of its pid.
#[test]
fn readiness_is_told_to_the_service_manager() {
    on_ours(|runtime, bundles| {
        let path = bundles.join("manager.sock");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        runtime_tells(runtime, &sleeper(bundles), &path, &manager);
    });
}

fn runtime_tells(runtime: &Runtime, bundle: &Bundle, path: &Path, manager: &UnixDatagram) {
    let mut command = runtime.command(&["create", "--bundle", bundle.path().to_str().unwrap(), "n"]);
    let created = outcome(command.env("NOTIFY_SOCKET", path)).unwrap();
    assert_eq!(created.status, Some(0), "{created:?}");
    let folder = runtime.root().join("n/notify");
    let mut start = runtime.command(&["start", "n"]);
    let mut started = start.env("NOTIFY_SOCKET", path).spawn().unwrap();
    // The container's program would say this; busybox speaks no datagrams on unix sockets.
    let sender = UnixDatagram::unbound().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while sender.send_to(b"STATUS=here\nREADY=1\n", folder.join("notify.sock")).is_err() {
        assert!(std::time::Instant::now() < deadline, "nobody listens in {}", folder.display());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut heard = String::new();
    let pid = runtime.state("n").unwrap()["pid"].as_i64().unwrap();
    while !heard.contains(&format!("MAINPID={pid}")) {
        let mut bytes = [0; 256];
        let count = manager.recv(&mut bytes).unwrap();
        heard += &String::from_utf8_lossy(&bytes[..count]);
        heard.push('\n');
    }
    assert!(heard.contains("READY=1"), "{heard}");
    assert!(started.wait().unwrap().success());
    let inside = runtime.succeed(&["exec", "n", "ls", "/run/notify"]).unwrap();
    assert_eq!(inside.stdout.trim(), "notify.sock");
    runtime.succeed(&["delete", "--force", "n"]).unwrap();
}

#[test]
fn the_state_file_has_the_keys_that_others_read() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.create("c", bundle.path()).unwrap();
        let state = std::fs::read_to_string(runtime.root().join("c/state.json")).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let pid = runtime.state("c").unwrap()["pid"].as_i64().unwrap();
        assert_eq!((&state["id"], &state["init_process_pid"]), (&json!("c"), &json!(pid)));
        assert!(state["init_process_start"].as_u64().unwrap() > 0);
        assert_eq!(state["namespace_paths"]["NEWNET"], format!("/proc/{pid}/ns/net"));
        assert_eq!(state["namespace_paths"]["NEWNS"], format!("/proc/{pid}/ns/mnt"));
        let cgroups = state["cgroup_paths"].as_object().unwrap();
        for path in cgroups.values() {
            let processes =
                std::fs::read_to_string(Path::new(path.as_str().unwrap()).join("cgroup.procs")).unwrap();
            assert!(processes.lines().any(|line| line == pid.to_string()), "{path}: {processes}");
        }
        assert!(!cgroups.is_empty());
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

/// go-runc's `Event`: type, id and data.
#[test]
fn statistics_have_the_shape_that_go_runc_reads() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        runtime.succeed(&["run", "-d", "-b", bundle.path().to_str().unwrap(), "c"]).unwrap();
        let event = runtime.succeed(&["events", "--stats", "c"]).unwrap().stdout;
        let event: Value = serde_json::from_str(&event).unwrap();
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("c")));
        let number = |pointer: &str| event.pointer(pointer).unwrap_or(&Value::Null).as_u64();
        for pointer in ["/data/cpu/usage/total", "/data/memory/usage/usage", "/data/memory/usage/limit"] {
            assert!(number(pointer).is_some_and(|number| number > 0), "{pointer}: {event}");
        }
        assert_eq!(number("/data/pids/current"), Some(1), "{event}");
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

/// A process that the kernel ends for want of memory is an event of its own.
#[test]
fn running_out_of_memory_is_an_event() {
    on_ours(|runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("oom"), &["sleep", "1000"], |config| {
            config["linux"]["resources"]["memory"] = json!({ "limit": 8 << 20, "swap": 8 << 20 });
        })
        .unwrap();
        runtime.succeed(&["run", "-d", "-b", bundle.path().to_str().unwrap(), "c"]).unwrap();
        let mut command = runtime.command(&["events", "--interval", "1h", "c"]);
        let mut events = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(events.stdout.take().unwrap()));
        let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        assert_eq!(next()["type"], "stats");
        let killed = runtime.call(&["exec", "c", "sh", "-c", "tail /dev/zero; exit 3"]).unwrap();
        assert_ne!(killed.status, Some(0), "{killed:?}");
        assert_eq!(next(), json!({ "type": "oom", "id": "c" }));
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        assert!(events.wait().unwrap().success(), "ends with the container");
    });
}

/// CRI-O and containerd ask for these with no global options.
#[test]
fn features_and_version_are_what_engines_ask_for() {
    on_ours(|runtime, _| {
        let mut command = runtime.command(&[]);
        let mut bare = std::process::Command::new(command.get_program());
        let features = outcome(bare.arg("features")).unwrap();
        let features: Value = serde_json::from_str(&features.stdout).unwrap();
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&json!("rro")) && options.contains(&json!("rbind")));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        let version = outcome(command.arg("--version")).unwrap();
        let lines: Vec<_> = version.stdout.lines().collect();
        assert!(lines[0].starts_with("runc version ") && lines[1].starts_with("commit: "), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("spec: ")), "{lines:?}");
    });
}

#[test]
fn spec_writes_a_configuration_that_runs() {
    on_every_runtime(|runtime, bundles| {
        let bundle = sleeper(bundles);
        let config = bundle.path().join("config.json");
        std::fs::remove_file(&config).unwrap();
        let path = bundle.path().to_str().unwrap();
        runtime.succeed(&["spec", "--bundle", path]).unwrap();
        let again = runtime.call(&["spec", "--bundle", path]).unwrap();
        assert_ne!(again.status, Some(0), "{again:?}");
        let mut written: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        assert_eq!(written["process"]["terminal"], true);
        written["process"]["terminal"] = json!(false);
        written["process"]["args"] = json!(["/bin/busybox", "echo", "hello"]);
        written["linux"]["cgroupsPath"] = json!(format!("/cofferdam-suite-spec-{}", std::process::id()));
        bundle.configure(&written).unwrap();
        let outcome = runtime.run("s", bundle.path()).unwrap();
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(0), "hello\n"), "{outcome:?}");
    });
}

/// runtime-spec config.md, "Process": required when start is called, and not before.
#[test]
fn a_container_without_a_process_is_created_and_ends_when_started() {
    on_ours(|runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("empty"), &["true"], |config| {
            config.as_object_mut().unwrap().remove("process");
        })
        .unwrap();
        runtime.create("e", bundle.path()).unwrap();
        assert_eq!(runtime.state("e").unwrap()["status"], "created");
        runtime.succeed(&["start", "e"]).unwrap();
        runtime.wait("e", "stopped").unwrap();
        runtime.succeed(&["delete", "e"]).unwrap();
    });
}

/// runtime.md, "Lifecycle" 13: a poststop hook that fails is a warning, and the others run.
#[test]
fn poststop_hooks_run_whatever_becomes_of_the_others() {
    on_ours(|runtime, bundles| {
        let output = bundles.join("output");
        let script = format!("echo called >> {}", output.display());
        let bundle = Bundle::make(&bundles.join("stop"), &["true"], |config| {
            let hooks =
                [json!({ "path": "/bin/false" }), json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })];
            config["hooks"] = json!({ "poststop": hooks });
        })
        .unwrap();
        runtime.create("h", bundle.path()).unwrap();
        let log = bundles.join("log");
        let outcome = runtime.succeed(&["--log", log.to_str().unwrap(), "delete", "h"]).unwrap();
        assert_eq!(outcome.stderr, "");
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "called\n");
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.contains("level=warning") && log.contains("error running poststop hook #0"), "{log}");
    });
}

/// A volume that shares its mounts: what is mounted in it inside appears outside, where the root may share.
#[test]
fn a_shared_bind_carries_mounts_to_the_host() {
    on_every_runtime(|runtime, bundles| {
        let volume = bundles.join("volume");
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        let mount = |arguments: &[&str]| {
            let status = std::process::Command::new("mount").args(arguments).status().unwrap();
            assert!(status.success(), "mount {arguments:?}");
        };
        let path = volume.to_str().unwrap();
        mount(&["-t", "tmpfs", "tmpfs", path]);
        mount(&["--make-shared", path]);
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        let bundle = Bundle::make(&bundles.join("share"), &["sleep", "1000"], |config| {
            config["linux"]["rootfsPropagation"] = json!("rshared");
            let bind = json!({ "destination": "/v", "type": "bind", "source": path, "options": ["rbind", "rshared"] });
            config["mounts"].as_array_mut().unwrap().push(bind);
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
            }
        })
        .unwrap();
        runtime.succeed(&["run", "-d", "-b", bundle.path().to_str().unwrap(), "v"]).unwrap();
        let script = "mount -t tmpfs tmpfs /v/inner && touch /v/inner/file";
        runtime.succeed(&["exec", "v", "sh", "-c", script]).unwrap();
        assert!(volume.join("inner/file").exists(), "on {}", runtime.name());
        runtime.succeed(&["delete", "--force", "v"]).unwrap();
        for mounted in [volume.join("inner"), volume.clone()] {
            assert!(std::process::Command::new("umount").arg(mounted).status().unwrap().success());
        }
    });
}
