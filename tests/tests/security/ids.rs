//! ID: users, groups and capabilities.

use std::path::Path;
use std::process::Command;

use cofferdam_tests::needs;
use cofferdam_tests::oci::outcome;
use serde_json::{Value, json};

use crate::{RAN, assert_ran, assert_refused, attack, bundle, mount, reconfigure, sleeper};

/// `(uid_t)-1` means "leave as it is" to the kernel: passed on, it is root.
#[test]
fn id_01_the_highest_number_is_no_id_in_the_configuration() {
    attack(|runtime, files| {
        let plain = bundle(files, "plain", "id -u", |_| {});
        let ids: Vec<Value> = vec![
            json!(4_294_967_295_u64),
            json!(4_294_967_296_u64),
            json!(-1),
            json!(-2),
            json!(18_446_744_073_709_551_615_u64),
            json!("0"),
            json!(0.5),
        ];
        for (index, id) in ids.iter().enumerate() {
            for (key, user) in [
                ("uid", json!({ "uid": id, "gid": 5 })),
                ("gid", json!({ "uid": 5, "gid": id })),
                ("groups", json!({ "uid": 5, "gid": 5, "additionalGids": [1, id] })),
            ] {
                reconfigure(&plain, |config| config["process"]["user"] = user);
                assert_refused(&runtime.run("c", plain.path()).unwrap(), &format!("{key} {id}"));
            }
            let fields = bundle(files, &format!("fields{index}"), "", |_| {});
            for key in ["uid", "gid"] {
                reconfigure(&fields, |config| {
                    let mut device = json!({ "path": "/dev/x", "type": "c", "major": 1, "minor": 3 });
                    device[key] = id.clone();
                    config["linux"]["devices"] = json!([device]);
                });
                assert_refused(&runtime.run("c", fields.path()).unwrap(), &format!("device's {key} {id}"));
            }
            reconfigure(&fields, |config| {
                config["linux"]["devices"] = json!([]);
                let option = format!("uid={}", id.to_string().trim_matches('"'));
                mount(config, "/tmp", "tmpfs", "tmpfs", &[&option]);
            });
            if id != "0" {
                assert_refused(&runtime.run("c", fields.path()).unwrap(), &format!("mount's uid {id}"));
            }
        }
        for map in [
            json!([{ "containerID": 0, "hostID": 4_294_967_295_u64, "size": 1 }]),
            json!([{ "containerID": 4_294_967_295_u64, "hostID": 100_000, "size": 1 }]),
            json!([{ "containerID": 0, "hostID": 100_000, "size": 4_294_967_295_u64 }]),
            json!([{ "containerID": 0, "hostID": 100_000, "size": 0 }]),
            json!([{ "containerID": 0, "hostID": 100_000, "size": 9 }, { "containerID": 8, "hostID": 200_000, "size": 9 }]),
            json!([]),
        ] {
            let outcome = {
                reconfigure(&plain, |config| {
                    config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
                    config["linux"]["namespaces"] = json!([{ "type": "user" }, { "type": "mount" }, { "type": "pid" }, { "type": "uts" }, { "type": "ipc" }, { "type": "network" }]);
                    config["linux"]["uidMappings"] = map.clone();
                    config["linux"]["gidMappings"] = map.clone();
                });
                runtime.run("c", plain.path()).unwrap()
            };
            assert_refused(&outcome, &format!("map {map}"));
        }
    });
}

#[test]
fn id_01_the_highest_number_is_no_id_for_exec() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "sleeper", |_| {});
        runtime.create("c", bundle.path()).unwrap();
        runtime.succeed(&["start", "c"]).unwrap();
        for user in [
            "4294967295",
            "0:4294967295",
            "4294967295:0",
            "4294967296",
            "-1",
            "0:-1",
            "-0",
            "+0",
            "0:+0",
            "0x0",
            " 0",
            "0 ",
            "",
            ":",
            ":0",
            "0:",
            "0:0:0",
            "1e3",
            "０",
            "root ",
            "nobody",
            "99999999999999999999",
        ] {
            let outcome = runtime
                .call(&["exec", &format!("--user={user}"), "c", "sh", "-c", "echo the program ran; id"])
                .unwrap();
            assert_refused(&outcome, &format!("--user {user:?}"));
        }
        for (user, expected) in
            [("7", "7 0"), ("7:8", "7 8"), ("4294967294:4294967294", "4294967294 4294967294")]
        {
            let outcome =
                runtime.call(&["exec", "--user", user, "c", "sh", "-c", "echo $(id -u) $(id -g)"]).unwrap();
            assert_eq!(outcome.stdout.trim(), expected, "{user}: {outcome:?}");
        }
        let process = files.join("process.json");
        for id in [json!(4_294_967_295_u64), json!(-1)] {
            let text =
                json!({ "args": ["echo", RAN], "cwd": "/", "user": { "uid": id, "gid": 0 } }).to_string();
            std::fs::write(&process, text).unwrap();
            let outcome = runtime.call(&["exec", "--process", process.to_str().unwrap(), "c"]).unwrap();
            assert_refused(&outcome, &format!("--process with uid {id}"));
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}

