//! Pulls and pushes as registries, policies and the end of processes make them: resumed, verified, refused.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cofferdam_image::{
    Admission, Cancel, Digest, Error, HostFiles, ImageRef, ImportOptions, Kind, Policy, PruneOptions,
    PullEvent, PullOptions, PushEvent, PushOptions, Pushed, Store, Unused, Verifier,
};
use cofferdam_registry::{Algorithm, Hasher};
use cofferdam_tests::{needs, pace};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use support::fake::{FakeRegistry, FaultKind, Link};
use support::*;

const STORE: &str = "COFFERDAM_TEST_STORE";
const IMAGE: &str = "COFFERDAM_TEST_IMAGE";

fn name(registry: &FakeRegistry, rest: &str) -> ImageRef {
    ImageRef::parse(&registry.name(rest)).unwrap()
}

/// A layer of one file of that many bytes, stored as it is.
fn large_layer(megabytes: usize) -> Layer {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(megabytes * 125_000)
    .flatten()
    .collect();
    let header = Header { name: b"large", ..Header::default() };
    Layer::plain(Tar::new().add(header, &data).end())
}

fn small_layers(count: usize) -> Vec<Layer> {
    (0..count).map(|index| Layer::gzip(Tar::new().file(&format!("file{index}"), "x").end())).collect()
}

fn partials(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join("partial")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn wait_until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Not a test of its own: what the killed processes run.
#[test]
fn child_that_pulls() {
    let (Ok(store), Ok(image)) = (std::env::var(STORE), std::env::var(IMAGE)) else { return };
    let store = Store::open(&PathBuf::from(store)).unwrap();
    store.pull(&ImageRef::parse(&image).unwrap(), &options(), &|_| {}).unwrap();
}

fn child(root: &Path, image: &ImageRef) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_pulls"]).env(STORE, root).env(IMAGE, image.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a14_a59_a_killed_pull_costs_what_was_in_flight_and_a_follower_takes_over() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layer = large_layer(60);
    let size = layer.blob.len();
    serve(&registry, "test/image", "latest", std::slice::from_ref(&layer));
    let image = name(&registry, "test/image");
    let blob = Digest::of(&layer.blob).to_string();
    for follower in [false, true] {
        let folder = temporary_folder();
        let root = folder.path().join("store");
        registry.forget();
        registry.fault(&blob, 1, FaultKind::StallAfter(size * 7 / 10, Duration::from_secs(60)));
        let mut leader = child(&root, &image);
        wait_until("the leader's 70 %", || {
            partials(&root).iter().any(|path| path.metadata().unwrap().len() as usize == size * 7 / 10)
        });
        let mut next = follower.then(|| child(&root, &image));
        leader.kill().unwrap();
        leader.wait().unwrap();
        let mut next = next.take().unwrap_or_else(|| child(&root, &image));
        assert!(next.wait().unwrap().success());
        let served = registry.state.lock().unwrap().served_blob_bytes;
        let config = 1 << 10;
        assert!(
            served <= size + (1 << 20) + config,
            "{served} bytes served for {size}, follower: {follower}"
        );
        assert!(partials(&root).is_empty(), "what was needed no longer is removed");
        let store = Store::open(&root).unwrap();
        let image = store.find(&image.to_string()).unwrap().unwrap();
        let mounted = Mount::new(&store, &image);
        assert_eq!(std::fs::metadata(mounted.path("large")).unwrap().len(), 60_000_000);
    }
}

