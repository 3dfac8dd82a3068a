//! FS: the root file system, mounts and paths.

use std::os::unix::fs::symlink;
use std::path::Path;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::world::succeed;
use serde_json::json;

use crate::{Canary, assert_ran, assert_refused, attack, bundle, mount, reconfigure, unmount};

/// Puts something else where the image should have a folder.
fn replace(path: &Path, shape: &str, canary: &Canary) {
    let _ = std::fs::remove_dir_all(path);
    let _ = std::fs::remove_file(path);
    match shape {
        "a link to the host" => symlink(canary.path(), path).unwrap(),
        "a relative link to the host" => symlink(canary.relative(), path).unwrap(),
        "a link inside" => symlink("/etc", path).unwrap(),
        "a link to the root" => symlink("/", path).unwrap(),
        "a dangling link" => symlink("/absent/too", path).unwrap(),
        "a file" => std::fs::write(path, "").unwrap(),
        "a fifo" => drop(succeed(std::process::Command::new("mkfifo").arg(path)).unwrap()),
        "a socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        other => panic!("{other}"),
    }
}

const SHAPES: &[&str] = &[
    "a link to the host",
    "a relative link to the host",
    "a link inside",
    "a link to the root",
    "a dangling link",
    "a file",
    "a fifo",
    "a socket",
];

#[test]
fn fs_01_kernel_file_systems_are_mounted_on_real_folders_only() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = bundle(files, "plain", "", |_| {});
        assert_ran(&runtime.run("plain", bundle.path()).unwrap(), "the recipe itself");
        for point in ["proc", "sys"] {
            for shape in SHAPES {
                let case = format!("/{point} is {shape}");
                replace(&bundle.rootfs().join(point), shape, &canary);
                assert_refused(&runtime.run("c", bundle.path()).unwrap(), &case);
                canary.assert_intact(&case);
            }
            std::fs::remove_file(bundle.rootfs().join(point)).unwrap();
            std::fs::create_dir(bundle.rootfs().join(point)).unwrap();
        }
    });
}

#[test]
fn fs_03_dev_of_the_image_leads_nowhere_when_no_dev_is_mounted() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = bundle(files, "dev", "", |config| unmount(config, "/dev"));
        assert_ran(&runtime.run("plain", bundle.path()).unwrap(), "the recipe itself");
        for shape in SHAPES {
            let case = format!("/dev is {shape}");
            replace(&bundle.rootfs().join("dev"), shape, &canary);
            let outcome = runtime.run("c", bundle.path()).unwrap();
            assert!(outcome.status.is_some(), "{case}: {outcome:?}");
            canary.assert_intact(&case);
        }
    });
}

#[test]
fn fs_04_a_console_is_never_made_through_a_link_of_the_image() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = bundle(files, "console", "", |config| {
            config["process"]["terminal"] = json!(true);
            config["mounts"].as_array_mut().unwrap().retain(|mount| {
                let at = mount["destination"].as_str().unwrap();
                at == "/dev/pts" || !at.starts_with("/dev")
            });
        });
        let socket = crate::console::Receiver::listen(&files.join("socket"));
        let run = |case: &str| {
            let path = bundle.path().to_str().unwrap();
            let arguments = ["create", "--console-socket", socket.path(), "--bundle", path, "c"];
            let outcome = runtime.call(&arguments).unwrap();
            let _ = runtime.succeed(&["delete", "--force", "c"]);
            canary.assert_intact(case);
            outcome
        };
        std::fs::create_dir_all(bundle.rootfs().join("dev/pts")).unwrap();
        assert_eq!(run("plain").status, Some(0), "the recipe itself");
        let console = bundle.rootfs().join("dev/console");
        for (case, target) in [
            ("a new file", canary.path().join("new")),
            ("an existing file", canary.path().join("secret")),
            ("relative", canary.relative().join("new")),
        ] {
            let _ = std::fs::remove_file(&console);
            symlink(&target, &console).unwrap();
            assert_refused(&run(case), case);
            reconfigure(&bundle, |config| config["root"]["readonly"] = json!(true));
            assert_refused(&run(case), &format!("{case}, read-only root"));
            reconfigure(&bundle, |config| config["root"]["readonly"] = json!(false));
        }
    });
}

