//! Pseudo-terminals, and descriptors over sockets. pty(7), ioctl_tty(2), unix(7).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// Opens the slave of a pty master without going through any path (`TIOCGPTPEER`). *Child-safe.*
pub fn open_peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::pty::ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
}

/// Sets the size of a terminal. *Child-safe.*
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    rustix::termios::tcsetwinsize(
        terminal,
        Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 },
    )
}

/// Has a terminal write line ends as they are: another one in front of it translates them. *Child-safe.*
pub fn leave_line_ends(terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut settings = rustix::termios::tcgetattr(terminal)?;
    settings.output_modes.remove(rustix::termios::OutputModes::ONLCR);
    rustix::termios::tcsetattr(terminal, rustix::termios::OptionalActions::Now, &settings)
}

/// Sends a descriptor with `message` over a unix socket. *Child-safe.*
pub fn send_descriptor(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: BorrowedFd<'_>,
) -> Result<(), Errno> {
    send_descriptor_with(socket, &[IoSlice::new(message)], descriptor)
}

/// Most descriptors that are sent at once.
pub const DESCRIPTORS_MAX: usize = 8;

/// Sends a descriptor with a message in parts, as one. A socket with a send timeout (SO_SNDTIMEO) gives `ETIMEDOUT` when
/// the other side does not take all of it in time. *Child-safe.*
pub fn send_descriptor_with(
    socket: BorrowedFd<'_>,
    message: &[IoSlice<'_>],
    descriptor: BorrowedFd<'_>,
) -> Result<(), Errno> {
    send_descriptors(socket, message, &[descriptor])
}

/// As [`send_descriptor_with`], of several at once, at most [`DESCRIPTORS_MAX`]. *Child-safe.*
pub fn send_descriptors(
    socket: BorrowedFd<'_>,
    message: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let length: usize = message.iter().map(|part| part.len()).sum();
    match sendmsg(socket, message, &mut control, SendFlags::NOSIGNAL) {
        Ok(sent) if sent == length => Ok(()),
        Ok(_) | Err(Errno::AGAIN) => Err(Errno::TIMEDOUT),
        Err(errno) => Err(errno),
    }
}

/// Receives several descriptors, at most [`DESCRIPTORS_MAX`], and a byte that comes with them; none at all if the other side
/// has closed the socket.
pub fn receive_descriptors(socket: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

/// Receives one descriptor and the bytes that came with it; the number of bytes is returned.
pub fn receive_descriptor(
    socket: BorrowedFd<'_>,
    message: &mut [u8],
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(message)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptor))
}
