//! PR: what the kernel shows in files, and what it reads from them.

use std::path::Path;
use std::process::Command;

use cofferdam_tests::needs;
use cofferdam_tests::oci::outcome;
use nix::mount::MsFlags;
use serde_json::json;

use crate::{assert_ran, assert_refused, attack, bundle, mount, reconfigure, unmount};

/// No mount API, no procfs of our own: then kernel parameters are not set, rather than through a path.
#[test]
fn pr_05_without_a_procfs_of_our_own_nothing_is_written() {
    if !needs::programs(&["strace"]) {
        return;
    }
    attack(|runtime, files| {
        let bundle = bundle(files, "fallback", "", |config| {
            unmount(config, "/proc");
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
            config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        });
        let fake = bundle.rootfs().join("proc/sys/net/ipv4/ip_forward");
        std::fs::create_dir_all(fake.parent().unwrap()).unwrap();
        std::fs::write(&fake, "sentinel").unwrap();
        let run = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        for answer in ["EPERM", "ENOSYS"] {
            let mut traced = Command::new("strace");
            traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsopen"]);
            traced.args(["-e", &format!("inject=fsopen:error={answer}"), "--"]);
            traced.arg(run.get_program()).args(run.get_args()).stdin(std::process::Stdio::null());
            assert_refused(&outcome(&mut traced).unwrap(), answer);
            let _ = runtime.call(&["delete", "--force", "c"]);
            assert_eq!(std::fs::read(&fake).unwrap(), b"sentinel", "{answer}");
        }
    });
}

#[test]
fn pr_11_a_folder_that_looks_like_procfs_is_not_mounted_as_it() {
    attack(|runtime, files| {
        let fake = files.join("fake");
        std::fs::create_dir_all(fake.join("self/attr")).unwrap();
        std::fs::write(fake.join("stat"), "cpu 0").unwrap();
        let bundle = bundle(files, "false-proc", "", |_| {});
        let run = |source: &Path, options: &[&str]| {
            reconfigure(&bundle, |config| {
                unmount(config, "/proc");
                mount(config, "/proc", "bind", source.to_str().unwrap(), options);
                config["linux"]["maskedPaths"] = json!([]);
                config["linux"]["readonlyPaths"] = json!([]);
            });
            runtime.run("c", bundle.path()).unwrap()
        };
        for source in [fake.as_path(), Path::new("/proc/self"), Path::new("/proc/sys"), Path::new("/")] {
            for options in [["bind"], ["rbind"]] {
                assert_refused(&run(source, &options), &format!("{} {options:?}", source.display()));
            }
        }
        assert_ran(&run(Path::new("/proc"), &["rbind"]), "the host's own, as engines ask for");
    });
}

#[test]
fn pr_12_options_of_procfs_are_those_of_this_mount() {
    attack(|runtime, files| {
        let script = "grep ' /proc ' /proc/self/mounts; test -e /proc/cpuinfo && echo all of it";
        let bundle = bundle(files, "options", &format!("{{ {script}; }} ; true"), |_| {});
        for (options, mark, all) in [
            (&["hidepid=2"][..], "hidepid=", true),
            (&["subset=pid"], "subset=pid", false),
            (&[], " proc ", true),
        ] {
            reconfigure(&bundle, |config| {
                unmount(config, "/proc");
                mount(config, "/proc", "proc", "proc", options);
                config["linux"]["maskedPaths"] = json!([]);
                config["linux"]["readonlyPaths"] = json!([]);
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, mark);
            assert!(outcome.stdout.contains(mark), "{options:?}: {outcome:?}");
            assert_eq!(outcome.stdout.contains("all of it"), all, "{options:?}: {outcome:?}");
        }
    });
}

/// The name of a process is the process's to choose, and stands before its start time.
#[test]
fn pr_13_a_process_s_name_does_not_change_what_is_read_after_it() {
    attack(|runtime, files| {
        for (index, name) in [") R 1 1 1 (", "Z) Z 0 0 0 0", "a\\nb) X", ") ) ) )"].iter().enumerate() {
            let script =
                format!("printf '{name}' > /proc/self/comm; echo > /tmp/named; read line < /tmp/never");
            let bundle = bundle(files, &format!("name{index}"), &script, |_| {});
            cofferdam_tests::world::succeed(Command::new("mkfifo").arg(bundle.rootfs().join("tmp/never")))
                .unwrap();
            runtime.create("c", bundle.path()).unwrap();
            runtime.succeed(&["start", "c"]).unwrap();
            let wait = "until test -e /tmp/named; do usleep 10000; done";
            runtime.succeed(&["exec", "c", "sh", "-c", wait]).unwrap();
            assert_eq!(runtime.state("c").unwrap()["status"], "running", "{name:?}");
            runtime.succeed(&["kill", "c", "KILL"]).unwrap();
            runtime.wait("c", "stopped").unwrap();
            runtime.succeed(&["delete", "c"]).unwrap();
        }
    });
}

#[test]
fn pr_14_strange_mounts_of_the_host_do_not_confuse() {
    attack(|runtime, files| {
        let bundle = bundle(files, "strange", "", |_| {});
        let names = [
            "new\nline",
            "tab\there",
            "space here",
            "back\\slash",
            "\\040 cgroup2 cgroup2 rw",
            " - cgroup2 cgroup2 rw",
        ];
        for name in names {
            let at = files.join(name);
            std::fs::create_dir(&at).unwrap();
            nix::mount::mount(Some(name), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        assert_ran(&runtime.run("c", bundle.path()).unwrap(), "strange mounts");
        names.iter().for_each(|name| nix::mount::umount(&files.join(name)).unwrap());
    });
}

#[test]
fn pr_15_sysfs_cannot_be_written() {
    attack(|runtime, files| {
        let script = "for file in /sys/kernel/uevent_helper /sys/power/state /sys/class/net/lo/tx_queue_len \
            /sys/kernel/mm/transparent_hugepage/enabled /sys/module/*/parameters/* /sys/kernel/profiling; do \
            test -e $file && (exec 3>>$file) 2>/dev/null && echo opened $file; done; mkdir /sys/x 2>/dev/null && echo made; true";
        let bundle = bundle(files, "sysfs", script, |_| {});
        for host_network in [false, true] {
            if host_network {
                reconfigure(&bundle, |config| {
                    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                    namespaces.retain(|namespace| namespace["type"] != "network");
                    unmount(config, "/sys");
                    mount(config, "/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro"]);
                });
            }
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert_ran(&outcome, "sysfs");
            let written = outcome.stdout.lines().any(|line| line.starts_with("opened") || line == "made");
            assert!(!written, "host's network {host_network}: {outcome:?}");
        }
    });
}
