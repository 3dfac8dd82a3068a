//! The cases of layers and manifests in which container tools differ, each with what must come out.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::*;

/// What must become of an image.
#[derive(Clone, Copy, Debug)]
pub enum Must {
    /// The mounted tree, as [`show`] lists it.
    Show(&'static [&'static str]),
    /// An error with this text.
    Refuse(&'static str),
}

/// One case.
pub struct Row {
    pub case: &'static str,
    pub layers: Vec<Layer>,
    pub lie: Lie,
    pub must: Must,
    /// Said beside, if the image is accepted.
    pub warning: &'static str,
    /// Whether no peer is right, at least in Debian 12.
    pub alone: bool,
}

/// What the manifest or the configuration says that is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    Nothing,
    DiffId,
    DescriptorSize,
    BlobBytes,
    TooFewDiffIds,
}

fn row(case: &'static str, tars: Vec<Tar>, must: Must) -> Row {
    let layers = tars.into_iter().map(|tar| Layer::gzip(tar.end())).collect();
    Row { case, layers, lie: Lie::Nothing, must, warning: "", alone: false }
}

fn file(name: &str) -> Header<'_> {
    Header { name: name.as_bytes(), ..Header::default() }
}

/// A layer of one file whose blob is changed after its digests were taken.
fn packed(pack: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<Layer> {
    let tar = Tar::new().file("a", &"contents ".repeat(1000)).end();
    vec![Layer { blob: pack(&tar), ..Layer::gzip(tar) }]
}

const PACKED: Must = Must::Show(&["a 644 0:0 file 9000 bytes"]);

/// Every case.
pub fn rows() -> Vec<Row> {
    use Must::{Refuse, Show};
    let old = || Tar::new().file("foo", "old").file("bar", "stays");
    let both = Show(&["bar 644 0:0 file \"stays\"", "foo 644 0:0 file \"new\""]);
    let below = || Tar::new().dir("d", 0o755, 0, 0).file("d/a", "x").file("d/b", "x");
    let only_new = Show(&["d 755 0:0 dir", "d/c 644 0:0 file \"y\""]);
    let mut rows = vec![
        row(
            "a file, then its deletion",
            vec![old(), Tar::new().file("foo", "new").file(".wh.foo", "")],
            both,
        ),
        row(
            "a deletion, then the file",
            vec![old(), Tar::new().file(".wh.foo", "").file("foo", "new")],
            both,
        ),
        row(
            "opaque after a sibling",
            vec![below(), Tar::new().dir("d", 0o755, 0, 0).file("d/c", "y").file("d/.wh..wh..opq", "")],
            only_new,
        ),
        row(
            "opaque and a plain deletion",
            vec![
                below(),
                Tar::new()
                    .dir("d", 0o755, 0, 0)
                    .file("d/.wh..wh..opq", "")
                    .file("d/.wh.a", "")
                    .file("d/c", "y"),
            ],
            only_new,
        ),
        row("a deletion of nothing", vec![old(), Tar::new().file(".wh.", "")], Refuse("deletes no name")),
        row("a deletion of `..`", vec![old(), Tar::new().file("a/b/.wh...", "")], Refuse("deletes no name")),
        Row {
            warning: "listed more than once",
            ..row(
                "one path three times",
                vec![Tar::new().file("x", "1").file("x", "2").file("x", "3")],
                Show(&["x 644 0:0 file \"3\""]),
            )
        },
        row(
            "implied directories",
            vec![
                Tar::new().dir("tmp", 0o1777, 0, 0).dir("opt", 0o750, 7, 8),
                Tar::new().file("tmp/foo", "x").file("opt/y", "y"),
            ],
            Show(&[
                "opt 750 7:8 dir",
                "opt/y 644 0:0 file \"y\"",
                "tmp 1777 0:0 dir",
                "tmp/foo 644 0:0 file \"x\"",
            ]),
        ),
        row(
            "a directory over a lower link",
            vec![
                Tar::new().dir("usr", 0o755, 0, 0).dir("usr/lib", 0o755, 0, 0).symlink("lib", "usr/lib"),
                Tar::new().file("lib/x", "y"),
            ],
            Show(&["lib 755 0:0 dir", "lib/x 644 0:0 file \"y\"", "usr 755 0:0 dir", "usr/lib 755 0:0 dir"]),
        ),
        row(
            "through a link of the same layer",
            vec![Tar::new().symlink("evil", "/outside").file("evil/pwn", "x")],
            Show(&["evil 777 0:0 -> /outside", "outside 755 0:0 dir", "outside/pwn 644 0:0 file \"x\""]),
        ),
        row("the root as a link", vec![Tar::new().symlink("./", "/etc")], Refuse("root of a layer")),
        row(
            "a hard link to a lower file",
            vec![Tar::new().file("foo", "data"), Tar::new().hardlink("link", "foo")],
            Show(&["foo 644 0:0 file \"data\"", "link 644 0:0 file \"data\""]),
        ),
        row(
            "overlayfs's own attributes",
            vec![
                below(),
                Tar::new()
                    .add(
                        Header {
                            kind: b'5',
                            mode: 0o755,
                            pax: vec![pax("SCHILY.xattr.trusted.overlay.opaque", "y")],
                            ..file("d")
                        },
                        b"",
                    )
                    .file("d/c", "y"),
            ],
            Show(&[
                "d 755 0:0 dir",
                "d/a 644 0:0 file \"x\"",
                "d/b 644 0:0 file \"x\"",
                "d/c 644 0:0 file \"y\"",
            ]),
        ),
        Row {
            alone: true,
            ..row(
                "character device 0:0",
                vec![old(), Tar::new().add(Header { kind: b'3', ..file("foo") }, b"")],
                Refuse("0:0"),
            )
        },
        Row {
            alone: true,
            ..row(
                "uid 2^32 - 1",
                vec![Tar::new().add(Header { uid: u32::MAX.into(), ..file("x") }, b"")],
                Refuse("uid 4294967295 is out of range"),
            )
        },
        Row {
            alone: true,
            ..row(
                "PAX uid -1",
                vec![Tar::new().add(Header { pax: vec![pax("uid", "-1")], ..file("x") }, b"")],
                Refuse("PAX uid \"-1\""),
            )
        },
        Row {
            alone: true,
            ..row(
                "times before 1970 and far ahead",
                vec![
                    Tar::new()
                        .add(Header { mtime: -5, ..file("mtime-past") }, b"")
                        .add(Header { mtime: 1 << 40, ..file("mtime-far") }, b""),
                ],
                Show(&["mtime-far 644 0:0 file \"\" @ahead", "mtime-past 644 0:0 file \"\" @-5"]),
            )
        },
        row(
            "a directory over a lower file",
            vec![Tar::new().file("p", "x"), Tar::new().file("p/q", "y")],
            Show(&["p 755 0:0 dir", "p/q 644 0:0 file \"y\""]),
        ),
        row(
            "attributes of the root",
            vec![Tar::new().dir("./", 0o700, 3, 4).file("show-root", "")],
            Show(&[". 700 3:4 dir", "show-root 644 0:0 file \"\""]),
        ),
        row("no layers", vec![], Show(&[])),
    ];
    let packed_row =
        |case, pack: &dyn Fn(&[u8]) -> Vec<u8>, must| Row { layers: packed(pack), ..row(case, vec![], must) };
    rows.extend([
        packed_row("two gzip members", &|tar| [gzip(&tar[..5000]), gzip(&tar[5000..])].concat(), PACKED),
        packed_row("zeros after gzip", &|tar| [gzip(tar), vec![0; 512]].concat(), Refuse("gzip stream")),
        packed_row("garbage after gzip", &|tar| [gzip(tar), b"x".repeat(99)].concat(), Refuse("gzip stream")),
        Row {
            warning: "does not match its contents",
            ..packed_row("a tar called gzip", &<[u8]>::to_vec, PACKED)
        },
    ]);
    let lies = [
        ("wrong DiffID", Lie::DiffId, "wrong DiffID"),
        ("wrong descriptor size", Lie::DescriptorSize, "bytes"),
        ("tampered blob", Lie::BlobBytes, "corrupt layer"),
        ("too few DiffIDs", Lie::TooFewDiffIds, "DiffIDs"),
    ];
    let lying = |(case, lie, reason)| Row { lie, ..packed_row(case, &gzip, Refuse(reason)) };
    rows.extend(lies.map(lying));
    rows
}

/// What a registry or an OCI layout holds of an image.
pub struct Documents {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    /// By the digest under which they are asked for.
    pub blobs: Vec<(Digest, Vec<u8>)>,
}

impl Row {
    pub fn documents(&self) -> Documents {
        let mut configured = self.layers.clone();
        match self.lie {
            Lie::DiffId => configured[0].diff_id = Digest::of(b"another"),
            Lie::TooFewDiffIds => drop(configured.pop()),
            _ => {}
        }
        let config = config(&configured, arch());
        let mut manifest = manifest(&config, &self.layers);
        if self.lie == Lie::DescriptorSize {
            let size = self.layers[0].blob.len();
            let text = String::from_utf8(manifest).unwrap();
            let (from, to) = (format!("\"size\":{size}}}]"), format!("\"size\":{}}}]", size + 1));
            assert!(text.contains(&from));
            manifest = text.replace(&from, &to).into_bytes();
        }
        let blobs = self.layers.iter().map(|layer| {
            let mut blob = layer.blob.clone();
            if self.lie == Lie::BlobBytes {
                let middle = blob.len() / 2;
                blob[middle] ^= 0xff;
            }
            (Digest::of(&layer.blob), blob)
        });
        Documents { blobs: blobs.collect(), config, manifest }
    }

    /// Serves the image from a registry and pulls it: the tree, or the error, and what was warned of.
    pub fn pull(&self) -> (Result<Vec<String>, String>, String) {
        let documents = self.documents();
        let registry = FakeRegistry::start();
        registry.add_blob(&documents.config);
        for (digest, bytes) in documents.blobs {
            registry.state.lock().unwrap().blobs.insert(digest.to_string(), bytes);
        }
        registry.add_manifest("test/image", "latest", OCI_MANIFEST, &documents.manifest);
        let folder = temporary_folder();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let warnings = std::sync::Mutex::new(String::new());
        let name = registry.name("test/image").parse().unwrap();
        let pulled = store.pull(&name, &options(), &|event| {
            if let cofferdam_image::PullEvent::Warning { message } = event {
                *warnings.lock().unwrap() += &message;
            }
        });
        let outcome = match pulled {
            Ok(image) => Ok(show(Mount::new(&store, &image).target.path())),
            Err(error) => {
                let count = |folder: &str| std::fs::read_dir(store.root().join(folder)).unwrap().count();
                let left = ["images", "names", "tmp"].map(count);
                assert_eq!(left, [0; 3], "{}: something was left after {error}", self.case);
                // A layer that is sound by itself may stay.
                assert!(count("layers") < self.layers.len().max(1), "{}: {error}", self.case);
                Err(error.to_string())
            }
        };
        (outcome, warnings.into_inner().unwrap())
    }

    /// Whether that is what must come out.
    pub fn is_met(&self, outcome: &Result<Vec<String>, String>) -> bool {
        match (self.must, outcome) {
            (Must::Show(expected), Ok(shown)) => shown == expected,
            (Must::Refuse(_), Err(_)) => true,
            _ => false,
        }
    }
}

/// Lists a tree: as [`list_tree`], but with the size of long files, with the root's own line if the tree has a file
/// `show-root`, and with times of files that are named for theirs.
pub fn show(root: &Path) -> Vec<String> {
    let mut lines: Vec<String> = list_tree(root)
        .into_iter()
        .map(|line| {
            let name = line.split(' ').next().unwrap_or_default();
            let metadata = root.join(name).symlink_metadata();
            match (&metadata, line.split_once(" file ")) {
                (Ok(metadata), Some((head, _))) if metadata.len() > 100 => {
                    format!("{head} file {} bytes", metadata.len())
                }
                (Ok(metadata), _) if name.starts_with("mtime") => match metadata.mtime() {
                    ahead if ahead > i64::from(i32::MAX) => format!("{line} @ahead"),
                    time => format!("{line} @{time}"),
                },
                _ => line,
            }
        })
        .collect();
    if root.join("show-root").exists() {
        let root = root.metadata().unwrap();
        lines.push(format!(". {:o} {}:{} dir", root.mode() & 0o7777, root.uid(), root.gid()));
    }
    lines.sort();
    lines
}