#[test]
fn id_04_the_caller_s_groups_stay_outside() {
    attack(|runtime, files| {
        let bundle = bundle(files, "groups", "grep Groups /proc/self/status", |_| {});
        let call = |groups: Value| {
            reconfigure(&bundle, |config| {
                config["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": groups });
            });
            let inner = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
            let mut command = Command::new("setpriv");
            command.args(["--groups", "0,6,20,24"]).arg(inner.get_program()).args(inner.get_args());
            let outcome = outcome(&mut command).unwrap();
            assert_ran(&outcome, "groups");
            outcome.stdout.lines().nth(1).unwrap().split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(call(json!([])), "");
        assert_eq!(call(json!([7, 9])), "7 9");
    });
}

#[test]
fn id_07_capability_sets_are_what_was_asked_for_and_never_more() {
    attack(|runtime, files| {
        let script = "grep ^Cap /proc/self/status | tr -d '\\n\\t'";
        let bundle = bundle(files, "capabilities", script, |_| {});
        let sets = |uid: u32, capabilities: Value| {
            reconfigure(&bundle, |config| {
                config["process"]["user"] = json!({ "uid": uid, "gid": uid });
                config["process"]["capabilities"] = capabilities;
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            outcome.stdout.lines().nth(1).unwrap_or_default().replace("00000000", "")
        };
        // CAP_KILL is number 5.
        let kill = json!(["CAP_KILL"]);
        assert_eq!(
            sets(0, Value::Null),
            "CapInh:00000000CapPrm:00000000CapEff:00000000CapBnd:00000000CapAmb:00000000"
                .replace("00000000", "")
        );
        let full = json!({ "bounding": kill, "effective": kill, "permitted": kill });
        assert_eq!(sets(0, full.clone()), "CapInh:CapPrm:00000020CapEff:00000020CapBnd:00000020CapAmb:");
        assert_eq!(sets(1000, full), "CapInh:CapPrm:CapEff:CapBnd:00000020CapAmb:");
        let ambient = json!({ "bounding": kill, "effective": kill, "permitted": kill, "inheritable": kill, "ambient": kill });
        assert_eq!(
            sets(1000, ambient),
            "CapInh:00000020CapPrm:00000020CapEff:00000020CapBnd:00000020CapAmb:00000020"
        );
        // Ambient without inheritable is impossible: it must not come out as more.
        let impossible = json!({ "bounding": kill, "permitted": kill, "ambient": kill });
        let outcome = sets(1000, impossible);
        assert!(outcome.is_empty() || outcome.ends_with("CapAmb:"), "{outcome}");
    });
}

/// The serial number of a process's session keyring: keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0).
const SESSION_KEYRING: &[&str] = &["/usr/bin/perl", "-e", "print syscall(250, 0, -3, 0), qq(\\n)"];

#[test]
fn id_10_the_caller_s_keyring_stays_outside() {
    if !needs::met(Path::new(SESSION_KEYRING[0]).exists(), "needs perl, which can make system calls") {
        return;
    }
    attack(|runtime, files| {
        let [program, arguments @ ..] = SESSION_KEYRING else { panic!("no program") };
        let callers = outcome(Command::new(program).args(arguments)).unwrap().stdout;
        let keys = sleeper(files, "keys", |config| {
            mount(config, "/usr", "bind", "/usr", &["rbind", "ro"]);
        });
        for folder in ["lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{folder}"), keys.rootfs().join(folder)).unwrap();
        }
        runtime.create("c", keys.path()).unwrap();
        runtime.succeed(&["start", "c"]).unwrap();
        let joined = runtime.succeed(&[&["exec", "c"], SESSION_KEYRING].concat()).unwrap().stdout;
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        reconfigure(&keys, |config| config["process"]["args"] = json!(SESSION_KEYRING));
        let first = runtime.run("c", keys.path()).unwrap().stdout;
        for serial in [&first, &joined] {
            assert!(serial.trim().parse::<u32>().is_ok(), "{serial:?}");
            assert_ne!(*serial, callers);
        }
    });
}