#[test]
fn fs_05_devices_of_the_image_are_what_they_are_called_or_refused() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = bundle(files, "null", "", |config| unmount(config, "/dev"));
        let null = bundle.rootfs().join("dev/null");
        let shadow = bundle.rootfs().join("etc/shadow");
        std::fs::write(&shadow, "x").unwrap();
        for (case, target) in [
            ("the host's file", canary.path().join("secret")),
            ("its own file", "/etc/shadow".into()),
            ("descriptor 0", "/proc/self/fd/0".into()),
        ] {
            let _ = std::fs::remove_file(&null);
            symlink(&target, &null).unwrap();
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), case);
            canary.assert_intact(case);
        }
        for node in [&["p"][..], &["c", "1", "5"], &["b", "8", "0"]] {
            let _ = std::fs::remove_file(&null);
            succeed(std::process::Command::new("mknod").arg(&null).args(node)).unwrap();
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), &format!("{node:?}"));
        }
        assert_eq!(std::fs::read(&shadow).unwrap(), b"x");
    });
}

#[test]
fn fs_06_destinations_through_links_stay_inside() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let volume = files.join("volume");
        std::fs::create_dir(&volume).unwrap();
        let bundle = bundle(files, "links", "grep -c volume.or.tmpfs /proc/self/mountinfo; true", |_| {});
        let root = bundle.rootfs();
        symlink("/etc", root.join("absolute")).unwrap();
        symlink(canary.path(), root.join("host")).unwrap();
        symlink(canary.relative(), root.join("climbing")).unwrap();
        symlink("loop2", root.join("loop1")).unwrap();
        symlink("loop1", root.join("loop2")).unwrap();
        symlink("/absent", root.join("dangling")).unwrap();
        symlink("/proc/self", root.join("self")).unwrap();
        for link in 0..45 {
            symlink(format!("chain{}", link + 1), root.join(format!("chain{link}"))).unwrap();
        }
        std::fs::create_dir(root.join("chain45")).unwrap();
        let part = "x".repeat(255);
        let (overlong, deep) = (format!("/{part}x"), format!("/{part}").repeat(17));
        let long = format!("/{part}");
        for (destination, runs) in [
            ("/absolute", Some(true)),
            ("/absolute/new/folder", Some(true)),
            ("/host", None),
            ("/host/new", None),
            ("/climbing/new", None),
            ("/loop1", Some(false)),
            ("/loop1/x", Some(false)),
            ("/dangling", None),
            ("/dangling/x", None),
            ("/chain0", Some(false)),
            ("/chain20", Some(true)),
            ("/self/attr", Some(false)),
            ("/mnt/", Some(true)),
            ("//mnt/./x/../y", Some(true)),
            ("/../../../../mnt", Some(true)),
            ("/new\nline", Some(true)),
            ("/octal\\040 space", Some(true)),
            (&long, Some(true)),
            (&overlong, Some(false)),
            (&deep, Some(false)),
            ("/", Some(false)),
            ("/tmp/..", Some(false)),
        ] {
            for kind in ["tmpfs", "bind"] {
                let case = format!("{kind} on {:?}", &destination[..destination.len().min(40)]);
                reconfigure(&bundle, |config| {
                    let mounts = config["mounts"].as_array_mut().unwrap();
                    mounts.truncate(6);
                    let options: &[&str] = if kind == "bind" { &["bind"] } else { &[] };
                    mount(config, destination, kind, volume.to_str().unwrap(), options);
                });
                let outcome = runtime.run("c", bundle.path()).unwrap();
                canary.assert_intact(&case);
                match runs {
                    Some(true) => assert_ran(&outcome, &case),
                    Some(false) => assert_refused(&outcome, &case),
                    None => assert!(outcome.status.is_some(), "{case}: {outcome:?}"),
                }
            }
        }
    });
}

