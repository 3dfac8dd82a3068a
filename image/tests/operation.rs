//! How a store is operated: full disks, what is kept, what is removed, who may look, formats and clocks.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use cofferdam_image::{
    Digest, Durability, Error, ImageRef, KeepBlobs, Kind, PruneOptions, PullOptions, Store, StoreOptions,
    Unused, VerifyOptions, Watermarks,
};
use cofferdam_tests::{needs, pace};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use support::fake::FakeRegistry;
use support::*;

const STORE: &str = "COFFERDAM_TEST_STORE";
const IMAGE: &str = "COFFERDAM_TEST_IMAGE";
/// How a child says that there was no room, and how that it failed otherwise.
const EXHAUSTED: i32 = 40;
const FAILED: i32 = 41;

/// A file system in memory of a certain size.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(options: &str) -> SmallDisk {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("cofferdam-test", folder.path(), "tmpfs", MountFlags::empty(), &*options).unwrap();
        SmallDisk { folder }
    }

    fn resize(&self, options: &str) {
        mount_remount(self.folder.path(), MountFlags::empty(), options).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn used_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.folder.path()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.folder.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn layers(count: usize, files: usize, bytes: usize) -> Vec<Layer> {
    let layer = |index: usize| {
        let mut tar = Tar::new();
        for file in 0..files {
            let data = format!("{index} {file} ").repeat(bytes / 5);
            tar = tar.file(&format!("dir{}/file{index}-{file}", file % 5), &data);
        }
        Layer::gzip(tar.end())
    };
    (0..count).map(layer).collect()
}

fn pull(store: &Store, name: &str) -> Result<cofferdam_image::Image, Error> {
    store.pull(&ImageRef::parse(name).unwrap(), &options(), &|_| {})
}

/// After an operation that found no room: nothing half-made is left, what is there is sound.
fn assert_usable(store: &Store) {
    let left: Vec<_> = std::fs::read_dir(store.root().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(store.images().unwrap().is_empty());
    store.snapshots().unwrap();
}

#[test]
fn a57_a_disk_that_is_full_at_any_point_costs_the_pull_and_nothing_else() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers = layers(3, 20, 6000);
    serve(&registry, "test/image", "latest", &layers);
    serve(&registry, "test/again", "latest", &layers);
    let name = registry.name("test/image");
    let whole = {
        let disk = SmallDisk::new("size=64m");
        pull(&Store::open(&disk.root()).unwrap(), &name).unwrap();
        let stat = rustix::fs::statvfs(disk.folder.path()).unwrap();
        (disk.used_bytes(), stat.f_files - stat.f_ffree)
    };
    let rounds = pace::rounds(100, 8);
    let mut refused = 0;
    for round in 0..u64::from(rounds) {
        // Out of blocks in one round, out of inodes in the next.
        let part = |all: u64| all * (round + 1) / u64::from(rounds);
        let options = match round % 2 {
            0 => format!("size={},nr_inodes=100k", part(whole.0).max(4096)),
            _ => format!("size=64m,nr_inodes={}", part(whole.1).max(3)),
        };
        let disk = SmallDisk::new(&options);
        let error = match Store::open(&disk.root()) {
            Ok(store) => pull(&store, &name).err().inspect(|_| assert_usable(&store)),
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            refused += 1;
            assert_eq!(error.kind(), Kind::Exhausted, "{options}: {error}");
        }
        let finished: Vec<String> = std::fs::read_dir(disk.root().join("layers"))
            .map(|layers| layers.map(|layer| layer.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        disk.resize("size=64m,nr_inodes=100k");
        registry.state.lock().unwrap().seen.clear();
        let store = Store::open(&disk.root()).unwrap();
        pull(&store, &registry.name("test/again")).unwrap();
        for layer in &layers {
            let was_there = finished.iter().any(|name| name.ends_with(layer.diff_id.hex()));
            let fetched = registry.seen(&format!("test/again/blobs/{}", Digest::of(&layer.blob))).len();
            assert_eq!(fetched, usize::from(!was_there), "{options}");
        }
        assert!(store.verify(&VerifyOptions::default()).unwrap().findings.is_empty());
        store.settle().unwrap();
    }
    println!("{refused} of {rounds} pulls found no room");
    assert!(refused > rounds / 2);
}

/// Not a test of its own: a pull whose end says whether there was room.
#[test]
fn child_that_pulls() {
    let (Ok(store), Ok(image)) = (std::env::var(STORE), std::env::var(IMAGE)) else { return };
    let pulled = Store::open(Path::new(&store)).and_then(|store| pull(&store, &image));
    std::process::exit(match pulled {
        Ok(_) => 0,
        Err(error) if error.kind() == Kind::Exhausted => EXHAUSTED,
        Err(_) => FAILED,
    });
}

#[test]
fn a57_a_quota_that_is_used_up_at_any_point_costs_the_pull_and_nothing_else() {
    if !is_root() || !needs::programs(&["strace"]) {
        return;
    }
    let registry = FakeRegistry::start();
    // Links, because what makes a file also opens one.
    let links =
        |layer| (0..30).fold(Tar::new(), |tar, link| tar.symlink(&format!("{layer}-{link}"), "target"));
    let layers = [Layer::gzip(links(0).end()), Layer::gzip(links(1).end())];
    serve(&registry, "test/image", "latest", &layers);
    let folder = temporary_folder();
    let root = folder.path().join("store");
    // No file system here has quotas: the kernel's answer is put in by a tracer, from the nth file that is made on.
    let calls = "mkdir,mkdirat,openat,symlinkat,linkat,mknodat,renameat,renameat2,rename";
    let made = "mkdir,mkdirat,symlinkat,linkat,mknodat,renameat,renameat2,rename";
    let (mut refused, rounds) = (0, pace::rounds(30, 3));
    for round in 0..rounds {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={made}:error=EDQUOT:when={}+", 1 + round)]);
        strace.arg(std::env::current_exe().unwrap()).args(["--exact", "child_that_pulls"]);
        strace.env(STORE, &root).env(IMAGE, registry.name("test/image"));
        let status = strace.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        let code = status.code().unwrap();
        assert!([0, EXHAUSTED].contains(&code), "round {round}: {status}");
        refused += u32::from(code == EXHAUSTED);
        let store = Store::open(&root).unwrap();
        if code == EXHAUSTED {
            assert!(store.images().unwrap().is_empty());
        }
        let image = pull(&store, &registry.name("test/image")).unwrap();
        assert!(store.verify(&VerifyOptions::default()).unwrap().findings.is_empty());
        store.remove(&image.digest.to_string(), true).unwrap();
        store.settle().unwrap();
        for folder in ["layers", "tmp", "trash"] {
            let left: Vec<_> = std::fs::read_dir(root.join(folder)).unwrap().collect();
            assert!(left.is_empty(), "round {round}: {left:?}");
        }
    }
    println!("{refused} of {rounds} pulls used up the quota");
    assert!(refused > rounds / 2);
}

#[test]
fn a65_no_compressed_layer_is_left_and_the_disk_holds_no_more_than_it_must() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers = layers(4, 30, 60_000);
    serve(&registry, "test/image", "latest", &layers);
    let blobs: u64 = layers.iter().map(|layer| layer.blob.len() as u64).sum();
    for (keep_blobs, kept) in [(KeepBlobs::Never, 0), (KeepBlobs::UntilUnpacked, 0), (KeepBlobs::Always, 4)] {
        let disk = SmallDisk::new("size=256m");
        let store =
            Store::open_with(&disk.root(), StoreOptions { keep_blobs, ..StoreOptions::default() }).unwrap();
        let (done, mut peak) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut peak = 0;
                while !done.load(Ordering::Relaxed) {
                    peak = peak.max(disk.used_bytes());
                    std::thread::yield_now();
                }
                peak
            });
            pull(&store, &registry.name("test/image")).unwrap();
            done.store(true, Ordering::Relaxed);
            peak = sampler.join().unwrap();
        });
        store.settle().unwrap();
        let documents = std::fs::read_dir(store.root().join("blobs/sha256")).unwrap().count();
        assert_eq!(documents, 2 + kept, "{keep_blobs:?}");
        // What stays, and at most the blobs of the layers in flight, which here are all.
        let most = disk.used_bytes() + if kept == 0 { blobs } else { 0 } + (256 << 10);
        assert!(peak <= most, "{keep_blobs:?}: {peak} of {most} bytes");
    }
}

