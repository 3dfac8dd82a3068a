//! Frames on the control socket: one byte of kind, four of length (big endian), the payload.

use std::io;

/// Largest payload of a frame that carries task input or output.
pub const STREAM_LIMIT_BYTES: usize = 64 << 10;

/// Largest payload of a frame that carries JSON: an exec request with its environment fits many times.
pub const MESSAGE_LIMIT_BYTES: usize = 1 << 20;

const HEADER_BYTES: usize = 5;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Client to shim: a [`Request`](crate::protocol::Request).
    Request = 0,
    /// Shim to client: a [`Reply`](crate::protocol::Reply).
    Reply = 1,
    /// Client to shim: bytes for standard input.
    Stdin = 2,
    /// Client to shim: standard input has ended. No payload.
    StdinEnd = 3,
    /// Client to shim: the terminal's size, a [`WindowSize`](crate::protocol::WindowSize) in JSON.
    Resize = 4,
    /// Shim to client: bytes of standard output, or of the terminal.
    Stdout = 5,
    /// Shim to client: bytes of standard error.
    Stderr = 6,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<FrameKind> {
        use FrameKind::*;
        [Request, Reply, Stdin, StdinEnd, Resize, Stdout, Stderr].into_iter().find(|kind| *kind as u8 == byte)
    }

    fn limit_bytes(self) -> usize {
        match self {
            FrameKind::Stdin | FrameKind::Stdout | FrameKind::Stderr => STREAM_LIMIT_BYTES,
            FrameKind::StdinEnd => 0,
            FrameKind::Request | FrameKind::Reply | FrameKind::Resize => MESSAGE_LIMIT_BYTES,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// Appends a frame to `out`. Payloads above the kind's limit are cut into several frames for streams.
pub fn encode(kind: FrameKind, payload: &[u8], out: &mut Vec<u8>) {
    if payload.is_empty() {
        return encode_one(kind, payload, out);
    }
    for piece in payload.chunks(kind.limit_bytes().max(1)) {
        encode_one(kind, piece, out);
    }
}

fn encode_one(kind: FrameKind, payload: &[u8], out: &mut Vec<u8>) {
    out.push(kind as u8);
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}

/// Puts frames together from the pieces that reads return.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    used: usize,
}

impl Decoder {
    /// Takes in what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one. After an error the peer is not one of ours: close.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let rest = &self.bytes[self.used..];
        let Some((header, body)) = rest.split_at_checked(HEADER_BYTES) else { return Ok(None) };
        let kind = FrameKind::from_byte(header[0])
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown kind of frame"))?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > kind.limit_bytes() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame above the limit"));
        }
        let Some(payload) = body.get(..length) else { return Ok(None) };
        let frame = Frame { kind, payload: payload.to_vec() };
        self.used += HEADER_BYTES + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_being_cut_anywhere(payloads in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..300), 0..10), cut in 1usize..50) {
            let mut bytes = Vec::new();
            for payload in &payloads {
                encode(FrameKind::Stdout, payload, &mut bytes);
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.feed(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.payload);
                }
            }
            prop_assert_eq!(seen, payloads);
        }
    }

    #[test]
    fn oversized_and_unknown_frames_are_errors() {
        for bytes in [
            [9, 0, 0, 0, 1],
            [FrameKind::Request as u8, 0xff, 0, 0, 0],
            [FrameKind::StdinEnd as u8, 0, 0, 0, 1],
        ] {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            assert!(decoder.next_frame().is_err());
        }
    }

    #[test]
    fn long_stream_payloads_are_cut() {
        let mut bytes = Vec::new();
        encode(FrameKind::Stdout, &vec![1; STREAM_LIMIT_BYTES + 1], &mut bytes);
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload.len(), STREAM_LIMIT_BYTES);
        assert_eq!(decoder.next_frame().unwrap().unwrap().payload.len(), 1);
    }
}
