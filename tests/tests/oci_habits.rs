//! What callers are used to from runc beyond the specification: what a process finds around it, and which operations go on
//! where they might refuse.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::oci::{self, Runtime, outcome};
use serde_json::{Value, json};

fn on_ours(body: impl Fn(&Runtime, &Path)) {
    oci::on_each(Runtime::is_ours, body).unwrap();
}

/// How a configuration differs from the usual one.
type Change = fn(&mut Value);

/// A configuration, a script, and what it prints.
type Row = (&'static str, Change, &'static str, &'static str);

fn tmpfs(config: &mut Value, at: &str, options: &[&str]) {
    let mount = json!({ "destination": at, "type": "tmpfs", "source": "tmpfs", "options": options });
    config["mounts"].as_array_mut().unwrap().push(mount);
}

const AROUND: &[Row] = &[
    (
        "env",
        |config| config["process"]["env"] = json!(["A=1", "PATH=/bin", "A=2", "HOME=/x", "HOME="]),
        "env | grep -c ^A=; echo $A; test -n \"$HOME\" && test $HOME != /x && echo home",
        "1\n2\nhome\n",
    ),
    ("cpus", |_| (), "grep Cpus_allowed_list /proc/self/status | cut -f 2", "every"),
    ("mode", |config| tmpfs(config, "/root", &["rw"]), "stat -c %a /root", "710\n"),
    ("said", |config| tmpfs(config, "/root", &["mode=0500"]), "stat -c %a /root", "500\n"),
    (
        "dev",
        |config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            let dev = mounts.iter_mut().find(|mount| mount["destination"] == "/dev").unwrap();
            dev["options"].as_array_mut().unwrap().push(json!("ro"));
        },
        "test -c /dev/null && test -d /dev/pts && touch /dev/x 2> /dev/null || echo no",
        "no\n",
    ),
    (
        "below",
        |config| {
            tmpfs(config, "/tmp", &["ro", "mode=1777"]);
            tmpfs(config, "/tmp/inner", &["rw"]);
        },
        "touch /tmp/inner/x && touch /tmp/x 2> /dev/null || echo no",
        "no\n",
    ),
    (
        "policy",
        |config| config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_DEFAULT" }),
        "head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2",
        "default\n",
    ),
    (
        "hook",
        |config| {
            config["process"]["env"] = json!(["PATH=/bin", "WORD=said"]);
            let arguments = json!(["sh", "-c", "echo $WORD > /tmp/heard"]);
            config["hooks"] = json!({ "startContainer": [{ "path": "/bin/sh", "args": arguments }] });
            config["root"]["readonly"] = json!(false);
        },
        "cat /tmp/heard",
        "said\n",
    ),
];

#[test]
fn a_process_finds_around_it_what_it_finds_with_runc() {
    on_ours(|runtime, bundles| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let every = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
        // Held to one processor, as by taskset(1), which is not the container's affair.
        let mut one = nix::sched::CpuSet::new();
        one.set(0).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();
        for (name, change, script, expected) in AROUND {
            let bundle = Bundle::make(&bundles.join(name), &["sh", "-c", script], change).unwrap();
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::Permissions::from_mode(0o710);
            std::fs::set_permissions(bundle.rootfs().join("root"), mode).unwrap();
            let ran = runtime.run("c", bundle.path()).unwrap();
            let expected = if *expected == "every" { format!("{every}\n") } else { (*expected).to_owned() };
            assert_eq!((ran.status, &ran.stdout), (Some(0), &expected), "{name}: {ran:?}");
        }
    });
}

