//! Reading a blob while it arrives.
//!
//! A task on the I/O thread receives pieces and puts them into a bounded channel; the reader takes them out on its own
//! thread. When the transfer breaks, the task asks for the rest (RFC 9110 §14) and goes on; the reader does not notice.

use std::io::{self, Read};
use std::sync::Arc;

use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_RANGE;
use hyper::{Method, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::body;
use crate::client::{ask, explain_blob};
use crate::error::Error;
use crate::exchange::{Answer, Ask, Exchange};
use crate::manifest::Descriptor;
use crate::reference::ImageRef;

/// Pieces waiting in the channel. With the connection's read buffer this bounds a layer's memory at 2 MiB.
const QUEUE_LIMIT_PIECES: usize = 8;

/// A blob as a blocking reader.
pub struct BlobReader {
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
    current: Bytes,
}

pub(crate) fn open(
    handle: &Handle,
    exchange: Arc<Exchange>,
    reference: ImageRef,
    descriptor: Descriptor,
) -> BlobReader {
    let (sender, pieces) = mpsc::channel(QUEUE_LIMIT_PIECES);
    let transfer = Transfer { exchange, reference, descriptor, sender, received: 0, failures: 0 };
    handle.spawn(transfer.run());
    BlobReader { pieces, current: Bytes::new() }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

struct Transfer {
    exchange: Arc<Exchange>,
    reference: ImageRef,
    descriptor: Descriptor,
    sender: mpsc::Sender<Result<Bytes, Error>>,
    /// Bytes that the reader was given.
    received: u64,
    /// Broken transfers since the last byte that arrived.
    failures: u32,
}

impl Transfer {
    async fn run(mut self) {
        while let Err(error) = self.attempt().await {
            self.failures += 1;
            if !self.exchange.options().retry.covers(&error, self.failures) {
                // A reader that is gone needs no error.
                drop(self.sender.send(Err(error)).await);
                return;
            }
            tokio::time::sleep(self.exchange.options().retry.delay(self.failures)).await;
        }
    }

    /// Transfers from where the last attempt stopped up to the end.
    async fn attempt(&mut self) -> Result<(), Error> {
        let path = format!("blobs/{}", self.descriptor.digest);
        let request = Ask { from: self.received, ..ask(&self.reference, Method::GET, &path) };
        let answer = self.exchange.get(&request).await?;
        let skip = match answer.status() {
            StatusCode::OK => self.received,
            StatusCode::PARTIAL_CONTENT => self.check_range(&answer)?,
            _ => {
                return Err(
                    explain_blob(&self.exchange, &self.reference, &self.descriptor.digest, answer).await
                );
            }
        };
        let origin = answer.origin.clone();
        let mut incoming = answer.response.into_body();
        self.skip(&origin, &mut incoming, skip).await?;
        while let Some(piece) = body::next(&self.exchange.transport, &origin, &mut incoming).await? {
            self.deliver(piece).await?;
        }
        if self.received == self.descriptor.size {
            return Ok(());
        }
        Err(Error::Transfer {
            operation: "the transfer",
            host: origin.authority(),
            reason: format!("it ended after {} of {} bytes", self.received, self.descriptor.size),
        })
    }

    async fn deliver(&mut self, piece: Bytes) -> Result<(), Error> {
        self.received += piece.len() as u64;
        self.failures = 0;
        if self.received > self.descriptor.size {
            return Err(Error::SizeMismatch {
                what: format!("blob {}", self.descriptor.digest),
                expected: self.descriptor.size,
                actual: self.received,
            });
        }
        self.sender.send(Ok(piece)).await.map_err(|_| Error::Cancelled)
    }

    /// A server that ignores Range sends everything again; the part that is known is passed over.
    async fn skip(
        &mut self,
        origin: &crate::transport::Origin,
        incoming: &mut Incoming,
        mut count: u64,
    ) -> Result<(), Error> {
        while count > 0 {
            let Some(mut piece) = body::next(&self.exchange.transport, origin, incoming).await? else {
                return Ok(());
            };
            let known = piece.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            count -= known as u64;
            let rest = piece.split_off(known);
            if !rest.is_empty() {
                self.deliver(rest).await?;
            }
        }
        Ok(())
    }

    /// `bytes first-last/total` must be exactly what was asked for.
    fn check_range(&self, answer: &Answer) -> Result<u64, Error> {
        let header = answer.response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let expected =
            format!("bytes {}-{}/{}", self.received, self.descriptor.size - 1, self.descriptor.size);
        if header == Some(expected.as_str()) {
            return Ok(0);
        }
        Err(Error::Protocol {
            host: answer.origin.authority(),
            what: "Content-Range",
            reason: format!("{:?}, expected {expected:?}", header.unwrap_or_default()),
        })
    }
}
