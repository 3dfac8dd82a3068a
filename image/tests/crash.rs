//! Processes that are killed, and processes that want the same image at once.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cofferdam_image::{Cancel, Error, ImageRef, PullEvent, PullOptions, Store, VerifyOptions};
use cofferdam_tests::{needs, pace};
use rustix::process::{Pid, Signal};
use support::fake::{FakeRegistry, FaultKind};
use support::*;

const STORE: &str = "COFFERDAM_TEST_STORE";
const IMAGE: &str = "COFFERDAM_TEST_IMAGE";

fn layers(count: usize, files: usize) -> Vec<Layer> {
    let layer = |index: usize| {
        let mut tar = Tar::new().dir("etc", 0o711, 1, 1);
        for file in 0..files {
            tar = tar.file(
                &format!("dir{}/file{index}-{file}", file % 7),
                &format!("{index} {file} ").repeat(300),
            );
        }
        Layer::gzip(tar.file(&format!("etc/mark{index}"), "").file("etc/.wh.gone", "").end())
    };
    (0..count).map(layer).collect()
}

/// Not a test of its own: what the killed processes run.
#[test]
fn child_that_pulls() {
    let (Ok(store), Ok(image)) = (std::env::var(STORE), std::env::var(IMAGE)) else { return };
    let store = Store::open(&PathBuf::from(store)).unwrap();
    let image = store.pull(&ImageRef::parse(&image).unwrap(), &options(), &|_| {}).unwrap();
    store.prepare(&format!("key-{}", std::process::id()), &image).unwrap();
    store.settle().unwrap();
}

