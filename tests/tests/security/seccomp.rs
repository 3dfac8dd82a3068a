//! SC: the filter is there, for every process, with and without no-new-privileges.

use serde_json::{Value, json};

use crate::{assert_refused, attack, bundle, reconfigure};

/// A profile that allows everything but these calls, which get ENOTTY: an answer that nothing else gives.
pub(crate) fn without(names: &[&str]) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 25 }]
    })
}

#[test]
fn sc_06_the_filter_is_in_force_whoever_runs_and_whatever_else_is_asked() {
    attack(|runtime, files| {
        let script =
            "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t\\n'; mkdir /tmp/x 2>&1; true";
        for (uid, no_new_privileges) in [(0, true), (0, false), (1000, true), (1000, false)] {
            let name = format!("{uid}-{no_new_privileges}");
            let bundle = bundle(files, &name, script, |config| {
                config["process"]["user"] = json!({ "uid": uid, "gid": uid });
                config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                config["linux"]["seccomp"] = without(&["mkdir", "mkdirat"]);
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            let flags = format!("NoNewPrivs:{}Seccomp:2", u8::from(no_new_privileges));
            assert!(outcome.stdout.contains(&flags), "{name}: {outcome:?}");
            assert!(
                outcome.stdout.contains("Not a tty") || outcome.stdout.contains("Inappropriate ioctl"),
                "{name}: {outcome:?}"
            );
            // And without the profile the call works: the row bites.
            reconfigure(&bundle, |config| drop(config["linux"].as_object_mut().unwrap().remove("seccomp")));
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert!(outcome.stdout.contains("Seccomp:0"), "{name}: {outcome:?}");
        }
    });
}

#[test]
fn sc_06_a_profile_that_forbids_what_is_still_needed_fails_in_words() {
    attack(|runtime, files| {
        let bundle = bundle(files, "needed", "", |_| {});
        for no_new_privileges in [true, false] {
            for call in ["execve", "setresuid", "capset", "write", "prctl", "seccomp"] {
                reconfigure(&bundle, |config| {
                    config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                    config["linux"]["seccomp"] = without(&[call]);
                });
                let outcome = runtime.run("c", bundle.path()).unwrap();
                if call == "execve" {
                    assert_refused(&outcome, call);
                }
                assert!(outcome.status.is_some(), "{call}: {outcome:?}");
            }
        }
    });
}
