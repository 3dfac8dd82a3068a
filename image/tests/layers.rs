//! What becomes of a layer's entries, seen through an overlay mount of the stored layers: the cases in which container
//! tools differ, each with what must come out here.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use cofferdam_image::{Error, Kind, LayerError};
use cofferdam_tests::pace;
use support::*;

type Case<'a> = (&'a str, Vec<Tar>, &'a [&'a str]);

fn file(name: &str) -> Header<'_> {
    Header { name: name.as_bytes(), ..Header::default() }
}

#[test]
fn a31_a35_a36_layers_stack_as_the_specification_says() {
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
fn a32_the_order_of_deletions_in_an_archive_does_not_matter() {
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
fn a39_a48_entries_that_break_a_rule_are_refused_and_nothing_is_published() {
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
fn a48_headers_that_confuse_parsers_surface_no_inner_entry() {
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
fn a37_a38_a41_a42_times_attributes_holes_and_odd_names_survive() {
    if !is_root() {
        return;
    }
    // In memory, extended attributes depend on the kernel: this test uses the disk.
    let folder = folder_on_disk();
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
    assert!(warnings.into_inner().unwrap().contains("user.overlay.opaque is left out"));
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
    for left_out in ["user.overlay.opaque", "security.selinux"] {
        assert_eq!(xattr(&x, left_out), None, "{left_out}");
    }
    // Shown as the image has it, and not acted upon: `d/lower` below is seen. Kernels before 6.7 do not show it.
    let shown = xattr(&x, "trusted.overlay.opaque");
    assert!(shown.as_deref() == Some(b"y") || (shown.is_none() && kernel() < (6, 7)), "{shown:?}");
    if has_program("getcap") {
        let output = std::process::Command::new("getcap").arg(&x).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.contains("cap_net_raw=ep"), "{output}");
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
fn a36_hard_links_within_a_layer_share_one_file_and_never_follow_a_link() {
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
fn a45_gzip_members_zstd_frames_and_mislabelled_blobs_unpack_to_the_same_tree() {
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
fn a48_damaged_compression_and_bombs_are_refused() {
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
    let error = LayerError::Limit { what: "x", limit: 1, name: None };
    assert_eq!(
        Error::Layer { image: String::new(), layer: String::new(), source: error.into() }.kind(),
        Kind::Exhausted
    );
}

/// The running kernel's version.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
fn a31_a47_the_cases_in_which_tools_differ_come_out_as_they_must() {
    if !is_root() {
        return;
    }
    for row in matrix::rows() {
        let (outcome, warnings) = row.pull();
        assert!(row.is_met(&outcome), "{}: {outcome:?}, expected {:?}", row.case, row.must);
        assert!(warnings.contains(row.warning), "{}: {warnings:?}", row.case);
        if let (matrix::Must::Refuse(text), Err(error)) = (row.must, outcome) {
            assert!(error.contains(text), "{}: {error}", row.case);
        }
    }
}

/// Everything that a tree shows of itself: names, types, owners, modes, times, link counts, attributes, contents.
fn everything(root: &std::path::Path) -> Vec<String> {
    let mut lines = list_tree(root);
    for line in &mut lines {
        let path = root.join(line.split(' ').next().unwrap());
        let metadata = path.symlink_metadata().unwrap();
        let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
        let mut names = [0; 1024];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        let names = String::from_utf8_lossy(&names[..length]).replace('\0', " ");
        *line += &format!(" {}.{} {links} {names}", metadata.mtime(), metadata.mtime_nsec());
    }
    lines
}

#[test]
fn a34_layers_unpacked_at_once_or_one_after_another_are_the_same() {
    if !is_root() {
        return;
    }
    let layers: Vec<Layer> = (0..8)
        .map(|index: u64| {
            let mut tar = Tar::new().dir("d", 0o750, index, 1).dir(&format!("own{index}"), 0o2775, 5, 6);
            for number in 0..20 {
                let time = format!("{number}.12345678{index}");
                let records = vec![pax("mtime", &time), pax("SCHILY.xattr.user.n", &time)];
                let name = format!("own{index}/file{number}");
                tar = tar.add(Header { pax: records, mode: 0o4711, uid: number, ..file(&name) }, b"data");
            }
            let last = format!("d/.wh.gone{index}");
            let tar = tar.file(&format!("d/in{index}"), "x").hardlink(&format!("d/ln{index}"), "d/in0");
            let tar = if index.is_multiple_of(2) {
                tar.file(&last, "")
            } else {
                tar.symlink("own0/file0", &time(index))
            };
            Layer::gzip(tar.end())
        })
        .collect();
    let registry = support::fake::FakeRegistry::start();
    serve(&registry, "i", "latest", &layers);
    let trees: Vec<Vec<String>> = [1, 2, 8]
        .into_iter()
        .map(|parallel_layers| {
            let test = TestStore::new();
            let options = cofferdam_image::PullOptions { parallel_layers, ..options() };
            let image = test.store.pull(&registry.name("i").parse().unwrap(), &options, &|_| {}).unwrap();
            everything(test.mount(&image).target.path())
        })
        .collect();
    assert!(trees[0].len() > 150);
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0], trees[2]);
}

fn time(index: u64) -> String {
    format!("target{index}")
}

#[test]
fn a35_a_directory_that_is_implied_shows_the_nearest_lower_entry() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let layers: Vec<Layer> = [
        Tar::new().dir("a", 0o700, 1, 2).dir("a/b", 0o711, 3, 4),
        Tar::new().dir("a/b", 0o1733, 5, 6),
        Tar::new().file("a/b/c", "x"),
        Tar::new().file("a/d", "y").file("new/e", "z"),
    ]
    .into_iter()
    .map(|tar| Layer::gzip(tar.end()))
    .collect();
    let image = test.pull_layers(&layers).unwrap();
    let expected = [
        "a 700 1:2 dir",
        "a/b 1733 5:6 dir",
        "a/b/c 644 0:0 file \"x\"",
        "a/d 644 0:0 file \"y\"",
        "new 755 0:0 dir",
        "new/e 644 0:0 file \"z\"",
    ];
    assert_eq!(test.mount(&image).tree(), expected);
}

#[test]
fn a36_a_link_to_a_lower_file_has_its_contents_attributes_holes_and_time() {
    if !is_root() {
        return;
    }
    let test = TestStore::on_disk();
    let sparse = vec![
        pax("GNU.sparse.size", "1073741824"),
        pax("GNU.sparse.numblocks", "1"),
        pax("GNU.sparse.map", "1073741820,4"),
        pax("mtime", "77.5"),
        pax("SCHILY.xattr.user.kept", "yes"),
    ];
    let lower = Tar::new()
        .add(Header { pax: sparse, mode: 0o4751, uid: 8, gid: 9, ..file("big") }, b"tail")
        .add(Header { kind: b'2', link: b"big", pax: vec![pax("mtime", "5")], uid: 3, ..file("sym") }, b"")
        .add(Header { kind: b'6', mode: 0o620, uid: 4, ..file("pipe") }, b"");
    let upper = Tar::new().hardlink("in/big", "big").hardlink("in/again", "big").hardlink("s", "sym");
    let layers = [Layer::gzip(lower.end()), Layer::gzip(upper.hardlink("p", "pipe").end())];
    let image = test.pull_layers(&layers).unwrap();
    let mount = test.mount(&image);
    let of = |name: &str| mount.path(name).symlink_metadata().unwrap();
    for name in ["big", "in/big", "in/again"] {
        let metadata = of(name);
        assert_eq!((metadata.len(), metadata.mode() & 0o7777), (1 << 30, 0o4751), "{name}");
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mtime()), (8, 9, 77), "{name}");
        assert!(metadata.blocks() < 64, "{name}: {} blocks", metadata.blocks());
        let mut value = [0; 8];
        let length = rustix::fs::lgetxattr(mount.path(name), "user.kept", &mut value[..]);
        let length = length.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(&value[..length], b"yes");
    }
    assert_eq!(of("in/big").ino(), of("in/again").ino());
    assert_eq!((of("s").mtime(), of("s").uid(), of("p").mode() & 0o7777), (5, 3, 0o620));
}

#[test]
fn a40_devices_and_pipes_are_made_and_numbers_that_linux_has_not_are_refused() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let node = |kind, name, device| (Header { kind, mode: 0o640, uid: 1, device, ..file(name) }, b"");
    let mut tar = Tar::new();
    let last = ((1 << 12) - 1, (1 << 20) - 1);
    for (header, data) in
        [node(b'3', "zero", (1, 5)), node(b'4', "disk", (259, 70_000)), node(b'3', "last", last)]
    {
        tar = tar.add(header, data);
    }
    let tar = tar.add(Header { kind: b'6', mode: 0o4600, ..file("pipe") }, b"").file("after", "x");
    let mount = test.mount(&test.pull_layers(&[Layer::gzip(tar.end())]).unwrap());
    let number = |name: &str| mount.path(name).metadata().unwrap().rdev();
    assert_eq!(number("zero"), rustix::fs::makedev(1, 5));
    assert_eq!(number("disk"), rustix::fs::makedev(259, 70_000));
    assert_eq!(number("last"), rustix::fs::makedev(4095, (1 << 20) - 1));
    assert!(mount.path("disk").metadata().unwrap().file_type().is_block_device());
    assert_eq!(mount.path("pipe").metadata().unwrap().mode() & 0o7777, 0o4600);
}

#[test]
fn a42_names_of_255_bytes_and_paths_of_4000_are_kept_to_the_byte() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let component = [&[0xff, b'\n'][..], &[b'c'; 253]].concat();
    let deep: Vec<u8> = vec![component.clone(); 15].join(&b'/');
    assert!(deep.len() > 3800);
    let deepest = [&deep[..], b"/", &[b'd'; 200]].concat();
    let tar = Tar::new()
        .add(Header { name: &component, kind: b'5', mode: 0o755, ..Header::default() }, b"")
        .add(Header { name: &deepest, uid: 5, ..Header::default() }, b"deep")
        .add(
            Header { name: &[&deep[..], b"/link"].concat(), kind: b'1', link: &deepest, ..Header::default() },
            b"",
        );
    let mount = test.mount(&test.pull_layers(&[Layer::gzip(tar.end())]).unwrap());
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut folder = rustix::fs::open(mount.target.path(), flags, Mode::empty()).unwrap();
    for _ in 0..15 {
        folder = rustix::fs::openat(&folder, &component[..], flags, Mode::empty()).unwrap();
    }
    for name in [&[b'd'; 200][..], b"link"] {
        let stat = rustix::fs::statat(&folder, name, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!((stat.st_size, stat.st_uid, stat.st_nlink), (4, 5, 2));
    }
}

#[test]
fn a43_a_sparse_file_is_unpacked_at_once_in_every_format_that_gnu_tar_writes() {
    if !is_root() || !has_program("tar") {
        return;
    }
    const SIZE: u64 = 10 << 30;
    let folder = folder_on_disk();
    let source = folder.path().join("sparse");
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    use std::os::unix::fs::FileExt;
    for part in 0..16u64 {
        file.write_all_at(&[part as u8 + 1; 65_536], part * (SIZE / 16) + 4096).unwrap();
    }
    let formats = [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for format in formats {
        let output = std::process::Command::new("tar")
            .args(["--sparse", "--numeric-owner", "-C"])
            .arg(folder.path())
            .args(format)
            .args(["-cf", "-", "sparse"])
            .output()
            .unwrap();
        assert!(output.status.success() && output.stdout.len() < 2 << 20, "{format:?}");
        let test = TestStore::new();
        let started = std::time::Instant::now();
        let image = test.pull_layers(&[Layer::zstd(output.stdout)]).unwrap();
        let took = started.elapsed();
        let mount = test.mount(&image);
        let unpacked = mount.path("sparse");
        let metadata = unpacked.metadata().unwrap();
        assert_eq!(metadata.len(), SIZE, "{format:?}");
        assert!(metadata.blocks() * 512 <= 2 << 20, "{format:?}: {} blocks", metadata.blocks());
        pace::held(&format!("{format:?}"), took, std::time::Duration::from_secs(1));
        let mut data = [0; 2];
        let unpacked = std::fs::File::open(unpacked).unwrap();
        unpacked.read_exact_at(&mut data, 15 * (SIZE / 16) + 4095).unwrap();
        assert_eq!(data, [0, 16], "{format:?}");
    }
}

#[test]
fn runs_of_zeros_become_holes_and_are_read_back() {
    if !is_root() {
        return;
    }
    let mut data = vec![0; 3 << 20];
    for at in [0, 70_000, 1_500_000, (3 << 20) - 70_000] {
        data[at] = 7;
    }
    let tar = Tar::new().add(file("x"), &data).add(file("zeros"), &vec![0; 1 << 20]).file("after", "y");
    let folder = folder_on_disk();
    let store = cofferdam_image::Store::open(&folder.path().join("store")).unwrap();
    let registry = support::fake::FakeRegistry::start();
    serve(&registry, "i", "latest", &[Layer::gzip(tar.end())]);
    let image = store.pull(&registry.name("i").parse().unwrap(), &options(), &|_| {}).unwrap();
    let mount = Mount::new(&store, &image);
    assert!(std::fs::read(mount.path("x")).unwrap() == data);
    assert!(std::fs::read(mount.path("zeros")).unwrap() == vec![0; 1 << 20]);
    let blocks = |name: &str| mount.path(name).metadata().unwrap().blocks() * 512;
    assert!(blocks("x") <= 1 << 20 && blocks("zeros") <= 128 << 10, "{} {}", blocks("x"), blocks("zeros"));
}

/// As many layers as `count`, each with something of its own and something of the others'.
fn many(count: usize) -> Vec<Layer> {
    let layer = |index: usize| {
        let mut tar = Tar::new()
            .file(&format!("own/{index}"), &index.to_string())
            .file("last", &index.to_string())
            .file(&format!("d{}/x", index % 7), &index.to_string());
        if index == 0 {
            tar = tar.dir("implied", 0o1777, 7, 8).file("implied/lower", "").file("source", "linked");
        }
        if index.is_multiple_of(50) && index > 0 {
            tar = tar
                .file(&format!("own/.wh.{}", index - 1), "")
                .file(&format!("implied/{index}"), "")
                .hardlink(&format!("ln{index}"), "source")
                .file(&format!("o/{index}"), "")
                .file(if index.is_multiple_of(100) { "o/.wh..wh..opq" } else { "o/plain" }, "");
        }
        Layer::plain(tar.end())
    };
    (0..count).map(layer).collect()
}

/// What [`many`] comes to.
fn many_expected(count: usize) -> Vec<String> {
    let mut lines = vec![
        "implied 1777 7:8 dir".to_owned(),
        "implied/lower 644 0:0 file \"\"".to_owned(),
        format!("last 644 0:0 file \"{}\"", count - 1),
        "own 755 0:0 dir".to_owned(),
        "source 644 0:0 file \"linked\"".to_owned(),
        "o 755 0:0 dir".to_owned(),
    ];
    let fifties: Vec<usize> = (1..count).filter(|index| index.is_multiple_of(50)).collect();
    for index in (0..count).filter(|index| (index + 1) % 50 != 0 || index + 1 == count) {
        lines.push(format!("own/{index} 644 0:0 file \"{index}\""));
    }
    for index in &fifties {
        lines.push(format!("implied/{index} 644 0:0 file \"\""));
        lines.push(format!("ln{index} 644 0:0 file \"linked\""));
    }
    let opaque = fifties.iter().rfind(|index| index.is_multiple_of(100)).copied().unwrap_or(0);
    for index in fifties.iter().filter(|index| **index >= opaque) {
        lines.push(format!("o/{index} 644 0:0 file \"\""));
    }
    if fifties.iter().any(|index| *index > opaque) {
        lines.push("o/plain 644 0:0 file \"\"".to_owned());
    }
    for remainder in 0..7 {
        let last = (0..count).rfind(|index| index % 7 == remainder).unwrap();
        lines.push(format!("d{remainder} 755 0:0 dir"));
        lines.push(format!("d{remainder}/x 644 0:0 file \"{last}\""));
    }
    lines.sort();
    lines
}

#[test]
fn a44_images_of_499_and_700_layers_are_mounted_the_latter_merged() {
    if !is_root() {
        return;
    }
    if kernel() < (6, 7) {
        println!("skipped: this kernel takes no lower directories one by one (Linux 6.7)");
        return;
    }
    let all = many(700);
    let test = TestStore::new();
    for (count, merged) in [(499, 0), (700, 1)] {
        let image = test.pull_layers(&all[..count]).unwrap();
        let snapshot = test.store.prepare("count", &image).unwrap();
        assert!(snapshot.lower.len() <= 500, "{}", snapshot.lower.len());
        test.store.remove_snapshot("count").unwrap();
        let names = test.list("fixups");
        assert_eq!(names.iter().filter(|name| name.ends_with("-merged")).count(), merged, "{names:?}");
        assert!(test.mount(&image).tree() == many_expected(count), "{count} layers");
        let name = image.names[0].to_string();
        test.store.gc().unwrap();
        assert!(test.mount(&image).tree() == many_expected(count), "{count} layers after a collection");
        test.store.remove(&name, true).unwrap();
        test.store.settle().unwrap();
        assert!(test.list("fixups").is_empty() && test.list("layers").is_empty());
    }
}

#[test]
fn a45_estargz_and_zstd_chunked_are_layers_like_others() {
    if !is_root() {
        return;
    }
    let tar = Tar::new().file("a", &"x".repeat(100_000)).file("b", "y").dir("d", 0o711, 1, 2).end();
    // A member an entry, the table of contents as the last, then an empty one whose extra field says where that is.
    let body = tar.len() - 1024;
    let footer = [
        &[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0][..],
        format!("{:016x}STARGZ", 4096).as_bytes(),
        &[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let estargz = [gzip(&tar[..512]), gzip(&tar[512..body]), gzip(&tar[body..]), footer].concat();
    // Frames, then what it says of itself in frames that decoders pass over.
    let skipped =
        |bytes: &[u8]| [&[0x50, 0x2a, 0x4d, 0x18][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat();
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let toc = skipped(&frame(b"{\"version\":1,\"entries\":[]}"));
    let chunked =
        [frame(&tar[..512]), frame(&tar[512..body]), frame(&tar[body..]), toc, skipped(&[0; 64])].concat();
    let expected = TestStore::new();
    let expected = expected.mount(&expected.pull_layers(&[Layer::plain(tar.clone())]).unwrap()).tree();
    for blob in [estargz, chunked] {
        let test = TestStore::new();
        let layer = Layer { blob, ..Layer::gzip(tar.clone()) };
        let image = test.pull_layers(&[layer]).unwrap();
        assert_eq!(test.mount(&image).tree(), expected);
    }
}