/// A bind with a word about attributes has those that are said; without one, those of its source.
#[test]
fn a_bind_has_the_attributes_that_are_said() {
    on_ours(|runtime, bundles| {
        let source = bundles.join("source");
        std::fs::create_dir_all(&source).unwrap();
        let path = source.to_str().unwrap();
        let options = "ro,noexec,nodiratime,noatime";
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", path]).status();
        assert!(mounted.unwrap().success());
        for (name, said, expected) in [
            ("silent", "bind", "ro,noexec,noatime,nodiratime"),
            ("dev", "bind,dev", "ro,noatime,nodiratime"),
            ("times", "bind,relatime", "ro,relatime"),
            ("tree", "rbind,rnorelatime", "ro,noexec,noatime,nodiratime"),
            ("atime", "bind,nosuid,atime", "ro,nosuid,noatime,nodiratime"),
        ] {
            let script = "grep ' /v ' /proc/mounts | cut -d ' ' -f 4";
            let bundle = Bundle::make(&bundles.join(name), &["sh", "-c", script], |config| {
                let options: Vec<_> = said.split(',').collect();
                let bind = json!({ "destination": "/v", "type": "bind", "source": path, "options": options });
                config["mounts"].as_array_mut().unwrap().push(bind);
            })
            .unwrap();
            let ran = runtime.run("c", bundle.path()).unwrap();
            let words: Vec<_> = ran.stdout.trim().split(',').collect();
            // The file system itself is read-only here, whatever its mounts are.
            for word in expected.split(',') {
                assert!(words.contains(&word), "{name}: {ran:?}");
            }
            let kept = ["noexec", "noatime", "nodiratime"].into_iter().filter(|word| words.contains(word));
            let wanted: Vec<_> = expected.split(',').collect();
            assert!(kept.clone().all(|word| wanted.contains(&word)), "{name}: {ran:?}");
        }
        assert!(Command::new("umount").arg(path).status().unwrap().success());
    });
}

/// What a source is mounted with, what its bind says, and the words that the bind has and has not; `None`: it is refused.
type Lock = (&'static str, &'static str, Option<(&'static str, &'static str)>);

const LOCKS: &[Lock] = &[
    ("ro,noexec", "bind", Some(("ro,noexec", "nosuid"))),
    ("ro", "bind,nosuid", Some(("ro,nosuid", "rw"))),
    ("ro", "bind,rw", None),
    ("nodev", "bind,dev", None),
    ("nosuid", "bind,suid", None),
    ("noexec", "bind,exec", None),
    ("nodev", "bind,ro,suid,exec", Some(("ro,nodev", "nosuid"))),
    ("noatime", "bind,atime", Some(("noatime", "relatime"))),
    ("noatime", "bind,strictatime", None),
    ("relatime", "bind,noatime", None),
    ("relatime", "bind,relatime", Some(("relatime", "noatime"))),
    ("nodev,nosymfollow", "bind,ro,symfollow", Some(("ro,nodev", "nosymfollow"))),
];

