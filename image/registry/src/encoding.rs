//! Bodies that come encoded, though `identity` was asked for: some proxies and object stores do it all the same.
//!
//! Digests are of the bytes without the encoding, so it is taken off before anything is compared or counted. What comes out
//! is bounded as any body is: it is decoded a few kilobytes at a time, and whoever takes it stops at its limit.

use std::io::{self, Write};

use flate2::write::{MultiGzDecoder, ZlibDecoder};
use hyper::HeaderMap;
use hyper::body::Bytes;
use hyper::header::CONTENT_ENCODING;

/// Encoded bytes that are decoded at once: DEFLATE makes at most a thousand times as many of them.
const STEP_BYTES: usize = 1024;

/// Takes the encoding off a body; by default there is none.
#[derive(Default)]
pub(crate) struct Decoding {
    decoder: Decoder,
    /// What is still to be decoded.
    input: Bytes,
}

#[derive(Default)]
enum Decoder {
    #[default]
    Identity,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Deflate(Box<ZlibDecoder<Vec<u8>>>),
}

impl Decoding {
    /// The encoding that the headers name; `None` if it is unknown.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Decoding> {
        let name = headers.get(CONTENT_ENCODING).map_or("", |value| value.to_str().unwrap_or("?"));
        let decoder = match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Decoder::Identity,
            "gzip" | "x-gzip" => Decoder::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            "deflate" => Decoder::Deflate(Box::new(ZlibDecoder::new(Vec::new()))),
            _ => return None,
        };
        Some(Decoding { decoder, input: Bytes::new() })
    }

    /// Whether there is nothing to take off.
    pub(crate) fn is_identity(&self) -> bool {
        matches!(self.decoder, Decoder::Identity)
    }

    /// Takes the body's next piece.
    pub(crate) fn feed(&mut self, piece: Bytes) {
        self.input = piece;
    }

    /// The next bytes of what was fed; `None` when that is used up.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.input.is_empty() {
            let step = match self.decoder {
                Decoder::Identity => return Ok(Some(std::mem::take(&mut self.input))),
                _ => self.input.split_to(self.input.len().min(STEP_BYTES)),
            };
            let output = match &mut self.decoder {
                Decoder::Identity => Vec::new(),
                Decoder::Gzip(decoder) => {
                    decoder.write_all(&step)?;
                    decoder.flush()?;
                    std::mem::take(decoder.get_mut())
                }
                Decoder::Deflate(decoder) => {
                    decoder.write_all(&step)?;
                    decoder.flush()?;
                    std::mem::take(decoder.get_mut())
                }
            };
            if !output.is_empty() {
                return Ok(Some(output.into()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use hyper::header::HeaderValue;

    use super::*;

    fn decoding(name: &'static str) -> Option<Decoding> {
        Decoding::of(&HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(name))]))
    }

    fn decode(mut decoding: Decoding, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        for piece in body.chunks(700) {
            decoding.feed(Bytes::copy_from_slice(piece));
            while let Some(bytes) = decoding.next()? {
                output.extend_from_slice(&bytes);
            }
        }
        Ok(output)
    }

    #[test]
    fn n10_an_encoding_is_taken_off_a_little_at_a_time() {
        let data: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&data).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&data).unwrap();
        let zlib = zlib.finish().unwrap();
        for (name, body) in [("gzip", &gzip), ("X-GZIP", &gzip), ("deflate", &zlib), ("identity", &data)] {
            assert_eq!(decode(decoding(name).unwrap(), body).unwrap(), data, "{name}");
        }
        assert!(decode(decoding("gzip").unwrap(), b"not gzip at all").is_err());
        assert!(decoding("br").is_none() && decoding("gzip, gzip").is_none());

        let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
        bomb.write_all(&vec![0; 64 << 20]).unwrap();
        let mut bytes = decoding("gzip").unwrap();
        bytes.feed(bomb.finish().unwrap().into());
        while let Some(piece) = bytes.next().unwrap() {
            assert!(piece.len() <= 2 << 20, "{} bytes at once", piece.len());
        }
    }
}
