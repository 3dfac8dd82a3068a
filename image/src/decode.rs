//! From the blob's bytes to the tar's bytes, counting and hashing on the way.
//!
//! ```text
//! source ─▶ Blob (hash, exact size) ─▶ gzip | zstd | plain ─▶ pieces (whoever takes them hashes the tar)
//! ```
//! One pass; nothing is written before it is parsed and nothing is published before both digests match. A small blob is even
//! read whole and verified before its first byte is decoded: an attacker in the middle then never speaks to the decoder.
//! The format is told by its magic number; a media type that says otherwise is the caller's to warn about, as podman and
//! containerd accept it too.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cofferdam_registry::{Digest, Hasher};
use flate2::bufread::GzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::error::LayerError;
use crate::limits::{Limits, VERIFIED_BLOB_LIMIT_BYTES, ZSTD_COMMON_WINDOW_LOG, ZSTD_WINDOW_LOG_LIMIT};
use crate::ring::{Piece, RingWriter, Supply};

/// The buffer between a source and its decoder, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;
/// Enough for every magic number, and for the window in a zstd frame's header.
const MAGIC_BYTES: usize = 6;
/// How a gzip member begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// How a blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// What a media type says.
    pub(crate) fn of_media_type(media_type: &str) -> Compression {
        match media_type {
            t if t.ends_with("gzip") => Compression::Gzip,
            t if t.ends_with("zstd") => Compression::Zstd,
            _ => Compression::None,
        }
    }

    pub(crate) fn of_magic(magic: &[u8]) -> Compression {
        match magic {
            [first, second, ..] if [*first, *second] == GZIP_MAGIC => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Compression::None => "tar",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// What the blob must turn out to be; `None` where the source is an archive that does not say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) digest: Option<Digest>,
    pub(crate) size: Option<u64>,
}

/// A layer's tar, decompressed as it is read.
pub(crate) struct TarStream<R: Read> {
    format: Format<R>,
    compression: Compression,
    limits: Limits,
    members: u64,
    produced: u64,
    /// Held while a window of uncommon size is in memory.
    _wide: Option<MutexGuard<'static, ()>>,
}

/// Windows of uncommon size: one at a time, or a few layers would take a gigabyte.
static WIDE_WINDOW: Mutex<()> = Mutex::new(());

enum Format<R: Read> {
    Plain(BufReader<Blob<R>>),
    Gzip(Box<GzDecoder<BufReader<Blob<R>>>>),
    Zstd(ZstdDecoder<'static, BufReader<Blob<R>>>),
    /// Between two gzip members, or after the last.
    Between,
}

impl<R: Read> TarStream<R> {
    /// Reads the magic number and chooses the decoder. A blob that is known to be small is verified first.
    pub(crate) fn open(source: R, expected: Expected, limits: Limits) -> Result<TarStream<R>, LayerError> {
        let blob = Blob::open(source, expected).map_err(read_error)?;
        let mut blob = BufReader::with_capacity(BUFFER_BYTES, blob);
        let magic = blob.fill_buf().map_err(read_error)?;
        let magic = magic.get(..MAGIC_BYTES).unwrap_or(&[]);
        let (compression, window_log) = (Compression::of_magic(magic), window_log(magic));
        let mut wide = None;
        let format = match compression {
            Compression::None => Format::Plain(blob),
            Compression::Gzip => Format::Gzip(Box::new(GzDecoder::new(blob))),
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::with_buffer(blob).map_err(LayerError::Read)?;
                if window_log > ZSTD_COMMON_WINDOW_LOG {
                    wide = Some(WIDE_WINDOW.lock().unwrap_or_else(PoisonError::into_inner));
                }
                let limit = if wide.is_some() { ZSTD_WINDOW_LOG_LIMIT } else { ZSTD_COMMON_WINDOW_LOG };
                decoder.window_log_max(limit).map_err(LayerError::Read)?;
                Format::Zstd(decoder)
            }
        };
        Ok(TarStream { format, compression, limits, members: 1, produced: 0, _wide: wide })
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// Fills `buffer` from its start; 0 at the end of the stream.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        loop {
            let count = match &mut self.format {
                Format::Plain(blob) => blob.read(buffer),
                Format::Gzip(decoder) => decoder.read(buffer),
                Format::Zstd(decoder) => decoder.read(buffer),
                Format::Between => return Ok(0),
            };
            let count = count.map_err(|error| self.decode_error(error))?;
            if count > 0 {
                self.produced += count as u64;
                self.check_bomb()?;
                return Ok(count);
            }
            if !self.next_member()? {
                return Ok(0);
            }
        }
    }

    /// Decodes everything into the ring. Returns before the end if nobody takes it any more.
    pub(crate) fn feed(&mut self, mut ring: RingWriter) -> Result<(), LayerError> {
        while let Some(mut piece) = ring.piece() {
            self.fill(&mut piece)?;
            if piece.is_empty() {
                ring.end();
                return Ok(());
            }
            if !ring.send(piece) {
                break;
            }
        }
        Ok(())
    }

    fn fill(&mut self, piece: &mut Piece) -> Result<(), LayerError> {
        while !piece.space().is_empty() {
            match self.read(piece.space())? {
                0 => break,
                count => piece.extend(count),
            }
        }
        Ok(())
    }

    /// Reads what is left of the blob and compares size and digest. The stream must have been read to its end.
    pub(crate) fn finish(self) -> Result<(Digest, u64), LayerError> {
        let mut blob = match self.format {
            Format::Plain(blob) => blob,
            Format::Gzip(decoder) => decoder.into_inner(),
            Format::Zstd(decoder) => decoder.finish(),
            Format::Between => return Err(LayerError::Read(io::Error::other("the stream was lost"))),
        };
        let mut rest = [0; 4096];
        while blob.read(&mut rest).map_err(read_error)? > 0 {}
        blob.into_inner().finish()
    }

    /// After a failure: if the contents are to blame, reads the rest of the blob, to tell a damaged transfer from a bad
    /// archive. Gives the better reason.
    pub(crate) fn explain(self, error: LayerError) -> LayerError {
        if !matches!(
            error,
            LayerError::Compression { .. } | LayerError::Tar { .. } | LayerError::Entry { .. }
        ) {
            return error;
        }
        match self.finish() {
            Err(cause @ (LayerError::BlobDigest { .. } | LayerError::BlobSize { .. })) => cause,
            _ => error,
        }
    }

    /// Gzip allows several members one after another; what follows the last must be nothing at all.
    fn next_member(&mut self) -> Result<bool, LayerError> {
        let Format::Gzip(_) = &self.format else { return Ok(false) };
        let Format::Gzip(decoder) = std::mem::replace(&mut self.format, Format::Between) else {
            return Ok(false);
        };
        let mut blob = decoder.into_inner();
        let rest = blob.fill_buf().map_err(read_error)?;
        let (at_end, is_member) = (rest.is_empty(), rest.iter().zip(GZIP_MAGIC).all(|(a, b)| *a == b));
        if !is_member {
            let what = if rest[0] == 0 { "zeros" } else { "bytes that are no gzip" };
            self.format = Format::Plain(blob);
            return Err(LayerError::Compression {
                format: self.compression.name(),
                reason: format!("{what} follow its last member, which must end the blob"),
            });
        }
        self.format = if at_end { Format::Plain(blob) } else { Format::Gzip(Box::new(GzDecoder::new(blob))) };
        self.members += 1;
        if self.members > self.limits.members {
            return Err(LayerError::Limit {
                what: "the number of gzip members",
                limit: self.limits.members,
                name: Some("members"),
            });
        }
        Ok(!at_end)
    }

    fn check_bomb(&self) -> Result<(), LayerError> {
        let limits = &self.limits;
        if self.produced > limits.uncompressed_bytes {
            return Err(LayerError::Limit {
                what: "the uncompressed size in bytes",
                limit: limits.uncompressed_bytes,
                name: Some("uncompressed-bytes"),
            });
        }
        let consumed = match &self.format {
            Format::Plain(_) | Format::Between => return Ok(()),
            Format::Gzip(decoder) => decoder.get_ref().get_ref().consumed(),
            Format::Zstd(decoder) => decoder.get_ref().get_ref().consumed(),
        };
        let past = self.produced.saturating_sub(limits.ratio_free_bytes);
        if past > consumed.saturating_mul(limits.ratio) {
            return Err(LayerError::Limit {
                what: "the compression ratio",
                limit: limits.ratio,
                name: Some("ratio"),
            });
        }
        Ok(())
    }

    fn decode_error(&self, error: io::Error) -> LayerError {
        match read_error(error) {
            LayerError::Read(error) if self.compression != Compression::None => LayerError::Compression {
                format: self.compression.name(),
                reason: match error.kind() {
                    io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
                    _ => error.to_string(),
                },
            },
            other => other,
        }
    }
}

