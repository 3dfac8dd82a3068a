//! The parser beside GNU tar's, and mutated archives through everything up to the tree.

use std::process::Command;

use super::*;
use crate::decode::{Expected, TarStream};
use crate::entry::{Entry, Node};

/// Archives compared with GNU tar's listing, and mutations unpacked: as many as fit a merge, or all that are promised.
fn rounds(merge: u64, full: u64) -> u64 {
    if std::env::var_os("COFFERDAM_FULL").is_some() { full } else { merge }
}

/// xorshift64*: the same archives every time, and a seed to name in a failure.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// One header with its data, from which checksum and padding follow.
fn header(kind: u8, name: &[u8], link: &[u8], numbers: [u64; 4], data: &[u8]) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let [mode, uid, gid, mtime] = numbers;
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, format!("{uid:07o}\0").as_bytes());
    put(116, format!("{gid:07o}\0").as_bytes());
    put(124, format!("{:011o}\0", data.len()).as_bytes());
    put(136, format!("{mtime:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let body = format!(" {key}={value}\n");
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    format!("{length}{body}").into_bytes()
}

/// A few entries of every kind, with extensions now and then, sometimes damaged.
fn archive(random: &mut Random) -> Vec<u8> {
    let mut tar = Vec::new();
    for number in 0..=random.below(6) {
        let names = ["a", "b/c", "./d", "e//f", "/abs", "dir/", "long/name/with/parts", "sp ace", "ü"];
        let mut name = format!("{}{number}", random.pick(&names)).into_bytes();
        let numbers = [
            random.below(0o10000) as u64,
            random.below(70_000) as u64,
            random.below(70_000) as u64,
            random.below(2_000_000_000) as u64,
        ];
        let data = vec![b'd'; random.pick(&[0, 1, 511, 512, 513, 2000])];
        match random.below(10) {
            0 => {
                name = format!("{}{number}", "long/".repeat(30)).into_bytes();
                let long = [&name[..], b"\0"].concat();
                tar.extend(header(b'L', b"././@LongLink", b"", [0o644, 0, 0, 0], &long));
            }
            1 => {
                let long = format!("{}{number}", "pax/".repeat(40));
                let id = random.below(4_000_000).to_string();
                let records = [record("path", &long), record("uid", &id), record("mtime", "1.5")].concat();
                tar.extend(header(b'x', b"pax", b"", [0o644, 0, 0, 0], &records));
            }
            2 => tar.extend(header(b'g', b"global", b"", [0o644, 0, 0, 0], &record("comment", "x"))),
            _ => {}
        }
        tar.extend(match random.below(9) {
            0 => header(b'5', &name, b"", numbers, b""),
            1 => header(b'2', &name, b"target", numbers, b""),
            2 => header(b'1', &name, b"b/c0", numbers, b""),
            3 => header(b'3', &name, b"", numbers, b""),
            4 => header(b'6', &name, b"", numbers, b""),
            5 => header(b'\0', &name, b"", numbers, &data),
            _ => header(b'0', &name, b"", numbers, &data),
        });
    }
    tar.extend([0; 1024]);
    if random.below(4) == 0 {
        mutate(random, &mut tar);
    }
    tar
}

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.pick(b"\0 /.0179ax\xff"),
            2 => bytes.truncate(at.max(512)),
            _ => {
                let end = (at + 512).min(bytes.len());
                let block = bytes[at..end].to_vec();
                bytes.splice(at..at, block);
            }
        }
    }
}

fn list(tar: &[u8]) -> Result<Vec<Entry>, LayerError> {
    let limits = Limits::default();
    let stream = TarStream::open(tar, Expected::default(), limits)?;
    let mut reader = TarReader::new(stream, Algorithm::Sha256, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        while !reader.data()?.is_empty() {}
        entries.push(entry);
    }
    reader.finish()?;
    Ok(entries)
}

/// As `tar --list --verbose --numeric-owner` writes it, for what both say of an entry: type and mode, owner, name.
fn describe(entry: &Entry) -> String {
    let kind = match entry.node {
        Node::Directory => 'd',
        Node::File | Node::Sparse(..) => '-',
        Node::Symlink(_) => 'l',
        Node::Hardlink(_) => 'h',
        Node::Character(_) => 'c',
        Node::Block(_) => 'b',
        Node::Fifo => 'p',
    };
    let attributes = &entry.attributes;
    let mode: String = (0..9)
        .rev()
        .map(|bit| {
            let is_set = attributes.mode & (1 << bit) != 0;
            let (special, letter, none) = match bit {
                6 => (attributes.mode & 0o4000 != 0, 's', 'S'),
                3 => (attributes.mode & 0o2000 != 0, 's', 'S'),
                0 => (attributes.mode & 0o1000 != 0, 't', 'T'),
                _ => (false, ' ', ' '),
            };
            match (special, is_set) {
                (true, true) => letter,
                (true, false) => none,
                (false, true) => ['x', 'w', 'r'][bit % 3],
                (false, false) => '-',
            }
        })
        .collect();
    format!("{kind}{mode} {}/{} {}", attributes.uid, attributes.gid, String::from_utf8_lossy(&entry.name))
}

