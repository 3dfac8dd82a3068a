//! FD: descriptors of the caller and of the runtime.

use std::path::Path;

use cofferdam_tests::oci::outcome;
use serde_json::json;

use crate::{assert_ran, assert_refused, attack, bundle, reconfigure, sleeper};

/// Opens many descriptors that a careless program would hand on: the root, a secret, a namespace.
const LEAKS: &str = "for n in $(seq 10 200); do eval \"exec $n</\"; done; exec 7</; exec 8</etc/shadow; exec 9</proc/self/ns/net";

/// Prints what every descriptor of the shell is.
const CENSUS: &str =
    "for fd in /proc/$$/fd/*; do if test -e $fd; then echo -n fd ${fd##*/}' '; readlink $fd; fi; done";

fn numbers(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.strip_prefix("fd ")?.split(' ').next()?.parse().ok()).collect()
}

#[test]
fn fd_01_and_02_a_process_has_its_three_descriptors_and_no_others() {
    attack(|runtime, files| {
        let first = bundle(files, "leaks", CENSUS, |_| {});
        let run = runtime.command(&["run", "--bundle", first.path().to_str().unwrap(), "c"]);
        let outcome_of = |call| outcome(&mut crate::after_shell(LEAKS, call)).unwrap();
        let result = outcome_of(&run);
        assert_ran(&result, "run");
        assert_eq!(numbers(&result.stdout), [0, 1, 2], "{result:?}");
        // Nor as a working folder or a program, which are looked up before exec closes anything.
        for number in [7, 8, 9, 50] {
            reconfigure(&first, |config| config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}")));
            assert_refused(&outcome_of(&run), &format!("cwd on the caller's descriptor {number}"));
            reconfigure(&first, |config| {
                config["process"]["cwd"] = json!("/");
                config["process"]["args"] = json!([format!("/proc/self/fd/{number}/bin/echo"), crate::RAN]);
            });
            assert_refused(&outcome_of(&run), &format!("program on the caller's descriptor {number}"));
        }
        let sleeper = sleeper(files, "sleeper", |_| {});
        let create = runtime.command(&["create", "--bundle", sleeper.path().to_str().unwrap(), "s"]);
        assert_eq!(outcome_of(&create).status, Some(0));
        stub_holds_nothing_of_the_host(runtime.state("s").unwrap()["pid"].as_i64().unwrap());
        runtime.succeed(&["start", "s"]).unwrap();
        let exec = runtime.command(&["exec", "s", "sh", "-c", CENSUS]);
        let result = outcome_of(&exec);
        assert_eq!(numbers(&result.stdout), [0, 1, 2], "{result:?}");
        runtime.succeed(&["delete", "--force", "s"]).unwrap();
    });
}

/// What waits for `start` holds its standard descriptors and sockets, and no folder or file of the host.
fn stub_holds_nothing_of_the_host(pid: i64) {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap) {
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = std::fs::read_link(entry.path()).unwrap();
        let harmless = number < 3 || target.to_string_lossy().starts_with("socket:");
        assert!(harmless, "the waiting process holds {number}: {}", target.display());
    }
}

#[test]
fn fd_03_closed_standard_descriptors_become_the_null_device() {
    attack(|runtime, files| {
        let script = format!("{{ {CENSUS}; }} > /result");
        let bundle = bundle(files, "closed", &script, |_| {});
        // echo must not fail on a closed output.
        reconfigure(&bundle, |config| config["process"]["args"] = json!(["sh", "-c", script]));
        let call = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        for combination in 0..8 {
            let closed: Vec<u32> = (0..3).filter(|number| combination >> number & 1 == 1).collect();
            let preparation: String = closed.iter().map(|number| format!("exec {number}>&-;")).collect();
            let result = outcome(&mut crate::after_shell(&preparation, &call)).unwrap();
            let text = std::fs::read_to_string(bundle.rootfs().join("result")).unwrap();
            std::fs::remove_file(bundle.rootfs().join("result")).unwrap();
            assert_eq!(result.status, Some(0), "{closed:?}: {result:?}");
            let own: Vec<u32> = numbers(&text).into_iter().filter(|number| *number < 10).collect();
            assert_eq!(own, [0, 1, 2], "{closed:?}: {text}");
            for number in closed.iter().filter(|number| **number != 1) {
                assert!(text.contains(&format!("fd {number} /dev/null")), "{closed:?}: {text}");
            }
        }
    });
}

#[test]
fn fd_05_preserved_descriptors_are_the_caller_s_own() {
    attack(|runtime, files| {
        let bundle = bundle(files, "preserved", CENSUS, |_| {});
        let call = |count: &str, preparation: &str| {
            let path = bundle.path().to_str().unwrap();
            let call = runtime.command(&["run", "--preserve-fds", count, "--bundle", path, "c"]);
            outcome(&mut crate::after_shell(preparation, &call)).unwrap()
        };
        for count in ["-1", "abc", "", "4294967296", "1e3", "99999999999999999999"] {
            assert_refused(&call(count, ""), count);
        }
        // Whatever the number, none of the runtime's own arrives.
        for count in ["0", "5", "60", "1000", "1000000", "4294967295"] {
            // What the test's own caller left open would be preserved, rightly.
            let result = call(count, "for n in $(seq 3 250); do eval \"exec $n>&-\"; done");
            if result.status == Some(0) {
                // bash keeps one above those that it was told to close.
                let low: Vec<u32> =
                    numbers(&result.stdout).into_iter().filter(|number| *number < 250).collect();
                assert_eq!(low, [0, 1, 2], "{count}: {result:?}");
            }
        }
        let folder = files.join("given");
        std::fs::create_dir(&folder).unwrap();
        let open = format!("exec 3<{0}; exec 5<{0}; exec 8<{0}", folder.display());
        let result = call("3", &open);
        assert_eq!(numbers(&result.stdout), [0, 1, 2, 3, 5], "{result:?}");
        for variable in
            ["LISTEN_FDS=4294967295 LISTEN_PID=1", "LISTEN_FDS=-1", "LISTEN_FDS=abc LISTEN_PID=$$"]
        {
            let result = call("0", &format!("export {variable}"));
            assert_eq!(numbers(&result.stdout), [0, 1, 2], "{variable}: {result:?}");
        }
        let _: &Path = files;
    });
}
