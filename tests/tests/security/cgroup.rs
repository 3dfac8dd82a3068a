//! CG: cgroups and devices.

use serde_json::json;

use crate::{RAN, assert_ran, assert_refused, attack, bundle, mount, reconfigure, sleeper};

#[test]
fn cg_01_release_agents_cannot_be_set() {
    attack(|runtime, files| {
        let script = "
            find /sys/fs/cgroup -name release_agent -o -name notify_on_release -o -name cgroup.procs 2>/dev/null | while read file; do
                (echo 0 > $file) 2>/dev/null && echo wrote $file
            done
            for kind in rdma memory pids freezer; do
                unshare -UrmC sh -c \"mount -t cgroup -o $kind x /tmp && echo /x > /tmp/release_agent && echo wrote in a namespace\" 2>/dev/null
            done; find /sys/fs/cgroup | wc -l; true";
        for namespaced in [true, false] {
            let bundle = bundle(files, &format!("agent-{namespaced}"), script, |config| {
                mount(config, "/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]);
                if namespaced {
                    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
                }
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, "agents");
            assert!(!outcome.stdout.contains("wrote"), "{namespaced}: {outcome:?}");
            let seen: u32 = outcome.stdout.lines().last().unwrap().parse().unwrap();
            assert!(seen > 10, "the recipe itself saw no cgroup: {outcome:?}");
        }
    });
}

#[test]
fn cg_03_cgroup_paths_lead_nowhere_else() {
    attack(|runtime, files| {
        let bundle = bundle(files, "path", "", |_| {});
        let long = format!("/cofferdam-{}", "x".repeat(300));
        for path in [
            "..",
            "../../x",
            "/..",
            "/../../x",
            "/",
            "//",
            ".",
            "/cofferdam-a/../../b",
            "cofferdam-a/..",
            "/cofferdam-a/./../..",
            "/cofferdam\nx",
            "/cofferdam\0x",
            &long,
        ] {
            reconfigure(&bundle, |config| config["linux"]["cgroupsPath"] = json!(path));
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), path);
        }
    });
}

#[test]
fn cg_05_a_cgroup_with_strangers_is_neither_entered_nor_emptied() {
    attack(|runtime, files| {
        let first = sleeper(files, "first", |_| {});
        runtime.create("first", first.path()).unwrap();
        runtime.succeed(&["start", "first"]).unwrap();
        let path = crate::configuration(&first)["linux"]["cgroupsPath"].clone();
        let second = bundle(files, "second", "", |config| config["linux"]["cgroupsPath"] = path);
        assert_refused(&runtime.run("second", second.path()).unwrap(), "a cgroup in use");
        let _ = runtime.call(&["delete", "--force", "second"]);
        assert_eq!(runtime.state("first").unwrap()["status"], "running");
        runtime.succeed(&["exec", "first", "true"]).unwrap();
        runtime.succeed(&["delete", "--force", "first"]).unwrap();
    });
}

#[test]
fn cg_06_limits_hold_from_the_first_instruction() {
    attack(|runtime, files| {
        let bundle = bundle(files, "limits", "ls / && echo forked", |config| {
            config["linux"]["resources"]["pids"] = json!({ "limit": 1 });
        });
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert!(outcome.stdout.contains(RAN) && !outcome.stdout.contains("forked"), "{outcome:?}");
        // More than the limit is touched at once, by the first process itself.
        reconfigure(&bundle, |config| {
            config["process"]["args"] = json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]);
            config["linux"]["resources"] = json!({
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": 32 << 20, "swap": 32 << 20 }
            });
        });
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_eq!(outcome.status, Some(137), "{outcome:?}");
    });
}

#[test]
fn cg_08_devices_that_are_not_listed_do_not_open() {
    attack(|runtime, files| {
        let volume = files.join("volume");
        std::fs::create_dir(&volume).unwrap();
        let shipped =
            std::process::Command::new("mknod").arg(volume.join("shipped")).args(["c", "1", "1"]).status();
        assert!(shipped.unwrap().success());
        let script = "
            for node in 'b 8 0' 'b 7 0' 'c 1 1' 'c 1 2' 'c 1 11' 'c 10 229' 'c 10 237' 'c 4 0'; do
                for folder in / /tmp /dev /volume; do
                    mknod $folder/made $node 2>/dev/null
                    test -e $folder/made && (exec 3<$folder/made) 2>/dev/null && echo opened $node in $folder
                    rm -f $folder/made
                done
            done
            (exec 3</volume/shipped) 2>/dev/null && echo opened shipped
            unshare -Urm sh -c 'exec 3</volume/shipped' 2>/dev/null && echo opened shipped in a namespace
            mknod /tmp/null c 1 3 && (exec 3</tmp/null) && echo listed opens; true";
        let bundle = bundle(files, "devices", script, |config| {
            mount(config, "/tmp", "tmpfs", "tmpfs", &[]);
            mount(config, "/volume", "bind", volume.to_str().unwrap(), &["bind"]);
        });
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_ran(&outcome, "devices");
        assert!(outcome.stdout.contains("listed opens"), "the recipe itself: {outcome:?}");
        assert!(!outcome.stdout.contains("opened"), "{outcome:?}");
    });
}
