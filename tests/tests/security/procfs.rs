//! PR: procfs, sysfs, masks and kernel parameters.

use std::os::unix::fs::symlink;

use cofferdam_tests::world::succeed;
use serde_json::json;

use crate::{Canary, assert_ran, assert_refused, attack, bundle, mount, reconfigure, unmount};

#[test]
fn pr_01_the_mask_is_not_the_image_s_idea_of_the_null_device() {
    attack(|runtime, files| {
        let script = "cat /etc/group /proc/version; true";
        let bundle = bundle(files, "masked", script, |config| {
            unmount(config, "/dev");
            mount(config, "/dev", "bind", files.join("dev").to_str().unwrap(), &["bind"]);
            config["linux"]["maskedPaths"] = json!(["/etc/group", "/proc/version"]);
        });
        let dev = files.join("dev");
        std::fs::create_dir(&dev).unwrap();
        let null = dev.join("null");
        for target in ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/ostype", "/etc/passwd", "/"] {
            let _ = std::fs::remove_file(&null);
            symlink(target, &null).unwrap();
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, target);
            assert_eq!(outcome.stdout.lines().count(), 1, "a mask shows something: {target}: {outcome:?}");
        }
        std::fs::remove_file(&null).unwrap();
        std::fs::write(&null, "false bottom\n").unwrap();
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_eq!(outcome.stdout.lines().count(), 1, "a regular file: {outcome:?}");
    });
}

#[test]
fn pr_02_masks_and_read_only_paths_cannot_be_taken_off() {
    attack(|runtime, files| {
        let script = "
            umount /proc/version; umount -l /proc/version; umount /proc
            mount -o remount,rw /proc/sys; mount -o bind,remount,rw /proc/sys
            mount -t proc proc /tmp; mount --bind /proc /tmp; mount -t sysfs sysfs /tmp
            cat /proc/version /tmp/version
            unshare -m sh -c 'umount /proc/version; cat /proc/version'
            unshare -Urm sh -c 'umount /proc/version; umount -l /proc; mount -t proc p /tmp; cat /proc/version /tmp/version'
            unshare -Urmpf sh -c 'mount -t proc p /tmp; cat /tmp/version'
            unshare -Urm sh -c 'mount -o bind,remount,rw /proc/sys; echo pwned > /proc/sys/kernel/domainname'
            echo pwned > /proc/sys/kernel/domainname
            cat /proc/sys/kernel/domainname";
        let script = format!("{{ {script}; }} 2>/dev/null; true");
        let masked = bundle(files, "masked", &script, |config| {
            config["linux"]["maskedPaths"] = json!(["/proc/version"]);
        });
        let outcome = runtime.run("c", masked.path()).unwrap();
        assert_ran(&outcome, "masked");
        assert!(!outcome.stdout.contains("Linux version"), "a mask came off: {outcome:?}");
        assert!(!outcome.stdout.contains("pwned"), "a read-only path was written: {outcome:?}");
        reconfigure(&masked, |config| config["linux"]["maskedPaths"] = json!([]));
        let outcome = runtime.run("c", masked.path()).unwrap();
        assert!(outcome.stdout.contains("Linux version"), "the recipe itself: {outcome:?}");
    });
}

#[test]
fn pr_03_masked_paths_may_be_strange_but_not_links() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = bundle(files, "strange", "cat /etc/group; ls /root; true", |_| {});
        std::fs::write(bundle.rootfs().join("root/file"), "").unwrap();
        symlink(canary.path(), bundle.rootfs().join("host")).unwrap();
        symlink("/etc", bundle.rootfs().join("inside")).unwrap();
        symlink("/absent", bundle.rootfs().join("dangling")).unwrap();
        let run = |key: &str, paths: &[&str]| {
            reconfigure(&bundle, |config| {
                config["linux"]["maskedPaths"] = json!([]);
                config["linux"]["readonlyPaths"] = json!([]);
                config["linux"][key] = json!(paths);
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            canary.assert_intact(&format!("{key} {paths:?}"));
            outcome
        };
        for key in ["maskedPaths", "readonlyPaths"] {
            for path in [
                "/host",
                "/host/secret",
                "/inside",
                "/inside/group",
                "/dangling",
                "/proc/self/cwd",
                "/proc/self/exe",
            ] {
                assert_refused(&run(key, &[path]), &format!("{key} {path}"));
            }
            for path in ["/absent", "/absent/below", "/etc/group/below"] {
                assert_ran(&run(key, &[path]), &format!("{key} {path}"));
            }
        }
        let everything =
            ["/etc/group", "/etc/group", "/etc/../etc/group", "/root/", "/root/file", "//root", "/../root"];
        let outcome = run("maskedPaths", &everything);
        assert_eq!(outcome.stdout.lines().count(), 1, "{outcome:?}");
    });
}

