//! FS: propagation, mappings, special files, and what is left when a container goes.

use std::path::Path;
use std::process::Command;

use cofferdam_tests::world::succeed;
use nix::mount::MsFlags;
use serde_json::json;

use crate::{Canary, assert_ran, assert_refused, attack, bundle, configuration, mount, reconfigure, sleeper};

fn tmpfs(at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// Delete removes the container's own few files: what is mounted in its root or its state folder is not descended into.
#[test]
fn fs_14_delete_leaves_alone_what_is_mounted_in_its_way() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let bundle = sleeper(files, "mounted", |_| {});
        runtime.create("c", bundle.path()).unwrap();
        let state = Path::new(runtime.command(&[]).get_args().nth(1).unwrap()).join("c/below");
        for at in [bundle.rootfs().join("tmp"), state.clone()] {
            let _ = std::fs::create_dir(&at);
            nix::mount::mount(Some(canary.path()), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .unwrap();
        }
        let outcome = runtime.call(&["delete", "--force", "c"]).unwrap();
        canary.assert_intact("delete");
        assert_refused(&outcome, "a mount in the state folder");
        for at in [bundle.rootfs().join("tmp"), state] {
            nix::mount::umount(&at).unwrap();
        }
        runtime.succeed(&["delete", "--force", "c"]).unwrap();
        assert_ne!(runtime.call(&["state", "c"]).unwrap().status, Some(0));
    });
}

/// Copying up takes names as they are: no link is followed, no FIFO opened, and the new file system's size is the end of it.
#[test]
fn fs_13_copying_up_follows_nothing_and_ends_with_the_size_of_the_file_system() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let script =
            "cd /data; ls -l | awk '{ print substr($1, 1, 1), $9 }' | sort -k2; cat host 2>/dev/null; true";
        let bundle = bundle(files, "copy-up", script, |_| {});
        let data = bundle.rootfs().join("data");
        std::fs::create_dir_all(data.join("folder")).unwrap();
        std::fs::write(data.join("file"), "kept").unwrap();
        std::os::unix::fs::symlink(canary.path().join("secret"), data.join("host")).unwrap();
        succeed(Command::new("mkfifo").arg(data.join("fifo"))).unwrap();
        let run = |size: &str| {
            reconfigure(&bundle, |config| {
                config["mounts"].as_array_mut().unwrap().truncate(6);
                mount(config, "/data", "tmpfs", "tmpfs", &["tmpcopyup", size]);
            });
            runtime.run("c", bundle.path()).unwrap()
        };
        let outcome = run("size=1m");
        assert_ran(&outcome, "copied");
        for line in ["l host", "- file", "d folder"] {
            assert!(outcome.stdout.lines().any(|found| found == line), "{line}: {outcome:?}");
        }
        assert!(!outcome.stdout.contains("host's own"), "{outcome:?}");
        // A file with a hole of a terabyte, and more than fits.
        std::fs::File::create(data.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert_refused(&run("size=64k"), "sparse");
        std::fs::remove_file(data.join("sparse")).unwrap();
        std::fs::write(data.join("large"), vec![1; 1 << 20]).unwrap();
        assert_refused(&run("size=64k"), "large");
        canary.assert_intact("copy-up");
    });
}

/// A mapping of a mount is the mapping of what is written through it, or the mount is refused.
#[test]
fn fs_19_mapped_mounts_are_mapped_or_refused() {
    attack(|runtime, files| {
        let volume = files.join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let bundle = bundle(files, "mapped", "touch /v/made; ls -n /v", |_| {});
        let run = |source: &str, map: serde_json::Value| {
            reconfigure(&bundle, |config| {
                config["mounts"].as_array_mut().unwrap().truncate(6);
                let mapped = json!({
                    "destination": "/v", "type": "bind", "source": source, "options": ["rbind", "idmap"],
                    "uidMappings": map, "gidMappings": map,
                });
                config["mounts"].as_array_mut().unwrap().push(mapped);
            });
            runtime.run("c", bundle.path()).unwrap()
        };
        let map = json!([{ "containerID": 0, "hostID": 0, "size": 1000 }]);
        let outcome = run(volume.to_str().unwrap(), map.clone());
        assert_ran(&outcome, "mapped");
        assert!(volume.join("made").exists(), "{outcome:?}");
        std::fs::remove_file(volume.join("made")).unwrap();
        // The kernel's own file systems take no mapping.
        for source in ["/proc", "/sys"] {
            assert_refused(&run(source, map.clone()), source);
        }
        for map in [
            json!([]),
            json!([{ "containerID": 0, "hostID": 0, "size": 0 }]),
            json!([{ "containerID": 0, "hostID": 4_294_967_295_u64, "size": 2 }]),
        ] {
            assert_refused(&run(volume.to_str().unwrap(), map.clone()), &map.to_string());
        }
    });
}