#[test]
fn a64_an_image_of_fifty_thousand_files_is_removed_at_once() {
    if !is_root() {
        return;
    }
    let files = pace::rounds(50_000, 2_000);
    let mut tar = Tar::new();
    for file in 0..files {
        tar = tar.file(&format!("d{}/f{file}", file % 100), "");
    }
    let test = TestStore::new();
    let image = test.pull_layers(&[Layer::plain(tar.end())]).unwrap();
    // Nobody can delete while this is held: what returns has not waited for that.
    let lock = std::fs::File::open(test.store.root().join("trash")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let start = Instant::now();
    let removed = test.store.remove(&image.digest.to_string(), true).unwrap();
    pace::held(&format!("removing {files} files"), start.elapsed(), Duration::from_millis(20));
    assert_eq!(removed.deleted, Some(image.digest));
    assert!(test.list("layers").is_empty() && !test.list("trash").is_empty());
    drop(lock);
    test.store.settle().unwrap();
    assert!(test.list("trash").is_empty() && test.list("layers").is_empty());
}

#[test]
fn a52_no_other_user_reaches_anything_in_a_store() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = folder.path().join("store");
    // One that was made carelessly is closed.
    std::fs::create_dir(&root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    let test = TestStore { store: Store::open(&root).unwrap(), folder };
    let tar = Tar::new()
        .dir("./", 0o777, 0, 0)
        .add(Header { name: b"su", mode: 0o4777, ..Header::default() }, b"x");
    let image = test.pull_layers(&[Layer::plain(tar.end())]).unwrap();
    test.store.prepare("task", &image).unwrap();
    let mut paths = vec![root.clone()];
    let mut pending = vec![root.clone()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    assert!(paths.iter().any(|path| path.ends_with("diff/su")) && paths.len() > 15);
    for folder in ["", "layers", "snapshots", "blobs", "images", "tmp"] {
        assert_eq!(root.join(folder).metadata().unwrap().mode() & 0o777, 0o700, "{folder}");
    }
    for chunk in paths[1..].chunks(100) {
        let output = Command::new("stat").args(chunk).uid(65534).gid(65534).output().unwrap();
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), chunk.len());
    }
    // A store of somebody else is not used: he could change what tasks run.
    let foreign = test.folder.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::chown(&foreign, Some(1000), None).unwrap();
    let error = Store::open(&foreign).unwrap_err();
    assert!(error.to_string().contains("belongs to user 1000"), "{error}");
}

