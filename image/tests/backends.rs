//! One contract for every backend: the same layers give the same tree, with everything that a program could ask of it.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_image::{Backend, Image};
use cofferdam_tests::{needs, pace};
use support::*;

/// Each takes a second of a debug build on a busy disk.
const TREES: u64 = 8;
const STACKS: u64 = 8;

/// xorshift64*: the same trees every time, and a seed to name in a failure.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    fn name(&mut self) -> Vec<u8> {
        match self.below(12) {
            0 => vec![b'n'; 255],
            1 => b"\xff\xfe\n%".to_vec(),
            2 => b"!before-the-dot".to_vec(),
            3 => b"...".to_vec(),
            other => vec![b'a' + (other % 5) as u8],
        }
    }

    fn path(&mut self) -> Vec<u8> {
        let parts: Vec<Vec<u8>> = (0..=self.below(3)).map(|_| self.name()).collect();
        parts.join(&b'/')
    }

    /// Sizes around everything that matters to a file system of 4 KiB blocks.
    fn size(&mut self) -> usize {
        [0, 1, 100, 511, 512, 3967, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 12_345, 70_000][self.below(15)]
    }
}

/// A layer with every kind of entry; no deletions unless there is something below.
fn random_layer(random: &mut Random, entries: usize, has_lower: bool) -> Tar {
    let mut tar = Tar::new();
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut taken: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut directories: BTreeSet<Vec<u8>> = BTreeSet::new();
    for _ in 0..entries {
        let path = random.path();
        let parents: Vec<Vec<u8>> =
            (0..path.len()).filter(|at| path[*at] == b'/').map(|at| path[..at].to_vec()).collect();
        if parents.iter().any(|parent| taken.contains(parent)) || directories.contains(&path) {
            continue;
        }
        let mut header = Header {
            name: &path,
            mode: [0o644, 0o755, 0o4711, 0o600, 0o1777][random.below(5)],
            uid: [0, 7, 65_535, 65_536, (1 << 32) - 2][random.below(5)],
            gid: [0, 8, 70_000][random.below(3)],
            mtime: [1_000_000_000, 1_000_000_000, 5, 1_700_000_000][random.below(4)],
            ..Header::default()
        };
        if random.below(5) == 0 {
            header.pax.push(pax("mtime", "1234567890.123456789"));
        }
        let kind = random.below(9);
        if matches!(kind, 0..=3) {
            for index in 0..random.below(4) {
                let value = random.bytes([0, 3, 64, 900][index]);
                header.pax.push((format!("SCHILY.xattr.user.name{index}"), value));
            }
        }
        let link;
        match kind {
            0..3 => {
                let data = {
                    let size = random.size();
                    random.bytes(size)
                };
                tar = tar.add(header, &data);
                files.push(path.clone());
                taken.insert(path.clone());
            }
            3 => {
                if taken.contains(&path) {
                    continue;
                }
                tar = tar.add(Header { kind: b'5', ..header }, b"");
                directories.insert(path.clone());
            }
            4 => {
                link = {
                    let length = [1, 20, 3000, 4000][random.below(4)];
                    vec![b'x'; length]
                };
                tar = tar.add(Header { kind: b'2', mode: 0o777, link: &link, ..header }, b"");
                taken.insert(path.clone());
            }
            5 if !files.is_empty() => {
                link = files[random.below(files.len())].clone();
                if link != path && taken.contains(&link) {
                    tar = tar.add(Header { kind: b'1', link: &link, pax: vec![], ..header }, b"");
                    taken.insert(path.clone());
                    files.retain(|file| *file != path);
                }
            }
            6 => {
                tar = tar.add(Header { kind: b'3', device: (1, 3), ..header }, b"");
                taken.insert(path.clone());
            }
            7 => {
                tar = tar.add(Header { kind: b'6', ..header }, b"");
                taken.insert(path.clone());
            }
            8 if has_lower => {
                let (parent, base) = match path.iter().rposition(|byte| *byte == b'/') {
                    Some(at) => (path[..=at].to_vec(), &path[at + 1..]),
                    None => (Vec::new(), &path[..]),
                };
                let mark = if random.below(4) == 0 && !parent.is_empty() {
                    [&parent[..], b".wh..wh..opq"].concat()
                } else if base.len() < 250 {
                    [&parent[..], b".wh.", base].concat()
                } else {
                    continue;
                };
                tar = tar.add(Header { name: &mark, ..Header::default() }, b"");
            }
            _ => continue,
        }
        directories.extend(parents);
    }
    tar
}