/// Typed errors travel through `Read` inside of `io::Error`.
pub(crate) fn read_error(error: io::Error) -> LayerError {
    let error = match error.downcast::<LayerError>() {
        Ok(layer) => return layer,
        Err(error) => error,
    };
    match error.downcast::<cofferdam_registry::Error>() {
        Ok(cofferdam_registry::Error::SizeMismatch { expected, actual, .. }) => {
            LayerError::BlobSize { expected, actual }
        }
        Ok(registry) => LayerError::Registry(registry),
        Err(error) => LayerError::Read(error),
    }
}

/// The window of a zstd frame as a power of two, rounded up; 0 if its header names none (RFC 8878 §3.1.1.1).
fn window_log(magic: &[u8]) -> u32 {
    const SINGLE_SEGMENT: u8 = 0x20;
    match magic {
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] if descriptor & SINGLE_SEGMENT == 0 => {
            10 + u32::from(window >> 3) + u32::from(window & 7 != 0)
        }
        _ => 0,
    }
}

/// The compressed bytes, hashed and counted as they pass, or all at once.
enum Blob<R> {
    Passing(Box<Passing<R>>),
    Verified { bytes: Cursor<Vec<u8>>, digest: Digest },
}

impl<R: Read> Blob<R> {
    fn open(source: R, expected: Expected) -> io::Result<Blob<R>> {
        let size = expected.size.filter(|size| *size <= VERIFIED_BLOB_LIMIT_BYTES);
        let is_small = size.is_some() && expected.digest.is_some();
        let mut passing = Passing::new(source, expected);
        if !is_small {
            return Ok(Blob::Passing(Box::new(passing)));
        }
        let mut bytes = Vec::with_capacity(size.and_then(|size| usize::try_from(size).ok()).unwrap_or(0));
        passing.read_to_end(&mut bytes)?;
        let (digest, _) = passing.finish().map_err(io::Error::other)?;
        Ok(Blob::Verified { bytes: Cursor::new(bytes), digest })
    }