/// GNU tar's lines in the same form; `None` if it found something wrong.
fn gnu_list(tar: &std::path::Path) -> Option<Vec<String>> {
    let output = Command::new("tar")
        .args([
            "--list",
            "--verbose",
            "--numeric-owner",
            "--absolute-names",
            "--quoting-style=literal",
            "--utc",
        ])
        .args(["--full-time", "--file"])
        .arg(tar)
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    if !output.status.success() || !output.stderr.is_empty() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |line: &str| {
        // Type and mode, owner, size or device, date, time, name.
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let (mode, owner) = (words.next()?, words.next()?);
        let _size = words.next()?;
        let (_date, time) = (words.next()?, words.next()?);
        let name = line.split_once(&format!(" {time} "))?.1;
        let name = name.split(" -> ").next()?.split(" link to ").next()?;
        // A column that a fraction of a second made wider.
        let name = crate::entry::normalise(name.trim_start().as_bytes()).ok()?;
        Some(format!("{mode} {owner} {}", String::from_utf8_lossy(&name)))
    };
    text.lines().map(line).collect()
}

#[test]
fn a50_what_is_read_of_generated_archives_is_what_gnu_tar_reads() {
    if Command::new("tar").arg("--version").output().is_err() {
        println!("skipped: needs GNU tar");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive.tar");
    let (mut compared, mut refused) = (0, 0);
    let rounds = rounds(1_500, 10_000);
    for seed in 0..rounds {
        let tar = archive(&mut Random::new(seed));
        let Ok(entries) = list(&tar) else {
            refused += 1;
            continue;
        };
        std::fs::write(&path, &tar).unwrap();
        // What GNU tar warns of and we do not: a lone block of zeros, an end that lacks.
        let Some(expected) = gnu_list(&path) else { continue };
        let own: Vec<String> = entries.iter().map(describe).collect();
        assert_eq!(own, expected, "seed {seed}");
        compared += 1;
    }
    println!("{compared} alike, {refused} refused of {rounds}");
    assert!(compared > rounds / 2 && refused > rounds / 50, "{compared} {refused}");
}

#[test]
fn a49_mutated_archives_are_unpacked_or_refused_and_never_panic() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (mut unpacked, mut refused) = (0, 0);
    for seed in 0..rounds(1_000, 50_000) {
        let mut random = Random::new(seed ^ 0xf00d);
        let mut tar = archive(&mut random);
        mutate(&mut random, &mut tar);
        let layer = folder.path().join(format!("layer{seed}"));
        let (tree, recipe) = (layer.join("tree"), layer.join("recipe"));
        std::fs::create_dir_all(&tree).unwrap();
        let open_sink =
            |root| Ok(Box::new(crate::extract::Extractor::new(root)?) as Box<dyn crate::backend::Sink>);
        let limits = Limits { entries: 1000, sparse_bytes: 1 << 20, ..Limits::default() };
        let made = TarStream::open(&tar[..], Expected::default(), limits).and_then(|stream| {
            crate::unpack::unpack(stream, &tree, open_sink, &recipe, Algorithm::Sha256, limits)
        });
        match made {
            Ok(_) => unpacked += 1,
            Err(error) => {
                assert!(!error.to_string().contains("panicked"), "seed {seed}: {error}");
                refused += 1;
            }
        }
        std::fs::remove_dir_all(&layer).unwrap();
    }
    println!("{unpacked} unpacked, {refused} refused");
    assert!(unpacked > 100 && refused > 100, "{unpacked} {refused}");
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn headers_across_the_borders_of_pieces_are_whole() {
    use crate::ring::{PIECE_BYTES, Piece, Supply};
    struct Small<'a>(&'a [u8], usize);
    impl Supply for Small<'_> {
        fn next(&mut self, used: Option<Vec<u8>>) -> Result<Option<Piece>, LayerError> {
            let mut piece = Piece::reuse(used.unwrap_or_default());
            let count = self.0.len().min(self.1).min(PIECE_BYTES);
            piece.space()[..count].copy_from_slice(&self.0[..count]);
            piece.extend(count);
            self.0 = &self.0[count..];
            Ok(Some(piece).filter(|piece| !piece.is_empty()))
        }
    }
    let long = "n".repeat(9000);
    let records = [record("SCHILY.xattr.user.big", &long), record("path", "big")].concat();
    let mut tar = header(b'x', b"pax", b"", [0o644, 0, 0, 0], &records);
    tar.extend(header(b'0', b"x", b"", [0o640, 1, 2, 3], &[7; 3000]));
    tar.extend(header(b'0', b"after", b"", [0o600, 0, 0, 0], b"y"));
    tar.extend([0; 1024]);
    for size in [1, 100, 511, 512, 513, 5000, 10_000] {
        let mut reader = TarReader::new(Small(&tar, size), Algorithm::Sha256, Limits::default());
        let first = reader.next().unwrap().unwrap();
        assert_eq!(
            (first.name.as_slice(), first.attributes.xattrs[0].1.len()),
            (&b"big"[..], 9000),
            "{size}"
        );
        let mut data = 0;
        loop {
            let piece = reader.data().unwrap();
            if piece.is_empty() {
                break;
            }
            assert!(piece.iter().all(|byte| *byte == 7));
            data += piece.len();
        }
        assert_eq!(data, 3000);
        assert_eq!(reader.next().unwrap().unwrap().name, b"after", "{size}");
        assert!(reader.next().unwrap().is_none());
        let (digest, bytes) = reader.finish().unwrap();
        assert_eq!((digest, bytes), (Digest::of(&tar), tar.len() as u64), "{size}");
    }
}