#[test]
fn a14_a_beginning_that_is_not_what_was_sent_is_fetched_anew() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layer = large_layer(26);
    let size = layer.blob.len();
    serve(&registry, "test/image", "latest", std::slice::from_ref(&layer));
    let image = name(&registry, "test/image");
    let blob = Digest::of(&layer.blob).to_string();
    let test = TestStore::new();
    registry.fault(&blob, 1, FaultKind::StallAfter(size / 2, Duration::from_secs(60)));
    let mut leader = child(test.store.root(), &image);
    let half = || {
        partials(test.store.root())
            .into_iter()
            .find(|path| path.metadata().unwrap().len() as usize == size / 2)
    };
    wait_until("half of the blob", || half().is_some());
    leader.kill().unwrap();
    leader.wait().unwrap();
    let path = half().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[size / 4] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let pulled = test.store.pull(&image, &options(), &|_| {}).unwrap();
    assert_eq!(pulled.layers.len(), 1);
    let requests: Vec<bool> =
        registry.seen(&blob).iter().map(|seen| seen.headers.contains_key("range")).collect();
    assert_eq!(requests, [false, true, false], "the first try, the rest, and all of it");
    assert!(partials(test.store.root()).is_empty());
}

#[test]
fn a14_a_small_blob_that_comes_slowly_goes_on_too_and_what_is_left_of_it_is_pruned() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layer = large_layer(8);
    let size = layer.blob.len();
    serve(&registry, "test/image", "latest", std::slice::from_ref(&layer));
    let image = name(&registry, "test/image");
    let blob = Digest::of(&layer.blob).to_string();
    let test = TestStore::new();
    let stalled = |root: &Path| {
        registry.fault(&blob, 1, FaultKind::StallAfter(size / 2, Duration::from_secs(60)));
        let link = Link { round_trip: Duration::ZERO, bytes_per_second: 1_500_000.0 };
        registry.state.lock().unwrap().link = Some(link);
        let mut child = child(root, &image);
        let is_half = |path: &PathBuf| path.metadata().is_ok_and(|file| file.len() as usize == size / 2);
        wait_until("half of the blob", || partials(root).iter().any(is_half));
        registry.state.lock().unwrap().link = None;
        // One that is being written is left alone.
        let store = Store::open(root).unwrap();
        let prune = || store.prune(&PruneOptions { which: Unused::All, ..PruneOptions::default() }).unwrap();
        prune();
        assert_eq!(partials(root).len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
        store.gc().unwrap();
        assert_eq!(partials(root).len(), 1, "somebody may come back for it");
        assert!(store.usage().unwrap().loose_bytes >= size as u64 / 2, "it is told of");
        store
    };
    stalled(test.store.root());
    registry.forget();
    test.store.pull(&image, &options(), &|_| {}).unwrap();
    let served = registry.state.lock().unwrap().served_blob_bytes;
    assert!(served < size / 2 + 10_000, "{served}");
    assert!(partials(test.store.root()).is_empty());

    let other = TestStore::new();
    let store = stalled(other.store.root());
    let path = partials(store.root()).remove(0);
    let week = Duration::from_secs(8 * 24 * 3600);
    let old = std::time::SystemTime::now() - week;
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    store.gc().unwrap();
    assert!(partials(store.root()).is_empty(), "nobody comes back after a week");
    let of_another_boot = path.with_extension("0123456789abcdef");
    std::fs::write(&of_another_boot, "x").unwrap();
    store.prune(&PruneOptions::default()).unwrap();
    assert!(!of_another_boot.exists());
}

