//! HK: hooks run with what their configuration gives them, for as long as it says.

use std::time::{Duration, Instant};

use cofferdam_tests::oci::outcome;
use cofferdam_tests::pace;
use serde_json::{Value, json};

use crate::{assert_ran, assert_refused, attack, bundle, configuration, reconfigure, sleeper};

const HOST_SIDE: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

fn shell(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

#[test]
fn hk_01_and_02_a_hook_s_environment_is_its_own_and_its_folder_the_root() {
    attack(|runtime, files| {
        let log = files.join("log");
        let script =
            |name: &str| format!("{{ echo {name}; env; pwd; ls /proc/self/fd; }} >> {}", log.display());
        let bundle = bundle(files, "environment", "", |config| {
            config["process"]["env"] = json!(["PATH=/bin", "LD_PRELOAD=/evil.so", "PYTHONPATH=/evil"]);
            for name in HOST_SIDE {
                config["hooks"][name] = json!([shell(&script(name))]);
            }
        });
        std::fs::write(bundle.rootfs().join("evil.so"), "").unwrap();
        let call = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        let preparation = "export SECRET=leaked LD_PRELOADED=leaked; exec 9</; exec 8</etc/shadow";
        let run = || outcome(&mut crate::after_shell(preparation, &call)).unwrap();
        assert_ran(&run(), "hooks");
        let text = std::fs::read_to_string(&log).unwrap();
        for name in HOST_SIDE {
            assert!(text.contains(name), "{name} did not run: {text}");
        }
        assert!(!text.contains("leaked") && !text.contains("evil") && !text.contains("SEALED"), "{text}");
        let folders: Vec<_> = text.lines().filter(|line| line.starts_with('/')).collect();
        assert_eq!(folders, ["/"; 5], "{text}");
        std::fs::remove_file(&log).unwrap();
        reconfigure(&bundle, |config| {
            for name in HOST_SIDE {
                config["hooks"][name][0]["env"] = json!(["ONLY=this", "malformed"]);
            }
        });
        assert_ran(&run(), "hooks with an environment");
        let text = std::fs::read_to_string(&log).unwrap();
        assert_eq!(text.matches("ONLY=this").count(), 5, "{text}");
        assert!(!text.contains("leaked"), "{text}");
    });
}

#[test]
fn hk_03_misbehaving_hooks_end_in_time_and_leave_nothing() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "misbehaving", |config| {
            // More state than a pipe holds.
            config["annotations"] = json!({ "large": "x".repeat(200 << 10) });
        });
        let plain = configuration(&bundle);
        let long = pace::limit(Duration::from_secs(30));
        for (script, timeout, succeeds, limit) in [
            ("exit 0", Value::Null, true, long),
            ("exec 0<&-; sleep 0.1; exit 0", Value::Null, true, long),
            ("exit 3", Value::Null, false, long),
            ("cat > /dev/null; echo why >&2; exit 1", Value::Null, false, long),
            ("head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 1", Value::Null, false, long),
            ("trap '' TERM INT HUP; sleep 1000", json!(1), false, long),
            ("sleep 1000 & sleep 1000 & wait", json!(1), false, long),
            ("kill -KILL $$", Value::Null, false, long),
            // A daemon keeps the hook's pipes: nobody waits for it. It ends by itself, for the census.
            ("setsid sleep 3 & exit 0", Value::Null, true, pace::limit(Duration::from_millis(2500))),
        ] {
            for point in ["createRuntime", "createContainer", "prestart"] {
                let mut config = plain.clone();
                config["hooks"][point] = json!([shell(script)]);
                if !timeout.is_null() {
                    config["hooks"][point][0]["timeout"] = timeout.clone();
                }
                bundle.configure(&config).unwrap();
                let begin = Instant::now();
                let outcome =
                    runtime.call(&["create", "--bundle", bundle.path().to_str().unwrap(), "c"]).unwrap();
                let case = format!("{point}: {script}");
                assert!(begin.elapsed() < limit, "{case} took {:?}", begin.elapsed());
                assert!(outcome.stderr.len() < 200 << 10, "{case}: {} bytes of words", outcome.stderr.len());
                if succeeds {
                    assert_eq!(outcome.status, Some(0), "{case}: {outcome:?}");
                    runtime.succeed(&["delete", "--force", "c"]).unwrap();
                } else {
                    assert_refused(&outcome, &case);
                    assert_ne!(runtime.call(&["state", "c"]).unwrap().status, Some(0), "{case}");
                }
            }
        }
        for hook in [
            json!({ "path": "/absent" }),
            json!({ "path": "/etc" }),
            json!({ "path": "/etc/passwd" }),
            json!({ "path": "relative" }),
            json!({ "path": "" }),
            json!({ "path": "/bin/sh", "timeout": 0 }),
            json!({ "path": "/bin/sh", "timeout": -1 }),
            json!({ "path": "/bin/\u{0}sh" }),
        ] {
            let mut config = plain.clone();
            config["hooks"]["createRuntime"] = json!([hook]);
            bundle.configure(&config).unwrap();
            let arguments = ["create", "--bundle", bundle.path().to_str().unwrap(), "c"];
            assert_refused(&runtime.call(&arguments).unwrap(), &hook.to_string());
        }
    });
}

/// A hook that the runtime starts inside may be the image's link to `/proc/self/exe`, which is the runtime then
/// (CVE-2019-5736): it has to run from where nobody can write it.
#[test]
fn hk_04_a_start_container_hook_runs_inside_and_cannot_write_our_program() {
    attack(|runtime, files| {
        let bundle = sleeper(files, "inside", |config| {
            config["hooks"]["startContainer"] = json!([shell("echo ran > /tmp/ran; sleep 2")]);
        });
        runtime.create("c", bundle.path()).unwrap();
        let mut start = runtime.command(&["start", "c"]).spawn().unwrap();
        let ran = bundle.rootfs().join("tmp/ran");
        let deadline = Instant::now() + pace::limit(Duration::from_secs(10));
        while !ran.exists() {
            assert!(Instant::now() < deadline, "the hook did not run");
            std::thread::sleep(Duration::from_millis(5));
        }
        let program = rustix::fs::statvfs(format!("/proc/{}/exe", start.id())).unwrap();
        assert!(program.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "our program can be written");
        assert!(start.wait().unwrap().success());
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
    });
}
