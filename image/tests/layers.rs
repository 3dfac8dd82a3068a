//! What becomes of a layer's entries, seen through an overlay mount of the stored layers: the cases in which container
//! tools differ, each with what must come out here.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use cofferdam_image::{Error, Kind, LayerError};
use support::*;

type Case<'a> = (&'a str, Vec<Tar>, &'a [&'a str]);

fn file(name: &str) -> Header<'_> {
    Header { name: name.as_bytes(), ..Header::default() }
}

#[test]
fn layers_stack_as_the_specification_says() {
    if !is_root() {
        return;
    }
    let cases: Vec<Case<'_>> = vec![
        (
            "a file survives its own deletion, whichever comes first",
            vec![Tar::new().file("foo", "old"), Tar::new().file("foo", "new").file(".wh.foo", "")],
            &["foo 644 0:0 file \"new\""],
        ),
        (
            "deletion first",
            vec![Tar::new().file("foo", "old"), Tar::new().file(".wh.foo", "").file("foo", "new")],
            &["foo 644 0:0 file \"new\""],
        ),
        (
            "a deletion deletes",
            vec![Tar::new().file("foo", "old").file("bar", "stays"), Tar::new().file(".wh.foo", "")],
            &["bar 644 0:0 file \"stays\""],
        ),
        (
            "a directory in place of a deleted one shows nothing of the old",
            vec![Tar::new().file("d/old", "x"), Tar::new().file(".wh.d", "").file("d/new", "y")],
            &["d 755 0:0 dir", "d/new 644 0:0 file \"y\""],
        ),
        (
            "a directory over a file, without a deletion",
            vec![Tar::new().file("p", "x"), Tar::new().file("p/q", "y")],
            &["p 755 0:0 dir", "p/q 644 0:0 file \"y\""],
        ),
        (
            "a file over a directory",
            vec![Tar::new().file("p/q", "x"), Tar::new().file("p", "y")],
            &["p 644 0:0 file \"y\""],
        ),
        (
            "opaque and a plain deletion leave no phantom",
            vec![
                Tar::new().file("d/a", "x").file("d/b", "x"),
                Tar::new().file("d/.wh..wh..opq", "").file("d/.wh.a", "").file("d/c", "y"),
            ],
            &["d 755 0:0 dir", "d/c 644 0:0 file \"y\""],
        ),
        (
            "an opaque root hides every lower layer",
            vec![Tar::new().file("a", "x"), Tar::new().file(".wh..wh..opq", "").file("b", "y")],
            &["b 644 0:0 file \"y\""],
        ),
        (
            "implied directories keep the attributes that a lower layer gives them",
            vec![
                Tar::new().dir("tmp", 0o1777, 0, 0).dir("opt", 0o750, 7, 8).dir("opt/in", 0o711, 1, 1),
                Tar::new().file("tmp/foo", "x").file("opt/in/ner/y", "y"),
                Tar::new().file("opt/in/z", "z"),
            ],
            &[
                "opt 750 7:8 dir",
                "opt/in 711 1:1 dir",
                "opt/in/ner 755 0:0 dir",
                "opt/in/ner/y 644 0:0 file \"y\"",
                "opt/in/z 644 0:0 file \"z\"",
                "tmp 1777 0:0 dir",
                "tmp/foo 644 0:0 file \"x\"",
            ],
        ),
        (
            "a replaced directory does not inherit the attributes of the deleted one",
            vec![Tar::new().dir("d", 0o700, 5, 5), Tar::new().file(".wh.d", ""), Tar::new().file("d/x", "x")],
            &["d 755 0:0 dir", "d/x 644 0:0 file \"x\""],
        ),
        (
            "a directory that a layer needs hides a lower link of its name",
            vec![
                Tar::new().symlink("lib", "usr/lib").file("usr/lib/old", "x"),
                Tar::new().file("lib/new", "y"),
            ],
            &[
                "lib 755 0:0 dir",
                "lib/new 644 0:0 file \"y\"",
                "usr 755 0:0 dir",
                "usr/lib 755 0:0 dir",
                "usr/lib/old 644 0:0 file \"x\"",
            ],
        ),
        (
            "names lead through links of the same layer, inside the root",
            vec![
                Tar::new()
                    .symlink("evil", "/canary/../canary2")
                    .file("evil/pwn", "x")
                    .symlink("up", "../../..")
                    .file("up/y", "y"),
            ],
            &[
                "canary2 755 0:0 dir",
                "canary2/pwn 644 0:0 file \"x\"",
                "evil 777 0:0 -> /canary/../canary2",
                "up 777 0:0 -> ../../..",
                "y 644 0:0 file \"y\"",
                "canary 755 0:0 dir",
            ],
        ),
        (
            "names with dots and slashes land inside the root",
            vec![
                Tar::new().file("../up", "1").file("a/../../b", "2").file("/abs/x", "3").file("./../y", "4"),
            ],
            &[
                "abs 755 0:0 dir",
                "abs/x 644 0:0 file \"3\"",
                "b 644 0:0 file \"2\"",
                "up 644 0:0 file \"1\"",
                "y 644 0:0 file \"4\"",
            ],
        ),
        (
            "of duplicates the last counts, also across types",
            vec![
                Tar::new()
                    .file("x", "1")
                    .file("./x", "2")
                    .dir("y", 0o700, 1, 1)
                    .file("y/in", "")
                    .file("y", "3")
                    .symlink("z", "x")
                    .dir("z/", 0o711, 0, 0),
            ],
            &["x 644 0:0 file \"2\"", "y 644 0:0 file \"3\"", "z 711 0:0 dir"],
        ),
        (
            "a link, a directory in its place, then a file in that",
            vec![Tar::new().dir("a", 0o755, 0, 0).file("a/x", "1").symlink("a", "/etc").file("a/y", "2")],
            &["a 777 0:0 -> /etc", "etc 755 0:0 dir", "etc/y 644 0:0 file \"2\""],
        ),
        (
            "hard links, within a layer and to lower layers",
            vec![
                Tar::new().add(Header { uid: 3, mode: 0o4711, ..file("d/orig") }, b"data"),
                Tar::new().hardlink("d/low", "d/orig").file("one", "x").hardlink("two", "./one"),
                Tar::new().hardlink("low2", "d/orig"),
            ],
            &[
                "d 755 0:0 dir",
                "d/low 4711 3:0 file \"data\"",
                "d/orig 4711 3:0 file \"data\"",
                "low2 4711 3:0 file \"data\"",
                "one 644 0:0 file \"x\"",
                "two 644 0:0 file \"x\"",
            ],
        ),
        (
            "a hard link to a lower file that a higher layer deletes is gone",
            vec![
                Tar::new().file("orig", "x"),
                Tar::new().hardlink("ln", "orig"),
                Tar::new().file(".wh.ln", ""),
            ],
            &["orig 644 0:0 file \"x\""],
        ),
        (
            "set-id bits, owners and special nodes",
            vec![
                Tar::new()
                    .add(Header { mode: 0o6755, uid: 1 << 31, gid: (1 << 32) - 2, ..file("suid") }, b"")
                    .dir("sticky", 0o3777, 9, 9)
                    .file("sticky/in", "")
                    .add(Header { kind: b'3', mode: 0o666, device: (1, 3), ..file("null") }, b"")
                    .add(Header { kind: b'6', mode: 0o600, uid: 4, ..file("pipe") }, b""),
            ],
            &[
                "null 666 0:0 device 103",
                "pipe 600 4:0 fifo",
                "sticky 3777 9:9 dir",
                "sticky/in 644 0:0 file \"\"",
                "suid 6755 2147483648:4294967294 file \"\"",
            ],
        ),
        (
            "aufs's own files are passed over",
            vec![Tar::new().file(".wh..wh.plnk", "").file("a", "")],
            &["a 644 0:0 file \"\""],
        ),
        (
            "a directory as an old file name with a slash",
            vec![Tar::new().file("old/", "")],
            &["old 644 0:0 dir"],
        ),
        ("no entries at all", vec![Tar::new(), Tar::new()], &[]),
        ("no layers at all", vec![], &[]),
    ];
    for (name, tars, expected) in cases {
        for compress in [Layer::gzip as fn(Vec<u8>) -> Layer, Layer::zstd] {
            let test = TestStore::new();
            let layers: Vec<Layer> = tars.iter().cloned().map(|tar| compress(tar.end())).collect();
            let image = test.pull_layers(&layers).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut expected: Vec<&str> = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(test.mount(&image).tree(), expected, "{name}");
        }
    }
}