    fn consumed(&self) -> u64 {
        match self {
            Blob::Passing(passing) => passing.count,
            Blob::Verified { bytes, .. } => bytes.position(),
        }
    }

    fn finish(self) -> Result<(Digest, u64), LayerError> {
        match self {
            Blob::Passing(passing) => passing.finish(),
            Blob::Verified { bytes, digest } => Ok((digest, bytes.into_inner().len() as u64)),
        }
    }
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Blob::Passing(passing) => passing.read(buffer),
            Blob::Verified { bytes, .. } => bytes.read(buffer),
        }
    }
}

struct Passing<R> {
    source: R,
    hasher: Hasher,
    expected: Expected,
    count: u64,
}

impl<R: Read> Passing<R> {
    fn new(source: R, expected: Expected) -> Passing<R> {
        let algorithm =
            expected.digest.as_ref().map_or(cofferdam_registry::Algorithm::Sha256, Digest::algorithm);
        Passing { source, hasher: Hasher::new(algorithm), expected, count: 0 }
    }

    fn finish(self) -> Result<(Digest, u64), LayerError> {
        if let Some(expected) = self.expected.size
            && expected != self.count
        {
            return Err(LayerError::BlobSize { expected, actual: self.count });
        }
        let actual = self.hasher.finish();
        match self.expected.digest {
            Some(expected) if expected != actual => Err(LayerError::BlobDigest { expected, actual }),
            _ => Ok((actual, self.count)),
        }
    }
}

impl<R: Read> Read for Passing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        match self.expected.size {
            Some(expected) if self.count > expected => {
                Err(io::Error::other(LayerError::BlobSize { expected, actual: self.count }))
            }
            _ => Ok(count),
        }
    }
}

/// Without a ring, for whoever reads and parses on one thread.
impl<R: Read> Supply for TarStream<R> {
    fn next(&mut self, used: Option<Vec<u8>>) -> Result<Option<Piece>, LayerError> {
        let mut piece = Piece::reuse(used.unwrap_or_default());
        self.fill(&mut piece)?;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }
}