/// Everything that can be asked of a tree but times of access and numbers of inodes.
fn describe(root: &Path, links: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let data = path.symlink_metadata().unwrap();
            let mut line = format!(
                "{:?} {:o} {}:{} {}.{:09} {:x}",
                path.strip_prefix(root).unwrap(),
                data.mode(),
                data.uid(),
                data.gid(),
                data.mtime(),
                data.mtime_nsec(),
                data.rdev(),
            );
            if data.is_dir() {
                pending.push(path.clone());
            } else {
                line += &format!(" {} bytes", data.len());
                if links {
                    line += &format!(" {} links", data.nlink());
                }
            }
            if data.is_symlink() {
                line += &format!(" -> {:?}", std::fs::read_link(&path).unwrap());
            }
            if data.is_file() {
                line += &format!(" {}", cofferdam_image::Digest::of(&std::fs::read(&path).unwrap()));
            }
            line += &format!(" {:?}", xattrs(&path));
            lines.push(line);
        }
    }
    lines.sort();
    lines
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0u8; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found: Vec<(String, Vec<u8>)> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 65_536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect();
    found.sort();
    found
}

/// The files of the layers in a store, of the EROFS kind.
fn images(test: &TestStore) -> Vec<PathBuf> {
    let folders = test.list("layers").into_iter();
    let paths = folders.map(|name| test.store.root().join("layers").join(name).join("image/layer.erofs"));
    paths.filter(|path| path.exists()).collect()
}

fn check(image: &Path, what: &str) {
    let output = Command::new("fsck.erofs").arg("-d3").arg(image).output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    assert!(output.status.success() && !words.contains("<E>"), "{what}: {words}");
}

/// The tree of the same layers in every backend that this host has.
fn in_every_backend(layers: &[Layer], what: &str, links: bool) {
    let mut first: Option<(Backend, Vec<String>)> = None;
    for backend in Backend::ALL {
        let Some(test) = TestStore::with(backend) else { continue };
        let image = test.pull_layers(layers).unwrap_or_else(|error| panic!("{what}, {backend}: {error}"));
        let tree = describe(test.mount(&image).target.path(), links);
        for image in images(&test) {
            if std::path::Path::new("/usr/bin/fsck.erofs").exists() {
                check(&image, what);
            }
        }
        match &first {
            None => first = Some((backend, tree)),
            Some((usual, expected)) => {
                let differs = expected.iter().zip(&tree).find(|(a, b)| a != b);
                assert!(*expected == tree, "{what}: {usual} and {backend} differ: {differs:#?}");
            }
        }
    }
}

#[test]
fn a70_random_trees_are_read_back_by_the_kernel_as_they_were_written() {
    if !is_root() || !has_program("fsck.erofs") {
        return;
    }
    for seed in 1..=TREES {
        let mut random = Random::new(seed);
        let entries = 1 + random.below(80);
        let tar = random_layer(&mut random, entries, false);
        in_every_backend(&[Layer::plain(tar.end())], &format!("seed {seed}"), true);
    }
}

#[test]
fn a31_a33_a34_random_stacks_are_the_same_in_every_backend() {
    if !is_root() {
        return;
    }
    for seed in 1..=STACKS {
        let mut random = Random::new(1000 + seed);
        let layers: Vec<Layer> = (0..=random.below(4))
            .map(|index| {
                let entries = random.below(25);
                Layer::gzip(random_layer(&mut random, entries, index > 0).end())
            })
            .collect();
        in_every_backend(&layers, &format!("seed {seed}"), false);
    }
}

#[test]
fn a70_directories_of_many_entries_and_files_around_a_block_are_the_same_in_every_backend() {
    if !is_root() {
        return;
    }
    let mut tar = Tar::new().dir("many", 0o750, 1, 2);
    for index in 0..1500 {
        tar = tar.file(&format!("many/{index}-{}", "n".repeat(index % 120)), "");
    }
    for size in (3900..4200).step_by(7) {
        let attribute = ("SCHILY.xattr.user.a".to_owned(), vec![b'v'; size % 200]);
        let name = format!("files/{size}");
        let header = Header { name: name.as_bytes(), pax: vec![attribute], ..Header::default() };
        tar = tar.add(header, &vec![b'd'; size]);
    }
    in_every_backend(&[Layer::zstd(tar.end())], "many", true);
}