/// What is referenced exists, and after a collection nothing else does.
fn check(store: &Store) {
    let mut kept: BTreeSet<String> = BTreeSet::new();
    for image in store.images().unwrap() {
        for layer in &image.layers {
            let name = layer.diff_id.to_string().replace(':', "-");
            assert!(store.root().join("layers").join(&name).join("diff").is_dir(), "{name} is lost");
            kept.insert(name);
        }
        store.prepare("check", &image).unwrap();
        store.remove_snapshot("check").unwrap();
    }
    store.gc().unwrap();
    store.settle().unwrap();
    let list = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(store.root().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(list("tmp").is_empty(), "{:?}", list("tmp"));
    assert!(list("trash").is_empty());
    assert_eq!(list("layers"), kept);
}

/// A process that pulls `image` into the store at `root`, and makes a snapshot of it.
fn puller(root: &Path, image: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_pulls"]).env(STORE, root).env(IMAGE, image);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn names_in(root: &Path, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Starts a pull and stops it, with everything that it holds, while it unpacks a layer.
fn stopped_in_a_layer(root: &Path, image: &str) -> Child {
    for _ in 0..20 {
        let mut child = puller(root, image).spawn().unwrap();
        let is_unpacking = || {
            names_in(root, "tmp").iter().any(|workspace| {
                let workspace = format!("tmp/{workspace}");
                let has_recipe = |stage: &String| root.join(&workspace).join(stage).join("recipe").exists();
                names_in(root, &workspace).iter().any(has_recipe)
            })
        };
        while !is_unpacking() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        signal(&child, Signal::STOP);
        if is_unpacking() && names_in(root, "layers").is_empty() && child.try_wait().unwrap().is_none() {
            return child;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(root).unwrap();
        for snapshot in store.snapshots().unwrap() {
            store.remove_snapshot(&snapshot.key).unwrap();
        }
        for image in store.images().unwrap() {
            store.remove(&image.digest.to_string(), true).unwrap();
        }
        store.settle().unwrap();
    }
    panic!("a pull was over before it could be stopped, twenty times");
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// One layer of a dozen megabytes that do not compress.
fn large() -> Layer {
    let mut state = 1u64;
    let mut tar = Tar::new();
    for number in 0..12 {
        let data: Vec<u8> = (0..1 << 20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let name = format!("file{number}");
        tar = tar.add(Header { name: name.as_bytes(), ..Header::default() }, &data);
    }
    Layer::gzip(tar.end())
}

#[test]
fn a55_a_pull_killed_at_any_moment_leaves_a_store_that_the_next_one_completes() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &layers(4, 40));
    let folder = temporary_folder();
    let root = folder.path().join("store");
    let child = || puller(&root, &registry.name("test/image"));
    // The first of all is slower, under emulation by far.
    assert!(child().status().unwrap().success());
    std::fs::remove_dir_all(&root).unwrap();
    // How long a pull takes where nothing is there, and where everything is.
    let mut whole = [(); 2].map(|()| {
        let start = Instant::now();
        assert!(child().status().unwrap().success());
        start.elapsed()
    });
    let (rounds, mut killed, mut completed) = (pace::rounds(200, 12), 0, 0);
    for round in 0..rounds {
        // From everything to nothing being there already, in turn.
        let is_there = round % 3 == 0;
        if !is_there {
            drop(std::fs::remove_dir_all(&root));
        }
        let whole = &mut whole[usize::from(is_there)];
        let mut child = child().spawn().unwrap();
        // The moments are those of one pull, in an order that mixes them with what is there.
        std::thread::sleep(*whole * (round * 37 % rounds) / rounds);
        child.kill().unwrap();
        let in_time = child.wait().unwrap().signal() == Some(9);
        killed += u32::from(in_time);
        // How long a pull takes changes with what else the machine does.
        *whole = if in_time { *whole * 103 / 100 } else { *whole * 3 / 4 };
        let store = Store::open(&root).unwrap();
        for snapshot in store.snapshots().unwrap() {
            assert!(store.remove_snapshot(&snapshot.key).unwrap());
        }
        for image in store.images().unwrap() {
            completed += 1;
            store.prepare("check", &image).unwrap();
            store.remove_snapshot("check").unwrap();
        }
        let name = ImageRef::parse(&registry.name("test/image")).unwrap();
        let image = store.pull(&name, &options(), &|_| {}).unwrap();
        let verified = store.verify(&VerifyOptions::default()).unwrap();
        assert!(verified.findings.is_empty() && verified.layers == 4, "round {round}: {verified:?}");
        if round % 20 == 0 {
            assert_eq!(Mount::new(&store, &image).tree().len(), 4 * 40 + 7 + 4 + 1);
        }
        check(&store);
    }
    println!("{killed} of {rounds} were killed, {completed} had come so far that the image was there");
    assert!(killed > rounds / 2, "only {killed} of {rounds} were killed in time");
}

#[test]
fn a58_eight_processes_that_want_one_image_fetch_it_once_and_none_is_held_up() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers = vec![large(), layers(1, 50).remove(0)];
    serve(&registry, "test/image", "latest", &layers);
    let folder = temporary_folder();
    let root = folder.path().join("store");
    let slowest = |count: usize| {
        let start = Instant::now();
        let children: Vec<_> =
            (0..count).map(|_| puller(&root, &registry.name("test/image")).spawn().unwrap()).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        start.elapsed()
    };
    let mut told = Vec::new();
    for _ in 0..if needs::is_full() { 5 } else { 1 } {
        let single = slowest(1);
        // What eight processes cost beside one that have nothing to wait for.
        let warm = slowest(8).saturating_sub(slowest(1));
        std::fs::remove_dir_all(&root).unwrap();
        registry.state.lock().unwrap().seen.clear();
        let eight = slowest(8);
        for layer in &layers {
            let digest = cofferdam_image::Digest::of(&layer.blob).to_string();
            assert_eq!(registry.seen(&digest).len(), 1, "{digest}");
        }
        assert_eq!(Store::open(&root).unwrap().snapshots().unwrap().len(), 8);
        std::fs::remove_dir_all(&root).unwrap();
        told.push((single, warm, eight));
    }
    println!("one, what eight cost more that have nothing to fetch, eight: {told:?}");
    let is_held_up =
        |(single, warm, eight): &(Duration, Duration, Duration)| *eight > *single * 115 / 100 + *warm;
    assert!(!needs::is_full() || !told.iter().all(is_held_up), "{told:?}");
}

#[test]
fn a59_a_follower_takes_over_when_the_process_that_fetches_a_layer_is_killed() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layer = large();
    serve(&registry, "test/image", "latest", std::slice::from_ref(&layer));
    let folder = temporary_folder();
    let root = folder.path().join("store");
    let mut leader = stopped_in_a_layer(&root, &registry.name("test/image"));
    registry.state.lock().unwrap().served_blob_bytes = layer.blob.len();
    let store = Store::open(&root).unwrap();
    let name = ImageRef::parse(&registry.name("test/image")).unwrap();
    let (waiting, kill) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            kill.recv().unwrap();
            leader.kill().unwrap();
            leader.wait().unwrap();
        });
        let on_event = |event| {
            if matches!(event, PullEvent::LayerWaiting { .. }) {
                waiting.send(()).unwrap();
            }
        };
        store.pull(&name, &options(), &on_event).unwrap();
    });
    let (served, blob) = (registry.state.lock().unwrap().served_blob_bytes, layer.blob.len());
    assert!(served <= blob + (16 << 20), "{served} bytes of {blob}");
    assert!(store.verify(&VerifyOptions::default()).unwrap().findings.is_empty());
    store.settle().unwrap();
    let store = Store::open(&root).unwrap();
    assert!(names_in(store.root(), "tmp").is_empty());
}

