//! Layers made to do harm. Each is pulled by a process of its own, beside files that must not change; it is refused by
//! name or comes to nothing, in bounded memory and time. The letters are those of the threats: T escapes from the tree,
//! P confuses or exhausts the parser, Z the decoder, X smuggles metadata.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cofferdam_image::{Durability, ImageRef, Limits, Store, StoreOptions};
use cofferdam_tests::pace;
use support::fake::FakeRegistry;
use support::*;

const STORE: &str = "COFFERDAM_TEST_STORE";
const IMAGE: &str = "COFFERDAM_TEST_IMAGE";
/// Resident memory of a pulling process, in kibibytes.
const MEMORY_LIMIT_KIB: u64 = 128 << 10;
/// Of processor time, since the machine may be busy with other things. What is not optimised decodes at a tenth of the speed.
const TIME_LIMIT_MS: u64 = if cfg!(debug_assertions) { 40_000 } else { 10_000 };
/// Uncompressed bytes that are free of the limit on ratios in these tests: enough to see that the limit bites.
const RATIO_FREE_BYTES: u64 = 8 << 20;

/// What must become of a fixture.
enum Expect {
    /// An error with this text.
    Refuse(&'static str),
    /// It is unpacked, and the tree has these lines, where `*` stands for anything.
    Harmless(&'static [&'static str]),
    /// Either, for as long as nothing else happens.
    Either,
}
use Expect::{Either, Harmless, Refuse};

struct Fixture {
    name: &'static str,
    layers: Vec<Layer>,
    expect: Expect,
}

fn fixture(name: &'static str, tar: Tar, expect: Expect) -> Fixture {
    Fixture { name, layers: vec![Layer::zstd(tar.end())], expect }
}

fn file(name: &[u8]) -> Header<'_> {
    Header { name, ..Header::default() }
}

fn with_pax<'a>(name: &'a [u8], records: Vec<(String, Vec<u8>)>) -> Header<'a> {
    Header { pax: records, ..file(name) }
}