#[test]
fn a70_an_erofs_layer_needs_no_loop_device_and_is_a_function_of_its_archive() {
    if !is_root() {
        return;
    }
    let tar = random_layer(&mut Random::new(77), 200, false).end();
    let mut bytes = Vec::new();
    for _ in 0..2 {
        let Some(test) = TestStore::with(Backend::Erofs) else { return };
        let image = test.pull_layers(&[Layer::gzip(tar.clone())]).unwrap();
        let layer = images(&test).pop().unwrap();
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = test.mount(&image);
        let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let new: Vec<&str> = after.lines().filter(|line| !before.contains(line)).collect();
        assert!(new.iter().all(|line| !line.contains("erofs - ") && !line.contains(" - erofs")), "{new:?}");
        for device in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let backing =
                std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            assert!(!backing.contains(test.folder.path().to_str().unwrap()), "{backing}");
        }
        drop(mount);
        bytes.push(std::fs::read(&layer).unwrap());
        let record = std::fs::read_to_string(layer.ancestors().nth(2).unwrap().join("layer.json")).unwrap();
        assert!(record.contains(r#""form": "erofs""#), "{record}");
    }
    assert!(bytes[0] == bytes[1], "the same archive gave two images");
}

/// A sparse file in PAX 1.0: the map comes before the data.
fn sparse(name: &str, size: u64, regions: &[(u64, &[u8])]) -> Tar {
    let mut map = format!("{}\n", regions.len());
    for (offset, data) in regions {
        map += &format!("{offset}\n{}\n", data.len());
    }
    let mut body = map.into_bytes();
    body.resize(body.len().next_multiple_of(512), 0);
    body.extend(regions.iter().flat_map(|(_, data)| data.iter().copied()));
    let header = Header {
        name: b"GNUSparseFile.0/x",
        pax: vec![
            pax("GNU.sparse.major", "1"),
            pax("GNU.sparse.minor", "0"),
            pax("GNU.sparse.name", name),
            pax("GNU.sparse.realsize", &size.to_string()),
        ],
        ..Header::default()
    };
    Tar::new().add(header, &body)
}

#[test]
fn a43_holes_stay_holes_in_every_backend() {
    if !is_root() {
        return;
    }
    let data = vec![b'd'; 1 << 20];
    let size = 10 << 30;
    let tar =
        sparse("big", size, &[(5000, &data[..1 << 19]), (7 << 30, &data[..1 << 19]), (size - 3, b"end")]);
    let layers = [Layer::gzip(tar.end())];
    for backend in Backend::ALL {
        let Some(test) = TestStore::with(backend) else { continue };
        let begun = Instant::now();
        let image = test.pull_layers(&layers).unwrap();
        let mount = test.mount(&image);
        pace::held(&format!("{backend}"), begun.elapsed(), Duration::from_secs(1));
        let file = std::fs::File::open(mount.path("big")).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), size);
        for layer in images(&test) {
            assert!(layer.metadata().unwrap().blocks() < 8192, "the image's file has the holes");
        }
        let read = |offset: u64, length: usize| {
            let mut bytes = vec![0xff; length];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
            bytes
        };
        assert_eq!(read(4998, 4), [0, 0, b'd', b'd'], "{backend}");
        assert_eq!(read((7 << 30) - 2, 4), [0, 0, b'd', b'd'], "{backend}");
        assert_eq!(read((7 << 30) + (1 << 19) - 1, 2), [b'd', 0], "{backend}");
        assert_eq!(read(size - 4, 4), *b"\0end", "{backend}");
        assert_eq!(read(3 << 30, 10), [0; 10], "{backend}");
    }
}

