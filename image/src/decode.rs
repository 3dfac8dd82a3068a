//! From the blob's bytes to the tar's bytes, counting and hashing on the way.
//!
//! ```text
//! source ─▶ Blob (hash, exact size) ─▶ gzip | zstd | plain ─▶ caller (hashes the tar itself)
//! ```
//! One pass; nothing is written before it is parsed and nothing is published before both digests match. The format is
//! told by its magic number; a media type that says otherwise is the caller's to warn about, as podman and containerd
//! accept it too.

use std::io::{self, BufRead, BufReader, Read};

use cofferdam_registry::{Digest, Hasher};
use flate2::bufread::GzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use crate::error::LayerError;
use crate::limits::{Limits, ZSTD_WINDOW_LOG_LIMIT};

/// The buffer between a source and its decoder, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;
/// Enough for every magic number.
const MAGIC_BYTES: usize = 4;

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
            [0x1f, 0x8b, ..] => Compression::Gzip,
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
}

enum Format<R: Read> {
    Plain(BufReader<Blob<R>>),
    Gzip(Box<GzDecoder<BufReader<Blob<R>>>>),
    Zstd(ZstdDecoder<'static, BufReader<Blob<R>>>),
    /// Between two gzip members, or after the last.
    Between,
}

impl<R: Read> TarStream<R> {
    /// Reads the magic number and chooses the decoder.
    pub(crate) fn open(source: R, expected: Expected, limits: Limits) -> Result<TarStream<R>, LayerError> {
        let mut blob = BufReader::with_capacity(BUFFER_BYTES, Blob::new(source, expected));
        let compression =
            Compression::of_magic(blob.fill_buf().map_err(read_error)?.get(..MAGIC_BYTES).unwrap_or(&[]));
        let format = match compression {
            Compression::None => Format::Plain(blob),
            Compression::Gzip => Format::Gzip(Box::new(GzDecoder::new(blob))),
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::with_buffer(blob).map_err(LayerError::Read)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_LIMIT).map_err(LayerError::Read)?;
                Format::Zstd(decoder)
            }
        };
        Ok(TarStream { format, compression, limits, members: 1, produced: 0 })
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

    /// Reads and checks the rest of the blob without decoding it.
    pub(crate) fn settle(self) -> Result<(), LayerError> {
        self.finish().map(drop)
    }

    /// Gzip allows several members one after another; what follows the last must be nothing at all.
    fn next_member(&mut self) -> Result<bool, LayerError> {
        let Format::Gzip(_) = &self.format else { return Ok(false) };
        let Format::Gzip(decoder) = std::mem::replace(&mut self.format, Format::Between) else {
            return Ok(false);
        };
        let mut blob = decoder.into_inner();
        let at_end = blob.fill_buf().map_err(read_error)?.is_empty();
        self.format = if at_end { Format::Plain(blob) } else { Format::Gzip(Box::new(GzDecoder::new(blob))) };
        self.members += 1;
        if self.members > self.limits.members {
            return Err(LayerError::Limit { what: "the number of gzip members", limit: self.limits.members });
        }
        Ok(!at_end)
    }

    fn check_bomb(&self) -> Result<(), LayerError> {
        let limits = &self.limits;
        if self.produced > limits.uncompressed_bytes {
            return Err(LayerError::Limit {
                what: "the uncompressed size in bytes",
                limit: limits.uncompressed_bytes,
            });
        }
        let consumed = match &self.format {
            Format::Plain(_) | Format::Between => return Ok(()),
            Format::Gzip(decoder) => decoder.get_ref().get_ref().count,
            Format::Zstd(decoder) => decoder.get_ref().get_ref().count,
        };
        let past = self.produced.saturating_sub(limits.ratio_free_bytes);
        if past > consumed.saturating_mul(limits.ratio) {
            return Err(LayerError::Limit { what: "the compression ratio", limit: limits.ratio });
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
fn read_error(error: io::Error) -> LayerError {
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

/// The compressed bytes, hashed and counted as they pass.
struct Blob<R> {
    source: R,
    hasher: Hasher,
    expected: Expected,
    count: u64,
}

impl<R: Read> Blob<R> {
    fn new(source: R, expected: Expected) -> Blob<R> {
        let algorithm =
            expected.digest.as_ref().map_or(cofferdam_registry::Algorithm::Sha256, Digest::algorithm);
        Blob { source, hasher: Hasher::new(algorithm), expected, count: 0 }
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

impl<R: Read> Read for Blob<R> {
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