#[test]
fn a25_a_cancelled_pull_ends_at_once_and_leaves_a_beginning_to_go_on_from() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layer = large_layer(30);
    let size = layer.blob.len();
    let layers = [layer, small_layers(1).remove(0)];
    serve(&registry, "test/image", "latest", &layers);
    let image = name(&registry, "test/image");
    let blob = Digest::of(&layers[0].blob).to_string();
    registry.fault(&blob, 1, FaultKind::StallAfter(size / 2, Duration::from_secs(60)));
    let test = TestStore::new();
    let cancel = Cancel::new();
    let cancelling = PullOptions { cancel: cancel.clone(), ..options() };
    let (result, took) = std::thread::scope(|scope| {
        let pulling = scope.spawn(|| test.store.pull(&image, &cancelling, &|_| {}));
        wait_until("half of the blob", || {
            partials(test.store.root()).iter().any(|path| path.metadata().unwrap().len() as usize == size / 2)
        });
        let start = Instant::now();
        cancel.cancel();
        (pulling.join().unwrap(), start.elapsed())
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(took < Duration::from_secs(30), "it waits for the registry: {took:?}");
    pace::held("cancelling", took, Duration::from_millis(200));
    assert!(test.list("tmp").is_empty() && test.store.images().unwrap().is_empty());
    assert_eq!(partials(test.store.root()).len(), 1);
    registry.forget();
    test.store.pull(&image, &options(), &|_| {}).unwrap();
    let served = registry.state.lock().unwrap().served_blob_bytes;
    assert!(served < size / 2 + 10_000, "{served}");
}

#[test]
fn a22_an_image_of_sha512_comes_in_end_to_end() {
    if !is_root() {
        return;
    }
    let sha512 = |bytes: &[u8]| {
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(bytes);
        hasher.finish()
    };
    let registry = FakeRegistry::start();
    let tar = Tar::new().file("a", "long digest").end();
    let layer = gzip(&tar);
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        arch(),
        sha512(&tar)
    );
    let descriptor = |kind: &str, bytes: &[u8]| {
        registry.add_blob_as(sha512(bytes), bytes);
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, sha512(bytes), bytes.len())
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor(OCI_CONFIG, config.as_bytes()),
        descriptor(&format!("{OCI_LAYER}+gzip"), &layer)
    );
    let digest = sha512(manifest.as_bytes());
    registry.add_manifest("test/image", "latest", OCI_MANIFEST, manifest.as_bytes());
    let key = format!("test/image:{digest}");
    let value = (OCI_MANIFEST.to_owned(), manifest.into_bytes());
    registry.state.lock().unwrap().manifests.insert(key, value);
    let test = TestStore::new();
    let image = test.pull(&registry.name(&format!("test/image@{digest}"))).unwrap();
    assert_eq!(image.digest, digest);
    let mounted = test.mount(&image);
    assert_eq!(std::fs::read_to_string(mounted.path("a")).unwrap(), "long digest");
}

#[test]
fn a24_progress_adds_up() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let mut layers = small_layers(3);
    layers.push(large_layer(8));
    let manifest = serve(&registry, "test/image", "latest", &layers);
    let sum: u64 = layers.iter().map(|layer| layer.blob.len() as u64).sum();
    let test = TestStore::new();
    for warm in [false, true] {
        let events = Mutex::new(Vec::new());
        let image = name(&registry, "test/image");
        test.store.pull(&image, &options(), &|event| events.lock().unwrap().push(event)).unwrap();
        let events = events.into_inner().unwrap();
        let resolved = events.iter().find_map(|event| match event {
            PullEvent::Resolved { digest, layers, total_bytes, .. } => {
                Some((digest.clone(), *layers, *total_bytes))
            }
            _ => None,
        });
        assert_eq!(resolved, Some((manifest.clone(), 4, sum)));
        let (mut done, mut bytes) = (vec![0; 4], vec![0; 4]);
        for event in &events {
            match event {
                PullEvent::LayerDone { layer, .. } | PullEvent::LayerExists { layer, .. } => {
                    done[*layer] += 1
                }
                PullEvent::LayerProgress { layer, bytes: now, total_bytes, bytes_per_second, eta_ms } => {
                    assert!(*now >= bytes[*layer] && now <= total_bytes, "{event:?}");
                    assert!(*bytes_per_second > 0 || *now == 0 || *now == *total_bytes, "{event:?}");
                    assert!(now < total_bytes || eta_ms.is_none_or(|left| left == 0), "{event:?}");
                    bytes[*layer] = *now;
                }
                _ => {}
            }
        }
        if !warm {
            assert_eq!(done, [1; 4]);
            assert_eq!(bytes.iter().sum::<u64>(), sum);
        }
        // Events are for programs too: one JSON object each.
        for event in &events {
            let json = serde_json::to_value(event).unwrap();
            assert!(json["event"].is_string(), "{json}");
        }
    }
}

