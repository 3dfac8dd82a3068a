//! FS and PR, with an attacker who swaps paths under the runtime as fast as the kernel lets him.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::{Canary, RAN, attack, bundle, mount};

/// Launches a case. The attacker makes some ten thousand swaps a second meanwhile.
const LAUNCHES: usize = 12;

/// Swaps two paths until told to stop.
struct Swapper {
    stop: std::sync::Arc<AtomicBool>,
    swaps: std::sync::Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(one: &Path, other: &Path) -> Swapper {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
        let (one, other) = (text(one), text(other));
        let (stop, swaps) = (std::sync::Arc::new(AtomicBool::new(false)), std::sync::Arc::default());
        let (told, counted): (_, std::sync::Arc<AtomicU64>) = (stop.clone(), std::sync::Arc::clone(&swaps));
        let thread = std::thread::spawn(move || {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !told.load(Ordering::Relaxed) {
                if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Swapper { stop, swaps, thread: Some(thread) }
    }

    /// Ends it; a race that was not run proves nothing.
    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        assert!(self.swaps.load(Ordering::Relaxed) > 100, "the attacker came to nothing");
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Launches with `change` while `volume/a`, a folder, and `volume/b`, a link to `target`, change places all the time.
fn race(target: &dyn Fn(&Canary) -> PathBuf, change: &dyn Fn(&mut Value, &Path)) {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        let volume = files.join("volume");
        std::fs::create_dir_all(volume.join("a/x")).unwrap();
        symlink(target(&canary), volume.join("b")).unwrap();
        let bundle = bundle(files, "race", "true", |config| change(config, &volume));
        let before = mounts();
        let swapper = Swapper::start(&volume.join("a"), &volume.join("b"));
        for launch in 0..LAUNCHES {
            let outcome = runtime.run("c", bundle.path()).unwrap();
            let ran = outcome.status == Some(0) && outcome.stdout.contains(RAN);
            let refused = outcome.status.is_some_and(|status| status != 0) && !outcome.stdout.contains(RAN);
            assert!(ran || refused, "launch {launch}: {outcome:?}");
            canary.assert_intact(&format!("launch {launch}"));
            assert_eq!(mounts(), before, "a mount came out: launch {launch}");
        }
        swapper.end();
    });
}

#[test]
fn fs_02_mounts_below_a_shared_volume_stay_inside_whoever_swaps_its_folders() {
    race(&|canary| canary.path().to_owned(), &|config, volume| {
        mount(config, "/v", "bind", volume.to_str().unwrap(), &["bind"]);
        for number in 0..12 {
            mount(config, &format!("/v/a/x{number}"), "tmpfs", "tmpfs", &[]);
        }
    });
}

#[test]
fn fs_07_missing_mount_points_are_made_inside_whoever_swaps_their_parents() {
    race(&|canary| canary.relative(), &|config, volume| {
        mount(config, "/v", "bind", volume.to_str().unwrap(), &["bind"]);
        for number in 0..8 {
            mount(config, &format!("/v/a/{number}/new/folder"), "tmpfs", "tmpfs", &[]);
            mount(config, &format!("/v/a/{number}/new/file"), "bind", "/etc/passwd", &["bind"]);
        }
    });
}

#[test]
fn fs_08_nothing_lands_on_procfs_whoever_swaps_links_to_it() {
    for target in ["/proc/self/attr", "/proc/sys/kernel", "/proc"] {
        race(&|_| target.into(), &|config, volume| {
            mount(config, "/v", "bind", volume.to_str().unwrap(), &["bind"]);
            mount(config, "/v/a", "tmpfs", "tmpfs", &[]);
            let script = format!(
                "echo {RAN}; ! grep -E ' (/proc/(self|thread-self|[0-9]+)/attr|/proc/sys/kernel) ' /proc/self/mountinfo"
            );
            config["process"]["args"] = json!(["sh", "-c", script]);
            config["linux"]["readonlyPaths"] = json!([]);
            config["linux"]["maskedPaths"] = json!([]);
        });
    }
}

#[test]
fn fs_09_a_path_made_read_only_is_that_path_whoever_swaps_it() {
    race(&|canary| canary.path().to_owned(), &|config, volume| {
        mount(config, "/v", "bind", volume.to_str().unwrap(), &["bind"]);
        config["linux"]["readonlyPaths"] = json!(["/v/a", "/v/a/x"]);
        // Whatever stands there now, what was made read-only is a mount of its own and holds.
        let script = format!(
            "for at in $(grep -E ' /v/' /proc/self/mountinfo | cut -d' ' -f5); do touch $at/made 2>/dev/null && exit 9; done; echo {RAN}"
        );
        config["process"]["args"] = json!(["sh", "-c", script]);
    });
}

#[test]
fn fs_25_a_swapped_source_is_one_or_the_other_and_never_half() {
    attack(|runtime, files| {
        let canary = Canary::make(files);
        for name in ["one", "other"] {
            std::fs::create_dir(files.join(name)).unwrap();
            std::fs::write(files.join(name).join("name"), name).unwrap();
        }
        let bundle = bundle(files, "source", "cat /v/name; touch /v/made && echo wrote", |config| {
            let source = files.join("one");
            mount(config, "/v", "bind", source.to_str().unwrap(), &["rbind", "ro"]);
        });
        let swapper = Swapper::start(&files.join("one"), &files.join("other"));
        for _ in 0..LAUNCHES {
            let outcome = runtime.run("c", bundle.path()).unwrap();
            let text = outcome.stdout.trim().lines().last().unwrap_or_default().to_owned();
            assert!(["one", "other"].contains(&text.as_str()), "{outcome:?}");
        }
        swapper.end();
        canary.assert_intact("sources");
    });
}

#[test]
fn pr_01_a_mask_swapped_while_it_is_made_shows_nothing() {
    race(&|canary| canary.path().to_owned(), &|config, volume| {
        mount(config, "/v", "bind", volume.to_str().unwrap(), &["bind"]);
        config["linux"]["maskedPaths"] = json!(["/v/a", "/proc/version"]);
        let script = format!("grep -q Linux /proc/version && exit 9; echo {RAN}");
        config["process"]["args"] = json!(["sh", "-c", script]);
    });
}
