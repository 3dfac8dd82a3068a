//! Reading a blob while it arrives.
//!
//! A task on the I/O thread receives pieces and puts them into a bounded channel; the reader takes them out on its own
//! thread. When the transfer breaks, the task asks for the rest (RFC 9110 §14) and goes on; the reader does not notice.
//!
//! ```text
//! one stream:      host ═══════════════════▶ channel ─▶ reader
//! several ranges:  host ═▶ piece 1 ─┐
//!                  host ═▶ piece 2 ─┼ in order ─▶ channel ─▶ reader     (pieces in flight: the window)
//!                  host ═▶ piece 3 ─┘
//! ```

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::header::CONTENT_RANGE;
use hyper::{Method, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::body::Body;
use crate::client::{ask, explain_blob};
use crate::endpoint::Need;
use crate::error::Error;
use crate::exchange::{Answer, Ask, Exchange};
use crate::manifest::Descriptor;
use crate::reference::ImageRef;
use crate::transport::Origin;

/// Pieces waiting in the channel. With the connection's read buffer this bounds a layer's memory at 2 MiB.
const QUEUE_LIMIT_PIECES: usize = 8;
/// A transfer that brought this much since it last broke is getting somewhere: its failures are counted anew.
const PROGRESS_BYTES: u64 = 64 * 1024;
/// A transfer that brings less than this in the time after which silence is a stall has stalled too.
const TRICKLE_BYTES: u64 = 4 * 1024;
/// The most foreign URLs that are tried for one blob.
const FOREIGN_LIMIT: usize = 8;
/// The most ranges of one blob that are fetched at once.
const WINDOW_LIMIT: u64 = 8;

/// How a blob is fetched in several ranges at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangePolicy {
    /// Bytes of one range.
    pub piece_bytes: u64,
    /// Bytes that may wait for earlier ones, altogether; with `piece_bytes` this gives the number of connections, at most
    /// eight.
    pub buffer_bytes: u64,
}

impl Default for RangePolicy {
    /// Three connections with 8 MiB each: where one connection is slow, three fill most links, and a pull stays small.
    fn default() -> RangePolicy {
        RangePolicy { piece_bytes: 8 << 20, buffer_bytes: 24 << 20 }
    }
}

/// How [`Client::open_with`](crate::Client::open_with) reads a blob.
#[derive(Default)]
pub struct BlobOptions {
    /// The first byte wanted; those before are known to the caller.
    pub from: u64,
    /// Fetches several ranges at once, if the host serves ranges.
    pub ranges: Option<RangePolicy>,
    /// Is given every piece in order as it arrives, on the I/O thread: it must be quick.
    pub tap: Option<Tap>,
}