#[test]
fn a82_an_image_that_is_stored_costs_one_request() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &small_layers(3));
    let test = TestStore::new();
    let first = test.pull(&registry.name("test/image")).unwrap();
    registry.forget();
    let start = Instant::now();
    let again = test.pull(&registry.name("test/image")).unwrap();
    println!("a warm pull takes {:?}", start.elapsed());
    assert_eq!((again.digest, registry.seen("").len()), (first.digest, 1));
}

/// Every answer stops half-way until it is let go on, so that it is seen what a request waits for. A connection, the manifest,
/// the configuration while the other connections are made, and the first layers: four round trips. From there on the line is
/// never idle: a layer is asked for when another one has come, while the rest is still under way.
#[test]
fn a86_a_distant_registry_costs_its_bandwidth_and_four_round_trips() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let layers: Vec<Layer> = (1..=11).rev().map(large_layer).collect();
    let manifest = serve(&registry, "test/image", "latest", &layers);
    let test = TestStore::new();
    let mut options = options();
    // That it speaks plain HTTP is known, as it is of every registry that speaks TLS.
    options.client.hosts = hosts_file(&test, &format!("server = \"http://{}\"", registry.address));
    let at_once = options.parallel_layers;
    assert!((2..layers.len()).contains(&at_once));
    registry.fault("", usize::MAX, FaultKind::Hold);
    let asked = || registry.seen("").into_iter().map(|seen| seen.path).collect::<Vec<_>>();
    // What was asked for when so much has been let through.
    let wait = |count: usize| {
        wait_until(&format!("request {count}"), || asked().len() >= count);
        assert_eq!(asked().len(), count, "{:?}", asked());
    };
    let connections = || registry.state.lock().unwrap().connections;
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| test.store.pull(&name(&registry, "test/image"), &options, &|_| {}));
        wait(1);
        assert!(asked()[0].contains("/manifests/") && connections() == 1);
        registry.release(&asked()[0]);
        wait(2);
        wait_until("connections for the layers", || connections() == at_once);
        registry.release(&asked()[1]);
        for come in 0..layers.len() {
            wait(2 + (at_once + come).min(layers.len()));
            registry.release(&asked()[2 + come]);
        }
        assert_eq!(pulling.join().unwrap().unwrap().digest, manifest);
    });
    let all: BTreeSet<String> = asked().into_iter().collect();
    assert_eq!((all.len(), asked().len()), (2 + layers.len(), 2 + layers.len()), "each once");
    assert_eq!(connections(), at_once, "nobody had to connect again");
    let state = registry.state.lock().unwrap();
    assert_eq!(state.served_blob_bytes, state.blobs.values().map(Vec::len).sum::<usize>());
}

#[test]
fn a86_the_time_of_a_distant_registry() {
    if !is_root() || !needs::full("a second of transfer at 100 Mbit/s, several times") {
        return;
    }
    let registry = FakeRegistry::start();
    let layers: Vec<Layer> = (1..=11).rev().map(large_layer).collect();
    serve(&registry, "test/image", "latest", &layers);
    let sum: usize = layers.iter().map(|layer| layer.blob.len()).sum();
    let link = Link { round_trip: Duration::from_millis(200), bytes_per_second: 12_500_000.0 };
    registry.state.lock().unwrap().link = Some(link);
    let transfer = Duration::from_secs_f64(sum as f64 / link.bytes_per_second);
    let limit = transfer.mul_f64(1.1) + 4 * link.round_trip;
    // That the machine has other things to do is not what this is about: the best of three counts.
    let times = (0..3).map(|_| {
        let test = TestStore::new();
        let mut options = options();
        options.client.hosts = hosts_file(&test, &format!("server = \"http://{}\"", registry.address));
        let start = Instant::now();
        test.store.pull(&name(&registry, "test/image"), &options, &|_| {}).unwrap();
        start.elapsed()
    });
    pace::held(&format!("{sum} bytes at 100 Mbit/s over 200 ms"), times.min().unwrap(), limit);
}

