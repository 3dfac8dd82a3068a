//! LS: what a security module is asked to hold, it holds. AppArmor is on in the virtual machine's kernel.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::needs;
use serde_json::{Value, json};

use crate::{assert_ran, assert_refused, attack, bundle, reconfigure, sleeper};

/// Denies one file and every mount, and leaves the rest.
const RULES: &str = "file, capability, network, signal, ptrace, unix, deny mount, deny /forbidden rw,";
const LABEL: &str = "cat /proc/self/attr/apparmor/current";
/// What the profile denies, the label of whoever tries, and a way out of it.
const SCRIPT: &str = "cat /proc/self/attr/apparmor/current; cat /allowed; cat /forbidden; \
                      mount -t tmpfs tmpfs /tmp; echo changeprofile unconfined > /proc/self/attr/apparmor/current; \
                      cat /forbidden; true";

fn has_apparmor() -> bool {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    needs::met(enabled.is_ok_and(|text| text.starts_with('Y')), "AppArmor is not enabled on this host")
        && needs::programs(&["apparmor_parser"])
}

/// A profile that the kernel knows until this goes away.
struct Profile {
    name: String,
}

impl Profile {
    fn load(kind: &str) -> Profile {
        let profile = Profile { name: format!("cofferdam-{kind}-{}", std::process::id()) };
        profile.parse("--add");
        profile
    }

    /// Has its text compiled, and the kernel told.
    fn parse(&self, what: &str) {
        let mut parser = Command::new("apparmor_parser");
        parser.args([what, "--skip-cache", "--quiet"]).stdin(Stdio::piped());
        let mut running = parser.spawn().unwrap();
        let text =
            format!("profile {} flags=(attach_disconnected,mediate_deleted) {{ {RULES} }}\n", self.name);
        running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(running.wait().unwrap().success(), "{what} of {text}");
    }

    /// How the kernel tells that a process is held to it.
    fn enforced(&self) -> String {
        format!("{} (enforce)", self.name)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parse("--remove");
    }
}

fn with_user_namespace(config: &mut Value) {
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
}

fn guarded(files: &Path, name: &str) -> Bundle {
    let bundle = bundle(files, name, SCRIPT, |_| {});
    for file in ["allowed", "forbidden"] {
        std::fs::write(bundle.rootfs().join(file), format!("contents of {file}\n")).unwrap();
    }
    bundle
}

#[test]
fn ls_01_a_profile_of_apparmor_holds_the_first_process_and_those_that_join_it() {
    if !has_apparmor() {
        return;
    }
    let (profile, other) = (Profile::load("one"), Profile::load("other"));
    attack(|runtime, files| {
        let bundle = guarded(files, "profile");
        type Change = fn(&mut Value);
        let changes: [(&str, Change); 4] = [
            ("plain", |_| {}),
            ("may gain privileges", |config| config["process"]["noNewPrivileges"] = json!(false)),
            ("a user of its own", |config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 })),
            ("a user namespace", with_user_namespace),
        ];
        for (case, change) in changes {
            reconfigure(&bundle, |config| {
                drop(config["process"].as_object_mut().unwrap().remove("apparmorProfile"))
            });
            // Without the profile the file is read: the row bites.
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, case);
            assert!(
                outcome.stdout.contains("unconfined") && outcome.stdout.contains("of forbidden"),
                "{outcome:?}"
            );
            let before = crate::configuration(&bundle);
            reconfigure(&bundle, |config| {
                config["process"]["apparmorProfile"] = json!(profile.name);
                change(config);
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, case);
            assert!(outcome.stdout.contains(&profile.enforced()), "{case}: {outcome:?}");
            assert!(outcome.stdout.contains("of allowed"), "{case}: {outcome:?}");
            assert!(!outcome.stdout.contains("of forbidden"), "{case}: {outcome:?}");
            bundle.configure(&before).unwrap();
        }

        let sleeper = sleeper(files, "sleeper", |config| {
            config["process"]["apparmorProfile"] = json!(profile.name);
        });
        runtime.create("s", sleeper.path()).unwrap();
        runtime.succeed(&["start", "s"]).unwrap();
        let exec = |options: &[&str]| {
            let label: Vec<&str> = LABEL.split(' ').collect();
            runtime.call(&[&["exec"], options, &["s"], &label].concat()).unwrap()
        };
        assert!(exec(&[]).stdout.contains(&profile.enforced()), "{:?}", exec(&[]));
        let named = exec(&["--apparmor", &other.name]);
        assert!(named.stdout.contains(&other.enforced()), "{named:?}");
        let unknown = exec(&["--apparmor", "cofferdam-nobody-loaded-this"]);
        assert!(unknown.status != Some(0) && unknown.stderr.contains("pparmor"), "{unknown:?}");
        runtime.succeed(&["delete", "--force", "s"]).unwrap();
    });
}

#[test]
fn ls_03_a_profile_that_is_not_loaded_or_is_no_name_is_refused_and_unconfined_is_taken_at_its_word() {
    if !has_apparmor() {
        return;
    }
    attack(|runtime, files| {
        let bundle = bundle(files, "profile", LABEL, |_| {});
        let long = "x".repeat(1 << 20);
        for name in ["cofferdam-not-loaded", "localhost/x", "a\nb", "a\0b", "exec unconfined", &long] {
            reconfigure(&bundle, |config| config["process"]["apparmorProfile"] = json!(name));
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), &name[..name.len().min(40)]);
        }
        for name in ["unconfined", ""] {
            reconfigure(&bundle, |config| config["process"]["apparmorProfile"] = json!(name));
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, name);
            assert!(outcome.stdout.contains("unconfined"), "{outcome:?}");
        }
    });
}