#[test]
fn fs_16_mounts_travel_only_where_they_were_asked_to() {
    attack(|runtime, files| {
        let volume = files.join("volume");
        for (propagation, goes_in, comes_out) in
            [("rprivate", false, false), ("rslave", true, false), ("rshared", true, true)]
        {
            tmpfs(&volume);
            nix::mount::mount(None::<&str>, &volume, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
            std::fs::create_dir(volume.join("in")).unwrap();
            std::fs::create_dir(volume.join("out")).unwrap();
            let script = "mount -t tmpfs made /v/out; touch /v/out/ready; sleep 1000";
            let bundle = bundle(files, propagation, script, |config| {
                for set in ["bounding", "effective", "permitted"] {
                    config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
                }
                // As Docker asks for it: without this the container's whole tree is cut off from the host's.
                config["linux"]["rootfsPropagation"] = json!(propagation);
                mount(config, "/v", "bind", volume.to_str().unwrap(), &["rbind", propagation]);
            });
            runtime.create("c", bundle.path()).unwrap();
            runtime.succeed(&["start", "c"]).unwrap();
            let wait = "until test -e /v/out/ready; do usleep 10000; done";
            runtime.succeed(&["exec", "c", "sh", "-c", wait]).unwrap();
            tmpfs(&volume.join("in"));
            std::fs::write(volume.join("in/mark"), "").unwrap();
            let seen = runtime.call(&["exec", "c", "test", "-e", "/v/in/mark"]).unwrap();
            assert_eq!(seen.status == Some(0), goes_in, "{propagation}: {seen:?}");
            assert_eq!(volume.join("out/ready").exists(), comes_out, "{propagation}");
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
            while nix::mount::umount2(&volume.join("out"), nix::mount::MntFlags::empty()).is_ok() {}
            // Nothing of the container pins the host's mounts.
            nix::mount::umount(&volume.join("in")).unwrap();
            nix::mount::umount(&volume).unwrap();
        }
    });
}

#[test]
fn fs_23_special_files_of_the_image_give_nothing() {
    attack(|runtime, files| {
        let script =
            "for node in /disk /mem /kmsg; do (exec 3<$node) 2>/dev/null && echo opened $node; done; true";
        let bundle = bundle(files, "special", script, |_| {});
        for (name, node) in [("disk", ["b", "8", "0"]), ("mem", ["c", "1", "1"]), ("kmsg", ["c", "1", "11"])]
        {
            succeed(Command::new("mknod").arg(bundle.rootfs().join(name)).args(node)).unwrap();
        }
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_ran(&outcome, "special files");
        assert!(!outcome.stdout.contains("opened"), "{outcome:?}");
    });
}

/// Work grows with the number of mounts and not with its square, and there is an end to it.
#[test]
fn fs_29_very_many_mounts_and_paths_are_done_or_refused() {
    attack(|runtime, files| {
        let bundle = bundle(files, "many", "true", |_| {});
        let paths: Vec<String> = (0..3000).map(|number| format!("/absent/{number}")).collect();
        for key in ["maskedPaths", "readonlyPaths"] {
            reconfigure(&bundle, |config| config["linux"][key] = json!(paths));
            assert_ran(&runtime.run("c", bundle.path()).unwrap(), key);
            reconfigure(&bundle, |config| config["linux"][key] = json!([]));
        }
        let plain = configuration(&bundle);
        for (count, runs) in [(300, true), (200_000, false)] {
            let mut config = plain.clone();
            let all = config["mounts"].as_array_mut().unwrap();
            let one = json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" });
            all.extend(std::iter::repeat_n(one, count));
            bundle.configure(&config).unwrap();
            let outcome = runtime.run("c", bundle.path()).unwrap();
            match runs {
                true => assert_ran(&outcome, "some mounts"),
                false => assert_refused(&outcome, "mounts beyond all measure"),
            }
        }
    });
}