fn hosts_file(test: &TestStore, text: &str) -> HostFiles {
    let folder = test.folder.path().join("hosts");
    std::fs::create_dir_all(folder.join("_default")).unwrap();
    std::fs::write(folder.join("_default/hosts.toml"), text).unwrap();
    HostFiles { hosts: vec![folder], ..HostFiles::none() }
}

#[test]
fn a21_an_image_with_a_layer_of_an_unknown_type_is_refused() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let test = TestStore::new();
    let mut layer = small_layers(1).remove(0);
    layer.media_type = "application/vnd.oci.image.layer.v1.erofs".to_owned();
    serve(&registry, "test/odd", "latest", &[layer]);
    let error = test.pull(&registry.name("test/odd")).unwrap_err();
    assert!(error.to_string().contains("not a runnable image"), "{error}");
    assert!(test.list("layers").is_empty() && test.list("tmp").is_empty());
}

#[test]
fn d11_an_index_that_lies_about_a_platform_is_found_out() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let config = config(&[], "s390x");
    registry.add_blob(&config);
    let inner = manifest(&config, &[]);
    registry.add_manifest("test/spoof", "x", OCI_MANIFEST, &inner);
    let entry = descriptor(OCI_MANIFEST, &inner);
    let entry = entry.trim_end_matches('}');
    let platform = format!(r#""platform":{{"os":"linux","architecture":"{}"}}}}"#, arch());
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry},{platform}]}}"#);
    registry.add_manifest("test/spoof", "latest", OCI_INDEX, index.as_bytes());
    let test = TestStore::new();
    let error = test.pull(&registry.name("test/spoof")).unwrap_err();
    assert!(error.to_string().contains("wrong platform") && error.to_string().contains("s390x"), "{error}");
    assert!(test.store.images().unwrap().is_empty());
}

#[test]
fn d16_a_known_digest_under_another_name_is_asked_of_that_name() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve(&registry, "test/image", "latest", &small_layers(1));
    let test = TestStore::new();
    test.pull(&registry.name("test/image")).unwrap();
    let missing = PullOptions { policy: cofferdam_image::PullPolicy::Missing, ..options() };
    let wrong = name(&registry, &format!("wrong/name:tag@{digest}"));
    let error = test.store.pull(&wrong, &missing, &|_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert!(test.store.find(&wrong.to_string()).unwrap().is_none());
}

#[test]
fn d8_d15_d18_odd_configurations_are_bounded() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let test = TestStore::new();
    serve(&registry, "test/empty", "latest", &[]);
    let image = test.pull(&registry.name("test/empty")).unwrap();
    let (one, two) = (test.mount(&image), test.mount(&image));
    std::fs::write(one.path("mine"), "x").unwrap();
    assert!(two.tree().is_empty(), "nobody else's folder");
    drop((one, two));

    let huge = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"history":[{{"comment":"{}"}}]}}"#,
        arch(),
        "\\u001b[31m".repeat(1_200_000)
    );
    registry.add_blob(huge.as_bytes());
    registry.add_manifest("test/huge", "latest", OCI_MANIFEST, &manifest(huge.as_bytes(), &[]));
    let error = test.pull(&registry.name("test/huge")).unwrap_err();
    assert!(error.to_string().contains("larger than the limit"), "{error}");

    let other =
        format!(r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"files","diff_ids":[]}}}}"#, arch());
    registry.add_blob(other.as_bytes());
    registry.add_manifest("test/other", "latest", OCI_MANIFEST, &manifest(other.as_bytes(), &[]));
    let error = test.pull(&registry.name("test/other")).unwrap_err();
    assert!(error.to_string().contains("rootfs.type"), "{error}");
}

