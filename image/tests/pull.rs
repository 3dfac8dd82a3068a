//! Pulling from a registry that behaves, and the store that results.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use cofferdam_image::{ImageRef, PullEvent, PullOptions, PullPolicy};
use std::sync::Mutex;
use support::fake::FakeRegistry;
use support::*;

fn two_layers() -> Vec<Layer> {
    vec![
        Layer::gzip(
            Tar::new()
                .dir("./", 0o700, 3, 4)
                .dir("tmp", 0o1777, 0, 0)
                .dir("opt", 0o750, 7, 8)
                .file("a", "lower")
                .end(),
        ),
        Layer::zstd(
            Tar::new()
                .file("tmp/foo", "x")
                .file("opt/b/c", "y")
                .file("a", "upper")
                .file(".wh.gone", "")
                .end(),
        ),
    ]
}

#[test]
fn an_image_is_pulled_stored_found_mounted_and_removed() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    let digest = serve(&registry, "test/image", "v1", &two_layers());
    let test = TestStore::new();
    let events = Mutex::new(Vec::new());
    let name = ImageRef::parse(&registry.name("test/image:v1")).unwrap();
    let image = test.store.pull(&name, &options(), &|event| events.lock().unwrap().push(event)).unwrap();
    assert_eq!(image.digest, digest);
    assert_eq!(image.names.as_slice(), std::slice::from_ref(&name));
    assert_eq!(image.layers.len(), 2);
    let config = image.config.config().clone().unwrap();
    assert_eq!(config.cmd().clone().unwrap(), ["/bin/true"]);

    let events = events.into_inner().unwrap();
    assert!(matches!(events.first(), Some(PullEvent::Resolving { .. })));
    assert!(matches!(events.last(), Some(PullEvent::Finished { .. })));
    assert_eq!(events.iter().filter(|event| matches!(event, PullEvent::LayerDone { .. })).count(), 2);

    for text in [name.to_string(), digest.to_string(), image.id.hex()[..8].to_owned()] {
        assert_eq!(test.store.find(&text).unwrap().unwrap().digest, digest, "{text}");
    }
    assert!(test.store.find("nothing").unwrap().is_none());

    {
        let mount = test.mount(&image);
        assert_eq!(
            mount.tree(),
            [
                "a 644 0:0 file \"upper\"",
                "opt 750 7:8 dir",
                "opt/b 755 0:0 dir",
                "opt/b/c 644 0:0 file \"y\"",
                "tmp 1777 0:0 dir",
                "tmp/foo 644 0:0 file \"x\"",
            ]
        );
        use std::os::unix::fs::MetadataExt;
        let root = mount.path("").metadata().unwrap();
        assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o700, 3, 4));
        assert_eq!(test.store.snapshots().unwrap().len(), 1);
        assert!(test.store.remove(&name.to_string(), false).is_err());
    }
    assert!(test.store.snapshots().unwrap().is_empty());

    let removed = test.store.remove(&name.to_string(), false).unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec![name], Some(digest)));
    test.store.settle().unwrap();
    for folder in ["layers", "fixups", "images", "names", "snapshots", "blobs/sha256", "tmp", "trash"] {
        assert!(test.list(folder).is_empty(), "{folder}: {:?}", test.list(folder));
    }
}

#[test]
fn a_second_pull_of_a_present_image_fetches_no_blob() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "v1", &two_layers());
    let test = TestStore::new();
    test.pull(&registry.name("test/image:v1")).unwrap();
    let before = registry.state.lock().unwrap().served_blob_bytes;
    test.pull(&registry.name("test/image:v1")).unwrap();
    assert_eq!(registry.state.lock().unwrap().served_blob_bytes, before);
}

#[test]
fn policies_decide_whether_the_registry_is_asked() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "v1", &two_layers());
    let test = TestStore::new();
    let name = ImageRef::parse(&registry.name("test/image:v1")).unwrap();
    let pull = |policy| test.store.pull(&name, &PullOptions { policy, ..options() }, &|_| {});
    let count = || registry.state.lock().unwrap().seen.len();

    assert!(matches!(pull(PullPolicy::Never), Err(cofferdam_image::Error::UnknownImage { .. })));
    assert_eq!(count(), 0);
    pull(PullPolicy::Missing).unwrap();
    let after = count();
    pull(PullPolicy::Missing).unwrap();
    pull(PullPolicy::Never).unwrap();
    assert_eq!(count(), after);
    pull(PullPolicy::Newer).unwrap();
    assert_eq!(registry.seen("/manifests/").last().unwrap().method, "HEAD");

    let newer = serve(&registry, "test/image", "v1", &two_layers()[..1]);
    assert_eq!(pull(PullPolicy::Newer).unwrap().digest, newer);
    let images = test.store.images().unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images.iter().filter(|image| image.names.is_empty()).count(), 1);
}
