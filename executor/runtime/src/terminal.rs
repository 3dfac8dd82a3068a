//! The caller's terminal in front of a process's own: bytes both ways, raw, and the size.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{
    OptionalActions, OutputModes, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

/// What is held on its way, each way, in bytes: a reader that stops reading stops the writer.
const HELD_MAX_BYTES: usize = 64 << 10;

/// What is moved at once, in bytes: a pipe that is ready takes as much without blocking.
const PIECE_BYTES: usize = 4096;

/// How long the output of a process that has ended is waited for: what it left behind may hold the terminal for ever.
const DRAIN: Duration = Duration::from_millis(100);

/// Our standard input and output in front of a terminal's master.
pub struct Proxy {
    master: OwnedFd,
    /// Settings to put back; none where standard input is no terminal.
    before: Option<Termios>,
    typed: Way,
    shown: Way,
}

/// One direction.
#[derive(Default)]
struct Way {
    held: Vec<u8>,
    ended: bool,
}

impl Way {
    fn wants_more(&self) -> bool {
        !self.ended && self.held.len() < HELD_MAX_BYTES
    }

    fn fill(&mut self, from: impl AsFd) {
        let mut bytes = [0; PIECE_BYTES];
        match rustix::io::read(from, &mut bytes) {
            Ok(0) => self.ended = true,
            Ok(count) => self.held.extend(&bytes[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // EIO: nobody has the other side of the terminal open any more.
            Err(_) => self.ended = true,
        }
    }

    fn empty(&mut self, to: impl AsFd) {
        let piece = &self.held[..self.held.len().min(PIECE_BYTES)];
        match rustix::io::write(to, piece) {
            Ok(count) => drop(self.held.drain(..count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Nobody listens: what is said is lost, and whoever says it is not held up.
            Err(_) => self.held.clear(),
        }
    }
}

impl Proxy {
    /// Takes over: our terminal becomes raw, since theirs does the work, but for line ends, which ours go on to write
    /// ([`crate::Console::Front`]).
    pub fn new(master: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let before = tcgetattr(rustix::stdio::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            raw.output_modes.insert(OutputModes::OPOST);
            tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        }
        let proxy = Self { master, before, typed: Way::default(), shown: Way::default() };
        proxy.resize();
        Ok(proxy)
    }

    /// Gives the process's terminal the size of ours.
    pub fn resize(&self) {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// What to wait for: our input, their side, our output. In the place of what is not wanted now stands `idle`: a
    /// descriptor that is asked for nothing would still report its end, over and over.
    pub(crate) fn interest<'a>(&'a self, idle: BorrowedFd<'a>) -> [PollFd<'a>; 3] {
        let when = |wanted: bool, fd, flags| match wanted {
            true => PollFd::from_borrowed_fd(fd, flags),
            false => PollFd::from_borrowed_fd(idle, PollFlags::empty()),
        };
        let mut theirs = PollFlags::empty();
        theirs.set(PollFlags::IN, self.shown.wants_more());
        theirs.set(PollFlags::OUT, !self.typed.held.is_empty());
        [
            when(self.typed.wants_more(), rustix::stdio::stdin(), PollFlags::IN),
            when(!theirs.is_empty(), self.master.as_fd(), theirs),
            when(!self.shown.held.is_empty(), rustix::stdio::stdout(), PollFlags::OUT),
        ]
    }

    /// Moves what can be moved.
    pub(crate) fn copy(&mut self, [typed, theirs, shown]: [bool; 3]) {
        if typed && self.typed.wants_more() {
            self.typed.fill(rustix::stdio::stdin());
            if self.typed.ended {
                // The end of our input is theirs: end-of-file on a terminal is a character.
                self.typed.held.push(4);
            }
        }
        if theirs {
            if self.shown.wants_more() {
                self.shown.fill(&self.master);
            }
            if !self.typed.held.is_empty() {
                self.typed.empty(&self.master);
            }
        }
        if shown && !self.shown.held.is_empty() {
            self.shown.empty(rustix::stdio::stdout());
        }
    }

    /// Shows what a process that has ended still said.
    pub(crate) fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN;
        while !self.shown.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => continue,
                Ok(0) | Err(_) => break,
                Ok(_) => self.shown.fill(&self.master),
            }
            self.flush();
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.shown.held.is_empty() {
            self.shown.empty(rustix::stdio::stdout());
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, before);
        }
    }
}