#[test]
fn a67_a_store_of_another_format_is_left_alone() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let version = test.store.root().join("version");
    let written = std::fs::read_to_string(&version).unwrap();
    for (text, expected) in [
        (written.replace("\"format\": 1", "\"format\": 2"), "has format 2, this program knows 1 to 1"),
        (written.replace("\"format\": 1", "\"format\": 0"), "has format 0"),
        (written.replace("\"version\": 1", "\"version\": 2"), "it has version 2"),
    ] {
        assert_ne!(text, written);
        std::fs::write(&version, text).unwrap();
        std::fs::remove_dir(test.store.root().join("snapshots")).unwrap();
        let error = Store::open(test.store.root()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!test.store.root().join("snapshots").exists(), "nothing is made in it");
        std::fs::create_dir(test.store.root().join("snapshots")).unwrap();
    }
    // The first stores did not say it.
    std::fs::write(&version, r#"{"version": 1}"#).unwrap();
    Store::open(test.store.root()).unwrap();
}

#[test]
fn a68_a_clock_that_was_set_back_drops_nothing() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let image = test.pull_layers(&layers(2, 3, 100)).unwrap();
    // Everything in the store is from next year.
    let future = SystemTime::now() + Duration::from_secs(365 * 24 * 3600);
    let mut pending = vec![test.store.root().to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        std::fs::File::open(&path).unwrap().set_modified(future).unwrap();
    }
    let record = test.store.root().join("images").join(&test.list("images")[0]);
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace(&image.stored_at.to_string(), "99999999999")).unwrap();
    let store = Store::open(test.store.root()).unwrap();
    store.gc().unwrap();
    let idle =
        PruneOptions { which: Unused::All, idle: Some(Duration::from_secs(3600)), ..PruneOptions::default() };
    assert!(store.prune(&idle).unwrap().images.is_empty());
    store.settle().unwrap();
    assert!(store.verify(&VerifyOptions::default()).unwrap().findings.is_empty());
    store.prepare("task", &image).unwrap();
}