#[test]
fn the_order_of_deletions_in_an_archive_does_not_matter() {
    if !is_root() {
        return;
    }
    let lower = Layer::gzip(Tar::new().file("d/a", "old").file("d/b", "old").file("d/s/t", "old").end());
    let parts: [fn(Tar) -> Tar; 4] = [
        |tar| tar.file("d/.wh..wh..opq", ""),
        |tar| tar.file("d/.wh.a", ""),
        |tar| tar.file("d/a", "new"),
        |tar| tar.dir("d/s", 0o711, 0, 0),
    ];
    let mut orders = vec![];
    for a in 0..4 {
        for b in 0..4 {
            for c in 0..4 {
                for d in 0..4 {
                    if [a, b, c, d].iter().collect::<std::collections::BTreeSet<_>>().len() == 4 {
                        orders.push([a, b, c, d]);
                    }
                }
            }
        }
    }
    assert_eq!(orders.len(), 24);
    let test = TestStore::new();
    for order in orders {
        let tar = order.iter().fold(Tar::new(), |tar, part| parts[*part](tar));
        let image = test.pull_layers(&[lower.clone(), Layer::gzip(tar.end())]).unwrap();
        let tree = test.mount(&image).tree();
        assert_eq!(tree, ["d 755 0:0 dir", "d/a 644 0:0 file \"new\"", "d/s 711 0:0 dir"], "{order:?}");
    }
}

