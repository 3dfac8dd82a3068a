//! Processes that are killed, and processes that want the same image at once.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cofferdam_image::{Cancel, Error, ImageRef, PullEvent, PullOptions, Store};
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

#[test]
fn a_pull_killed_at_any_moment_leaves_a_store_that_the_next_one_completes() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers = layers(4, 120);
    serve(&registry, "test/image", "latest", &layers);
    let folder = temporary_folder();
    let root = folder.path().join("store");
    let child = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child_that_pulls"])
            .env(STORE, &root)
            .env(IMAGE, registry.name("test/image"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let start = Instant::now();
    assert!(child().wait().unwrap().success());
    let whole = start.elapsed();
    let mut killed = 0;
    for round in 0..100u32 {
        // From everything to nothing being there already, in turn.
        if round % 3 == 0 {
            std::fs::remove_dir_all(&root).unwrap();
        }
        let mut child = child();
        std::thread::sleep(whole * round / 100);
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().signal() == Some(9));
        let store = Store::open(&root).unwrap();
        for snapshot in store.snapshots().unwrap() {
            assert!(store.remove_snapshot(&snapshot.key).unwrap());
        }
        check(&store);
    }
    assert!(killed > 50, "only {killed} of 100 were killed in time");
    assert!(child().wait().unwrap().success());
    let store = Store::open(&root).unwrap();
    for snapshot in store.snapshots().unwrap() {
        store.remove_snapshot(&snapshot.key).unwrap();
    }
    check(&store);
    let image = store.find(&registry.name("test/image")).unwrap().unwrap();
    assert_eq!(Mount::new(&store, &image).tree().len(), 4 * 120 + 7 + 4 + 1);
}

#[test]
fn many_processes_that_want_one_image_fetch_it_once() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers = layers(3, 50);
    serve(&registry, "test/image", "latest", &layers);
    let folder = temporary_folder();
    let root = folder.path().join("store");
    let children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "child_that_pulls"])
                .env(STORE, &root)
                .env(IMAGE, registry.name("test/image"));
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for layer in &layers {
        let digest = cofferdam_image::Digest::of(&layer.blob).to_string();
        assert_eq!(registry.seen(&digest).len(), 1, "{digest}");
    }
    assert_eq!(Store::open(&root).unwrap().snapshots().unwrap().len(), 8);
}

#[test]
fn the_collector_takes_nothing_from_a_running_pull() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers = layers(3, 20);
    serve(&registry, "test/image", "latest", &layers);
    let test = TestStore::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let collector = Store::open(test.store.root()).unwrap();
            while !done.load(Ordering::Relaxed) {
                collector.gc().unwrap();
            }
        });
        for round in 0..20 {
            let image = test.pull(&registry.name("test/image")).unwrap();
            let key = format!("round-{round}");
            let snapshot = test.store.prepare(&key, &image).unwrap();
            assert!(snapshot.lower.iter().all(|lower| lower.is_dir()));
            test.store.remove(&image.digest.to_string(), true).unwrap();
            assert!(snapshot.lower.iter().all(|lower| lower.is_dir()), "a snapshot keeps its layers");
            test.store.remove_snapshot(&key).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    test.store.gc().unwrap();
    test.store.settle().unwrap();
    assert!(test.list("layers").is_empty() && test.list("trash").is_empty());
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
fn lies_of_a_manifest_are_found_even_if_the_layer_is_there() {
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