#[test]
fn fs_08_nothing_is_mounted_on_procfs_whatever_the_link_is_called() {
    attack(|runtime, files| {
        let volume = files.join("volume");
        std::fs::create_dir(&volume).unwrap();
        let bundle = bundle(files, "gadget", "", |_| {});
        let run = |target: &str, kind: &str, destination: &str| {
            let link = volume.join("x");
            let _ = std::fs::remove_file(&link);
            symlink(target, &link).unwrap();
            reconfigure(&bundle, |config| {
                config["mounts"].as_array_mut().unwrap().truncate(6);
                mount(config, "/volume", "bind", volume.to_str().unwrap(), &["bind"]);
                let source = bundle.rootfs().join("etc");
                let (source, options) = if kind == "bind" {
                    (source.to_str().unwrap(), &["bind"][..])
                } else {
                    ("tmpfs", &[][..])
                };
                mount(config, destination, kind, source, options);
            });
            runtime.run("c", bundle.path()).unwrap()
        };
        assert_ran(&run("/tmp", "tmpfs", "/volume/x"), "the recipe itself");
        for target in [
            "/proc",
            "/proc/self/attr",
            "/proc/thread-self/attr",
            "/proc/sys/kernel",
            "/proc/1/root",
            "/proc/self/cwd",
            "/proc/self/fd",
            "/proc/tty",
        ] {
            for kind in ["tmpfs", "bind"] {
                assert_refused(&run(target, kind, "/volume/x"), &format!("{kind} on a link to {target}"));
            }
        }
        assert_refused(&run("/tmp", "tmpfs", "/proc/self/attr"), "by its own name");
    });
}

#[test]
fn fs_17_nothing_of_the_old_root_is_reachable() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let secret = canary.path().join("secret");
        let script = format!(
            "for up in / /.. /proc/1/root /proc/self/cwd /proc/1/cwd/../../../../.. /proc/self/fd/0/../../..; do \
             test -e $up{0} && echo reached $up; done; pwd; cut -d' ' -f5 /proc/self/mountinfo",
            secret.display()
        );
        let bundle = bundle(files, "pivot", &script, |_| {});
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_ran(&outcome, "pivot");
        assert!(!outcome.stdout.contains("reached"), "{outcome:?}");
        let lines: Vec<&str> = outcome.stdout.lines().skip(1).collect();
        assert_eq!(lines[0], "/", "{outcome:?}");
        for point in &lines[1..] {
            let expected = ["/", "/proc", "/dev", "/sys"].contains(point)
                || ["/proc/", "/dev/", "/sys/firmware"].iter().any(|below| point.starts_with(below));
            assert!(expected, "{point} is none of the container's mounts: {outcome:?}");
        }
    });
}

#[test]
fn fs_18_read_only_holds_for_every_mount_below() {
    attack(|runtime, files| {
        let volume = files.join("volume");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        let none = None::<&str>;
        let sub = volume.join("sub");
        nix::mount::mount(Some("tmpfs"), &sub, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
        let script = "touch /volume/a; echo $?; touch /volume/sub/a; echo $?; touch /a; echo $?";
        for (options, root, expected) in [
            (&["rbind"][..], false, "0\n0\n0\n"),
            (&["rbind", "ro"], false, "1\n0\n0\n"),
            (&["rbind", "rro"], false, "1\n1\n0\n"),
            (&["rbind", "rro"], true, "1\n1\n1\n"),
            (&["rbind"], true, "0\n0\n1\n"),
        ] {
            let name = format!("{}-{root}", options.join("-"));
            let bundle = bundle(files, &name, script, |config| {
                config["root"]["readonly"] = json!(root);
                mount(config, "/volume", "bind", volume.to_str().unwrap(), options);
            });
            let outcome = runtime.run("c", bundle.path()).unwrap();
            let answers = outcome.stdout.split_once('\n').map(|(_, rest)| rest);
            assert_eq!(answers, Some(expected), "{name}: {outcome:?}");
        }
        nix::mount::umount(&sub).unwrap();
    });
}

#[test]
fn fs_20_a_root_that_is_not_a_folder_is_refused() {
    attack(|runtime, files| {
        let bundle = bundle(files, "identity", "", |_| {});
        std::fs::write(bundle.path().join("file"), "").unwrap();
        symlink("loop", bundle.path().join("loop")).unwrap();
        for path in ["", "absent", "file", "loop", "rootfs/bin/sh", "rootfs/absent", "a\0b"] {
            reconfigure(&bundle, |config| config["root"]["path"] = json!(path));
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), path);
        }
        // A link is followed once, as crun does: bundles of some callers have one.
        symlink("rootfs", bundle.path().join("link")).unwrap();
        reconfigure(&bundle, |config| config["root"]["path"] = json!("link"));
        assert_ran(&runtime.run("c", bundle.path()).unwrap(), "a link to a folder");
    });
}