/// A verifier: a script, and a file that it may write.
fn verifier(folder: &Path, script: &str) -> (Verifier, PathBuf) {
    let (path, log) = (folder.join("verifier"), folder.join("log"));
    std::fs::write(&path, format!("#!/bin/sh\nLOG={}\n{script}\n", log.display())).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    (Verifier { program: path, timeout: Duration::from_millis(800) }, log)
}

#[test]
fn a28_d20_a_verifier_is_asked_before_the_first_layer_and_only_yes_is_yes() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve(&registry, "test/image", "latest", &small_layers(2));
    let image = name(&registry, "test/image");
    let folder = temporary_folder();
    for (script, expected) in [
        ("echo \"not by us\"; exit 3", "exit status: 3: not by us"),
        ("kill -9 $$", "signal: 9"),
        ("exec sleep 60", "killed after 800ms"),
        ("sleep 60 & exit 1", "exit status: 1"),
        ("exec yes", "signal: 13"),
    ] {
        let test = TestStore::new();
        let (program, _) = verifier(folder.path(), script);
        let admission = Admission { verifiers: vec![program], ..Admission::default() };
        registry.forget();
        let start = Instant::now();
        let error = test.store.pull(&image, &PullOptions { admission, ..options() }, &|_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{script}: {error}");
        assert_eq!(error.kind(), Kind::Denied);
        assert!(start.elapsed() < Duration::from_secs(30), "it waits for what a verifier started");
        assert!(registry.seen("/blobs/").is_empty(), "nothing of the image was asked for");
        assert!(test.list("tmp").is_empty() && test.list("layers").is_empty());
    }
    let absent = Verifier::new("/nowhere/verifier");
    let admission = Admission { verifiers: vec![absent], ..Admission::default() };
    let test = TestStore::new();
    let error = test.store.pull(&image, &PullOptions { admission, ..options() }, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("cannot run it"), "{error}");

    let (program, log) = verifier(folder.path(), "echo \"$@\" > $LOG; cat >> $LOG; exit 0");
    let admission = Admission { verifiers: vec![program], ..Admission::default() };
    test.store.pull(&image, &PullOptions { admission, ..options() }, &|_| {}).unwrap();
    let said = std::fs::read_to_string(log).unwrap();
    assert!(said.starts_with(&format!("-name {image} -digest {digest} -stdin-media-type ")), "{said}");
    let descriptor: serde_json::Value = serde_json::from_str(said.lines().nth(1).unwrap()).unwrap();
    assert_eq!(descriptor["digest"], digest.to_string());
}

/// A signing key, and its public half in PEM.
fn key() -> (EcdsaKeyPair, String) {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let prefix = STANDARD.decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgA=").unwrap();
    let der = [&prefix[..], pair.public_key().as_ref()].concat();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
    (pair, pem)
}

/// What cosign signs.
fn payload(reference: &str, digest: &str, kind: &str) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{reference}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}},"optional":null}}"#
    )
}

const COSIGN: &str = "cosign container image signature";

fn signature(registry: &FakeRegistry, key: &EcdsaKeyPair, payload: &str) -> String {
    let signature = key.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
    signature_layer(registry, payload, &STANDARD.encode(signature))
}

fn signature_layer(registry: &FakeRegistry, payload: &str, signature: &str) -> String {
    let digest = registry.add_blob(payload.as_bytes());
    format!(
        r#"{{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"{digest}","size":{},"annotations":{{"dev.cosignproject.cosign/signature":"{signature}"}}}}"#,
        payload.len()
    )
}

fn signature_manifest(layers: &[String]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
        descriptor(OCI_CONFIG, b"{}"),
        layers.join(",")
    )
}