#[test]
fn a60_a_pull_that_takes_for_ever_delays_no_snapshot() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/slow", "latest", &[large()]);
    let folder = temporary_folder();
    let root = folder.path().join("store");
    let mut stopped = stopped_in_a_layer(&root, &registry.name("test/slow"));
    serve(&registry, "test/quick", "latest", &layers(1, 2));
    let store = Store::open(&root).unwrap();
    let image =
        store.pull(&ImageRef::parse(&registry.name("test/quick")).unwrap(), &options(), &|_| {}).unwrap();
    let p99 = || {
        let mut times: Vec<Duration> = (0..pace::rounds(100, 20))
            .map(|round| {
                let start = Instant::now();
                store.prepare(&format!("task-{round}"), &image).unwrap();
                let took = start.elapsed();
                store.remove_snapshot(&format!("task-{round}")).unwrap();
                // The collector's turn, which may take its lock too.
                store.gc().unwrap();
                took
            })
            .collect();
        times.sort();
        times[times.len() * 99 / 100]
    };
    // What waits for the stopped process waits for ever; what waits for the processor does not do so every time.
    let beside: Vec<Duration> = (0..5).map(|_| p99()).collect();
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    let (during, without) = (beside.into_iter().min().unwrap(), p99());
    println!("p99 {without:?} alone");
    pace::held("p99 beside a stopped pull", during, without + Duration::from_millis(5));
}

#[test]
fn a62_the_lease_of_a_killed_process_is_gone_with_it() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &[large()]);
    let folder = temporary_folder();
    let root = folder.path().join("store");
    let mut stopped = stopped_in_a_layer(&root, &registry.name("test/image"));
    let store = Store::open(&root).unwrap();
    // A layer of another image that nobody has any more, but that the stopped process leases.
    let lease = names_in(&root, "tmp")
        .into_iter()
        .find(|name| root.join("tmp").join(name).join("lease.json").exists());
    let lease = std::fs::read_to_string(root.join("tmp").join(lease.unwrap()).join("lease.json")).unwrap();
    let leased = lease.split('"').find(|path| path.starts_with("layers/")).unwrap();
    std::fs::create_dir(root.join(leased)).unwrap();
    store.gc().unwrap();
    assert!(root.join(leased).exists() && !names_in(&root, "tmp").is_empty());
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    store.gc().unwrap();
    store.settle().unwrap();
    for folder in ["layers", "tmp", "trash", "locks"] {
        assert!(names_in(&root, folder).is_empty(), "{folder}: {:?}", names_in(&root, folder));
    }
}

