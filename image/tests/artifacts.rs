//! Artifacts in a store: kept as they came, told apart from images, refused where an image is wanted.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::os::unix::fs::FileExt;

use cofferdam_image::{
    Artifacts, Digest, Export, ExportOptions, Image, ImageBuilder, ImageRef, ImportOptions, Kind, Layout,
    Naming, PruneOptions, PullOptions, PushOptions, Store, StoreOptions, Taken, Unused, VerifyOptions,
};
use support::fake::{FakeRegistry, FaultKind};
use support::*;

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const CHART: &str = "application/x.chart";

/// What the artifact's blobs are: one that no decoder would take, and one that is also its config.
fn blobs() -> [Vec<u8>; 2] {
    [(0..300_000u32).flat_map(u32::to_le_bytes).collect(), b"{}".to_vec()]
}

/// Serves an artifact as `repository:latest`.
fn serve_artifact(registry: &FakeRegistry, repository: &str) -> Digest {
    let [data, empty] = blobs();
    registry.add_blob(&data);
    registry.add_blob(&empty);
    let titled = descriptor("application/x.chart.content", &data);
    let titled = titled.trim_end_matches('}');
    let artifact = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","artifactType":"{CHART}","config":{config},"layers":[{titled},"annotations":{{"org.opencontainers.image.title":"chart.tgz"}}}},{config}]}}"#,
        config = descriptor(EMPTY, &empty),
    );
    registry.add_manifest(repository, "latest", OCI_MANIFEST, artifact.as_bytes())
}

fn assert_kept(test: &TestStore, digest: &Digest) -> Image {
    let image = test.store.image(digest).unwrap().unwrap();
    let artifact = image.artifact.clone().unwrap();
    let [data, empty] = blobs();
    assert_eq!(artifact.kind, CHART);
    let told: Vec<_> =
        artifact.blobs.iter().map(|blob| (blob.digest.clone(), blob.title.as_deref())).collect();
    assert_eq!(told, [(Digest::of(&data), Some("chart.tgz")), (Digest::of(&empty), None)]);
    assert_eq!((image.size_bytes, image.layers.len()), ((data.len() + empty.len()) as u64, 0));
    assert_eq!(std::fs::read(blob(test, &Digest::of(&data))).unwrap(), data);
    assert!(test.list("layers").is_empty() && test.list("tmp").is_empty());
    image
}

fn blob(test: &TestStore, digest: &Digest) -> std::path::PathBuf {
    test.store.root().join("blobs/sha256").join(digest.hex())
}

#[test]
fn a21_an_artifact_is_pulled_as_content_and_cannot_be_run() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve_artifact(&registry, "test/chart");
    let name = ImageRef::parse(&registry.name("test/chart")).unwrap();
    let test = TestStore::new();

    let refusing = PullOptions { artifacts: Artifacts::Refused, ..options() };
    let error = test.store.pull(&name, &refusing, &|_| {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("not a runnable image") && text.contains(CHART), "{text}");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(registry.seen("/blobs/").is_empty() && test.store.images().unwrap().is_empty());

    let image = test.pull(&name.to_string()).unwrap();
    assert_eq!((&image.digest, &image.names), (&digest, &vec![name.clone()]));
    assert_kept(&test, &digest);
    let error = test.store.prepare("task", &image).unwrap_err().to_string();
    assert!(error.contains("not a runnable image") && error.contains(CHART), "{error}");
    assert!(error.contains(&name.familiar()), "{error}");

    // Nothing is fetched twice, and what is there suits every platform.
    registry.forget();
    let platform = Some(cofferdam_image::Platform::parse("linux/s390x").unwrap());
    test.store.pull(&name, &PullOptions { platform, ..options() }, &|_| {}).unwrap();
    assert!(registry.seen("/blobs/").is_empty());

    // Other bytes under its digest publish nothing; those that came whole stay for the next attempt.
    let other = TestStore::new();
    let [data, _] = blobs();
    for fault in [FaultKind::Corrupt, FaultKind::Longer] {
        registry.fault(Digest::of(&data).hex(), 9, fault);
        let error = other.pull(&name.to_string()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput, "{error}");
        assert!(other.store.images().unwrap().is_empty() && other.list("tmp").is_empty());
        assert!(!blob(&other, &Digest::of(&data)).exists());
        registry.clear_faults();
    }
    assert_eq!(other.pull(&name.to_string()).unwrap().digest, digest);
}

