//! Taking part in the streams of a task, or of a process that was run in it.

use cofferdam_shim::Exit;
use cofferdam_shim::frame::FrameKind;
use cofferdam_shim::protocol::{Reply, WindowSize};
use tokio::net::unix::OwnedWriteHalf;

use crate::control::{Connection, FrameReader, as_reply, send_frame, send_size};
use crate::status::Status;

/// Something that came from an attached process.
#[derive(Clone, Debug)]
pub enum Output {
    /// Bytes of its standard output, or of its terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// The exec'd process has ended.
    Ended(Exit),
    /// The task is over.
    Over(Box<Status>),
}

/// A part in the streams of a process. Dropping it detaches: the process goes on.
#[derive(Debug)]
pub struct Attachment {
    output: AttachedOutput,
    input: AttachedInput,
}

/// The half that brings output.
#[derive(Debug)]
pub struct AttachedOutput {
    reader: FrameReader,
}

/// The half that takes input.
#[derive(Debug)]
pub struct AttachedInput {
    writer: OwnedWriteHalf,
}

impl Attachment {
    pub(crate) fn new(connection: Connection) -> Attachment {
        let (reader, writer) = connection.split();
        Attachment { output: AttachedOutput { reader }, input: AttachedInput { writer } }
    }

    /// The two halves, to be used by two tasks of the caller's.
    pub fn split(self) -> (AttachedOutput, AttachedInput) {
        (self.output, self.input)
    }
}

impl AttachedOutput {
    /// What comes next; `None` when the supervisor has closed the connection: after the end of a task that means that
    /// everything it held was released. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Output> {
        loop {
            let frame = self.reader.next().await.ok()??;
            match frame.kind {
                FrameKind::Stdout => return Some(Output::Stdout(frame.payload)),
                FrameKind::Stderr => return Some(Output::Stderr(frame.payload)),
                _ => match as_reply(&frame) {
                    Some(Reply::Ended { exit }) => return Some(Output::Ended(exit)),
                    Some(Reply::Status(status)) => {
                        if let Ok(status) = serde_json::from_value(status) {
                            return Some(Output::Over(Box::new(status)));
                        }
                    }
                    // A newer supervisor may say more than we know.
                    _ => {}
                },
            }
        }
    }
}

impl AttachedInput {
    /// Sends bytes to its standard input. An error means that nobody is there to take them.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        send_frame(&mut self.writer, FrameKind::Stdin, bytes).await
    }

    /// Says that no more will come.
    pub async fn end(&mut self) -> std::io::Result<()> {
        send_frame(&mut self.writer, FrameKind::StdinEnd, &[]).await
    }

    /// Tells its terminal a new size.
    pub async fn resize(&mut self, size: WindowSize) -> std::io::Result<()> {
        send_size(&mut self.writer, size).await
    }
}