/// mount_namespaces(7), "Restrictions on mount namespaces": what a mount has in a more privileged mount namespace it does not
/// lose in a less privileged one. Whoever asks for that is told, and what is not said stays.
#[test]
fn a_bind_in_a_user_namespace_keeps_what_is_locked_or_is_refused() {
    on_ours(|runtime, bundles| {
        let source = bundles.join("source");
        std::fs::create_dir_all(&source).unwrap();
        let path = source.to_str().unwrap();
        let mount = |words: &[&str]| {
            assert!(Command::new("mount").args(words).arg(path).status().unwrap().success(), "{words:?}");
        };
        let bundle = Bundle::make(&bundles.join("b"), &["grep", " /v ", "/proc/mounts"], |_| {}).unwrap();
        std::fs::create_dir(bundle.rootfs().join("v")).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
        let run = |said: &str| {
            let mut config = config.clone();
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            let map = json!([{ "containerID": 0, "hostID": 70000, "size": 1000 }]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
            let options: Vec<_> = said.split(',').collect();
            let bind = json!({ "destination": "/v", "type": "bind", "source": path, "options": options });
            config["mounts"].as_array_mut().unwrap().push(bind);
            bundle.configure(&config).unwrap();
            runtime.run("c", bundle.path()).unwrap()
        };
        mount(&["-t", "tmpfs", "-o", "strictatime", "tmpfs"]);
        for (mounted, said, expected) in LOCKS {
            mount(&["-o", "remount,bind,rw,dev,suid,exec,symfollow,strictatime,diratime"]);
            mount(&["-o", &format!("remount,bind,{mounted}")]);
            let ran = run(said);
            let Some((has, has_not)) = expected else {
                let told = ran.stderr.contains("operation not permitted") && ran.stderr.contains("take back");
                assert!(ran.status != Some(0) && told, "{mounted} {said}: {ran:?}");
                continue;
            };
            let words: Vec<_> = ran.stdout.split(' ').nth(3).unwrap_or_default().split(',').collect();
            assert!(has.split(',').all(|word| words.contains(&word)), "{mounted} {said}: {ran:?}");
            assert!(!words.contains(has_not), "{mounted} {said}: {ran:?}");
        }
        // A file system that is itself read-only is no mount that is.
        mount(&["-o", "remount,ro"]);
        mount(&["-o", "remount,bind,rw"]);
        let ran = run("bind,rw");
        assert_eq!(ran.status, Some(0), "{ran:?}");
        assert!(Command::new("umount").arg(path).status().unwrap().success());
    });
}

/// runtime.md, "Kill", names a created container; process 1 of a pid namespace is deaf to what it does not listen for.
#[test]
fn a_container_that_waits_for_its_start_ends_by_the_usual_signals() {
    on_ours(|runtime, bundles| {
        let bundle = Bundle::make(&bundles.join("b"), &["sleep", "1000"], |_| {}).unwrap();
        for signal in ["HUP", "INT", "QUIT", "TERM"] {
            runtime.create("c", bundle.path()).unwrap();
            runtime.succeed(&["kill", "c", signal]).unwrap();
            runtime.wait("c", "stopped").unwrap();
            assert_ne!(runtime.call(&["start", "c"]).unwrap().status, Some(0));
            runtime.succeed(&["delete", "c"]).unwrap();
        }
        // What is started has its own ways again.
        runtime.create("c", bundle.path()).unwrap();
        runtime.succeed(&["start", "c"]).unwrap();
        runtime.succeed(&["kill", "c", "TERM"]).unwrap();
        runtime.succeed(&["exec", "c", "true"]).unwrap();
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

/// There are callers that look for the word on standard error, and not at the exit status.
#[test]
fn an_error_says_that_it_is_one() {
    on_ours(|runtime, _| {
        for arguments in [&["delete", "absent"][..], &["kill", "absent", "KILL"], &["state", ""]] {
            let refused = runtime.call(arguments).unwrap();
            assert_ne!(refused.status, Some(0), "{refused:?}");
            assert!(refused.stderr.contains("error: "), "{refused:?}");
        }
    });
}

#[test]
fn operations_go_on_where_runc_s_do() {
    on_ours(|runtime, bundles| {
        let script = "sleep 1000 & sleep 1000 & wait";
        let bundle = Bundle::make(&bundles.join("shared"), &["sh", "-c", script], |config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["type"] != "proc");
            config["linux"].as_object_mut().unwrap().remove("maskedPaths");
            config["linux"].as_object_mut().unwrap().remove("readonlyPaths");
        })
        .unwrap();
        runtime.succeed(&["run", "-d", "-b", bundle.path().to_str().unwrap(), "c"]).unwrap();
        runtime.succeed(&["kill", "c", "0"]).unwrap();
        runtime.succeed(&["pause", "c"]).unwrap();
        let held = runtime.command(&["exec", "--ignore-paused", "c", "echo", "went on"]);
        let waiting = std::thread::spawn(move || {
            let mut held = held;
            outcome(&mut held).unwrap()
        });
        // The lock is free meanwhile: whoever waits for the container must not keep it from going on.
        runtime.succeed(&["resume", "c"]).unwrap();
        let went = waiting.join().unwrap();
        assert_eq!((went.status, went.stdout.as_str()), (Some(0), "went on\n"), "{went:?}");
        // Nobody's end is that of the others here, and all of them are the container.
        runtime.succeed(&["kill", "c", "KILL"]).unwrap();
        runtime.wait("c", "stopped").unwrap();
        let ps = runtime.succeed(&["ps", "--format", "json", "c"]).unwrap();
        assert_eq!(ps.stdout, "[]\n", "{ps:?}");
        assert_eq!(runtime.call(&["kill", "c", "0"]).unwrap().status, Some(1));
        runtime.succeed(&["delete", "c"]).unwrap();
        let absent = bundles.join("absent");
        let mut list = Command::new(runtime.program());
        let list = outcome(list.args(["--root", absent.to_str().unwrap(), "list"])).unwrap();
        assert_eq!(list.status, Some(1), "{list:?}");
        assert!(!absent.exists());
    });
}
