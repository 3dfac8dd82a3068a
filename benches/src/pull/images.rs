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
    /// What makes a blob of a tar.
    pub(super) coder: Coder,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coder {
    /// At level 6, as nearly every image is.
    Gzip,
    /// At level 3.
    Zstd,
}

impl Coder {
    /// As in media types and names of files.
    fn name(self) -> &'static str {
        match self {
            Coder::Gzip => "gzip",
            Coder::Zstd => "zstd",
        }
    }
}

/// Every image that is measured.
pub(super) const SHAPES: &[Shape] = &[
    THREE,
    Shape {
        name: "large",
        note: "one layer, 500 MB",
        layers: 1,
        files: 1000,
        file_bytes: 500_000,
        coder: Coder::Gzip,
    },
    Shape {
        name: "twenty",
        note: "twenty layers, 200 MB",
        layers: 20,
        files: 200,
        file_bytes: 49_500,
        coder: Coder::Gzip,
    },
    Shape {
        name: "small",
        note: "50,000 small files",
        layers: 1,
        files: 50_000,
        file_bytes: 2_000,
        coder: Coder::Gzip,
    },
    Shape { name: "zstd", note: "three layers, 157 MB, zstd", coder: Coder::Zstd, ..THREE },
];

const THREE: Shape = Shape {
    name: "three",
    note: "three layers, 157 MB",
    layers: 3,
    files: 1032,
    file_bytes: 50_200,
    coder: Coder::Gzip,
};

impl Shape {
    /// Files in all layers.
    pub(super) fn all_files(&self) -> usize {
        self.layers * self.files
    }
}

impl Made {
    /// Bytes of all layers' tars.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.unpacked_bytes).sum()
    }
}

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

/// Text of a few thousand words that repeats itself, with some noise: gzip makes 35 % of it, as of a distribution's files.
fn contents(random: &mut Random, words: &[Vec<u8>], bytes: usize, out: &mut Vec<u8>) {
    out.clear();
    while out.len() < bytes {
        let choice = random.next();
        let (low, high) = ((choice >> 8) as usize, (choice >> 32) as usize);
        if choice.is_multiple_of(NOISE_EVERY) {
            for _ in 0..8 {
                out.extend(random.next().to_le_bytes());
            }
        } else if choice % REPEAT_EVERY == 1 && out.len() > REPEAT_FROM {
            let length = 64 + high % 300;
            let start = out.len() - length - low % (out.len() - length).min(REPEAT_BACK);
            out.extend_from_within(start..start + length);
        } else {
            // Small numbers more often than large ones, as words in a text.
            out.extend_from_slice(&words[(low % words.len()).min(high % words.len())]);
        }
    }
    out.truncate(bytes);
}

/// Of so many choices, one is 64 bytes of noise, and one repeats something within gzip's window.
const NOISE_EVERY: u64 = 80;
const REPEAT_EVERY: u64 = 35;
const REPEAT_FROM: usize = 1024;
const REPEAT_BACK: usize = 24_000;

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
            let coder = shape.coder.name();
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+{coder}","digest":"{digest}","size":{size}}}"#
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
    let path = folder.join(format!("{}-{index}.tar.{}", shape.name, shape.coder.name()));
    let note = path.with_extension("ids");
    if !note.exists() {
        let file =
            BufWriter::new(File::create(&path).with_context(|| format!("creating {}", path.display()))?);
        let mut sink = Hashed { inner: Encoder::new(shape.coder, file)?, tar: Vec::new() };
        let mut digest = tar(shape, index, words, &mut sink)?;
        sink.inner.finish()?.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        digest.push_str(&format!(" {} {}", Digest::of(&fs::read(&path)?), sink.tar.len()));
        fs::write(&note, digest)?;
    }
    let text = fs::read_to_string(&note)?;
    let mut parts = text.split(' ');
    let mut part = || parts.next().context("a note of a layer is torn: remove the folder");
    let (diff_id, digest, unpacked) = (Digest::parse(part()?)?, Digest::parse(part()?)?, part()?.parse()?);
    let bytes = path.metadata()?.len();
    Ok(Blob { digest, path, bytes, unpacked_bytes: unpacked, diff_id })
}

enum Encoder {
    Gzip(GzEncoder<BufWriter<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl Encoder {
    fn new(coder: Coder, file: BufWriter<File>) -> Result<Encoder> {
        Ok(match coder {
            Coder::Gzip => Encoder::Gzip(GzEncoder::new(file, Compression::new(6))),
            Coder::Zstd => Encoder::Zstd(zstd::Encoder::new(file, 3)?),
        })
    }

    fn finish(self) -> Result<BufWriter<File>> {
        Ok(match self {
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        })
    }
}

/// Keeps what is compressed, to be hashed.
struct Hashed {
    inner: Encoder,
    tar: Vec<u8>,
}

impl Hashed {
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.inner {
            Encoder::Gzip(encoder) => encoder.write_all(bytes)?,
            Encoder::Zstd(encoder) => encoder.write_all(bytes)?,
        }
        self.tar.extend_from_slice(bytes);
        Ok(())
    }
}

fn tar(shape: Shape, index: usize, words: &[Vec<u8>], sink: &mut Hashed) -> Result<String> {
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
