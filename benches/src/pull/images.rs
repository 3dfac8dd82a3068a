//! Images made for measuring: the same bytes every time, about as compressible as what distributions ship.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cofferdam_image::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// As shown in the table and as the repository's name.
    pub(super) name: &'static str,
    /// What a reader must know.
    pub(super) note: &'static str,
    /// How many layers.
    pub(super) layers: usize,
    /// Files in each.
    pub(super) files: usize,
    /// Bytes of each file, on average.
    pub(super) file_bytes: usize,
}

/// Every image that is measured.
pub(super) const SHAPES: &[Shape] = &[
    Shape { name: "three", note: "three layers, 157 MB", layers: 3, files: 1032, file_bytes: 50_200 },
    Shape { name: "large", note: "one layer, 500 MB", layers: 1, files: 1000, file_bytes: 500_000 },
    Shape { name: "twenty", note: "twenty layers, 200 MB", layers: 20, files: 200, file_bytes: 49_500 },
    Shape { name: "small", note: "50,000 small files", layers: 1, files: 50_000, file_bytes: 2_000 },
];

/// An image on disk, as the server serves it.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// What it is made of.
    pub(super) shape: Shape,
    /// The manifest.
    pub(super) manifest: Vec<u8>,
    /// The configuration.
    pub(super) config: Vec<u8>,
    /// The layers' blobs.
    pub(super) blobs: Vec<Blob>,
}

/// One layer.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    /// Of the compressed bytes.
    pub(super) digest: Digest,
    /// Where they are.
    pub(super) path: PathBuf,
    /// How many they are.
    pub(super) bytes: u64,
    /// How many they unpack to.
    pub(super) unpacked_bytes: u64,
    diff_id: Digest,
}

/// xorshift64*, so that every run measures the same bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Text of a few thousand words with stretches of noise: gzip makes about a third of it.
fn contents(random: &mut Random, words: &[Vec<u8>], bytes: usize, out: &mut Vec<u8>) {
    out.clear();
    while out.len() < bytes {
        let choice = random.next();
        if choice.is_multiple_of(80) {
            for _ in 0..64 {
                out.extend(random.next().to_le_bytes());
            }
        } else {
            // Small numbers more often than large ones, as words in a text.
            let (a, b) = ((choice >> 8) as usize % words.len(), (choice >> 32) as usize % words.len());
            out.extend_from_slice(&words[a.min(b)]);
        }
    }
    out.truncate(bytes);
}

/// Makes an image in `folder`, or finds it there.
pub(super) fn make(shape: Shape, folder: &Path) -> Result<Made> {
    fs::create_dir_all(folder)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| {
            (0..3 + random.next() % 9).map(|_| b'a' + (random.next() % 26) as u8).chain([b' ']).collect()
        })
        .collect();
    let blobs =
        (0..shape.layers).map(|index| layer(shape, index, &words, folder)).collect::<Result<Vec<Blob>>>()?;
    let ids: Vec<String> = blobs.iter().map(|blob| format!("\"{}\"", blob.diff_id)).collect();
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Cmd":["/true"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let layers: Vec<String> = blobs
        .iter()
        .map(|blob| {
            let (digest, size) = (&blob.digest, blob.bytes);
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}"#
            )
        })
        .collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{}]}}"#,
        Digest::of(config.as_bytes()),
        config.len(),
        layers.join(",")
    );
    Ok(Made { shape, manifest: manifest.into_bytes(), config: config.into_bytes(), blobs })
}

/// One layer's blob; what it is called when it is there already stands in a file beside it.
fn layer(shape: Shape, index: usize, words: &[Vec<u8>], folder: &Path) -> Result<Blob> {
    let path = folder.join(format!("{}-{index}.tar.gz", shape.name));
    let note = path.with_extension("ids");
    if !note.exists() {
        let file =
            BufWriter::new(File::create(&path).with_context(|| format!("creating {}", path.display()))?);
        let mut sink = Hashed { inner: GzEncoder::new(file, Compression::new(6)), tar: Vec::new(), bytes: 0 };
        let mut digest = tar(shape, index, words, &mut sink)?;
        sink.inner.finish()?.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        digest.push_str(&format!(" {} {}", Digest::of(&fs::read(&path)?), sink.bytes));
        fs::write(&note, digest)?;
    }
    let text = fs::read_to_string(&note)?;
    let mut parts = text.split(' ');
    let mut part = || parts.next().context("a note of a layer is torn: remove the folder");
    let (diff_id, digest, unpacked) = (Digest::parse(part()?)?, Digest::parse(part()?)?, part()?.parse()?);
    let bytes = path.metadata()?.len();
    Ok(Blob { digest, path, bytes, unpacked_bytes: unpacked, diff_id })
}

/// Counts and keeps what is hashed in pieces.
struct Hashed<W: Write> {
    inner: GzEncoder<W>,
    tar: Vec<u8>,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.inner.write_all(bytes)?;
        self.tar.extend_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn tar<W: Write>(shape: Shape, index: usize, words: &[Vec<u8>], sink: &mut Hashed<W>) -> Result<String> {
    let mut random = Random(index as u64 + 1);
    let mut data = Vec::new();
    for number in 0..shape.files {
        if number.is_multiple_of(40) {
            sink.add(&header(&format!("usr{index}/dir{}/", number / 40), b'5', 0))?;
        }
        // From a tenth to nearly twice the average.
        let bytes = shape.file_bytes / 10 + random.next() as usize % (shape.file_bytes * 9 / 5);
        contents(&mut random, words, bytes, &mut data);
        sink.add(&header(&format!("usr{index}/dir{}/file{number}", number / 40), b'0', bytes))?;
        data.resize(bytes.next_multiple_of(512), 0);
        sink.add(&data)?;
    }
    sink.add(&[0; 1024])?;
    Ok(Digest::of(&sink.tar).to_string())
}

fn header(name: &str, kind: u8, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"07346545000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