#[test]
fn pr_04_kernel_parameters_are_written_to_the_kernel_only() {
    attack(|runtime, files| {
        let key = "net/ipv4/conf/all/log_martians";
        let bundle = bundle(files, "fake", "", |config| {
            unmount(config, "/proc");
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
            config["linux"]["sysctl"] = json!({ "net.ipv4.conf.all.log_martians": "1" });
        });
        // The image's /proc looks like the kernel's.
        let fake = bundle.rootfs().join("proc/sys").join(key);
        std::fs::create_dir_all(fake.parent().unwrap()).unwrap();
        std::fs::write(&fake, "sentinel").unwrap();
        assert_ran(&runtime.run("c", bundle.path()).unwrap(), "a false /proc");
        assert_eq!(std::fs::read(&fake).unwrap(), b"sentinel");
        // And a false /proc/sys cannot be mounted over the kernel's.
        for destination in
            ["/proc/sys", "/proc/sys/net", "/proc/self/attr", "/proc/sysrq-trigger", "/link/net"]
        {
            let _ = symlink("/proc/sys", bundle.rootfs().join("link"));
            reconfigure(&bundle, |config| {
                unmount(config, "/proc");
                unmount(config, "/link");
                mount(config, "/proc", "proc", "proc", &[]);
                let source = bundle.rootfs().join("etc");
                mount(config, destination, "bind", source.to_str().unwrap(), &["bind"]);
            });
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), destination);
        }
    });
}

#[test]
fn pr_07_only_the_container_s_own_parameters_can_be_set() {
    attack(|runtime, files| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
        let before = [read("kernel/core_pattern"), read("vm/swappiness"), read("kernel/modprobe")];
        let bundle = bundle(files, "sysctl", "", |_| {});
        let refuse = |name: &str, value: &str| {
            reconfigure(&bundle, |config| config["linux"]["sysctl"] = json!({ name: value }));
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), &format!("{name:?} = {value:.20?}"));
        };
        for name in [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "kernel.modprobe",
            "kernel.shm_rmid_forcedx",
            "vm.swappiness",
            "fs.file-max",
            "user.max_user_namespaces",
            "net/../kernel/core_pattern",
            "net/ipv4/../../kernel/core_pattern",
            "net.ipv4.//.kernel",
            "net..ipv4",
            "net/./ipv4/ip_forward",
            "/net/ipv4/ip_forward",
            "net.",
            "net",
            ".net.ipv4.ip_forward",
            "net.ipv4.ip_forward\n",
            "net.absent",
            "kernel.sem\0",
            "",
        ] {
            refuse(name, "1");
        }
        for value in ["a\0b", "no number", &"1".repeat(1 << 20)] {
            refuse("net.ipv4.ip_forward", value);
        }
        assert_eq!(before, [read("kernel/core_pattern"), read("vm/swappiness"), read("kernel/modprobe")]);
        reconfigure(&bundle, |config| {
            config["linux"]["sysctl"] = json!({
                "net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/log_martians": "1", "kernel.shm_rmid_forced": "1"
            });
        });
        assert_ran(&runtime.run("c", bundle.path()).unwrap(), "the container's own");
        // Shared with the host by absence, and by the path of the host's own namespace.
        for (kind, name) in [("network", "net.ipv4.ip_forward"), ("ipc", "kernel.shm_rmid_forced")] {
            for path in [None, Some("/proc/self/ns/")] {
                reconfigure(&bundle, |config| {
                    let file = if kind == "network" { "net" } else { kind };
                    let mut namespaces = vec![json!({ "type": "pid" }), json!({ "type": "mount" })];
                    if let Some(path) = path {
                        namespaces.push(json!({ "type": kind, "path": format!("{path}{file}") }));
                    }
                    config["linux"]["namespaces"] = json!(namespaces);
                    config.as_object_mut().unwrap().remove("hostname");
                    unmount(config, "/sys");
                    unmount(config, "/dev/mqueue");
                    config["linux"]["sysctl"] = json!({ name: "1" });
                });
                let outcome = runtime.run("c", bundle.path()).unwrap();
                assert_refused(&outcome, &format!("{name} of the host, path {path:?}"));
            }
        }
    });
}

#[test]
fn pr_09_what_is_masked_by_default_shows_nothing() {
    attack(|runtime, files| {
        let script =
            "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | head -c 100; ls /sys/firmware; true";
        let bundle = bundle(files, "leaks", script, |_| {});
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_ran(&outcome, "leaks");
        assert_eq!(outcome.stdout.lines().count(), 1, "{outcome:?}");
    });
}

#[test]
fn pr_10_files_that_make_the_kernel_run_programs_cannot_be_written() {
    attack(|runtime, files| {
        let pattern = std::fs::read("/proc/sys/kernel/core_pattern").unwrap();
        let script = "
            mount -t proc proc /tmp 2>/dev/null
            for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hotplug \
                /proc/sys/fs/binfmt_misc/register /sys/kernel/uevent_helper /proc/sysrq-trigger \
                /proc/1/root/proc/sys/kernel/core_pattern /proc/self/task/1/root/proc/sys/kernel/modprobe \
                /tmp/sys/kernel/core_pattern /proc/sys/kernel/../kernel/core_pattern; do
                (exec 3<>$file) 2>/dev/null && test -e $file && test ! -f /tmp/sys/kernel/core_pattern && echo opened $file
            done; true";
        let bundle = bundle(files, "patterns", script, |_| {});
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_ran(&outcome, "patterns");
        assert!(!outcome.stdout.contains("opened"), "{outcome:?}");
        assert_eq!(std::fs::read("/proc/sys/kernel/core_pattern").unwrap(), pattern);
        let _ = succeed(&mut std::process::Command::new("true"));
    });
}