#[test]
fn fs_21_mount_options_cannot_smuggle_others() {
    attack(|runtime, files| {
        let bundle = bundle(files, "options", "grep ' /volume ' /proc/self/mountinfo", |_| {});
        let run = |options: &[&str]| {
            reconfigure(&bundle, |config| {
                config["mounts"].as_array_mut().unwrap().truncate(6);
                mount(config, "/volume", "tmpfs", "tmp fs,\\,source", options);
            });
            runtime.run("c", bundle.path()).unwrap()
        };
        assert_ran(&run(&["size=64k", "mode=700", "nosuid"]), "the recipe itself");
        for option in [
            "size=64k,mode=777",
            "mode=700\nsize=1g",
            "nonsense",
            "nonsense=1",
            "size=",
            "size=1g:uid=0",
            "uid=4294967295",
            "gid=4294967295",
            "uid=-1",
            "lowerdir=/",
            "a\0b",
        ] {
            assert_refused(&run(&[option]), option);
        }
    });
}

#[test]
fn fs_24_magic_links_are_no_destination() {
    attack(|runtime, files| {
        let bundle = bundle(files, "magic", "", |_| {});
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("three", "/proc/self/fd/3"),
            ("one", "/proc/1/root"),
            ("cwd", "/proc/self/cwd"),
        ] {
            symlink(target, bundle.rootfs().join(name)).unwrap();
        }
        for destination in [
            "/proc/self/fd/3",
            "/proc/1/root/tmp",
            "/proc/self/cwd/x",
            "/fd/3/x",
            "/three",
            "/three/x",
            "/one/tmp",
            "/cwd/x",
        ] {
            reconfigure(&bundle, |config| {
                config["mounts"].as_array_mut().unwrap().truncate(6);
                mount(config, destination, "tmpfs", "tmpfs", &[]);
            });
            assert_refused(&runtime.run("c", bundle.path()).unwrap(), destination);
        }
    });
}

#[test]
fn fs_26_the_working_folder_is_inside_whatever_the_image_holds() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle: Bundle = bundle(files, "cwd", "pwd; touch made", |_| {});
        let root = bundle.rootfs();
        symlink(canary.path(), root.join("host")).unwrap();
        symlink(canary.relative(), root.join("climbing")).unwrap();
        symlink("/absent", root.join("dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for (cwd, runs) in [
            ("/new/folder", Some(true)),
            ("/../../../..", Some(true)),
            ("/tmp/../../..", Some(true)),
            ("/host", None),
            ("/host/new", None),
            ("/climbing/new", None),
            ("/dangling", None),
            ("/loop", Some(false)),
            ("/bin/sh", Some(false)),
            ("relative", Some(false)),
            ("", Some(false)),
        ] {
            reconfigure(&bundle, |config| config["process"]["cwd"] = json!(cwd));
            let outcome = runtime.run("c", bundle.path()).unwrap();
            canary.assert_intact(cwd);
            match runs {
                Some(true) => assert_ran(&outcome, cwd),
                Some(false) => assert_refused(&outcome, cwd),
                None => assert!(outcome.status.is_some(), "{cwd}: {outcome:?}"),
            }
        }
    });
}
