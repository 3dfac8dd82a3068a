//! Damage to what is stored: found, taken away, and healed by the next pull.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cofferdam_image::{Backend, Damaged, Verdict, Verified, VerifyOptions};
use support::fake::FakeRegistry;
use support::*;

fn layers() -> Vec<Layer> {
    let long = "d".repeat(120);
    let sparse = Header {
        name: b"etc/sparse",
        pax: vec![
            pax("GNU.sparse.major", "0"),
            pax("GNU.sparse.minor", "1"),
            pax("GNU.sparse.map", "0,512,1048576,512"),
            pax("GNU.sparse.size", "1049088"),
        ],
        ..Header::default()
    };
    vec![
        Layer::gzip(
            Tar::new()
                .dir("./", 0o755, 0, 0)
                .dir("etc", 0o755, 0, 0)
                .file("etc/passwd", "root:x:0:0\n")
                .file(&format!("etc/{long}"), &"long name ".repeat(5000))
                .symlink("lib", "usr/lib")
                .hardlink("etc/group", "etc/passwd")
                .add(sparse, &[7; 1024])
                .end(),
        ),
        // A whiteout with contents, a directory that is listed twice, and no closing blocks.
        Layer::zstd(
            Tar::new()
                .file("etc/.wh.group", "ignored")
                .dir("opt", 0o700, 1, 2)
                .file("opt/data", &"x".repeat(70_000))
                .dir("opt", 0o750, 3, 4)
                .bytes,
        ),
    ]
}

fn verify(store: &TestStore) -> Verified {
    store.store.verify(&VerifyOptions::default()).unwrap()
}

/// The stored file of that name, in whatever layer has it.
fn stored(test: &TestStore, name: &str) -> PathBuf {
    let layers = test.list("layers").into_iter().map(|layer| test.store.root().join("layers").join(layer));
    layers.map(|layer| layer.join("diff").join(name)).find(|path| path.symlink_metadata().is_ok()).unwrap()
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a63_a_changed_byte_mode_owner_or_name_is_found_and_the_next_pull_heals_it() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &layers());
    let test = TestStore::new();
    let image = test.pull(&registry.name("test/image")).unwrap();
    let sound = verify(&test);
    assert!(sound.is_sound() && sound.findings.is_empty(), "{sound:?}");
    assert_eq!((sound.layers, sound.blobs), (2, 2));
    let whole = test.mount(&image).tree();

    type Damage = fn(&TestStore);
    let damages: [(Damage, &str); 8] = [
        (|test| flip(&stored(test, "etc/passwd"), 3), "wrong DiffID"),
        (|test| flip(&stored(test, "opt/data"), 69_999), "wrong DiffID"),
        (|test| flip(&stored(test, "etc/sparse"), 1 << 20), "wrong DiffID"),
        (
            |test| {
                std::fs::File::options()
                    .write(true)
                    .open(stored(test, "opt/data"))
                    .unwrap()
                    .set_len(0)
                    .unwrap()
            },
            "shorter",
        ),
        (
            |test| std::fs::remove_file(stored(test, "etc/passwd")).unwrap(),
            "entry \"etc/passwd\": cannot open",
        ),
        (
            |test| {
                let path = stored(test, "etc/passwd");
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4755)).unwrap();
            },
            "its mode is 4755, the archive says 644",
        ),
        (
            |test| std::os::unix::fs::chown(stored(test, "etc/passwd"), Some(1000), None).unwrap(),
            "its owner is 1000:0",
        ),
        (
            |test| {
                let link = stored(test, "lib");
                std::fs::remove_file(&link).unwrap();
                std::os::unix::fs::symlink("etc", link).unwrap();
            },
            "leads to \"etc\"",
        ),
    ];
    for (damage, expected) in damages {
        damage(&test);
        let kept = VerifyOptions { damaged: Damaged::Keep, ..VerifyOptions::default() };
        assert!(matches!(test.store.verify(&kept).unwrap().findings[0].verdict, Verdict::StillThere(_)));
        let found = verify(&test);
        // What was made of the damaged layer goes with it.
        let finding = &found.findings[0];
        assert!(found.findings[1..].iter().all(|made| made.path.starts_with("fixups/")), "{found:?}");
        assert!(finding.reason.contains(expected), "{finding:?}");
        assert_eq!(
            (&finding.verdict, &finding.images[..]),
            (&Verdict::Discarded, &[image.digest.clone()][..])
        );
        assert!(!found.is_sound());
        // Until it is healed it is said to be missing, and is not served.
        assert_eq!(verify(&test).findings[0].verdict, Verdict::Missing);
        assert!(test.store.prepare("broken", &image).is_err());
        let healed = test.pull(&registry.name("test/image")).unwrap();
        assert!(verify(&test).findings.is_empty());
        assert_eq!(test.mount(&healed).tree(), whole, "{expected}");
    }
}

#[test]
fn a63_what_a_snapshot_uses_is_not_pulled_away_and_documents_are_looked_at_too() {
    if !is_root() {
        return;
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &layers());
    let test = TestStore::new();
    let image = test.pull(&registry.name("test/image")).unwrap();
    test.store.prepare("task", &image).unwrap();
    flip(&stored(&test, "opt/data"), 5);
    let found = verify(&test);
    assert_eq!(found.findings[0].verdict, Verdict::StillThere(vec!["task".to_owned()]));
    assert!(stored(&test, "opt/data").exists());
    test.store.remove_snapshot("task").unwrap();
    assert_eq!(verify(&test).findings[0].verdict, Verdict::Discarded);

    let config = test.store.root().join("blobs/sha256").join(image.id.hex());
    flip(&config, 20);
    let found = verify(&test);
    assert!(found.findings.iter().any(|finding| finding.path.contains(image.id.hex())), "{found:?}");
    test.pull(&registry.name("test/image")).unwrap();
    assert!(verify(&test).is_sound());
}

#[test]
fn a63_a_layer_whose_entries_replace_each_other_is_not_taken_for_damaged() {
    if !is_root() {
        return;
    }
    let replaced: [(&str, Tar); 4] = [
        ("a directory by a link", Tar::new().dir("a", 0o755, 0, 0).file("a/x", "data").symlink("a", "etc")),
        ("a file by a link", Tar::new().file("a", "data").symlink("a", "etc")),
        ("a file by a hard link", Tar::new().file("b", "other").file("a", "data").hardlink("a", "b")),
        ("a file through a link", Tar::new().file("a/x", "data").symlink("l", "a").file("l/x", "last")),
    ];
    for backend in [Backend::OverlayDir, Backend::Erofs] {
        let Some(test) = TestStore::with(backend) else { continue };
        for (name, tar) in &replaced {
            let layer = Layer::gzip(Tar { bytes: tar.bytes.clone() }.end());
            let image = test.pull_layers(&[layer]).unwrap();
            let tree = test.mount(&image).tree();
            let found = verify(&test);
            assert!(found.is_sound(), "{name}: {found:?}");
            assert!(found.findings.iter().all(|finding| finding.reason.contains("twice")), "{found:?}");
            assert_eq!(test.mount(&image).tree(), tree, "{name}");
        }
    }
}