/// Sees a blob's bytes as they arrive.
pub type Tap = Box<dyn FnMut(&[u8]) + Send>;

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
    options: BlobOptions,
) -> BlobReader {
    let (sender, pieces) = mpsc::channel(QUEUE_LIMIT_PIECES);
    let mut stopped = exchange.stopped.subscribe();
    let part = Part {
        exchange,
        reference,
        to: descriptor.size,
        descriptor,
        next: options.from,
        failures: 0,
        since_failure: 0,
    };
    let ranges = options.ranges;
    let mut outlet = Outlet { sender: Sender::Bounded(sender.clone()), tap: options.tap };
    handle.spawn(async move {
        let error = tokio::select! {
            result = part.run(&mut outlet, ranges) => result.err(),
            _ = stopped.wait_for(|stopped| *stopped) => Some(Error::Cancelled),
        };
        if let Some(error) = error {
            // A reader that is gone needs no error.
            drop(sender.send(Err(error)).await);
        }
    });
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

enum Sender {
    Bounded(mpsc::Sender<Result<Bytes, Error>>),
    /// One range's: bounded by the range itself.
    Range(mpsc::UnboundedSender<Result<Bytes, Error>>),
}

/// Where received bytes go.
struct Outlet {
    sender: Sender,
    tap: Option<Tap>,
}

impl Outlet {
    async fn put(&mut self, piece: Bytes) -> Result<(), Error> {
        if let Some(tap) = &mut self.tap {
            tap(&piece);
        }
        match &self.sender {
            Sender::Bounded(sender) => sender.send(Ok(piece)).await.map_err(|_| Error::Cancelled),
            Sender::Range(sender) => sender.send(Ok(piece)).map_err(|_| Error::Cancelled),
        }
    }
}

/// A blob's bytes from `next` to `to`.
#[derive(Clone)]
struct Part {
    exchange: Arc<Exchange>,
    reference: ImageRef,
    descriptor: Descriptor,
    next: u64,
    to: u64,
    /// Broken transfers since the last progress.
    failures: u32,
    since_failure: u64,
}

impl Part {
    async fn run(mut self, outlet: &mut Outlet, ranges: Option<RangePolicy>) -> Result<(), Error> {
        if self.next == self.to && self.to > 0 {
            return Ok(());
        }
        let mut first = None;
        if let Some(policy) = ranges.filter(|policy| policy.piece_bytes > 0) {
            let end = self.to.min(self.next + Self::first_piece(policy));
            match self.request(Some(end)).await {
                Ok(answer) if answer.status() == StatusCode::PARTIAL_CONTENT => {
                    return self.in_ranges(answer, policy, outlet).await;
                }
                other => first = Some(other),
            }
        }
        self.complete(first, outlet).await
    }

    /// Transfers up to the end, again and again from where it broke.
    async fn complete(
        &mut self,
        mut first: Option<Result<Answer, Error>>,
        outlet: &mut Outlet,
    ) -> Result<(), Error> {
        loop {
            let answer = match first.take() {
                Some(answer) => answer,
                None => self.request(Some(self.to).filter(|to| *to < self.descriptor.size)).await,
            };
            let result = match answer {
                Ok(answer) => self.consume(answer, outlet).await,
                Err(error) => Err(error),
            };
            let Err(error) = result else { return Ok(()) };
            self.failures += 1;
            self.since_failure = 0;
            if !self.exchange.options().retry.covers(&error, self.failures) {
                return Err(error);
            }
            tokio::time::sleep(self.exchange.options().retry.delay(self.failures)).await;
        }
    }

    /// Several ranges at once; `answer` is the first one's. What waits for earlier bytes is at most the window.
    async fn in_ranges(&self, answer: Answer, policy: RangePolicy, outlet: &mut Outlet) -> Result<(), Error> {
        let window = Self::window(policy) as usize;
        let mut answer = Some(answer);
        let mut queue: VecDeque<mpsc::UnboundedReceiver<Result<Bytes, Error>>> = VecDeque::new();
        let first_end = self.to.min(self.next + Self::first_piece(policy));
        queue.push_back(self.start_range(self.next, first_end, answer.take()));
        let (mut next, mut started) = (first_end, 1);
        loop {
            while queue.len() < window && next < self.to {
                // The first ones grow, so that they do not all end, and wait a round trip for the next, at the same time.
                let share = policy.piece_bytes * (started + 1).min(window as u64) / window as u64;
                let end = self.to.min(next + share.max(1));
                queue.push_back(self.start_range(next, end, None));
                (next, started) = (end, started + 1);
            }
            let Some(mut pieces) = queue.pop_front() else { return Ok(()) };
            while let Some(piece) = pieces.recv().await {
                outlet.put(piece?).await?;
            }
        }
    }

    fn window(policy: RangePolicy) -> u64 {
        (policy.buffer_bytes / policy.piece_bytes).clamp(1, WINDOW_LIMIT)
    }

    fn first_piece(policy: RangePolicy) -> u64 {
        (policy.piece_bytes / Self::window(policy)).max(1)
    }

    /// Fetches one range in a task of its own, which ends when its receiver is dropped.
    fn start_range(
        &self,
        next: u64,
        to: u64,
        answer: Option<Answer>,
    ) -> mpsc::UnboundedReceiver<Result<Bytes, Error>> {
        let (sender, pieces) = mpsc::unbounded_channel();
        let mut part = Part { next, to, ..self.clone() };
        tokio::spawn(async move {
            let mut outlet = Outlet { sender: Sender::Range(sender.clone()), tap: None };
            let closed = sender.clone();
            let result = tokio::select! {
                result = part.complete(answer.map(Ok), &mut outlet) => result,
                () = closed.closed() => return,
            };
            if let Err(error) = result {
                drop(sender.send(Err(error)));
            }
        });
        pieces
    }

    /// Asks for what is missing, up to `end` or to the blob's end.
    async fn request(&self, end: Option<u64>) -> Result<Answer, Error> {
        let path = format!("blobs/{}", self.descriptor.digest);
        let range = Some((self.next, end)).filter(|(from, end)| *from > 0 || end.is_some());
        let request = Ask { range, ..ask(&self.reference, Need::Pull, Method::GET, path) };
        let mut answer = self.exchange.get(&request).await?;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE && range.is_some() {
            // The rest cannot be had by itself: all of it again, of which what is known is passed over.
            self.exchange.drain(answer).await;
            answer = self.exchange.get(&Ask { range: None, ..request.clone() }).await?;
        }
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            StatusCode::NOT_FOUND if !self.descriptor.urls.is_empty() => {
                self.exchange.drain(answer).await;
                self.request_foreign(&request).await
            }
            _ => Err(explain_blob(&self.exchange, &self.reference, &self.descriptor.digest, answer).await),
        }
    }

    /// A foreign layer's own URLs, as far as their hosts are allowed (CVE-2020-15157: never with credentials).
    async fn request_foreign(&self, request: &Ask) -> Result<Answer, Error> {
        let allowed = &self.exchange.options().foreign_hosts;
        let host_of = |url: &String| {
            let uri: hyper::Uri = url.parse().ok()?;
            uri.host().map(str::to_owned)
        };
        let urls = self.descriptor.urls.iter().take(FOREIGN_LIMIT);
        let known: Vec<(String, &String)> = urls.filter_map(|url| Some((host_of(url)?, url))).collect();
        let mut last = Error::Foreign {
            name: self.reference.name(),
            digest: self.descriptor.digest.clone(),
            hosts: known.iter().map(|(host, _)| host.clone()).collect(),
        };
        // A host with its port is that one alone.
        let is_allowed = |host: &String, url: &str| {
            let place = url.split('/').nth(2).unwrap_or_default();
            allowed.iter().any(|allowed| allowed == host || allowed == place)
        };
        for (_, url) in known.iter().filter(|(host, url)| is_allowed(host, url)) {
            match self.exchange.get_foreign(request, url).await {
                Ok(answer) if matches!(answer.status().as_u16(), 200 | 206) => return Ok(answer),
                Ok(answer) => last = self.exchange.refusal(answer).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn consume(&mut self, answer: Answer, outlet: &mut Outlet) -> Result<(), Error> {
        let skip = match answer.status() {
            // A host that ignores Range sends everything again; the part that is known is passed over.
            StatusCode::OK => self.next,
            _ => self.check_range(&answer).map(|()| 0)?,
        };
        let origin = answer.peer.origin.clone();
        let mut incoming = Body::of(answer.response);
        let mut pace = Pace::default();
        let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
        while let Some(mut piece) = self.receive(&origin, &mut incoming, &mut pace).await? {
            let known = piece.len().min(skip);
            skip -= known;
            let rest = piece.split_off(known);
            if self.deliver(rest, outlet).await? == Delivered::Whole {
                return Ok(());
            }
        }
        if self.next == self.to {
            return Ok(());
        }
        Err(Error::Transfer {
            operation: "the transfer",
            host: origin.authority(),
            reason: format!("it ended after {} of {} bytes", self.next, self.to),
        })
    }

    async fn receive(
        &self,
        origin: &Origin,
        incoming: &mut Body,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, Error> {
        let start = Instant::now();
        let piece = incoming.next(&self.exchange.transport, origin).await?;
        let limit = self.exchange.options().timeouts.stall;
        match &piece {
            Some(piece) if pace.has_stalled(start.elapsed(), piece.len() as u64, limit) => {
                Err(Error::Timeout { operation: "a transfer of any use", host: origin.authority(), limit })
            }
            _ => Ok(piece),
        }
    }

    async fn deliver(&mut self, mut piece: Bytes, outlet: &mut Outlet) -> Result<Delivered, Error> {
        if piece.is_empty() {
            return Ok(Delivered::Part);
        }
        let left = self.to - self.next;
        if piece.len() as u64 > left {
            if self.to == self.descriptor.size {
                return Err(Error::SizeMismatch {
                    what: format!("blob {}", self.descriptor.digest),
                    expected: self.descriptor.size,
                    actual: self.next + piece.len() as u64,
                });
            }
            // A host that answers a range with everything: ours is only the beginning.
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let count = piece.len() as u64;
        self.next += count;
        self.since_failure += count;
        if self.since_failure >= PROGRESS_BYTES {
            self.failures = 0;
        }
        outlet.put(piece).await?;
        let partial = self.next == self.to && self.to < self.descriptor.size;
        Ok(if partial { Delivered::Whole } else { Delivered::Part })
    }

    /// The range must begin with the byte that was asked for and be of a blob of this size.
    fn check_range(&self, answer: &Answer) -> Result<(), Error> {
        let header = answer.header(CONTENT_RANGE).unwrap_or_default();
        let range = ContentRange::parse(header);
        let last = self.descriptor.size.saturating_sub(1);
        match range {
            Some(range)
                if range.first == self.next && range.last <= last && range.total == self.descriptor.size =>
            {
                Ok(())
            }
            _ => Err(Error::Protocol {
                host: answer.origin().authority(),
                what: "Content-Range",
                reason: format!(
                    "{:?}, expected \"bytes {}-…/{}\"",
                    header.chars().take(80).collect::<String>(),
                    self.next,
                    self.descriptor.size
                ),
            }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivered {
    Part,
    /// All of a range that ends before the blob does.
    Whole,
}

/// How much came in how much waiting; the time in which the reader was busy is not the sender's.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn has_stalled(&mut self, waited: Duration, bytes: u64, limit: Duration) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < limit {
            return false;
        }
        std::mem::take(self).bytes < TRICKLE_BYTES
    }
}

/// `bytes first-last/total` (RFC 9110 §14.4); a total that is unknown (`*`) is of no use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) total: u64,
}

impl ContentRange {
    pub(crate) fn parse(header: &str) -> Option<ContentRange> {
        let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        let range = ContentRange { first: number(first)?, last: number(last)?, total: number(total)? };
        (range.first <= range.last && range.last < range.total).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n8_content_ranges_are_read_exactly() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        for (header, expected) in [
            ("bytes 0-9/10", range(0, 9, 10)),
            ("bytes 5-9/10", range(5, 9, 10)),
            ("bytes 5-10/10", None),
            ("bytes 6-5/10", None),
            ("bytes */10", None),
            ("bytes 0-9/*", None),
            ("bytes 0-9", None),
            ("bytes +0-9/10", None),
            ("bytes -1-9/10", None),
            ("bytes  0-9/10", None),
            ("items 0-9/10", None),
            ("bytes 0-9/99999999999999999999", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(header), expected, "{header:?}");
        }
    }

    #[test]
    fn n9_a_trickle_is_a_stall() {
        let limit = Duration::from_secs(30);
        let second = Duration::from_secs(1);
        let mut trickle = Pace::default();
        assert_eq!((1..=40).position(|_| trickle.has_stalled(second, 1, limit)), Some(29));
        let mut slow = Pace::default();
        assert!((0..100).all(|_| !slow.has_stalled(second, 200, limit)));
    }
}
