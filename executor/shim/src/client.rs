//! A connection to the control socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::frame::{self, Decoder, Frame, FrameKind};
use crate::protocol::Reply;

/// Output that we hold for a client which does not read. Above it the task's streams are not read either, so that
/// a pipeline behind `cofferdam run` loses nothing and the task waits as it would on a pipe.
const OUTPUT_LIMIT_BYTES: usize = 256 << 10;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It asks and is answered.
    Control,
    /// It waits for the task's end.
    Waiting,
    /// It takes part in a session's streams.
    Attached {
        /// Which.
        session: u64,
        /// It gets output.
        output: bool,
        /// It may send input.
        stdin: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    pub(crate) role: Role,
    pub(crate) closing: bool,
}

impl Client {
    pub(crate) fn new(id: u64, stream: UnixStream) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        let decoder = Decoder::default();
        Ok(Client { id, stream, decoder, out: Vec::new(), sent: 0, role: Role::Control, closing: false })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Reads what has come. `Err` and `Ok(false)` mean that the peer is gone.
    pub(crate) fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.decoder.feed(&bytes[..length]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        self.decoder.next_frame()
    }

    pub(crate) fn send(&mut self, kind: FrameKind, payload: &[u8]) {
        frame::encode(kind, payload, &mut self.out);
    }

    pub(crate) fn reply(&mut self, reply: &Reply) {
        // A Reply has neither maps with odd keys nor failing serializers: it always becomes JSON.
        let bytes = serde_json::to_vec(reply).unwrap_or_default();
        self.send(FrameKind::Reply, &bytes);
    }

    pub(crate) fn wants_to_write(&self) -> bool {
        self.sent < self.out.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.out.len() - self.sent >= OUTPUT_LIMIT_BYTES
    }

    /// Writes what it can. `Err` means that the peer is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.wants_to_write() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }
}
