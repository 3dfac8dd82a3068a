//! Talking to a task's shim.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use cofferdam_shim::frame::{self, Decoder, Frame, FrameKind};
use cofferdam_shim::protocol::{Reply, Request, WindowSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::error::Error;
use crate::id::TaskId;

/// Longest path that fits into a socket address.
const SOCKET_PATH_LIMIT: usize = 107;

/// A connection to a task's shim.
#[derive(Debug)]
pub(crate) struct Connection {
    task: TaskId,
    reader: FrameReader,
    writer: OwnedWriteHalf,
}

/// The half of a connection that brings frames.
#[derive(Debug)]
pub(crate) struct FrameReader {
    half: OwnedReadHalf,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl FrameReader {
    /// The next frame; `None` when the shim has closed. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let length = self.half.read(&mut self.buffer).await?;
            if length == 0 {
                return Ok(None);
            }
            self.decoder.feed(&self.buffer[..length]);
        }
    }
}

impl Connection {
    /// Wraps a connected socket. Needs a tokio runtime with I/O.
    pub(crate) fn new(task: TaskId, stream: std::os::unix::net::UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        let (half, writer) = UnixStream::from_std(stream)?.into_split();
        let reader = FrameReader { half, decoder: Decoder::default(), buffer: vec![0; 64 << 10] };
        Ok(Connection { task, reader, writer })
    }

    /// Connects to the shim of `task`. `Ok(None)` if nobody listens there.
    pub(crate) fn open(task: &TaskId, socket: &Path) -> Result<Option<Connection>, Error> {
        match connect(socket) {
            Ok(stream) => {
                Connection::new(task.clone(), stream).map(Some).map_err(Error::io("connect to", socket))
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::io("connect to", socket)(error)),
        }
    }

    /// Sends a request.
    pub(crate) async fn send(&mut self, request: &Request) -> Result<(), Error> {
        let bytes = serde_json::to_vec(request).map_err(|error| Error::Worker(error.to_string()))?;
        send_frame(&mut self.writer, FrameKind::Request, &bytes).await.map_err(|_| self.gone())
    }

    /// The next reply. Anything else on the way is not ours.
    pub(crate) async fn reply(&mut self) -> Result<Reply, Error> {
        while let Ok(Some(frame)) = self.reader.next().await {
            if let Some(reply) = as_reply(&frame) {
                return Ok(reply);
            }
        }
        Err(self.gone())
    }

    /// Sends a request and takes its reply; a refusal is an error.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Reply, Error> {
        self.send(request).await?;
        match self.reply().await? {
            Reply::Failed(failure) => Err(Error::Supervisor(failure)),
            reply => Ok(reply),
        }
    }

    /// Waits until the shim closes the connection.
    pub(crate) async fn closed(&mut self) {
        while let Ok(Some(_)) = self.reader.next().await {}
    }

    pub(crate) fn split(self) -> (FrameReader, OwnedWriteHalf) {
        (self.reader, self.writer)
    }

    fn gone(&self) -> Error {
        Error::SupervisorGone { task: self.task.short().to_owned() }
    }
}

/// The reply in a frame, if it is one that we understand.
pub(crate) fn as_reply(frame: &Frame) -> Option<Reply> {
    if frame.kind == FrameKind::Reply { serde_json::from_slice(&frame.payload).ok() } else { None }
}

/// Writes one frame.
pub(crate) async fn send_frame(
    writer: &mut OwnedWriteHalf,
    kind: FrameKind,
    payload: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    frame::encode(kind, payload, &mut bytes);
    writer.write_all(&bytes).await
}

/// Writes a terminal's size.
pub(crate) async fn send_size(writer: &mut OwnedWriteHalf, size: WindowSize) -> io::Result<()> {
    let bytes = serde_json::to_vec(&size)?;
    send_frame(writer, FrameKind::Resize, &bytes).await
}

/// Connects to a socket whose path may be longer than an address holds: through a descriptor of its directory.
fn connect(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    if path.as_os_str().len() <= SOCKET_PATH_LIMIT {
        return std::os::unix::net::UnixStream::connect(path);
    }
    let (directory, short) = shorten(path)?;
    let stream = std::os::unix::net::UnixStream::connect(short);
    drop(directory);
    stream
}

/// Binds a socket whose path may be longer than an address holds.
pub(crate) fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if path.as_os_str().len() <= SOCKET_PATH_LIMIT {
        return std::os::unix::net::UnixListener::bind(path);
    }
    let (directory, short) = shorten(path)?;
    let listener = std::os::unix::net::UnixListener::bind(short);
    drop(directory);
    listener
}

fn shorten(path: &Path) -> io::Result<(File, std::path::PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(parent)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, short))
}
