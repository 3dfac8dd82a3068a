//! Standing between a task's streams and the caller's: copying, signals, resizes, detaching.

use std::io::{self, Write};

use cofferdam_executor::{
    AttachedInput, AttachedOutput, Attachment, Exit, Output, Signal, Status, TaskHandle, WindowSize,
};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;

use crate::terminal::{self, RawMode};

/// Interrupts after which a task that does not listen to them is killed.
const PATIENCE: u32 = 3;

/// What was typed to detach: ctrl-p ctrl-q.
const DETACH_KEYS: [u8; 2] = [0x10, 0x11];

/// How an attachment ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The task is over, and everything it held was given back.
    Over(Box<Status>),
    /// The exec'd process has ended.
    Ended(Exit),
    /// The user detached; it goes on.
    Detached,
    /// The task's supervisor went away.
    Lost,
}

/// How to stand between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wiring {
    /// Copy standard input.
    pub(crate) stdin: bool,
    /// The process has a terminal.
    pub(crate) terminal: bool,
}

enum Input {
    Bytes(Vec<u8>),
    End,
    Resize(WindowSize),
    Detach,
}

/// Copies until the process ends or the user detaches. Signals that we get go to `task`, if given.
pub(crate) async fn connect(
    attachment: Attachment,
    wiring: Wiring,
    task: Option<&TaskHandle>,
) -> io::Result<End> {
    let raw = if wiring.terminal && wiring.stdin { RawMode::enter()? } else { None };
    let (mut output, input) = attachment.split();
    let (sender, receiver) = mpsc::channel(16);
    if wiring.stdin {
        tokio::spawn(read_stdin(sender.clone(), raw.is_some()));
    }
    let (detach, mut detached) = mpsc::channel(1);
    tokio::spawn(write_input(input, receiver, detach));
    let mut signals = Signals::new()?;
    let mut printer = Printer::default();
    let end = loop {
        tokio::select! {
            biased;
            happened = output.next() => match happened {
                Some(Output::Stdout(bytes)) => printer.stdout(&bytes, task).await,
                Some(Output::Stderr(bytes)) => printer.stderr(&bytes),
                Some(Output::Ended(exit)) => break End::Ended(exit),
                Some(Output::Over(status)) => {
                    wait_for_release(&mut output).await;
                    break End::Over(status);
                }
                None => break End::Lost,
            },
            Some(()) = detached.recv() => break End::Detached,
            got = signals.next() => match got {
                Got::Resize => {
                    if let Some(size) = terminal::size().filter(|_| wiring.terminal) {
                        // A writer that is gone has no terminal to resize.
                        let _ = sender.try_send(Input::Resize(size));
                    }
                }
                Got::Signal(signal) => forward(task, signal).await,
            },
        }
    };
    drop(raw);
    Ok(end)
}

async fn forward(task: Option<&TaskHandle>, signal: Signal) {
    if let Some(task) = task {
        // It may have ended a moment ago; its end is on its way to us.
        let _ = task.kill(signal).await;
    }
}

/// The supervisor closes when everything was given back: then the same ports and names are free for the next command.
async fn wait_for_release(output: &mut AttachedOutput) {
    while output.next().await.is_some() {}
}

#[derive(Default)]
struct Printer {
    closed: bool,
}

impl Printer {
    /// Whoever read our output is gone: the task is ended, as a program in a pipeline would be.
    async fn stdout(&mut self, bytes: &[u8], task: Option<&TaskHandle>) {
        let mut out = io::stdout().lock();
        let written = if self.closed { Ok(()) } else { out.write_all(bytes).and_then(|()| out.flush()) };
        drop(out);
        if written.is_err() && !self.closed {
            self.closed = true;
            forward(task, Signal::KILL).await;
        }
    }

    fn stderr(&self, bytes: &[u8]) {
        let mut err = io::stderr().lock();
        // There is no third place to complain to.
        let _ = err.write_all(bytes).and_then(|()| err.flush());
    }
}

async fn read_stdin(sender: mpsc::Sender<Input>, detachable: bool) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 << 10];
    let mut keys = DetachKeys::default();
    loop {
        let length = stdin.read(&mut buffer).await.unwrap_or(0);
        let input = match length {
            0 => Input::End,
            length if detachable => match keys.filter(&buffer[..length]) {
                Some(bytes) => Input::Bytes(bytes),
                None => Input::Detach,
            },
            length => Input::Bytes(buffer[..length].to_vec()),
        };
        if sender.send(input).await.is_err() || length == 0 {
            return;
        }
    }
}

async fn write_input(
    mut input: AttachedInput,
    mut receiver: mpsc::Receiver<Input>,
    detach: mpsc::Sender<()>,
) {
    while let Some(item) = receiver.recv().await {
        let written = match item {
            Input::Bytes(bytes) => input.write(&bytes).await,
            Input::End => input.end().await,
            Input::Resize(size) => input.resize(size).await,
            Input::Detach => {
                // The receiver is there as long as somebody waits for this.
                let _ = detach.send(()).await;
                return;
            }
        };
        if written.is_err() {
            return;
        }
    }
    // Signals still come; the connection must not close before the task does.
    std::future::pending::<()>().await;
}

/// Looks for ctrl-p ctrl-q, also across reads.
#[derive(Default)]
struct DetachKeys {
    seen: bool,
}

impl DetachKeys {
    /// The bytes to pass on; `None` when the keys were typed.
    fn filter(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(bytes.len() + 1);
        for byte in bytes {
            if self.seen && *byte == DETACH_KEYS[1] {
                return None;
            }
            if std::mem::take(&mut self.seen) {
                passed.push(DETACH_KEYS[0]);
            }
            if *byte == DETACH_KEYS[0] { self.seen = true } else { passed.push(*byte) }
        }
        Some(passed)
    }
}

enum Got {
    Resize,
    Signal(Signal),
}

/// The signals that go to the task instead of ending us.
struct Signals {
    resize: SignalStream,
    streams: Vec<(SignalStream, Signal)>,
    interrupts: u32,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        // HUP INT QUIT USR1 USR2 ALRM TERM: what a program may be asked with from outside.
        let numbers = [1, 2, 3, 10, 12, 14, 15];
        let mut streams = Vec::new();
        for number in numbers {
            let named = Signal::parse(&number.to_string()).map_err(io::Error::other)?;
            streams.push((signal(SignalKind::from_raw(number))?, named));
        }
        Ok(Signals { resize: signal(SignalKind::window_change())?, streams, interrupts: 0 })
    }

    async fn next(&mut self) -> Got {
        let resize = &mut self.resize;
        let streams = &mut self.streams;
        let got = std::future::poll_fn(|context| {
            if resize.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(Got::Resize);
            }
            for (stream, named) in streams.iter_mut() {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(Got::Signal(*named));
                }
            }
            std::task::Poll::Pending
        })
        .await;
        self.count(got)
    }

    fn count(&mut self, got: Got) -> Got {
        match got {
            Got::Signal(signal) if signal == Signal::INT || signal == Signal::TERM => {
                self.interrupts += 1;
                Got::Signal(if self.interrupts >= PATIENCE { Signal::KILL } else { signal })
            }
            got => got,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_reads_and_other_keys_pass() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"a\x10"), Some(b"a".to_vec()));
        assert_eq!(keys.filter(b"b"), Some(b"\x10b".to_vec()));
        assert_eq!(keys.filter(b"\x10"), Some(vec![]));
        assert_eq!(keys.filter(b"\x11c"), None);
    }
}
