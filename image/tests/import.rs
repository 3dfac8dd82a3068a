//! Importing layouts and archives, those made here and those that other tools write.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use cofferdam_image::{
    ChangeKind, Digest, Error, Export, ExportOptions, Image, ImageBuilder, ImageLayer, ImageRef,
    ImportOptions, KeepBlobs, Kind, Layout, Naming, PullEvent, Store, StoreOptions, Taken,
};
use std::process::Command;
use support::*;

/// Takes the names in the archive.
fn named() -> ImportOptions {
    ImportOptions { naming: Naming::FromArchive(Taken::Refused), ..ImportOptions::default() }
}

fn built() -> Vec<u8> {
    ImageBuilder::new()
        .name(&ImageRef::parse("demo").unwrap())
        .file("/bin/hello", 0o755, "#!/bin/sh\n")
        .directory("tmp", 0o1777)
        .symlink("usr/bin", "../bin")
        .file(&format!("{}/deep", "d".repeat(200)), 0o600, "x")
        .owner("tmp", 1, 2)
        .entrypoint(&["/bin/hello"])
        .env("A", "b")
        .user("1000:1000")
        .label("k", "v")
        .build()
        .unwrap()
}

#[test]
fn a_built_image_is_the_same_bytes_every_time_and_imports() {
    if !is_root() {
        return;
    }
    assert_eq!(built(), built());
    let test = TestStore::new();
    let images = test.store.import(&mut built().as_slice(), &named(), &|_| {}).unwrap();
    let [image] = &images[..] else { panic!("{images:?}") };
    assert_eq!(image.names[0].familiar(), "demo:latest");
    let config = image.config.config().clone().unwrap();
    assert_eq!(config.entrypoint().clone().unwrap(), ["/bin/hello"]);
    assert_eq!(config.user().clone().unwrap(), "1000:1000");
    assert_eq!(test.store.find("demo").unwrap().unwrap().digest, image.digest);
    let mount = test.mount(image);
    let long = "d".repeat(200);
    assert_eq!(
        mount.tree(),
        [
            "bin 755 0:0 dir".to_owned(),
            "bin/hello 755 0:0 file \"#!/bin/sh\\n\"".to_owned(),
            format!("{long} 755 0:0 dir"),
            format!("{long}/deep 600 0:0 file \"x\""),
            "tmp 1777 1:2 dir".to_owned(),
            "usr 755 0:0 dir".to_owned(),
            "usr/bin 777 0:0 -> ../bin".to_owned(),
        ]
    );
}

#[test]
fn gzipped_archives_import_and_names_can_be_given_or_withheld() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let compressed = gzip(&built());
    let import = |naming| {
        let options = ImportOptions { naming, ..ImportOptions::default() };
        test.store.import(&mut compressed.as_slice(), &options, &|_| {}).unwrap().remove(0)
    };
    assert!(import(Naming::Unnamed).names.is_empty());
    let name = ImageRef::parse("localhost/other:1").unwrap();
    assert_eq!(import(Naming::As(name.clone())).names, [name]);
}

/// `docker save`'s older format, with a layer that is a link to another image's.
fn docker_archive(layers: &[Layer], tags: &str) -> Vec<u8> {
    let config = config(layers, arch());
    let mut tar = Tar::new();
    let mut names = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let name = format!("layer{index}/layer.tar");
        tar = tar.dir(&format!("layer{index}/"), 0o755, 0, 0);
        tar = tar.add(Header { name: name.as_bytes(), ..Header::default() }, &layer.blob);
        tar = tar.symlink(&format!("linked{index}/layer.tar"), &format!("../{name}"));
        names.push(format!("\"linked{index}/layer.tar\""));
    }
    let manifest = format!(r#"[{{"Config":"c.json","RepoTags":{tags},"Layers":[{}]}}]"#, names.join(","));
    tar.add(Header { name: b"c.json", ..Header::default() }, &config).file("manifest.json", &manifest).end()
}