#[test]
fn entries_that_break_a_rule_are_refused_and_nothing_is_published() {
    if !is_root() {
        return;
    }
    let header = Header::default;
    let cases: Vec<(Tar, &str)> = vec![
        (Tar::new().file(".wh.", ""), "deletes no name"),
        (Tar::new().file("a/b/.wh..", ""), "deletes no name"),
        (Tar::new().file("a/b/.wh...", ""), "deletes no name"),
        (Tar::new().dir(".wh.x", 0o755, 0, 0), "for deletions only"),
        (Tar::new().file("x", "").hardlink(".wh.y", "x"), "for deletions only"),
        (Tar::new().symlink("./", "/etc"), "root of a layer"),
        (Tar::new().symlink(".", "/etc"), "root of a layer"),
        (Tar::new().symlink("..", "/etc"), "root of a layer"),
        (Tar::new().add(Header { uid: u32::MAX.into(), ..file("x") }, b""), "uid 4294967295 is out of range"),
        (Tar::new().add(Header { gid: 1 << 40, ..file("x") }, b""), "gid 1099511627776"),
        (Tar::new().add(Header { pax: vec![pax("uid", "-1")], ..file("x") }, b""), "PAX uid \"-1\""),
        (Tar::new().add(Header { pax: vec![pax("gid", "4294967295")], ..file("x") }, b""), "out of range"),
        (Tar::new().add(Header { pax: vec![pax("mtime", "1e400")], ..file("x") }, b""), "not a time"),
        (Tar::new().add(Header { kind: b'3', device: (0, 0), ..file("x") }, b""), "0:0"),
        (Tar::new().add(Header { kind: b'4', device: (1 << 12, 0), ..file("x") }, b""), "device number"),
        (Tar::new().add(Header { kind: b'3', device: (1, 1 << 20), ..file("x") }, b""), "device number"),
        (Tar::new().add(Header { kind: b'M', ..file("x") }, b""), "type 'M'"),
        (Tar::new().add(Header { kind: b'D', ..file("x") }, b""), "type 'D'"),
        (Tar::new().hardlink("x", "../../etc/shadow"), "hard link to"),
        (Tar::new().hardlink("x", "x"), "hard link to"),
        (Tar::new().hardlink("x", "later").hardlink("y", "x"), "hard link to"),
        (Tar::new().dir("d", 0o755, 0, 0).hardlink("x", "d"), "hard link to a directory"),
        (Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""), "too many symbolic links"),
        (Tar::new().file("f", "").file("f/x", ""), "needs it as a directory"),
        (Tar::new().file("x/", "contents"), "directory with contents"),
        (Tar::new().add(file(&"n".repeat(256)), b""), "longer than 255"),
        (Tar::new().add(file(&"n/".repeat(2100)), b""), "the length of a path"),
        (Tar::new().raw(&Header { kind: b'x', name: b"pax", ..header() }, b"99 a=b\n").file("x", ""), "PAX"),
        (
            Tar::new().raw(&Header { kind: b'x', name: b"pax", ..header() }, b"zz a=b\n").file("x", ""),
            "PAX record is malformed",
        ),
        (
            Tar::new().raw(&Header { kind: b'x', name: b"pax", ..header() }, &[b'x'; 2 << 20]).file("x", ""),
            "metadata",
        ),
        (Tar { bytes: b"no tar".repeat(200) }, "tar archive"),
    ];
    for (tar, expected) in cases {
        let test = TestStore::new();
        let error = test.pull_layers(&[Layer::gzip(tar.end())]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "expected {expected:?}: {text}");
        assert!(text.contains("test/image") && text.contains("sha256:"), "names image and layer: {text}");
        for folder in ["layers", "images", "names", "tmp"] {
            // A link into nowhere is found when the layers are stacked; the layer by itself is sound and may stay.
            let may_stay = folder == "layers" && text.contains("neither its layer nor a lower one");
            assert!(may_stay || test.list(folder).is_empty(), "{folder} after {text}");
        }
    }
}