#[test]
fn a61_the_collector_takes_nothing_from_a_running_pull_and_leaves_nothing_after() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    // Two images that share a layer, pulled and removed over each other.
    let layers = layers(3, 2);
    serve(&registry, "test/one", "latest", &layers[..2]);
    serve(&registry, "test/two", "latest", &layers[1..]);
    let test = TestStore::new();
    let (done, collections) = (AtomicBool::new(false), AtomicU32::new(0));
    let wanted = pace::rounds(1000, 30);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let collector = Store::open(test.store.root()).unwrap();
            while !done.load(Ordering::Relaxed) {
                collector.gc().unwrap();
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
        let workers = ["test/one", "test/two"].map(|name| {
            let (test, name, collections) = (&test, registry.name(name), &collections);
            scope.spawn(move || {
                let is_enough = |round| round >= wanted / 10 && collections.load(Ordering::Relaxed) >= wanted;
                for round in (0..).take_while(|round| !is_enough(*round)) {
                    let image = test.pull(&name).unwrap();
                    let key = format!("{name}-{round}");
                    let snapshot = test.store.prepare(&key, &image).unwrap();
                    assert!(snapshot.lower.iter().all(|lower| lower.path().is_dir()), "round {round}");
                    test.store.remove(&image.digest.to_string(), true).unwrap();
                    assert!(
                        snapshot.lower.iter().all(|lower| lower.path().is_dir()),
                        "a snapshot keeps its layers"
                    );
                    test.store.remove_snapshot(&key).unwrap();
                }
            })
        });
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    test.store.gc().unwrap();
    test.store.settle().unwrap();
    for folder in ["layers", "fixups", "blobs/sha256", "tmp", "trash", "locks"] {
        // The collector's own deletion may still be at its end.
        let begun = std::time::Instant::now();
        while !test.list(folder).is_empty() && begun.elapsed() < std::time::Duration::from_secs(30) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(test.list(folder).is_empty(), "{folder}: {:?}", test.list(folder));
    }
}

#[test]
fn finished_layers_of_a_failed_pull_are_found_by_the_next() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers = layers(3, 10);
    serve(&registry, "test/image", "latest", &layers);
    let bad = cofferdam_image::Digest::of(&layers[2].blob).to_string();
    registry.fault(&bad, 1, FaultKind::Corrupt);
    let test = TestStore::new();
    let serial = PullOptions { parallel_layers: 1, ..options() };
    let name = ImageRef::parse(&registry.name("test/image")).unwrap();
    let error = test.store.pull(&name, &serial, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("corrupt layer: the blob's digest is"), "{error}");
    assert!(test.store.images().unwrap().is_empty() && test.list("tmp").is_empty());
    let there = test.list("layers").len();
    test.store.pull(&name, &serial, &|_| {}).unwrap();
    let again =
        layers.iter().map(|layer| registry.seen(&cofferdam_image::Digest::of(&layer.blob).to_string()).len());
    assert_eq!(again.sum::<usize>(), 3 + 1, "{there} layers were there");
}

#[test]
fn a27_d3_d4_lies_of_a_manifest_are_found_even_if_the_layer_is_there() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let honest = layers(2, 5);
    serve(&registry, "test/honest", "latest", &honest);
    let test = TestStore::new();
    test.pull(&registry.name("test/honest")).unwrap();
    // Another blob that claims to unpack to a layer that is stored.
    let mut lie = Layer::gzip(Tar::new().file("evil", "").end());
    lie.diff_id = honest[0].diff_id.clone();
    serve(&registry, "test/lie", "latest", &[lie]);
    let error = test.pull(&registry.name("test/lie")).unwrap_err();
    assert!(error.to_string().contains("wrong DiffID"), "{error}");
    // The same tar, compressed otherwise, is the same layer.
    let mut other = honest.clone();
    other[0].blob = zstd::encode_all(
        &{
            let mut tar = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&honest[0].blob[..]), &mut tar)
                .unwrap();
            tar
        }[..],
        3,
    )
    .unwrap();
    serve(&registry, "test/other", "latest", &other);
    test.pull(&registry.name("test/other")).unwrap();
    assert_eq!(test.list("layers").len(), 2);
    // Fewer DiffIDs than layers.
    let short = config(&honest[..1], arch());
    registry.add_blob(&short);
    registry.add_manifest("test/short", "latest", OCI_MANIFEST, &manifest(&short, &honest));
    let error = test.pull(&registry.name("test/short")).unwrap_err();
    assert!(error.to_string().contains("1 DiffIDs, the manifest has 2 layers"), "{error}");
}

#[test]
fn a_cancelled_pull_stops_and_leaves_nothing_half_made() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &layers(3, 200));
    let test = TestStore::new();
    let cancel = Cancel::new();
    let name = ImageRef::parse(&registry.name("test/image")).unwrap();
    let cancelling = PullOptions { cancel: cancel.clone(), ..options() };
    let on_start = |event| {
        if matches!(event, PullEvent::LayerStarted { .. }) {
            cancel.cancel();
        }
    };
    let error = test.store.pull(&name, &cancelling, &on_start).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(test.store.images().unwrap().is_empty() && test.list("tmp").is_empty());
}