#[test]
fn a29_d19_a_signature_counts_for_its_key_its_digest_and_its_repository() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve(&registry, "test/image", "latest", &small_layers(1)).to_string();
    let tag = format!("{}.sig", digest.replace(':', "-"));
    let image = name(&registry, "test/image");
    let own = image.name();
    let (pair, pem) = key();
    let (other, _) = key();
    let folder = temporary_folder();
    let key_path = folder.path().join("cosign.pub");
    std::fs::write(&key_path, pem).unwrap();
    let options = |identity: &str| {
        let signed = format!(
            r#"[{{"type":"sigstoreSigned","keyPath":"cosign.pub","signedIdentity":{{"type":"{identity}"}}}}]"#
        );
        let text = format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{own}":{signed},"{}/free":[{{"type":"insecureAcceptAnything"}}]}}}}}}"#,
            image.registry()
        );
        let policy = Policy::parse(text.as_bytes(), &folder.path().join("policy.json")).unwrap();
        PullOptions { admission: Admission { policy, ..Admission::default() }, ..options() }
    };
    let (exact, any_tag) = (options("matchRepoDigestOrExact"), options("matchRepository"));
    let pull = |image: &ImageRef| TestStore::new().store.pull(image, &exact, &|_| {});
    let sign = |layers: &[String]| {
        registry.add_manifest("test/image", &tag, OCI_MANIFEST, signature_manifest(layers).as_bytes());
    };
    let refused = |expected: &str| {
        registry.forget();
        let error = pull(&image).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert_eq!(error.kind(), Kind::Denied);
        for layer in small_layers(1) {
            assert!(registry.seen(&Digest::of(&layer.blob).to_string()).is_empty());
        }
    };
    refused("it has no signature");
    let right = payload(&own, &digest, COSIGN);
    let elsewhere = Digest::of(b"other").to_string();
    for (layer, expected) in [
        (signature(&registry, &other, &right), "by another key"),
        (signature(&registry, &pair, &payload(&own, &elsewhere, COSIGN)), "is for sha256:"),
        (
            signature(&registry, &pair, &payload("other.io/repository", &digest, COSIGN)),
            "is for other.io/repository",
        ),
        (signature(&registry, &pair, &payload(&format!("{own}:v9"), &digest, COSIGN)), ":v9"),
        (
            signature(&registry, &pair, &payload(&own, &digest, "atomic container signature")),
            "not a signature of an image",
        ),
        (signature(&registry, &pair, "{}"), "unknown payload"),
        (signature_layer(&registry, &right, "!!!"), "not base64"),
        (signature_layer(&registry, &right, "AAAA"), "by another key"),
    ] {
        sign(&[layer]);
        refused(expected);
    }
    // A signature of one payload beside another.
    let good = signature(&registry, &pair, &right);
    let stolen = good.split("signature\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    sign(&[signature_layer(&registry, &payload(&own, &elsewhere, COSIGN), &stolen)]);
    refused("by another key, or of another payload");
    // More than anybody makes.
    let wrong = signature(&registry, &other, &right);
    sign(&[vec![wrong.clone(); 65], vec![good.clone()]].concat());
    refused("first 64 signatures");

    // Another tag's signature: for the repository, and for who asks by digest.
    sign(&[signature(&registry, &pair, &payload(&format!("{own}:v9"), &digest, COSIGN))]);
    TestStore::new().store.pull(&image, &any_tag, &|_| {}).unwrap();
    pull(&image.at(Digest::parse(&digest).unwrap())).unwrap();
    sign(&[wrong, good.clone()]);
    pull(&image).unwrap();
    // The same as a referrer.
    {
        let mut state = registry.state.lock().unwrap();
        state.manifests.remove(&format!("test/image:{tag}"));
        state.has_referrers = true;
    }
    let manifest = signature_manifest(&[good]);
    let manifest_digest = registry.add_manifest("test/image", "other", OCI_MANIFEST, manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{manifest_digest}","size":{},"artifactType":"application/vnd.dev.cosign.artifact.sig.v1+json"}}]}}"#,
        manifest.len()
    );
    registry.state.lock().unwrap().referrers.insert(digest.clone(), index.into_bytes());
    pull(&image).unwrap();
    // A registry that does not answer has not said yes.
    registry.fault("/referrers/", usize::MAX, FaultKind::Status(403, vec![], String::new()));
    refused("cannot be fetched");

    serve(&registry, "free/image", "latest", &small_layers(1));
    serve(&registry, "other/image", "latest", &small_layers(1));
    pull(&name(&registry, "free/image")).unwrap();
    let error = pull(&name(&registry, "other/image")).unwrap_err();
    assert!(error.to_string().contains("the default of the policy"), "{error}");
}

