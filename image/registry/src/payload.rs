//! What a request carries: nothing, some bytes, or a blob that is read from its source as it is sent.
//!
//! A request may have to be sent again, so a payload is a recipe: every attempt opens its own body.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// Pieces of a blob between the thread that reads it and the connection.
const QUEUE_LIMIT_PIECES: usize = 4;
/// Bytes of one piece.
const PIECE_BYTES: usize = 256 * 1024;

/// Opens a blob's bytes from the beginning, on the thread that reads them.
pub type OpenSource = Arc<dyn Fn() -> io::Result<Box<dyn Read>> + Send + Sync>;

/// What to send.
#[derive(Clone, Default)]
pub(crate) enum Payload {
    #[default]
    Empty,
    Bytes(Bytes),
    Source {
        open: OpenSource,
        size: u64,
    },
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(payload)")
    }
}

impl Payload {
    /// A body for one attempt. A source is read on a thread of its own: its reads may block.
    pub(crate) fn open(&self) -> io::Result<PayloadBody> {
        let (open, size) = match self {
            Payload::Empty => return Ok(PayloadBody::default()),
            Payload::Bytes(bytes) => {
                let pieces = VecDeque::from([bytes.clone()]);
                return Ok(PayloadBody { left: bytes.len() as u64, pieces, more: None });
            }
            Payload::Source { open, size } => (Arc::clone(open), *size),
        };
        let (sender, receiver) = mpsc::channel(QUEUE_LIMIT_PIECES);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = read_all(&open, &sender) {
                // A connection that is gone needs no error.
                drop(sender.blocking_send(Err(error)));
            }
        });
        Ok(PayloadBody { left: size, pieces: VecDeque::new(), more: Some(receiver) })
    }
}

fn read_all(open: &OpenSource, sender: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut source = open()?;
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let count = source.read(&mut piece)?;
        piece.truncate(count);
        if count == 0 || sender.blocking_send(Ok(piece.into())).is_err() {
            return Ok(());
        }
    }
}

/// A payload on its way.
#[derive(Default)]
pub(crate) struct PayloadBody {
    /// Bytes that are announced and not yet sent.
    left: u64,
    pieces: VecDeque<Bytes>,
    more: Option<mpsc::Receiver<io::Result<Bytes>>>,
}

impl Body for PayloadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match self.pieces.pop_front() {
            Some(piece) => Some(Ok(piece)),
            None => match &mut self.more {
                None => None,
                Some(more) => std::task::ready!(more.poll_recv(context)),
            },
        };
        Poll::Ready(match piece {
            None if self.left > 0 && self.more.is_some() => Some(Err(mismatch("shorter"))),
            None => None,
            Some(Ok(piece)) if piece.len() as u64 > self.left => Some(Err(mismatch("longer"))),
            Some(Ok(piece)) => {
                self.left -= piece.len() as u64;
                Some(Ok(Frame::data(piece)))
            }
            Some(Err(error)) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn mismatch(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the blob is {how} than its descriptor says"))
}