#[test]
fn a21_an_artifact_is_exported_pushed_verified_and_pruned_like_an_image() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve_artifact(&registry, "test/chart");
    let name = ImageRef::parse(&registry.name("test/chart")).unwrap();
    let test = TestStore::new();
    let image = test.pull(&name.to_string()).unwrap();
    let exports = [Export { image: digest.clone(), names: vec![name.clone()] }];
    let export = |layout| {
        let mut bytes = Vec::new();
        let options = ExportOptions { layout, ..ExportOptions::default() };
        test.store.export(&exports, &options, &mut bytes).map(|()| bytes)
    };
    let archive = export(Layout::OciArchive).unwrap();
    let error = export(Layout::DockerArchive).unwrap_err().to_string();
    assert!(error.contains(CHART) && error.contains("OCI layout"), "{error}");

    let other = TestStore::new();
    let naming = Naming::FromArchive(Taken::Refused);
    let imported = other.store.import(
        &mut archive.as_slice(),
        &ImportOptions { naming, ..ImportOptions::default() },
        &|_| {},
    );
    assert_eq!(imported.unwrap()[0].names, std::slice::from_ref(&name));
    assert_kept(&other, &digest);

    let elsewhere = FakeRegistry::start();
    let target = ImageRef::parse(&elsewhere.name("copy/chart:v1")).unwrap();
    let push = PushOptions { client: options().client, ..PushOptions::default() };
    assert_eq!(other.store.push(&image, &target, &push, &|_| {}).unwrap(), digest);
    let third = TestStore::new();
    assert_eq!(third.pull(&target.to_string()).unwrap().digest, digest);
    assert_kept(&third, &digest);

    // Its blobs survive a collection, are counted, and are looked at.
    other.store.gc().unwrap();
    assert_kept(&other, &digest);
    let [data, empty] = blobs();
    assert!(other.store.usage().unwrap().images[0].bytes >= data.len() as u64);
    let verified = other.store.verify(&VerifyOptions::default()).unwrap();
    assert!(verified.is_sound() && verified.bytes > data.len() as u64, "{verified:?}");
    let path = blob(&other, &Digest::of(&data));
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"x", 7).unwrap();
    let damaged = other.store.export(&exports, &ExportOptions::default(), &mut Vec::new()).unwrap_err();
    assert!(damaged.to_string().contains("has other bytes"), "{damaged}");
    assert_eq!(other.store.verify(&VerifyOptions::default()).unwrap().findings.len(), 1);
    assert!(other.store.require_complete(&image).is_err() && !path.exists());
    assert_eq!(other.pull(&name.to_string()).unwrap().digest, digest);
    assert_kept(&other, &digest);

    let all = PruneOptions { which: Unused::All, ..PruneOptions::default() };
    let pruned = other.store.prune(&all).unwrap();
    assert_eq!((pruned.images.len(), pruned.bytes), (1, (data.len() + empty.len()) as u64));
    other.store.settle().unwrap();
    assert!(other.list("blobs/sha256").is_empty());
}

#[test]
fn a21_a56_an_artifact_that_power_may_have_torn_is_not_served() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve_artifact(&registry, "test/chart");
    for settled in [false, true] {
        let folder = temporary_folder();
        let options =
            StoreOptions { durability: cofferdam_image::Durability::None, ..StoreOptions::default() };
        let store = Store::open_with(&folder.path().join("store"), options).unwrap();
        let test = TestStore { folder, store };
        let image = test.pull(&registry.name("test/chart")).unwrap();
        if settled {
            test.store.settle().unwrap();
        }
        let record = test.store.root().join("images").join(format!("sha256-{}.json", digest.hex()));
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        json["artifact"]["boot"] = "another".into();
        std::fs::write(&record, json.to_string()).unwrap();
        assert_eq!(test.store.require_complete(&image).is_ok(), settled);
        // Whole blobs are found so without being fetched.
        registry.forget();
        test.pull(&registry.name("test/chart")).unwrap();
        let fetched =
            registry.seen("/blobs/").iter().filter(|seen| !seen.path.contains(image.id.hex())).count();
        assert_eq!(fetched, 0);
        test.store.require_complete(&image).unwrap();
    }
}

#[test]
fn a21_a_layout_with_an_image_and_its_signature_brings_both() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve_artifact(&registry, "test/chart");
    let test = TestStore::new();
    test.pull(&registry.name("test/chart")).unwrap();
    let archive = ImageBuilder::new().file("f", 0o644, "x").build().unwrap();
    let image =
        test.store.import(&mut archive.as_slice(), &ImportOptions::default(), &|_| {}).unwrap().remove(0);
    let both = [&image.digest, &digest].map(|image| Export { image: image.clone(), names: Vec::new() });
    let out = test.folder.path().join("layout");
    let into = ExportOptions { layout: Layout::OciDirectory, ..ExportOptions::default() };
    test.store.export_path(&both, &into, &out).unwrap();
    let other = TestStore::new();
    let mut brought: Vec<bool> = other
        .store
        .import_path(&out, &ImportOptions::default(), &|_| {})
        .unwrap()
        .iter()
        .map(|image| image.artifact.is_some())
        .collect();
    brought.sort_unstable();
    assert_eq!(brought, [false, true]);
}