/// One file holds a layer, however many the layer has: that is what is written, and what is deleted. Where nothing else is
/// at work it is seen in the time too.
#[test]
fn a81_many_small_files_are_written_faster_and_removed_at_once_as_erofs() {
    if !is_root() {
        return;
    }
    let files = if needs::is_full() { 50_000 } else { 4_000 };
    let mut tar = Tar::new();
    for index in 0..files {
        tar = tar.file(&format!("d{}/f{index}", index / 500), "some words in a small file");
    }
    let layer = Layer::plain(tar.end());
    let measure = |backend| {
        let test = TestStore::with(backend)?;
        let begun = Instant::now();
        let image: Image = test.pull_layers(std::slice::from_ref(&layer)).unwrap();
        let pulled = begun.elapsed();
        test.store.settle().unwrap();
        let entries = entries(&test.store.root().join("layers"));
        let begun = Instant::now();
        test.store.remove(&image.digest.to_string(), true).unwrap();
        test.store.settle().unwrap();
        assert!(test.list("trash").is_empty());
        Some((entries, pulled, begun.elapsed()))
    };
    let (Some(directory), Some(erofs)) = (measure(Backend::OverlayDir), measure(Backend::Erofs)) else {
        return;
    };
    println!("{files} files, entries / pull / removal: overlay-dir {directory:?}, erofs {erofs:?}");
    assert!(directory.0 >= files && erofs.0 <= 8, "{} and {} entries", directory.0, erofs.0);
    if needs::is_full() {
        let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
        assert!(ratio(directory.1, erofs.1) >= 1.3, "pull: {:?} against {:?}", directory.1, erofs.1);
        assert!(ratio(directory.2, erofs.2) >= 50.0, "removal: {:?} against {:?}", directory.2, erofs.2);
    }
}

/// Files and directories below a path.
fn entries(path: &Path) -> usize {
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    below
        .map(|entry| {
            1 + entry.file_type().map_or(0, |kind| if kind.is_dir() { entries(&entry.path()) } else { 0 })
        })
        .sum()
}

#[test]
fn x12_a_native_erofs_layer_from_a_registry_is_refused() {
    let test = TestStore::new();
    for media_type in ["application/vnd.erofs.layer.v1", "application/vnd.oci.image.layer.v1.erofs"] {
        let layer = Layer { media_type: media_type.to_owned(), ..Layer::plain(Tar::new().end()) };
        let error = test.pull_layers(&[layer]).unwrap_err().to_string();
        assert!(error.contains(media_type), "{error}");
        assert!(test.list("layers").is_empty());
    }
}

#[test]
fn attributes_that_the_kernel_would_refuse_are_refused_by_erofs_too() {
    if !is_root() {
        return;
    }
    for (name, value) in
        [("security.capability", &b"\0\0\0\x02"[..]), ("system.posix_acl_access", b"\x02\0\0\0x")]
    {
        let attribute = (format!("SCHILY.xattr.{name}"), value.to_vec());
        let header = Header { name: b"file", pax: vec![attribute], ..Header::default() };
        let layers = [Layer::plain(Tar::new().add(header, b"x").end())];
        for backend in [Backend::OverlayDir, Backend::Erofs] {
            let Some(test) = TestStore::with(backend) else { continue };
            let error = test.pull_layers(&layers).unwrap_err().to_string();
            let is_named = error.contains("attribute") || error.contains(name);
            assert!(error.contains("file") && is_named, "{backend}: {error}");
        }
    }
}

#[test]
fn a_store_may_hold_layers_of_both_forms() {
    if !is_root() {
        return;
    }
    let Some(test) = TestStore::with(Backend::Erofs) else { return };
    let first = Layer::gzip(Tar::new().file("a", "1").file("d/old", "x").end());
    let second = Layer::gzip(Tar::new().file("d/.wh.old", "").file("d/new", "2").end());
    test.pull_layers(std::slice::from_ref(&first)).unwrap();
    let test = test.reopen(Backend::OverlayDir);
    let image = test.pull_layers(&[first, second]).unwrap();
    assert_eq!(images(&test).len(), 1);
    let tree = test.mount(&image).tree();
    assert_eq!(tree, ["a 644 0:0 file \"1\"", "d 755 0:0 dir", "d/new 644 0:0 file \"2\""]);
}

#[test]
fn a31_a_symbolic_link_has_linuxs_mode_whatever_the_archive_says() {
    if !is_root() {
        return;
    }
    let link = Header { name: b"link", kind: b'2', link: b"there", ..Header::default() };
    let tar = Tar::new().add(link, b"").end();
    for backend in [Backend::OverlayDir, Backend::Erofs, Backend::Copy] {
        let Some(test) = TestStore::with(backend) else { continue };
        let image = test.pull_layers(&[Layer::plain(tar.clone())]).unwrap();
        assert_eq!(test.mount(&image).tree(), ["link 777 0:0 -> there"], "{backend:?}");
    }
}
