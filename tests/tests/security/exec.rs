//! EX: working folders, programs, and processes that join.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::{Canary, RAN, assert_refused, attack, bundle, reconfigure, sleeper};

/// Descriptors that a runtime may hold open at most.
const DESCRIPTORS: std::ops::Range<u32> = 0..24;

fn magic_folders() -> Vec<String> {
    let numbered = DESCRIPTORS.flat_map(|number| {
        ["/proc/self/fd/N", "/proc/self/fd/N/x", "/proc/thread-self/fd/N", "/dev/fd/N"]
            .map(|text| text.replace('N', &number.to_string()))
    });
    let links = ["/proc/1/cwd", "/proc/1/root", "/proc/self/cwd", "/proc/self/root", "/link"];
    numbered.chain(links.map(str::to_owned)).collect()
}

#[test]
fn ex_01_no_working_folder_leads_through_a_descriptor() {
    attack(|runtime, files| {
        let bundle = bundle(files, "cwd", "pwd; ls -id .", |_| {});
        symlink("/proc/self/fd/7", bundle.rootfs().join("link")).unwrap();
        for cwd in magic_folders() {
            reconfigure(&bundle, |config| config["process"]["cwd"] = json!(cwd));
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_refused(&outcome, &cwd);
        }
        let sleeper = sleeper(files, "sleeper", |_| {});
        symlink("/proc/self/fd/7", sleeper.rootfs().join("link")).unwrap();
        runtime.create("s", sleeper.path()).unwrap();
        runtime.succeed(&["start", "s"]).unwrap();
        for cwd in magic_folders() {
            let outcome =
                runtime.call(&["exec", "--cwd", &cwd, "s", "sh", "-c", "echo the program ran; pwd"]).unwrap();
            assert_refused(&outcome, &format!("exec in {cwd}"));
        }
        runtime.succeed(&["delete", "--force", "s"]).unwrap();
    });
}

/// The program is found after every descriptor of ours is gone, those that will be closed by exec included.
#[test]
fn ex_01_no_program_is_reached_through_a_descriptor() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        // A program of the host that says so: busybox knows what to do by its name.
        let echo = files.join("echo");
        std::fs::copy("/bin/busybox", &echo).unwrap();
        let climb =
            |number: u32| format!("/proc/self/fd/{number}/../../../../../../../../../..{}", echo.display());
        let bundle = sleeper(files, "program", |_| {});
        let path = bundle.path().to_str().unwrap();
        for preserve in ["0", "24"] {
            for number in DESCRIPTORS {
                for program in [climb(number), format!("/proc/self/fd/{number}")] {
                    reconfigure(&bundle, |config| config["process"]["args"] = json!([program, RAN]));
                    let outcome =
                        runtime.call(&["run", "--preserve-fds", preserve, "--bundle", path, "c"]).unwrap();
                    assert_refused(&outcome, &format!("{program}, {preserve} preserved"));
                }
            }
        }
        reconfigure(&bundle, |config| config["process"]["args"] = json!(["sleep", "1000"]));
        runtime.create("s", bundle.path()).unwrap();
        runtime.succeed(&["start", "s"]).unwrap();
        for preserve in ["0", "24"] {
            for number in DESCRIPTORS {
                let program = climb(number);
                let outcome =
                    runtime.call(&["exec", "--preserve-fds", preserve, "s", &program, RAN]).unwrap();
                assert_refused(&outcome, &format!("exec {program}, {preserve} preserved"));
            }
        }
        runtime.succeed(&["delete", "--force", "s"]).unwrap();
        canary.assert_intact("programs");
    });
}

/// What init is allowed and held to, exec'd processes are: nothing is looser by the back door.
#[test]
fn ex_06_a_joining_process_is_confined_as_the_first_one() {
    attack(|runtime, files| {
        let script = "grep -E '^(NoNewPrivs|Seccomp|Cap|Groups|Uid|Gid|SigBlk|SigIgn|THP)' /proc/self/status; umask; \
            cat /proc/self/cgroup /proc/self/oom_score_adj /proc/self/limits /proc/self/personality; \
            for kind in cgroup ipc mnt net pid user uts time; do readlink /proc/self/ns/$kind; done; \
            pwd; env | grep -v -E '^(SHLVL|PWD|OLDPWD)=' | sort; \
            for fd in 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$fd && echo fd $fd; done; ionice; mkdir /x 2>&1";
        let script = script.to_owned();
        for (name, uid, no_new_privileges) in [("root", 0, true), ("user", 1000, true), ("loose", 0, false)] {
            let bundle = bundle(
                files,
                name,
                &format!("{{ {script}; }} > /tmp/part; mv /tmp/part /tmp/init; sleep 1000"),
                |config| {
                    crate::mount(config, "/tmp", "tmpfs", "tmpfs", &["mode=1777"]);
                    config["process"]["user"] =
                        json!({ "uid": uid, "gid": uid, "umask": 0o027, "additionalGids": [12, 34] });
                    config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                    config["process"]["oomScoreAdj"] = json!(500);
                    config["process"]["rlimits"] = json!([
                        { "type": "RLIMIT_NOFILE", "soft": 77, "hard": 99 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }
                    ]);
                    config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
                    config["linux"]["personality"] = json!({ "domain": "LINUX32" });
                    config["linux"]["maskedPaths"] = json!([]);
                    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
                    config["linux"]["seccomp"] = crate::seccomp::without(&["mkdir", "mkdirat"]);
                },
            );
            runtime.create("c", bundle.path()).unwrap();
            runtime.succeed(&["start", "c"]).unwrap();
            let read = "until test -s /tmp/init; do usleep 10000; done; cat /tmp/init";
            let first = runtime.succeed(&["exec", "c", "sh", "-c", read]).unwrap().stdout;
            let joined =
                runtime.succeed(&["exec", "c", "sh", "-c", &format!("{script}; true")]).unwrap().stdout;
            assert!(first.contains("NoNewPrivs"), "{first}");
            let (joined, first): (Vec<_>, Vec<_>) = (joined.lines().collect(), first.lines().collect());
            assert_eq!(joined.len(), first.len(), "{name}: {joined:#?} {first:#?}");
            let different: Vec<_> =
                first.iter().zip(&joined).filter(|(first, joined)| first != joined).collect();
            assert!(different.is_empty(), "{name}: (first process, joining one): {different:#?}");
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
        }
    });
}

#[test]
fn ex_09_no_option_leads_a_process_out_of_the_container_s_cgroup() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "cgroup", |_| {});
        runtime.create("c", bundle.path()).unwrap();
        runtime.succeed(&["start", "c"]).unwrap();
        for path in ["../../..", "..", "/../x", ":/", "memory:../.."] {
            let outcome = runtime.call(&["exec", "--cgroup", path, "c", "echo", RAN]).unwrap();
            assert_refused(&outcome, path);
        }
        // The root that this names is the container's.
        let show = ["c", "cat", "/proc/self/cgroup"];
        let own = runtime.succeed(&[&["exec"][..], &show].concat()).unwrap().stdout;
        let root = runtime.succeed(&[&["exec", "--cgroup", "/"][..], &show].concat()).unwrap().stdout;
        assert_eq!(root, own);
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}