type Tell<'a> = &'a dyn Fn(PushEvent);

/// An OCI layout with the image, named `v1`.
fn layout(folder: &Path, layers: &[Layer]) -> Digest {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let config = config(layers, arch());
    let manifest = manifest(&config, layers);
    let bodies = layers.iter().map(|layer| &layer.blob).chain([&config, &manifest]);
    for body in bodies {
        std::fs::write(blobs.join(Digest::of(body).hex()), body).unwrap();
    }
    let entry = descriptor(OCI_MANIFEST, &manifest);
    let entry = entry.replace(
        r#"{"mediaType""#,
        r#"{"annotations":{"org.opencontainers.image.ref.name":"v1"},"mediaType""#,
    );
    std::fs::write(folder.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#))
        .unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    Digest::of(&manifest)
}

#[test]
fn a23_what_is_pushed_is_pulled_elsewhere_byte_for_byte() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    registry.state.lock().unwrap().scoped = true;
    let layers = small_layers(3);
    let folder = temporary_folder();
    let digest = layout(folder.path(), &layers);
    let test = TestStore::new();
    let options = PushOptions { client: options().client, ..PushOptions::default() };
    let how = |push: &dyn Fn(Tell<'_>) -> Digest| {
        let events = Mutex::new(Vec::new());
        assert_eq!(push(&|event| events.lock().unwrap().push(event)), digest);
        let events = events.into_inner().unwrap();
        assert_eq!(events.last(), Some(&PushEvent::Finished { digest: digest.clone() }));
        events
            .iter()
            .filter_map(|event| match event {
                PushEvent::Blob { how, .. } => Some(*how),
                _ => None,
            })
            .collect::<Vec<Pushed>>()
    };
    let target = name(&registry, "first/image:v1");
    let from_layout = |progress: Tell<'_>| {
        test.store.push_layout(folder.path(), Some("v1"), &target, &options, progress).unwrap()
    };
    assert_eq!(how(&from_layout), [Pushed::Sent; 4]);
    registry.forget();
    assert_eq!(how(&from_layout), [Pushed::Existed; 4]);
    assert!(registry.seen("/uploads/").is_empty(), "the second push sends nothing");

    let image = test.pull(&target.to_string()).unwrap();
    assert_eq!(image.digest, digest);
    // The store keeps no compressed layers, but the registry has them in the other repository.
    let second = name(&registry, "second/image:v2");
    let from_store = |progress: Tell<'_>| test.store.push(&image, &second, &options, progress).unwrap();
    assert_eq!(how(&from_store), [Pushed::Mounted; 4]);
    let elsewhere = TestStore::new();
    assert_eq!(elsewhere.pull(&second.to_string()).unwrap().digest, digest);

    let other = FakeRegistry::start();
    let error = test.store.push(&image, &name(&other, "x/y"), &options, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("keeps layers unpacked"), "{error}");
    // What came as tars is put together again: docker's archives are loaded to be pushed.
    let tar = |number: u8| Tar::new().file(&format!("file-{number}"), "data").dir("d", 0o711, 1, 2).end();
    let plain: Vec<Layer> = (0..3).map(|number| Layer::plain(tar(number))).collect();
    let folder = temporary_folder();
    let digest = layout(folder.path(), &plain);
    let image = test.store.import_path(folder.path(), &ImportOptions::default(), &|_| {}).unwrap().remove(0);
    let target = name(&other, "x/y:v1");
    assert_eq!(test.store.push(&image, &target, &options, &|_| {}).unwrap(), digest);
    assert_eq!(TestStore::new().pull(&target.to_string()).unwrap().digest, digest);
}