/// What layers' records say of the boot that wrote them, changed to another boot.
fn reboot(root: &Path) {
    for (folder, file) in [("layers", "layer.json"), ("fixups", "fixup.json")] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path().join(file);
            let mut record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            record["boot"] = "another".into();
            std::fs::write(&path, record.to_string()).unwrap();
        }
    }
}

#[test]
fn a56_only_what_is_known_to_be_on_disk_is_trusted_by_the_next_boot() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &layers(2, 3, 100));
    for (durability, settled, survives) in [
        (Durability::Deferred, false, false),
        (Durability::Deferred, true, true),
        (Durability::Sync, false, true),
        (Durability::None, false, false),
        (Durability::None, true, true),
    ] {
        let folder = temporary_folder();
        let root = folder.path().join("store");
        let options = StoreOptions { durability, ..StoreOptions::default() };
        let store = Store::open_with(&root, options.clone()).unwrap();
        let image = pull(&store, &registry.name("test/image")).unwrap();
        store.prepare("now", &image).unwrap();
        if settled {
            store.settle().unwrap();
        }
        reboot(&root);
        let store = Store::open_with(&root, options).unwrap();
        let served = store.prepare("then", &image);
        assert_eq!(served.is_ok(), survives, "{durability:?} settled: {settled}: {served:?}");
        let never = PullOptions { policy: cofferdam_image::PullPolicy::Never, ..support::options() };
        let name = ImageRef::parse(&registry.name("test/image")).unwrap();
        assert_eq!(store.pull(&name, &never, &|_| {}).is_ok(), survives);
        let again = pull(&store, &registry.name("test/image")).unwrap();
        store.prepare("after", &again).unwrap();
        store.settle().unwrap();
    }
}

#[test]
fn prune_and_watermarks_remove_what_nobody_uses_the_longest_unused_first() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let disk = SmallDisk::new("size=64m");
    let store = Store::open(&disk.root()).unwrap();
    let mut images = Vec::new();
    for number in 0..5 {
        let layer = Layer::plain(Tar::new().file("data", &number.to_string().repeat(6 << 20)).end());
        serve(&registry, &format!("test/image{number}"), "latest", &[layer]);
        images.push(pull(&store, &registry.name(&format!("test/image{number}"))).unwrap());
    }
    store.prepare("task", &images[0]).unwrap();
    // The higher the number, the longer ago.
    for (number, image) in images.iter().enumerate() {
        let record = store.root().join("images").join(format!("sha256-{}.json", image.digest.hex()));
        let then = SystemTime::now() - Duration::from_secs(3600 * number as u64);
        std::fs::File::open(record).unwrap().set_modified(then).unwrap();
    }
    let left = |store: &Store| {
        let there: Vec<_> = store.images().unwrap().into_iter().map(|image| image.digest).collect();
        (0..5).filter(|number| there.contains(&images[*number].digest)).collect::<Vec<_>>()
    };
    let idle = |hours: u64| PruneOptions {
        which: Unused::All,
        idle: Some(Duration::from_secs(hours * 3600 - 60)),
        ..PruneOptions::default()
    };
    assert!(store.prune(&PruneOptions::default()).unwrap().images.is_empty(), "all have names");
    let told = store.prune(&PruneOptions { dry_run: true, ..idle(4) }).unwrap();
    assert_eq!((told.images.len(), left(&store).len()), (1, 5));
    let pruned = store.prune(&idle(4)).unwrap();
    assert_eq!((pruned.images, left(&store)), (vec![images[4].digest.clone()], vec![0, 1, 2, 3]));
    assert!(pruned.bytes > 6 << 20);

    // Four images are more than a third of the disk. Room is made down to a quarter, oldest first, never from what is in use.
    let marks = Watermarks { high_percent: 30, low_percent: 25 };
    let options = StoreOptions { watermarks: Some(marks), ..StoreOptions::default() };
    let store = Store::open_with(&disk.root(), options).unwrap();
    pull(&store, &registry.name("test/image0")).unwrap();
    store.settle().unwrap();
    assert_eq!(left(&store), [0, 1]);
    let usage = store.usage().unwrap();
    assert_eq!(usage.images.len(), 2);
    assert!(usage.reclaimable_bytes > 6 << 20 && usage.reclaimable_bytes < 7 << 20, "{usage:?}");
    assert_eq!(usage.images.iter().map(|image| image.snapshots).sum::<usize>(), 1);
    store.prune(&PruneOptions { which: Unused::All, ..PruneOptions::default() }).unwrap();
    store.settle().unwrap();
    assert_eq!(left(&store), [0], "a task uses it");
}