#[test]
fn a_docker_archive_imports_with_plain_and_compressed_layers() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let layers =
        [Layer::plain(Tar::new().file("a", "1").end()), Layer::gzip(Tar::new().file("b", "2").end())];
    let archive = docker_archive(&layers, r#"["saved:1"]"#);
    let path = test.folder.path().join("saved.tar");
    std::fs::write(&path, archive).unwrap();
    let image = test.store.import_path(&path, &named(), &|_| {}).unwrap().remove(0);
    assert_eq!(image.names[0].familiar(), "saved:1");
    assert_eq!(test.mount(&image).tree(), ["a 644 0:0 file \"1\"", "b 644 0:0 file \"2\""]);
}

#[test]
fn a26_damaged_archives_are_refused_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let layer = Layer::plain(Tar::new().file("a", "1").end());
    let mut wrong = layer.clone();
    wrong.diff_id = Digest::of(b"something else");
    let mut corrupt = built();
    let at = corrupt.windows(9).position(|window| window == b"#!/bin/sh").unwrap();
    corrupt[at] = b'x';
    let truncated = built()[..8192].to_vec();
    let foreign = ImageBuilder::new().platform("linux/s390x".parse().unwrap()).build().unwrap();
    let newer = Tar::new().file("oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#).end();
    for (archive, expected) in [
        (docker_archive(&[wrong], "null"), "corrupt layer"),
        (corrupt, "corrupt layer: the blob's digest"),
        (truncated, "archive"),
        (foreign, "wrong platform"),
        (newer, "version 2.0.0"),
        (Tar::new().file("x", "y").end(), "neither an OCI image layout"),
        (Tar::new().file("manifest.json", "[]").end(), "it holds no image"),
        (
            Tar::new()
                .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
                .file("index.json", r#"{"schemaVersion":2,"manifests":[]}"#)
                .end(),
            "it holds no image",
        ),
        (b"not an archive at all".to_vec(), "no tar archive"),
    ] {
        let test = TestStore::new();
        let error =
            test.store.import(&mut archive.as_slice(), &ImportOptions::default(), &|_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(matches!(error.kind(), Kind::InvalidInput | Kind::NotFound), "{error:?}");
        for folder in ["layers", "images", "names", "blobs/sha256", "tmp"] {
            assert!(test.list(folder).is_empty(), "{folder} after {error}");
        }
    }
}

#[test]
fn two_images_cannot_share_one_given_name() {
    let test = TestStore::new();
    let options =
        ImportOptions { naming: Naming::As(ImageRef::parse("x").unwrap()), ..ImportOptions::default() };
    let empty = Tar::new().file("manifest.json", "[]").end();
    let error = test.store.import(&mut empty.as_slice(), &options, &|_| {}).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[test]
fn what_skopeo_writes_imports_as_directory_oci_archive_and_docker_archive() {
    if !is_root() || !has_program("skopeo") {
        return;
    }
    let test = TestStore::new();
    let at = |name: &str| test.folder.path().join(name).display().to_string();
    std::fs::write(at("built.tar"), built()).unwrap();
    for target in [
        format!("oci:{}:tag", at("dir")),
        format!("oci-archive:{}", at("oci.tar")),
        format!("docker-archive:{}:saved:2", at("docker.tar")),
    ] {
        let source = format!("oci-archive:{}", at("built.tar"));
        let output =
            Command::new("skopeo").args(["--insecure-policy", "copy", &source, &target]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut trees = Vec::new();
    for name in ["dir", "oci.tar", "docker.tar"] {
        let path = test.folder.path().join(name);
        let image = test.store.import_path(&path, &named(), &|_| {}).unwrap().remove(0);
        trees.push(test.mount(&image).tree());
    }
    assert!(trees[0].len() == 7 && trees.iter().all(|tree| *tree == trees[0]), "{trees:?}");
    assert_eq!(test.store.find("saved:2").unwrap().unwrap().layers.len(), 1);
}

fn export(store: &Store, images: &[(&Image, Vec<ImageRef>)], layout: Layout) -> Result<Vec<u8>, Error> {
    let exports: Vec<Export> = images
        .iter()
        .map(|(image, names)| Export { image: image.digest.clone(), names: names.clone() })
        .collect();
    let mut archive = Vec::new();
    let options = ExportOptions { layout, ..ExportOptions::default() };
    store.export(&exports, &options, &mut archive).map(|()| archive)
}

/// Layers that a tree alone does not give back: sparse files, a deletion with contents, directories listed twice, hard links,
/// long names, junk after the end.
fn awkward() -> Vec<Layer> {
    let long = "n".repeat(140);
    let sparse = Header {
        name: b"sparse",
        pax: vec![
            pax("GNU.sparse.major", "0"),
            pax("GNU.sparse.minor", "1"),
            pax("GNU.sparse.map", "4096,512,8192,512"),
            pax("GNU.sparse.size", "1000000"),
        ],
        ..Header::default()
    };
    let lower = Tar::new()
        .dir("./", 0o755, 0, 0)
        .dir("etc", 0o750, 1, 2)
        .file("etc/a", "lower")
        .file("etc/gone", "x")
        .hardlink("etc/b", "etc/a")
        .symlink("link", "etc")
        .file("link/through", "through a link")
        .file(&long, &"long ".repeat(60_000))
        .add(sparse, &[9; 1024]);
    let upper = Tar::new()
        .dir("etc", 0o700, 3, 4)
        .file("etc/.wh.gone", "contents that mean nothing")
        .file("etc/a", "upper")
        .dir("etc", 0o711, 5, 6)
        .end();
    let mut lower = lower.end();
    lower.extend_from_slice(&[0; 20_480]);
    vec![Layer::gzip(lower), Layer::zstd(upper)]
}

fn pulled(options: StoreOptions) -> (TestStore, Image, Vec<Layer>) {
    let registry = support::fake::FakeRegistry::start();
    let layers = awkward();
    serve(&registry, "test/image", "v1", &layers);
    let folder = temporary_folder();
    let store = Store::open_with(&folder.path().join("store"), options).unwrap();
    let test = TestStore { folder, store };
    let image = test.pull(&registry.name("test/image:v1")).unwrap();
    (test, image, layers)
}

#[test]
fn a46_a71_an_export_of_an_import_of_an_export_is_the_same_bytes() {
    if !is_root() {
        return;
    }
    let (test, image, layers) = pulled(StoreOptions::default());
    let other = test.store.import(&mut built().as_slice(), &named(), &|_| {}).unwrap().remove(0);
    let names =
        [vec![ImageRef::parse("a/one:1").unwrap(), ImageRef::parse("b/two").unwrap()], other.names.clone()];
    let whole = test.mount(&image).tree();
    for (layout, round) in [(Layout::OciArchive, 0), (Layout::DockerArchive, 1)] {
        let pair = [(&image, names[0].clone()), (&other, names[1].clone())];
        let first = export(&test.store, &pair, layout).unwrap();
        assert_eq!(first, export(&test.store, &pair, layout).unwrap(), "twice from one store");
        let second = TestStore::new();
        let mut imported = second.store.import(&mut first.as_slice(), &named(), &|_| {}).unwrap();
        imported.sort_by_key(|image| image.layers.len() == 1);
        imported.dedup_by_key(|image| image.digest.clone());
        let [one, two] = &imported[..] else { panic!("{imported:?}") };
        // The configuration is the same bytes, so the image is the same one to whoever goes by its id.
        assert_eq!((&one.id, &two.id), (&image.id, &other.id));
        assert_eq!(second.store.find("a/one:1").unwrap().unwrap().digest, one.digest);
        assert_eq!(second.mount(one).tree(), whole, "{layout:?}");
        let pair = [(one, names[0].clone()), (two, names[1].clone())];
        let again = export(&second.store, &pair, layout).unwrap();
        assert!(first == again, "round {round}: {} and {} bytes", first.len(), again.len());
    }
    // The tars are those of the layers, byte by byte.
    let directory = test.folder.path().join("layout");
    let exports = [Export { image: image.digest.clone(), names: vec![] }];
    let options = ExportOptions { layout: Layout::OciDirectory, ..ExportOptions::default() };
    test.store.export_path(&exports, &options, &directory).unwrap();
    for layer in &layers {
        let tar = std::fs::read(directory.join("blobs/sha256").join(layer.diff_id.hex())).unwrap();
        assert_eq!(Digest::of(&tar), layer.diff_id);
    }
    let error = test.store.export_path(&exports, &options, &directory).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(std::fs::read_dir(test.folder.path()).unwrap().count(), 2, "nothing half-made is left");
}

#[test]
fn a46_with_kept_blobs_an_export_has_the_very_manifest_that_was_pulled() {
    if !is_root() {
        return;
    }
    let options = StoreOptions { keep_blobs: KeepBlobs::Always, ..StoreOptions::default() };
    let (test, image, layers) = pulled(options);
    for layer in &layers {
        let path = test.store.root().join("blobs/sha256").join(Digest::of(&layer.blob).hex());
        assert!(std::fs::read(path).unwrap() == layer.blob);
    }
    test.store.gc().unwrap();
    let archive = export(&test.store, &[(&image, vec![])], Layout::OciArchive).unwrap();
    let second = TestStore::new();
    let imported = second.store.import(&mut archive.as_slice(), &ImportOptions::default(), &|_| {}).unwrap();
    assert_eq!(imported[0].digest, image.digest);
    // docker's archive wants tars, which the blobs give too.
    let archive = export(&test.store, &[(&image, vec![])], Layout::DockerArchive).unwrap();
    let imported = second.store.import(&mut archive.as_slice(), &ImportOptions::default(), &|_| {}).unwrap();
    assert_eq!(imported[0].id, image.id);
    let removed = test.store.remove(&image.digest.to_string(), true).unwrap();
    assert_eq!(removed.deleted, Some(image.digest));
    assert!(test.list("blobs/sha256").is_empty());
}

#[test]
fn a46_an_export_of_a_damaged_layer_fails_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (test, image, _) = pulled(StoreOptions::default());
    let layers = test.list("layers").into_iter().map(|layer| test.store.root().join("layers").join(layer));
    let path = layers.map(|layer| layer.join("diff/etc/a")).find(|path| path.exists()).unwrap();
    std::fs::write(path, "LOWER").unwrap();
    let target = test.folder.path().join("out.tar");
    let exports = [Export { image: image.digest.clone(), names: vec![] }];
    let error = test.store.export_path(&exports, &ExportOptions::default(), &target).unwrap_err();
    assert!(error.to_string().contains("cannot be exported: wrong DiffID"), "{error}");
    assert_eq!(std::fs::read_dir(test.folder.path()).unwrap().count(), 1);
}

#[test]
fn a46_skopeo_and_podman_take_what_is_exported() {
    if !is_root() || !has_program("skopeo") {
        return;
    }
    let (test, image, layers) = pulled(StoreOptions::default());
    let name = ImageRef::parse("docker.io/library/exported:1").unwrap();
    for (layout, source) in [
        (Layout::OciArchive, "oci-archive"),
        (Layout::DockerArchive, "docker-archive"),
        (Layout::OciDirectory, "oci"),
    ] {
        let path = test.folder.path().join(source);
        let exports = [Export { image: image.digest.clone(), names: vec![name.clone()] }];
        let options = ExportOptions { layout, ..ExportOptions::default() };
        test.store.export_path(&exports, &options, &path).unwrap();
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "inspect", "--config", &format!("{source}:{}", path.display())])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(layers.iter().all(|layer| text.contains(&layer.diff_id.to_string())), "{source}: {text}");
    }
}

#[test]
fn a46_names_in_an_archive_count_only_when_asked_and_never_take_one_away_silently() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let mine = ImageBuilder::new().file("mine", 0o644, "x").build().unwrap();
    let demo = ImageRef::parse("demo").unwrap();
    let import = |archive: &[u8], naming| {
        let options = ImportOptions { naming, ..ImportOptions::default() };
        test.store.import(&mut &archive[..], &options, &|_| {}).map(|mut images| images.remove(0))
    };
    let own = import(&mine, Naming::As(demo.clone())).unwrap();
    assert!(import(&built(), Naming::default()).unwrap().names.is_empty());
    let error = import(&built(), Naming::FromArchive(Taken::Refused)).unwrap_err();
    assert!(matches!(&error, Error::NameTaken { taken_by, .. } if *taken_by == own.digest), "{error}");
    assert_eq!(test.store.find("demo").unwrap().unwrap().digest, own.digest);
    let told = std::cell::RefCell::new(Vec::new());
    let options = ImportOptions { naming: Naming::FromArchive(Taken::Replaced), ..ImportOptions::default() };
    let theirs = test.store.import(&mut built().as_slice(), &options, &|event| told.borrow_mut().push(event));
    assert_eq!(test.store.find("demo").unwrap().unwrap().digest, theirs.unwrap()[0].digest);
    let warnings: Vec<_> =
        told.into_inner().into_iter().filter(|event| matches!(event, PullEvent::Warning { .. })).collect();
    assert!(format!("{warnings:?}").contains(&own.digest.to_string()), "{warnings:?}");
    assert_eq!(test.store.image(&own.digest).unwrap().unwrap().names, []);
}

#[test]
fn a46_an_image_that_was_exported_is_loaded_again_under_its_name() {
    if !is_root() {
        return;
    }
    let (test, image, _) = pulled(StoreOptions::default());
    let mut archive = Vec::new();
    let name = image.names[0].clone();
    let exports = [Export { image: image.digest.clone(), names: vec![name.clone()] }];
    test.store.export(&exports, &ExportOptions::default(), &mut archive).unwrap();
    // Its blobs were not kept: its layers went out as tars, under another manifest.
    let options = ImportOptions { naming: Naming::FromArchive(Taken::Refused), ..ImportOptions::default() };
    for _ in 0..2 {
        let loaded = test.store.import(&mut archive.as_slice(), &options, &|_| {}).unwrap().remove(0);
        assert!(loaded.digest != image.digest && loaded.id == image.id);
        assert_eq!(loaded.names, std::slice::from_ref(&name));
        let old = test.store.find(&image.digest.to_string()).unwrap().unwrap();
        assert_eq!((old.digest, old.names), (image.digest.clone(), Vec::new()));
        // The id is that of both, and means the one that has a name.
        assert_eq!(test.store.find(&image.id.to_string()).unwrap().unwrap().digest, loaded.digest);
    }
}

#[test]
fn a89_a_diff_tells_what_a_layer_adds_changes_and_deletes() {
    if !is_root() {
        return;
    }
    let (test, image, _) = pulled(StoreOptions::default());
    let registry = support::fake::FakeRegistry::start();
    serve(&registry, "test/base", "v1", &awkward()[..1]);
    let base = test.pull(&registry.name("test/base:v1")).unwrap();
    let changes = |from: &[ImageLayer], to: &[ImageLayer]| {
        let changes = test.store.diff(from, to).unwrap().into_iter();
        changes.map(|change| (change.path, change.change)).collect::<Vec<_>>()
    };
    let change = |path: &str, kind| (path.to_owned(), kind);
    assert_eq!(
        changes(&base.layers, &image.layers),
        [
            change("/etc", ChangeKind::Changed),
            change("/etc/a", ChangeKind::Changed),
            change("/etc/gone", ChangeKind::Deleted),
        ]
    );
    assert!(changes(&image.layers, &image.layers).is_empty());
    assert_eq!(changes(&[], &base.layers).len(), 9);
}
