//! A process and our ends of its standard streams.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};
use rustix::termios::Winsize;

use crate::engine::{Process, ProcessStdio};
use crate::exit::Exit;
use crate::log::Stream;
use crate::protocol::WindowSize;

/// Standard input that we hold for a process which does not read it. Clients are not read from above it.
pub(crate) const INPUT_LIMIT_BYTES: usize = 64 << 10;

/// Bytes taken from a stream at a time: what a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// Our ends of the standard streams, before the process exists.
#[derive(Debug)]
pub(crate) struct Ends {
    input: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd)>,
}

/// How a process's streams are to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StdioWish {
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) owner: (u32, u32),
}

/// Makes the streams: both sides of them.
pub(crate) fn make_stdio(wish: StdioWish) -> io::Result<(ProcessStdio, Ends)> {
    if wish.terminal {
        return Ok((ProcessStdio::Terminal, Ends { input: None, outputs: Vec::new() }));
    }
    let (stdin, input) = if wish.stdin {
        let (reader, writer) = owned_pipe(wish.owner)?;
        set_nonblocking(writer.as_fd())?;
        (reader, Some(writer))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (out_reader, stdout) = owned_pipe(wish.owner)?;
    let (err_reader, stderr) = owned_pipe(wish.owner)?;
    set_nonblocking(out_reader.as_fd())?;
    set_nonblocking(err_reader.as_fd())?;
    let outputs = vec![(Stream::Stdout, out_reader), (Stream::Stderr, err_reader)];
    Ok((ProcessStdio::Pipes { stdin, stdout, stderr }, Ends { input, outputs }))
}

/// A pipe that its user can open again by name: programs write to `/dev/stdout`.
fn owned_pipe(owner: (u32, u32)) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if owner != (0, 0) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
        rustix::fs::fchown(&writer, Some(uid), Some(gid))?;
    }
    Ok((reader, writer))
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// A process with its streams.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) pid: i32,
    pidfd: OwnedFd,
    input: Option<File>,
    pending: VecDeque<u8>,
    input_ends: bool,
    outputs: Vec<(Stream, File)>,
    console: Option<OwnedFd>,
    /// Set once the process was reaped.
    pub(crate) exit: Option<Exit>,
    /// Until when output is still waited for after the exit.
    pub(crate) drain_until: Option<Instant>,
}

impl Session {
    pub(crate) fn new(id: u64, process: Process, ends: Ends) -> io::Result<Session> {
        let mut input = ends.input.map(File::from);
        let mut outputs: Vec<_> =
            ends.outputs.into_iter().map(|(stream, fd)| (stream, File::from(fd))).collect();
        if let Some(console) = &process.console {
            set_nonblocking(console.as_fd())?;
            input = Some(File::from(console.try_clone()?));
            outputs.push((Stream::Stdout, File::from(console.try_clone()?)));
        }
        Ok(Session {
            id,
            pid: process.pid,
            pidfd: process.pidfd,
            input,
            pending: VecDeque::new(),
            input_ends: false,
            outputs,
            console: process.console,
            exit: None,
            drain_until: None,
        })
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The streams that may still bring output.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        self.outputs.iter().map(|(stream, file)| (*stream, file.as_fd()))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.exit.is_some() && self.outputs.is_empty()
    }

    /// Where input waits to be written, if any does.
    pub(crate) fn blocked_input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| !self.pending.is_empty()).map(File::as_fd)
    }

    pub(crate) fn takes_input(&self) -> bool {
        self.pending.len() < INPUT_LIMIT_BYTES
    }

    /// Takes the exit status if the process has ended.
    pub(crate) fn reap(&mut self) -> io::Result<Option<Exit>> {
        let pid = Pid::from_raw(self.pid).ok_or(Errno::SRCH)?;
        let Some((_, status)) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG)? else {
            return Ok(None);
        };
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => return Ok(None),
        };
        self.exit = Some(exit);
        Ok(self.exit)
    }

    /// Reads what one stream has. An empty answer means the stream is over and forgotten; `None` that it has
    /// nothing now.
    pub(crate) fn read(&mut self, stream: Stream) -> Option<Vec<u8>> {
        let at = self.outputs.iter().position(|(other, _)| *other == stream)?;
        let mut bytes = vec![0; READ_BYTES];
        match self.outputs[at].1.read(&mut bytes) {
            Ok(length) if length > 0 => {
                bytes.truncate(length);
                Some(bytes)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                None
            }
            // End of file, or EIO from a terminal whose last user has gone.
            _ => {
                self.outputs.remove(at);
                Some(Vec::new())
            }
        }
    }

    /// Stops waiting for output: somebody else holds the stream's other end.
    pub(crate) fn abandon_output(&mut self) {
        self.outputs.clear();
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        if self.input.is_some() && !self.input_ends {
            self.pending.extend(bytes);
            self.flush_input();
        }
    }

    /// No more input will come. A terminal has no such end: its reader is told by the user's ctrl-d.
    pub(crate) fn end_input(&mut self) {
        if self.console.is_none() {
            self.input_ends = true;
            self.flush_input();
        }
    }

    pub(crate) fn flush_input(&mut self) {
        while let Some(file) = &mut self.input {
            let (front, _) = self.pending.as_slices();
            if front.is_empty() {
                break;
            }
            match file.write(front) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.pending.clear();
                    self.input_ends = true;
                }
            }
        }
        if self.input_ends && self.pending.is_empty() {
            self.input = None;
        }
    }

    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(console) = &self.console {
            let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
            // The terminal may have gone with its process; a size for nobody is no error.
            let _ = rustix::termios::tcsetwinsize(console, size);
        }
    }
}
