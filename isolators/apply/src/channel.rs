//! The channel between parent and child: one byte a barrier, end of file for "executed" or "dead".
//! With the byte that says "attached" come the files through which the child enters its version 1 cgroups.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use cofferdam_linux::wait::readable;
use cofferdam_plan::Barrier;
use rustix::io::{Errno, read, write};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Token by which the child says that it waits at the gate.
const CREATED: u8 = b'c';

/// What is said at the gate of a created container for its program to be executed.
pub const START: u8 = b's';
/// What is said there to be lent its namespaces.
pub const LEND: u8 = b'n';

/// What the parent hears while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The child reached a barrier.
    Barrier(u8),
    /// The child waits for `start`.
    Created,
    /// The child's end is closed: it has executed the program, or it is dead.
    Closed,
}

/// Makes the pair: the parent's end and the child's. Both are close-on-exec.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Parent: waits for the child's next word, `ETIMEDOUT` when none comes within `limit`.
pub(crate) fn hear(end: BorrowedFd<'_>, limit: Duration) -> Result<Heard, Errno> {
    if !readable(end, limit)? {
        return Err(Errno::TIMEDOUT);
    }
    match receive(end)? {
        None => Ok(Heard::Closed),
        Some(CREATED) => Ok(Heard::Created),
        Some(token) => Ok(Heard::Barrier(token)),
    }
}

/// How long a process whose calls somebody supervises is waited for: a supervisor that never answers must not stop whoever
/// starts the container. What it does to the program after that is between the two.
pub(crate) const SUPERVISED: Duration = Duration::from_secs(3);

/// Sends one token. *Child-safe.*
pub(crate) fn say(end: BorrowedFd<'_>, token: u8) -> Result<(), Errno> {
    // MSG_NOSIGNAL: the other side's death must arrive as EPIPE, never as a signal to an agent.
    rustix::net::send(end, &[token], SendFlags::NOSIGNAL).map(drop)
}

/// Child: says that the container is created. *Child-safe.*
pub(crate) fn say_created(end: BorrowedFd<'_>) -> Result<(), Errno> {
    say(end, CREATED)
}

/// Parent: lets the child pass a barrier, and gives it the doors to its version 1 cgroups on the way.
pub(crate) fn release(end: BorrowedFd<'_>, barrier: Barrier, doors: &[OwnedFd]) -> Result<(), Errno> {
    if doors.is_empty() {
        return say(end, barrier.token());
    }
    let doors: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); DOORS_SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&doors)) {
        return Err(Errno::TOOMANYREFS);
    }
    sendmsg(end, &[IoSlice::new(&[barrier.token()])], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// More version 1 hierarchies than the kernel has controllers and anybody has named ones.
const DOORS_SPACE: usize = rustix::cmsg_space!(ScmRights(64));

/// Child: waits for the parent to release `barrier`, and goes through every door that comes with it. The parent's death ends
/// the wait. An error comes with the number of the door that it is about, counted from 1. *Child-safe.*
pub(crate) fn pass(end: BorrowedFd<'_>, barrier: Barrier) -> Result<(), (Errno, i32)> {
    let mut token = [0];
    let mut space = [MaybeUninit::uninit(); DOORS_SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(end, &mut [IoSliceMut::new(&mut token)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => break 0,
            result => break result.map_err(|errno| (errno, 0))?.bytes,
        }
    };
    match (received, token[0]) {
        (0, _) => return Err((Errno::PIPE, 0)),
        (_, token) if token == barrier.token() => {}
        _ => return Err((Errno::PROTO, 0)),
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(doors) => Some(doors),
        _ => None,
    });
    for (number, door) in (1..).zip(rights.flatten()) {
        // The thread that writes: see `Cgroup::doors`.
        write(&door, b"0").map_err(|errno| (errno, number))?;
    }
    Ok(())
}

fn receive(end: BorrowedFd<'_>) -> Result<Option<u8>, Errno> {
    let mut token = [0];
    loop {
        match read(end, &mut token) {
            Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
            Ok(_) => return Ok(Some(token[0])),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A failure after the gate, which the child tells whoever knocked: step, error number, detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateFailure {
    /// Index of the step in the plan.
    pub step: usize,
    /// The kernel's answer.
    pub errno: Errno,
    /// As the step gives meaning to it.
    pub detail: i32,
}

impl LateFailure {
    const LENGTH: usize = 12;

    /// Sends the failure. *Child-safe.*
    pub(crate) fn tell(self, gate: BorrowedFd<'_>) {
        let mut message = [0; Self::LENGTH];
        message[..4].copy_from_slice(&u32::try_from(self.step).unwrap_or(u32::MAX).to_le_bytes());
        message[4..8].copy_from_slice(&self.errno.raw_os_error().to_le_bytes());
        message[8..].copy_from_slice(&self.detail.to_le_bytes());
        let _ = write(gate, &message);
    }

    /// As [`LateFailure::hear`], of a process whose system calls somebody supervises: after a few seconds its program
    /// counts as executed, since it is somebody else who decides when.
    pub fn hear_supervised(gate: impl AsFd) -> Result<Option<Self>, Errno> {
        match Self::hear(gate, SUPERVISED) {
            Err(Errno::TIMEDOUT) => Ok(None),
            result => result,
        }
    }

    /// Waits until the process behind the gate has executed its program (`None`) or says why it could not; `ETIMEDOUT`
    /// when it does neither within `limit`.
    pub fn hear(gate: impl AsFd, limit: Duration) -> Result<Option<Self>, Errno> {
        let mut message = [0; Self::LENGTH];
        let mut filled = 0;
        while filled < message.len() {
            if !readable(&gate, limit)? {
                return Err(Errno::TIMEDOUT);
            }
            match read(&gate, &mut message[filled..]) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let word = |at: usize| [message[at], message[at + 1], message[at + 2], message[at + 3]];
        Ok(Some(Self {
            step: u32::from_le_bytes(word(0)) as usize,
            errno: Errno::from_raw_os_error(i32::from_le_bytes(word(4))),
            detail: i32::from_le_bytes(word(8)),
        }))
    }
}