/// Not a test of its own: pulls, mounts if that went well, and says what came of it and what it took.
#[test]
fn child_that_pulls() {
    let (Ok(store), Ok(image)) = (std::env::var(STORE), std::env::var(IMAGE)) else { return };
    // A process that ends while it settles leaves a workspace behind, which the next one reaps; it is not what is looked for.
    let limits = Limits { ratio_free_bytes: RATIO_FREE_BYTES, ..Limits::default() };
    let unsettled = StoreOptions { durability: Durability::None, limits, ..StoreOptions::default() };
    let store = Store::open_with(&PathBuf::from(store), unsettled).unwrap();
    match store.pull(&ImageRef::parse(&image).unwrap(), &options(), &|_| {}) {
        Ok(image) => {
            println!("\nanswer pulled");
            for line in Mount::new(&store, &image).tree() {
                println!("\nline {}", line.replace('\n', " "));
            }
        }
        Err(error) => println!("\nanswer {}", error.to_string().replace('\n', " ")),
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    println!("\npeak {}", peak.trim().trim_end_matches(" kB"));
    println!("time {}", time.tv_sec * 1000 + time.tv_nsec / 1_000_000);
}

struct Answer {
    text: String,
    lines: Vec<String>,
    peak_kib: u64,
    time_ms: u64,
}

/// Files beside a store, and what they look like.
struct Canary {
    folder: tempfile::TempDir,
}

impl Canary {
    fn new() -> Canary {
        let canary = Canary { folder: temporary_folder() };
        std::fs::create_dir(canary.path("dir")).unwrap();
        std::fs::write(canary.path("file"), "safe").unwrap();
        std::fs::write(canary.path("dir/inner"), "safe").unwrap();
        canary
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Names, types, modes, owners, contents, links and times.
    fn state(&self) -> Vec<String> {
        let detail = |path: &Path| {
            let metadata = path.symlink_metadata().unwrap();
            format!(" {} {} {}", metadata.nlink(), metadata.mtime(), metadata.ctime_nsec())
        };
        let mut lines = list_tree(self.folder.path());
        for line in &mut lines {
            let path = self.path(line.split(' ').next().unwrap());
            *line += &detail(&path);
        }
        lines
    }
}

fn pull(layers: &[Layer]) -> Answer {
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", layers);
    // On the disk, which knows every kind of attribute.
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_pulls", "--nocapture"])
        .env(STORE, &store)
        .env(IMAGE, registry.name("test/image"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let find =
        |word: &str| text.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default().to_owned();
    let answer = Answer {
        text: find("answer "),
        lines: text.lines().filter_map(|line| line.strip_prefix("line ").map(str::to_owned)).collect(),
        peak_kib: find("peak ").trim().parse().unwrap(),
        time_ms: find("time ").trim().parse().unwrap(),
    };
    let left = |name: &str| std::fs::read_dir(store.join(name)).unwrap().count();
    assert_eq!(left("tmp"), 0, "temporaries after {}: {:?}", answer.text, list_tree(&store.join("tmp")));
    if answer.text != "pulled" {
        assert_eq!((left("images"), left("names")), (0, 0), "published after {}", answer.text);
    }
    answer
}

fn check(canary: &Canary, fixtures: Vec<Fixture>) {
    let before = canary.state();
    for Fixture { name, layers, expect } in fixtures {
        let answer = pull(&layers);
        assert_eq!(canary.state(), before, "{name}: the canary changed");
        assert!(answer.peak_kib <= MEMORY_LIMIT_KIB, "{name}: {} KiB", answer.peak_kib);
        assert!(answer.time_ms <= TIME_LIMIT_MS, "{name}: {} ms", answer.time_ms);
        let text = &answer.text;
        match expect {
            Refuse(rule) => assert!(text.contains(rule), "{name}: {text}, expected {rule}"),
            Harmless(lines) => {
                assert_eq!(text, "pulled", "{name}");
                for expected in lines {
                    let (head, tail) = expected.split_once('*').unwrap_or((expected, expected));
                    let is_it = |line: &String| line.starts_with(head) && line.ends_with(tail);
                    assert!(answer.lines.iter().any(is_it), "{name}: no {expected} in {:#?}", answer.lines);
                }
            }
            Either => {}
        }
        println!("{name}: {} KiB, {} ms: {}", answer.peak_kib, answer.time_ms, &text[..text.len().min(160)]);
    }
}

#[test]
fn a48_t_names_and_links_do_not_lead_out_of_the_tree() {
    if !is_root() {
        return;
    }
    let canary = Canary::new();
    let (dir, target) = (canary.text("dir"), canary.text("file"));
    let up = format!("{}{target}", "../".repeat(20));
    let hard = |link: &str| Tar::new().file("own", "").hardlink("x", link);
    let mut chain = Tar::new().file("l0", "x");
    for number in 1..10_000 {
        chain = chain.hardlink(&format!("l{number}"), &format!("l{}", number - 1));
    }
    let names = ["../up", "a/../../b", "/abs/x", "./../y"];
    let inside = names.iter().fold(Tar::new(), |tar, name| tar.file(name, "x"));
    let mut fixtures = vec![
        fixture("T1 dots and slashes", inside, Harmless(&["up *", "b *", "abs/x *", "y *"])),
        fixture(
            "T2 through a link",
            Tar::new().symlink("evil", &dir).file("evil/pwn", "x"),
            Harmless(&["evil *"]),
        ),
        Fixture {
            name: "T3 through a link of a lower layer",
            layers: vec![
                Layer::gzip(Tar::new().symlink("evil", &dir).end()),
                Layer::gzip(Tar::new().file("evil/pwn", "x").file("evil/inner", "x").end()),
            ],
            expect: Harmless(&["evil 755 0:0 dir", "evil/pwn *"]),
        },
        fixture(
            "T5 a hard link to a link",
            Tar::new()
                .symlink("sym", &target)
                .add(Header { kind: b'1', link: b"sym", mode: 0o777, ..file(b"hard") }, b""),
            Harmless(&["hard 777 *"]),
        ),
        fixture(
            "T6 a directory in place of a link",
            Tar::new().symlink("d", &dir).dir("d", 0o777, 9, 9),
            Harmless(&["d 777 9:9 dir"]),
        ),
        fixture(
            "T7 a link in place of a directory",
            Tar::new().dir("a", 0o755, 0, 0).file("a/x", "").symlink("a", &dir).file("a/y", ""),
            Harmless(&["a 777 *"]),
        ),
        fixture("T9 up and away", hard(&up), Refuse("hard link to")),
        fixture("T9 absolute", hard(&target), Refuse("hard link to")),
        fixture(
            "T9 through a directory that is a link",
            Tar::new().symlink("d", &dir).hardlink("x", "d/inner"),
            Refuse("hard link to"),
        ),
        fixture(
            "T10 to a directory",
            Tar::new().dir("d", 0o755, 0, 0).hardlink("x", "d"),
            Refuse("a directory"),
        ),
        fixture("T10 to itself", hard("x"), Refuse("hard link to")),
        fixture("T10 to what comes later", hard("later").file("later", ""), Refuse("hard link to")),
        fixture("T10 a chain", chain, Harmless(&["l9999 *"])),
        fixture(
            "T11 a slash after a file",
            Tar::new().file("x/", "data"),
            Refuse("a directory with contents"),
        ),
        fixture("T11 slashes", Tar::new().file("a//b///c", "x"), Harmless(&["a/b/c *"])),
        fixture("T11 256 bytes", Tar::new().file(&"n".repeat(256), ""), Refuse("longer than 255")),
        fixture("T11 4096 bytes", Tar::new().file(&"nn/".repeat(1366), ""), Refuse("the length of a path")),
        fixture("T11 a deep path", Tar::new().file(&["d"; 1200].join("/"), "x"), Either),
        fixture(
            "T12 links in a circle",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""),
            Refuse("too many symbolic links"),
        ),
        fixture(
            "T12 a magic link",
            Tar::new().symlink("root", "/proc/self/root").file(&format!("root{dir}/pwn"), "x"),
            Harmless(&["proc/self/root 755 0:0 dir"]),
        ),
        fixture(
            "T14 names of programs",
            Tar::new().symlink("proc/self/exe", "/bin/sh").file("cofferdam", "#!/bin/sh\n"),
            Harmless(&["cofferdam *"]),
        ),
    ];
    for name in [".", "/", "/.", "..", "./.."] {
        fixtures.push(fixture("T4 a link as the root", Tar::new().symlink(name, &dir), Refuse("")));
        fixtures.last_mut().unwrap().expect = Refuse("the root of a layer can only be a directory");
    }
    let nul = with_pax(b"x", vec![("path".to_owned(), b"a\0b".to_vec())]);
    fixtures.push(fixture("T11 a NUL byte", Tar::new().add(nul, b""), Refuse("")));
    check(&canary, fixtures);
}

/// A header with one field overwritten and its checksum made right again.
fn patched(at: usize, bytes: &[u8]) -> Tar {
    let mut tar = Tar::new().file("x", "data");
    tar.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    tar.bytes[148..156].fill(b' ');
    let sum: u32 = tar.bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    tar.bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar
}

#[test]
fn a48_p_archives_that_confuse_or_exhaust_a_parser_are_refused_or_read_as_meant() {
    if !is_root() {
        return;
    }
    let canary = Canary::new();
    let extension =
        |kind, data: &[u8]| Tar::new().raw(&Header { name: b"x", kind, ..Header::default() }, data);
    let mut regions = String::from("10000000\n");
    for number in 0..60_000 {
        regions += &format!("{}\n1\n", number * 512);
    }
    let map = vec![
        pax("GNU.sparse.major", "1"),
        pax("GNU.sparse.minor", "0"),
        pax("GNU.sparse.realsize", "99999999999"),
        pax("GNU.sparse.name", "x"),
    ];
    let many_regions = (0..20_000).map(|number| format!("{},1", number * 2)).collect::<Vec<_>>().join(",");
    let listed = vec![
        pax("GNU.sparse.size", "99999999"),
        pax("GNU.sparse.numblocks", "20000"),
        pax("GNU.sparse.map", &many_regions),
    ];
    let headers = (0..1000).fold(Tar::new(), |tar, _| {
        tar.raw(&Header { name: b"p", kind: b'x', ..Header::default() }, b"9 uid=77\n")
    });
    let names = (0..1000).fold(Tar::new(), |tar, _| {
        tar.raw(&Header { name: b"l", kind: b'L', ..Header::default() }, b"name\0")
    });
    let deletions = (0..300_000)
        .fold(Tar::new(), |tar, number| tar.raw(&file(format!(".wh.{number:0>90}").as_bytes()), b""));
    let deep = (0..1000).fold(Tar::new(), |tar, depth| tar.dir(&vec!["d"; depth + 1].join("/"), 0o755, 0, 0));
    let global = Tar::new().raw(
        &Header { kind: b'g', name: b"g", ..Header::default() },
        b"15 path=stolen\n12 size=999\n8 uid=5\n",
    );
    let whole = Tar::new().file("x", &"data".repeat(1000)).bytes;
    let cut = |at: usize| Tar { bytes: whole[..at].to_vec() };
    // Not `end()`: two blocks of zeros would be taken for the data that lacks.
    let short = |name, at| Fixture {
        layers: vec![Layer::gzip(cut(at).bytes)],
        ..fixture(name, Tar::new(), Refuse("it ends"))
    };
    let repeated = Layer::gzip(Tar::new().file("x", "once").end());
    let fixtures = vec![
        fixture("P4 a record without end", extension(b'x', b"30 path=a").file("x", ""), Refuse("PAX")),
        fixture("P4 a record too long", extension(b'x', b"99 path=a\n").file("x", ""), Refuse("PAX")),
        fixture("P4 no number", extension(b'x', b"zz path=a\n").file("x", ""), Refuse("PAX")),
        fixture(
            "P5 a map of ten million regions",
            Tar::new().add(with_pax(b"x", map), regions.as_bytes()),
            Refuse(""),
        ),
        fixture("P5 a list of 20,000", Tar::new().add(with_pax(b"x", listed), &[1; 20_000]), Refuse("")),
        fixture("P6 a global header", global.file("own", "data"), Harmless(&["own 644 0:0 file \"data\""])),
        fixture("P7 two MiB of records", extension(b'x', &[b'x'; 2 << 20]).file("x", ""), Refuse("metadata")),
        fixture("P7 a thousand headers", headers.file("x", ""), Refuse("")),
        fixture("P7 a thousand long names", names.file("x", ""), Refuse("")),
        fixture("P8 a negative size", patched(124, &[0xff; 12]), Refuse("")),
        fixture("P8 2^63", patched(124, &[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), Refuse("")),
        fixture("P8 no octal number", patched(124, b"99999999999\0"), Refuse("")),
        fixture(
            "P8 a wrong checksum",
            Tar { bytes: [&b"y"[..], &Tar::new().file("x", "").bytes[1..]].concat() },
            Refuse("checksum"),
        ),
        short("P9 in a header", 100),
        short("P9 in data", 1000),
        Fixture { expect: Harmless(&["x *"]), ..short("P9 in padding", 512 + 4000 + 10) },
        Fixture {
            layers: vec![Layer::gzip(whole.clone())],
            ..fixture("P9 without the end", Tar::new(), Harmless(&["x *"]))
        },
        Fixture {
            name: "P10 300,000 deletions",
            layers: vec![Layer::plain(deletions.bytes)],
            expect: Refuse("the memory for directories, deletions and links"),
        },
        fixture("P10 a thousand deep", deep, Either),
        fixture(
            "P11 one name in three spellings",
            Tar::new().file("a", "1").file("./a", "2").file("b/../a", "3"),
            Harmless(&["a 644 0:0 file *3\""]),
        ),
        Fixture { name: "P12 one layer 450 times", layers: vec![repeated; 450], expect: Harmless(&["x *"]) },
        fixture(
            "P13 a contiguous file",
            Tar::new().add(Header { kind: b'7', ..file(b"x") }, b"d"),
            Harmless(&["x *"]),
        ),
        fixture(
            "P13 a dump directory",
            Tar::new().add(Header { kind: b'D', ..file(b"x") }, b""),
            Refuse("type 'D'"),
        ),
        fixture(
            "P13 many volumes",
            Tar::new().add(Header { kind: b'M', ..file(b"x") }, b""),
            Refuse("type 'M'"),
        ),
        fixture(
            "P13 an unknown type",
            Tar::new().add(Header { kind: b'Q', ..file(b"x") }, b""),
            Refuse("type 'Q'"),
        ),
        fixture(
            "P14 names for terminals",
            Tar::new()
                .add(file(b"\x1b[2J\xff\n"), b"")
                .add(Header { uid: 1 << 40, ..file(b"\x1b]0;x\x07") }, b""),
            Refuse("\\u{1b}]0;x"),
        ),
    ];
    check(&canary, fixtures);
}

fn blob(name: &'static str, bytes: Vec<u8>, expect: Expect) -> Fixture {
    let tar = Tar::new().file("a", "x").end();
    Fixture { name, layers: vec![Layer { blob: bytes, ..Layer::gzip(tar) }], expect }
}

#[test]
fn a48_z_bombs_and_broken_streams_are_refused() {
    if !is_root() {
        return;
    }
    let canary = Canary::new();
    let zeros = vec![0; 16 << 20];
    let mut best = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut best, &zeros).unwrap();
    let best = best.finish().unwrap();
    let tar = Tar::new().file("a", "x").end();
    let gzip_header = |flags: u8| vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
    let broken = |at_from_end: usize| {
        let mut bytes = gzip(&tar);
        let at = bytes.len() - at_from_end;
        bytes[at] ^= 1;
        bytes
    };
    let mut checked = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    checked.include_checksum(true).unwrap();
    std::io::Write::write_all(&mut checked, &tar).unwrap();
    let mut checked = checked.finish().unwrap();
    *checked.last_mut().unwrap() ^= 1;
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].repeat(1_000_000);
    let padded = |count: usize| [&tar[..], &vec![0; count]].concat();
    let fixtures = vec![
        blob("Z1 ten GiB of zeros by gzip", best.repeat(640), Refuse("compression ratio")),
        blob(
            "Z1 and by zstd",
            zstd::encode_all(&zeros[..], 3).unwrap().repeat(640),
            Refuse("compression ratio"),
        ),
        blob(
            "Z2 a window of 2 TiB",
            vec![0x28, 0xb5, 0x2f, 0xfd, 0, 31 << 3, 1, 0, 0],
            Refuse("zstd stream"),
        ),
        blob(
            "Z2 a window of 256 MiB",
            vec![0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3, 1, 0, 0],
            Refuse("zstd stream"),
        ),
        blob("Z3 a million empty members", gzip(b"").repeat(1_000_000), Refuse("number of gzip members")),
        blob(
            "Z3 a million skippable frames",
            [skippable, zstd::encode_all(&tar[..], 3).unwrap()].concat(),
            Either,
        ),
        blob("Z4 a name without end", [gzip_header(8), vec![b'n'; 8 << 20]].concat(), Refuse("gzip stream")),
        blob(
            "Z4 a comment without end",
            [gzip_header(16), vec![b'n'; 8 << 20]].concat(),
            Refuse("gzip stream"),
        ),
        blob("Z5 a wrong checksum", broken(8), Refuse("gzip stream")),
        blob("Z5 a wrong length", broken(1), Refuse("gzip stream")),
        blob("Z5 a wrong zstd checksum", checked, Refuse("zstd stream")),
        blob(
            "Z6 garbage after the end",
            [gzip(&tar), b"garbage".to_vec()].concat(),
            Refuse("no gzip follow"),
        ),
        blob(
            "Z6 zeros after the end",
            [gzip(&tar), vec![0; 512]].concat(),
            Refuse("zeros follow its last member"),
        ),
        blob("Z7 called gzip, but zstd", zstd::encode_all(&tar[..], 3).unwrap(), Harmless(&["a *"])),
        blob("Z8 twice compressed", gzip(&gzip(&tar)), Refuse("tar archive")),
        Fixture {
            name: "Z9 zeros after the archive",
            layers: vec![Layer::plain(padded(16 << 20))],
            expect: Harmless(&["a *"]),
        },
        blob(
            "Z9 and more of them, compressed",
            zstd::encode_all(&padded(1 << 25)[..], 3).unwrap(),
            Refuse("ratio"),
        ),
    ];
    check(&canary, fixtures);
}

#[test]
fn a48_x_metadata_that_means_something_to_the_host_is_dropped_escaped_or_refused() {
    if !is_root() {
        return;
    }
    let canary = Canary::new();
    let attribute = |key: &str, value: Vec<u8>| {
        let key = format!("SCHILY.xattr.{key}");
        Tar::new().add(Header { mode: 0o755, ..with_pax(b"x", vec![(key, value)]) }, b"data")
    };
    let harmless = || Harmless(&["x 755 0:0 file \"data\""]);
    let mut fixtures = Vec::new();
    for (key, value) in [
        ("trusted.overlay.opaque", "y"),
        ("trusted.overlay.redirect", "/etc"),
        ("trusted.overlay.metacopy", ""),
        ("trusted.overlay.whiteout", "y"),
        ("trusted.overlay.origin", "x"),
        ("trusted.overlay.overlay.opaque", "y"),
        ("user.overlay.whiteout", "y"),
        ("user.overlay.opaque", "x"),
        ("user.containers.override_stat", "0:0:0777"),
        ("user.fuseoverlayfs.opaque", "y"),
        ("security.ima", "x"),
        ("security.evm", "x"),
        ("security.selinux", "system_u:object_r:shadow_t:s0"),
        ("trusted.other", "x"),
    ] {
        fixtures.push(fixture("X1 X2 X5 an attribute", attribute(key, value.into()), harmless()));
    }
    // Version 3, for a user namespace whose root is 1000: without meaning outside of that.
    let foreign = [&3u32.to_be_bytes().map(|_| 0)[..3], &[3], &[0; 16], &1000u32.to_le_bytes()].concat();
    let large = (0..1000).map(|number| (format!("SCHILY.xattr.user.n{number}"), vec![b'x'; 65_536]));
    let header = |kind, device| Header { kind, device, ..file(b"x") };
    let time = |text: &str| Tar::new().add(with_pax(b"x", vec![pax("mtime", text)]), b"");
    let far = |mtime: i64| Tar::new().add(Header { mtime, ..file(b"x") }, b"");
    let fifo = |tar: Tar, name: &str| tar.add(Header { kind: b'6', ..file(name.as_bytes()) }, b"");
    let names = ["layer.json", "lock", "diff", ".erofslayer", "fixup.json"];
    let ours = names.iter().fold(Tar::new(), |tar, name| fifo(tar, name));
    fixtures.extend([
        fixture("X3 a device 0:0", Tar::new().add(header(b'3', (0, 0)), b""), Refuse("0:0")),
        fixture("X5 a foreign capability", attribute("security.capability", foreign), Either),
        fixture(
            "X5 a bad capability",
            attribute("security.capability", b"junk".to_vec()),
            Refuse("set an attribute"),
        ),
        fixture(
            "X5 a bad list",
            attribute("system.posix_acl_access", b"junk".to_vec()),
            Refuse("is no access"),
        ),
        fixture(
            "X6 64 MiB of attributes",
            Tar::new().add(with_pax(b"x", large.collect()), b""),
            Refuse("metadata"),
        ),
        fixture(
            "X6 a long name",
            attribute(&format!("user.{}", "n".repeat(256)), vec![]),
            Refuse("name an attribute"),
        ),
        fixture("X6 a long value", attribute("user.long", vec![b'x'; 70_000]), Refuse("x")),
        // 64 KiB are a value to Linux, and too much for what ext4 keeps of a file; other file systems take them.
        fixture("X6 a value of 64 KiB", attribute("user.long", vec![b'x'; 65_536]), Either),
        fixture(
            "X7 a large number",
            Tar::new().add(header(b'4', (1 << 12, 0)), b""),
            Refuse("device number"),
        ),
        fixture("X7 a negative number", Tar::new().add(header(b'3', (u64::MAX, 1)), b""), Refuse("")),
        fixture(
            "X9 a directory as deletion",
            Tar::new().dir(".wh.x", 0o755, 0, 0),
            Refuse("for deletions only"),
        ),
        fixture(
            "X9 a link as deletion",
            Tar::new().file("a", "").hardlink(".wh.x", "a"),
            Refuse("for deletions only"),
        ),
        fixture(
            "X9 a deletion with contents",
            Tar::new().file("a/.wh.x", "contents").file("b", ""),
            Harmless(&["b *"]),
        ),
        fixture("X10 the end of time", far(i64::MAX), Harmless(&["x *"])),
        fixture("X10 its beginning", far(i64::MIN + 1), Either),
        fixture("X10 1e400", time("1e400"), Refuse("is not a time")),
        fixture("X10 many digits", time(&"9".repeat(400)), Harmless(&["x *"])),
        fixture("X10 a long fraction", time(&format!("1.{}", "9".repeat(400))), Harmless(&["x *"])),
        fixture("X11 names of our own", ours, Harmless(&["layer.json 644 0:0 fifo", "lock *"])),
        Fixture {
            name: "X12 a file system as a layer",
            layers: vec![Layer {
                media_type: "application/vnd.erofs.layer.v1".to_owned(),
                ..Layer::plain(vec![0; 4096])
            }],
            expect: Refuse("erofs"),
        },
    ]);
    check(&canary, fixtures);
}

#[test]
fn a48_a52_x8_a_store_is_closed_to_other_users_from_its_root_down() {
    if !is_root() {
        return;
    }
    let test = TestStore::new();
    let suid = Tar::new().add(Header { mode: 0o4755, ..file(b"suid") }, b"#!").dir("./", 0o777, 0, 0);
    let image = test.pull_layers(&[Layer::gzip(suid.end())]).unwrap();
    let closed = |path: &Path| path.metadata().unwrap().mode() & 0o077 == 0;
    assert!(closed(test.store.root()));
    let layer = format!("layers/{}", image.layers[0].diff_id.to_string().replace(':', "-"));
    for folder in ["layers", "images", "blobs", "snapshots", "tmp", layer.as_str()] {
        assert!(closed(&test.store.root().join(folder)), "{folder}");
    }
    let suid = test.store.root().join(layer).join("diff/suid");
    assert_eq!(suid.metadata().unwrap().mode() & 0o7777, 0o4755);
}

#[test]
fn a51_a53_a_pull_executes_no_program_and_opens_nothing_by_a_name_from_the_archive() {
    if !is_root() || !has_program("strace") {
        return;
    }
    let registry = FakeRegistry::start();
    let tar = Tar::new().symlink("evil", "/etc").file("evil/secret-name", "x").file("plain-name", "y");
    serve(&registry, "test/image", "latest", &[Layer::gzip(tar.end())]);
    let folder = temporary_folder();
    let trace = folder.path().join("trace");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-s", "300", "-e", "trace=execve,execveat,socket,openat,openat2,open", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_pulls", "--nocapture"])
        .env(STORE, folder.path().join("store"))
        .env(IMAGE, registry.name("test/image"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("answer pulled"));
    let trace = std::fs::read_to_string(trace).unwrap();
    let executed: Vec<&str> = trace.lines().filter(|line| line.contains(" exec")).collect();
    assert_eq!(executed.len(), 1, "the program itself alone: {executed:#?}");
    // By directory and name alone, never by a path that the archive could have bent.
    let created: Vec<&str> =
        trace.lines().filter(|line| line.contains("O_CREAT") && line.contains("-name\"")).collect();
    assert_eq!(created.len(), 2, "{created:#?}");
    assert!(
        created.iter().all(|line| line.contains("O_EXCL") && line.contains("O_NOFOLLOW")),
        "{created:#?}"
    );
    // The thread that unpacks makes no socket.
    let unpacker = created[0].split(' ').next().unwrap();
    assert!(!trace.lines().any(|line| line.starts_with(unpacker) && line.contains("socket(")));
}

/// Where a layer is being unpacked in a store, as long as it is.
fn staging(store: &Path) -> Vec<PathBuf> {
    let list =
        |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    list(store.join("tmp")).flat_map(list).map(|stage| stage.join("diff")).collect()
}

#[test]
fn a54_files_swapped_for_links_while_they_are_unpacked_lead_nowhere() {
    if !is_root() {
        return;
    }
    let seconds = if std::env::var_os("COFFERDAM_FULL").is_some() { 60 } else { 3 };
    let canary = Canary::new();
    let before = canary.state();
    let mut tar = Tar::new();
    for number in 0..300u64 {
        let name = format!("d{}/f{}", number % 5, number % 40);
        let name = name.as_bytes();
        let header = Header { mode: 0o4777, uid: 9, gid: 9, mtime: 5, ..file(name) };
        tar = match number % 7 {
            0 => tar.dir(&format!("d{}", number % 5), 0o777, 9, 9),
            1 => tar.add(Header { kind: b'6', ..header }, b""),
            2 => tar.add(Header { kind: b'1', link: b"d0/f0", ..header }, b""),
            3 => tar.add(Header { pax: vec![pax("SCHILY.xattr.user.x", "y")], ..header }, b"overwritten"),
            _ => tar.add(header, b"overwritten"),
        };
    }
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", &[Layer::plain(tar.file("d0/f0", "x").end())]);
    let test = TestStore::new();
    let stop = AtomicBool::new(false);
    let is_stopped = || stop.load(Ordering::Relaxed);
    let (mut pulls, swaps) = (0, AtomicU64::new(0));
    let count = |swapped: std::io::Result<()>| swaps.fetch_add(swapped.is_ok().into(), Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_stopped() {
                for tree in staging(test.store.root()) {
                    for number in 0..5 {
                        let folder = tree.join(format!("d{number}"));
                        let away = tree.join(format!("away{}", swaps.load(Ordering::Relaxed)));
                        if std::fs::rename(&folder, away).is_ok() {
                            count(std::os::unix::fs::symlink(canary.path("dir"), &folder));
                        }
                        for name in ["f0", "f1", "inner"] {
                            let path = folder.join(name);
                            if !path.is_symlink() && folder.is_dir() && !folder.is_symlink() {
                                drop(std::fs::remove_file(&path));
                                count(std::os::unix::fs::symlink(canary.path("file"), &path));
                            }
                        }
                    }
                }
            }
        });
        let started = std::time::Instant::now();
        let has_raced = |pulls| pulls > 3 && swaps.load(Ordering::Relaxed) > 3;
        let most = pace::limit(std::time::Duration::from_secs(60));
        while started.elapsed().as_secs() < seconds || !has_raced(pulls) && started.elapsed() < most {
            // It may fail, and what it makes may be nonsense: the tree was changed under it.
            drop(test.pull(&registry.name("test/image")));
            for image in test.store.images().unwrap() {
                test.store.remove(&image.digest.to_string(), true).unwrap();
            }
            pulls += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let swaps = swaps.into_inner();
    println!("{pulls} pulls, {swaps} swaps");
    assert!(pulls > 3 && swaps > 3, "{pulls} pulls, {swaps} swaps: no race took place");
    assert_eq!(canary.state(), before);
}