/// Whether a thread that deletes is at work, shut in with the trash: its root, and a filter of its system calls.
fn is_shut_in(trash: &Path) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    tasks.into_iter().any(|task| {
        let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        read("comm").trim() == "cofferdam-trash"
            && std::fs::read_link(task.join("root")).is_ok_and(|root| root == trash)
            && read("status").contains("Seccomp:\t2")
    })
}

#[test]
fn a51_a64_links_planted_in_the_trash_lead_nowhere() {
    if !is_root() {
        return;
    }
    let outside = temporary_folder();
    let safe = || list_tree(outside.path());
    for name in ["dir/sub", "dir/file", "file"] {
        let path = outside.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "canary").unwrap();
    }
    let before = safe();
    let test = TestStore::new();
    let trash = test.store.root().join("trash");
    let link = |target: &str, path: &Path| std::os::unix::fs::symlink(outside.path().join(target), path);

    std::fs::create_dir_all(trash.join("a/b")).unwrap();
    link("dir", &trash.join("planted")).unwrap();
    link("file", &trash.join("a/planted")).unwrap();
    link("dir", &trash.join("a/b/planted")).unwrap();
    test.store.settle().unwrap();
    assert!(test.list("trash").is_empty());
    assert_eq!(safe(), before);

    // Swapped while they are walked: what is found changed meanwhile may stay for the next time.
    let (stop, mut rounds) = (AtomicBool::new(false), 0);
    let swaps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let folder = trash.join(format!("x{}/y", swaps.load(Ordering::Relaxed) % 5));
                for name in ["sub", "file", "z"] {
                    drop(std::fs::create_dir_all(folder.join(name)));
                }
                for inner in [folder.join("z"), folder.clone()] {
                    let moved = std::fs::rename(&inner, trash.join("away"));
                    if moved.is_ok() && link("dir", &inner).is_ok() {
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        while rounds < pace::rounds(100, 20) || swaps.load(Ordering::Relaxed) < 100 {
            drop(test.store.settle());
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Whoever swaps follows the planted links himself, and may leave this one thing there.
    let mut after = safe();
    after.retain(|line| !line.starts_with("dir/z "));
    assert_eq!(after, before);
    test.store.settle().unwrap();
    assert!(test.list("trash").is_empty());

    // A wall beside the care: whoever deletes sees the trash alone.
    let mut seen = false;
    for _ in 0..pace::rounds(100, 20) {
        let folder = trash.join("large");
        std::fs::create_dir(&folder).unwrap();
        for number in 0..3000 {
            std::fs::write(folder.join(number.to_string()), "").unwrap();
        }
        std::thread::scope(|scope| {
            let settled = scope.spawn(|| test.store.settle());
            while !settled.is_finished() {
                seen |= is_shut_in(&trash);
            }
            settled.join().unwrap().unwrap();
        });
        if seen {
            break;
        }
    }
    assert!(seen, "no thread was seen that deletes and is shut in");
}
