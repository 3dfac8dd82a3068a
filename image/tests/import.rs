//! Importing layouts and archives, those made here and those that other tools write.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use cofferdam_image::{Digest, Error, ImageBuilder, ImageRef, ImportOptions, Kind, Naming};
use std::process::Command;
use support::*;

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
    let images = test.store.import(&mut built().as_slice(), &ImportOptions::default(), &|_| {}).unwrap();
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
    let image = test.store.import_path(&path, &ImportOptions::default(), &|_| {}).unwrap().remove(0);
    assert_eq!(image.names[0].familiar(), "saved:1");
    assert_eq!(test.mount(&image).tree(), ["a 644 0:0 file \"1\"", "b 644 0:0 file \"2\""]);
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
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
        (Tar::new().file("x", "y").end(), "lacks manifest.json"),
        (b"not an archive at all".to_vec(), "header"),
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
        let image = test.store.import_path(&path, &ImportOptions::default(), &|_| {}).unwrap().remove(0);
        trees.push(test.mount(&image).tree());
    }
    assert!(trees[0].len() == 7 && trees.iter().all(|tree| *tree == trees[0]), "{trees:?}");
    assert_eq!(test.store.find("saved:2").unwrap().unwrap().layers.len(), 1);
}