#[test]
fn headers_that_confuse_parsers_surface_no_inner_entry() {
    if !is_root() {
        return;
    }
    // A file whose data is an archive; the PAX size is right, the header's is 0 (CVE-2025-62518) or another (CVE-2026-33055).
    let inner = Tar::new().file("inner", "smuggled").end();
    for header_size in [0, 512] {
        let mut tar = Tar::new()
            .add(Header { pax: vec![pax("size", &inner.len().to_string())], ..file("outer") }, &inner);
        let at = tar.bytes.len() - inner.len() - 512;
        tar.bytes[at + 124..at + 136].copy_from_slice(format!("{header_size:011o}\0").as_bytes());
        tar.bytes[at + 148..at + 156].copy_from_slice(b"        ");
        let sum: u32 = tar.bytes[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        tar.bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let test = TestStore::new();
        let image = test.pull_layers(&[Layer::gzip(tar.file("after", "").end())]).unwrap();
        let names: Vec<String> =
            test.mount(&image).tree().iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(names, ["after", "outer"]);
    }
    // PAX records before a long name belong to the file (GHSA-3pv8-6f4r-ffg2); global records set nothing.
    let global = b"20 path=global-name\n";
    let long = "l".repeat(150);
    let tar = Tar::new()
        .raw(&Header { kind: b'g', name: b"g", ..Header::default() }, global)
        .add(Header { pax: vec![pax("uid", "77")], ..file(&long) }, b"x");
    let test = TestStore::new();
    let image = test.pull_layers(&[Layer::gzip(tar.end())]).unwrap();
    assert_eq!(test.mount(&image).tree(), [format!("{long} 644 77:0 file \"x\"")]);
}

#[test]
fn times_attributes_holes_and_odd_names_survive() {
    if !is_root() {
        return;
    }
    // In memory, extended attributes depend on the kernel: this test uses the disk.
    let folder = tempfile::tempdir().unwrap();
    let store = cofferdam_image::Store::open(&folder.path().join("store")).unwrap();
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    // Owner rwx, user 1000 r, group r, mask r, others r, as mode 0744 says.
    let entries: [(u16, u16, u32); 5] = [(1, 7, !0), (2, 4, 1000), (4, 4, !0), (16, 4, !0), (32, 4, !0)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let attributes = vec![
        ("SCHILY.xattr.security.capability".to_owned(), capability.to_vec()),
        ("SCHILY.xattr.user.plain".to_owned(), b"a=\nb\xff".to_vec()),
        pax("LIBARCHIVE.xattr.user.en%63oded", "dmFsdWU="),
        ("SCHILY.xattr.system.posix_acl_access".to_owned(), acl.to_vec()),
        pax("SCHILY.xattr.trusted.overlay.opaque", "y"),
        pax("SCHILY.xattr.user.overlay.opaque", "y"),
        pax("SCHILY.xattr.security.selinux", "label"),
        pax("mtime", "-5.25"),
    ];
    let odd = b"odd \n\xff\x1b[31m".to_vec();
    let sparse = vec![
        pax("GNU.sparse.size", "1099511627776"),
        pax("GNU.sparse.numblocks", "2"),
        pax("GNU.sparse.map", "4096,3,1099511627770,4"),
    ];
    let tar = Tar::new()
        .add(Header { pax: attributes, mode: 0o744, ..file("x") }, b"data")
        .add(Header { name: &odd, mtime: -5, ..Header::default() }, b"")
        .add(Header { mtime: 1 << 40, ..file("far") }, b"")
        .add(
            Header {
                pax: vec![pax("SCHILY.xattr.trusted.overlay.opaque", "y"), pax("mtime", "123.456789012")],
                kind: b'5',
                ..file("d")
            },
            b"",
        )
        .file("d/in", "")
        .add(Header { pax: sparse, ..file("holes") }, b"abcdefg")
        .add(Header { kind: b'2', link: b"nowhere", pax: vec![pax("mtime", "7.5")], ..file("ln") }, b"");
    let registry = support::fake::FakeRegistry::start();
    let lower = Tar::new().file("d/lower", "");
    serve(&registry, "i", "latest", &[Layer::gzip(lower.end()), Layer::gzip(tar.end())]);
    let name = registry.name("i").parse().unwrap();
    let warnings = std::sync::Mutex::new(String::new());
    let image = store
        .pull(&name, &options(), &|event| {
            if let cofferdam_image::PullEvent::Warning { message } = event {
                *warnings.lock().unwrap() += &message;
            }
        })
        .unwrap();
    assert!(warnings.into_inner().unwrap().contains("trusted.overlay.opaque is left out"));
    let mount = Mount::new(&store, &image);
    let xattr = |path: &std::path::Path, name: &str| {
        let mut value = [0; 256];
        rustix::fs::lgetxattr(path, name, &mut value[..]).ok().map(|length| value[..length].to_vec())
    };
    let x = mount.path("x");
    assert_eq!(xattr(&x, "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(xattr(&x, "user.plain").as_deref(), Some(&b"a=\nb\xff"[..]));
    assert_eq!(xattr(&x, "user.encoded").as_deref(), Some(&b"value"[..]));
    assert_eq!(xattr(&x, "system.posix_acl_access").as_deref(), Some(&acl[..]));
    for left_out in ["user.overlay.opaque", "security.selinux", "trusted.overlay.opaque"] {
        assert_eq!(xattr(&x, left_out), None, "{left_out}");
    }
    let time = |path: &str| mount.path(path).symlink_metadata().map(|m| (m.mtime(), m.mtime_nsec())).unwrap();
    assert_eq!(time("x"), (-6, 750_000_000));
    assert_eq!(time("d"), (123, 456_789_012));
    assert_eq!(time("ln"), (7, 500_000_000));
    assert!(time("far").0 > i64::from(i32::MAX), "clamped, not wrapped: {:?}", time("far"));
    use std::os::unix::ffi::OsStrExt;
    let odd = mount.target.path().join(std::ffi::OsStr::from_bytes(&odd));
    assert_eq!(odd.metadata().unwrap().mtime(), -5);
    assert!(mount.path("d/lower").exists(), "a smuggled attribute must not hide lower files");
    let holes = mount.path("holes").metadata().unwrap();
    assert_eq!(holes.len(), 1 << 40);
    assert!(holes.blocks() < 64, "{} blocks", holes.blocks());
    use std::os::unix::fs::FileExt;
    let mut data = [0; 4];
    std::fs::File::open(mount.path("holes")).unwrap().read_exact_at(&mut data, (1 << 40) - 6).unwrap();
    assert_eq!(&data, b"defg");
}

#[test]
fn hard_links_within_a_layer_share_one_file_and_never_follow_a_link() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let canary = test.folder.path().join("canary");
    std::fs::write(&canary, "safe").unwrap();
    let target = canary.to_str().unwrap();
    let tar = Tar::new()
        .symlink("evil", target)
        .add(Header { kind: b'1', link: b"evil", mode: 0o777, ..file("hard") }, b"")
        .file("a", "x")
        .hardlink("b", "a")
        .hardlink("b", "a")
        .symlink("d", test.folder.path().to_str().unwrap())
        .dir("d", 0o777, 0, 0);
    let image = test.pull_layers(&[Layer::plain(tar.end())]).unwrap();
    let mount = test.mount(&image);
    assert!(mount.path("hard").symlink_metadata().unwrap().is_symlink());
    assert_eq!(mount.path("a").metadata().unwrap().nlink(), 2);
    let metadata = canary.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.nlink()), (0o644, 1));
    assert!(!mount.path("a").metadata().unwrap().file_type().is_fifo());
}

#[test]
fn gzip_members_zstd_frames_and_mislabelled_blobs_unpack_to_the_same_tree() {
    if !is_root() {
        return;
    }
    let tar = Tar::new().file("a", &"x".repeat(100_000)).file("b", "y").end();
    let (first, second) = tar.split_at(50_000);
    let plain = Layer::plain(tar.clone());
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let variants = [
        Layer { blob: [gzip(first), gzip(second)].concat(), ..Layer::gzip(tar.clone()) },
        Layer { blob: [skippable, zstd(first), zstd(second)].concat(), ..Layer::zstd(tar.clone()) },
        Layer { media_type: format!("{OCI_LAYER}+gzip"), ..plain.clone() },
        Layer { media_type: OCI_LAYER.to_owned(), ..Layer::gzip(tar.clone()) },
        Layer {
            media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned(),
            ..Layer::gzip(tar.clone())
        },
        Layer::plain(tar[..tar.len() - 1024].to_vec()),
    ];
    let expected = TestStore::new();
    let expected = expected.mount(&expected.pull_layers(&[plain]).unwrap()).tree();
    for variant in variants {
        let test = TestStore::new();
        let image = test.pull_layers(std::slice::from_ref(&variant)).unwrap();
        assert_eq!(test.mount(&image).tree(), expected, "{}", variant.media_type);
    }
}

#[test]
fn damaged_compression_and_bombs_are_refused() {
    if !is_root() {
        return;
    }
    let tar = Tar::new().file("a", &"x".repeat(10_000)).end();
    let good = gzip(&tar);
    let mut wrong_crc = good.clone();
    let at = wrong_crc.len() - 8;
    wrong_crc[at] ^= 1;
    let endless_name = [&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3][..], &[b'n'; 200_000]].concat();
    let zeros = vec![0; 100 << 20];
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    let bomb = encoder.finish().unwrap();
    let zstd_bomb = zstd::encode_all(&zeros[..], 3).unwrap();
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0, 0, 0];
    let layer = |blob: Vec<u8>| Layer { blob, ..Layer::gzip(tar.clone()) };
    let cases = [
        (layer(wrong_crc), "gzip stream"),
        (layer(good[..good.len() / 2].to_vec()), "gzip stream: it ends too early"),
        (layer([&good[..], b"garbage"].concat()), "gzip stream"),
        (layer([&good[..], &[0; 512]].concat()), "gzip stream"),
        (layer(gzip(&good)), "tar archive"),
        (layer(endless_name), "gzip stream"),
        (layer(window.to_vec()), "zstd stream"),
        (layer(bomb), "compression ratio"),
        (layer(zstd_bomb), "compression ratio"),
    ];
    for (layer, expected) in cases {
        let test = TestStore::new();
        let error = test.pull_layers(&[layer]).unwrap_err();
        assert!(error.to_string().contains(expected), "expected {expected}: {error}");
        assert!(test.list("layers").is_empty() && test.list("tmp").is_empty());
    }
    // The bomb's DiffID is not the bomb's; a limit is found first.
    let error = LayerError::Limit { what: "x", limit: 1 };
    assert_eq!(
        Error::Layer { image: String::new(), layer: String::new(), source: error.into() }.kind(),
        Kind::Exhausted
    );
}
