//! A synchronous netlink socket and the rtnetlink requests a container's network needs. netlink(7), rtnetlink(7).
//!
//! ```text
//! caller ── request (one message, or one batch) ──▶ kernel
//! caller ◀── acknowledgement, error with text, or parts of a dump ── kernel
//! ```
//!
//! A socket belongs for ever to the network namespace it was opened in, whatever thread uses it later: open it inside with
//! [`crate::namespace::with_netns`], or with [`Socket::route_in`]. Messages are encoded by `netlink-packet-route`; nothing
//! here is asynchronous and no process is started. Opening needs no privilege, changing anything needs CAP_NET_ADMIN in
//! the user namespace that owns the network namespace.

mod address;
mod bridge_vlan;
#[cfg(test)]
mod golden;
mod link;
mod new_link;
mod queue;
mod route;
mod rule;
mod watch;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, sendto, socket_with,
    sockopt,
};

pub use address::{Address, Duplicates, PrefixRoute, Settled};
pub use bridge_vlan::PortVlans;
pub use link::{BridgePort, Link, LinkChange, MacAddress};
pub use new_link::{IpvlanMode, LinkKind, MacvlanMode, NewLink, VethPeer};
pub use queue::TokenBucket;
pub use route::Route;
pub use rule::Rule;
pub use watch::LinkWatch;

/// The kernel writes at most this much into one datagram of a dump (`NLMSG_GOODSIZE` is capped at 32 KiB).
const RECEIVE_BYTES: usize = 64 * 1024;
/// An answer that takes longer than this is not coming: rtnl is held for milliseconds, RCU waits for tens of them.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);
const HEADER_BYTES: usize = 16;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// What was dumped changed meanwhile, and parts may be missing (`NLM_F_DUMP_INTR`).
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often an interrupted dump is begun again; links and rules change in bursts.
pub(crate) const DUMP_TRIES: usize = 64;

/// A request that the kernel refused, printed like the line of strace that failed.
#[derive(Debug, thiserror::Error)]
#[error("netlink: {operation}: {errno}{}", Detail(.detail))]
pub struct Error {
    operation: String,
    errno: Errno,
    detail: Option<String>,
}

struct Detail<'a>(&'a Option<String>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |text| write!(out, " (the kernel says: {text})"))
    }
}

impl Error {
    /// Says which request failed, and how.
    pub fn new(operation: impl Into<String>, errno: Errno) -> Self {
        Self { operation: operation.into(), errno, detail: None }
    }

    /// The error number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// Replaces the description of what was asked.
    #[must_use]
    pub fn during(mut self, operation: impl Into<String>) -> Self {
        self.operation = operation.into();
        self
    }
}

/// A netlink socket of one family, in the namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message as it lies in a received datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl Socket {
    /// Opens an rtnetlink socket in the calling thread's network namespace.
    pub fn route() -> Result<Self, Error> {
        // NETLINK_ROUTE is protocol 0.
        Self::open(None)
    }

    /// Opens an rtnetlink socket in the given network namespace; the calling thread stays where it is.
    pub fn route_in(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        crate::namespace::with_netns(netns, Self::route)
            .map_err(|errno| Error::new("setns(network namespace)", errno))?
    }

    /// Opens a netfilter socket in the calling thread's network namespace.
    pub fn netfilter() -> Result<Self, Error> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> Result<Self, Error> {
        Self::listening(protocol, 0)
    }

    /// Opens a socket that hears what the kernel tells these groups, a bit each.
    fn listening(protocol: Option<rustix::net::Protocol>, groups: u32) -> Result<Self, Error> {
        let failed = |errno| Error::new("open a netlink socket", errno);
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
            .map_err(failed)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(RECEIVE_TIMEOUT)).map_err(failed)?;
        // Both are conveniences of newer kernels (4.12, 4.20): errors with words, dumps filtered by the kernel.
        set_netlink_option(fd.as_fd(), libc::NETLINK_EXT_ACK).map_err(failed)?;
        set_netlink_option(fd.as_fd(), libc::NETLINK_GET_STRICT_CHK).map_err(failed)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(failed)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// The next sequence number.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends bytes that hold one or more whole messages.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let kernel = SocketAddrNetlink::new(0, 0);
        loop {
            match sendto(&self.fd, bytes, SendFlags::empty(), &kernel) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Hands every message received to `visit` until it says [`Next::Stop`].
    pub(crate) fn receive_until(
        &mut self,
        mut visit: impl FnMut(Received<'_>) -> Result<Next, Errno>,
    ) -> Result<(), Errno> {
        loop {
            let length = match recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                Err(errno) => return Err(errno),
            };
            let mut rest = &self.buffer[..length];
            while let Some((message, after)) = split_message(rest) {
                rest = after;
                if visit(message)? == Next::Stop {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    fn acknowledge(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &str,
    ) -> Result<(), Error> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, operation, |_| {}).map(drop)
    }

    /// Sends one request and collects every message of the answer.
    fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        operation: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut answer = Vec::new();
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP, operation, |part| answer.push(part))?;
        Ok(answer)
    }

    /// Sends a request that the encoder has no words for, header and all but its length left to us, and visits the answer.
    fn dump_raw(
        &mut self,
        kind: u16,
        payload: &[u8],
        operation: &str,
        mut part: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let sequence = self.next_sequence();
        let mut bytes =
            u32::try_from(HEADER_BYTES + payload.len()).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        self.send(&bytes).map_err(|errno| Error::new(operation, errno))?;
        let mut refused = None;
        self.receive_until(|received| {
            match received.kind {
                _ if received.sequence != sequence => return Ok(Next::More),
                NLMSG_DONE => return Ok(Next::Stop),
                NLMSG_ERROR => {
                    refused = refusal(&received);
                    return Ok(Next::Stop);
                }
                _ => part(received.payload),
            }
            Ok(Next::More)
        })
        .map_err(|errno| Error::new(operation, errno))?;
        refused.map_or(Ok(()), |(errno, detail)| Err(Error { operation: operation.into(), errno, detail }))
    }

    /// Sends one request for one object and returns it.
    fn get(&mut self, message: RouteNetlinkMessage, operation: &str) -> Result<RouteNetlinkMessage, Error> {
        let mut answer = None;
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK, operation, |part| answer = Some(part))?;
        answer.ok_or_else(|| Error::new(operation, Errno::NODATA))
    }

    /// Sends requests in one datagram and waits for every acknowledgement; the first refusal is the error.
    fn acknowledge_all(&mut self, requests: Vec<Request>, operation: &str) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let mut last = 0;
        for request in requests {
            last = self.next_sequence();
            encode(&mut bytes, request.message, NLM_F_REQUEST | NLM_F_ACK | request.flags, last);
        }
        self.send(&bytes).map_err(|errno| Error::new(operation, errno))?;
        let mut refused = None;
        self.receive_until(|received| {
            if received.kind == NLMSG_ERROR && refused.is_none() {
                refused = refusal(&received);
            }
            Ok(if received.sequence == last { Next::Stop } else { Next::More })
        })
        .map_err(|errno| Error::new(operation, errno))?;
        refused.map_or(Ok(()), |(errno, detail)| Err(Error { operation: operation.into(), errno, detail }))
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &str,
        mut part: impl FnMut(RouteNetlinkMessage),
    ) -> Result<Dump, Error> {
        self.exchange_raw(message, flags, operation, |received| parse(received).map(&mut part))
    }

    /// As `exchange`, with each part of the answer as it came.
    fn exchange_raw(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &str,
        mut part: impl FnMut(&Received<'_>) -> Result<(), Errno>,
    ) -> Result<Dump, Error> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        encode(&mut bytes, message, flags, sequence);
        self.send(&bytes).map_err(|errno| Error::new(operation, errno))?;

        let (mut refused, mut dump) = (None, Dump::Whole);
        self.receive_until(|received| {
            if received.sequence != sequence {
                return Ok(Next::More);
            }
            dump = dump.and(&received);
            match received.kind {
                NLMSG_DONE => Ok(Next::Stop),
                NLMSG_ERROR => {
                    refused = refusal(&received);
                    Ok(Next::Stop)
                }
                _ => {
                    part(&received)?;
                    Ok(Next::More)
                }
            }
        })
        .map_err(|errno| Error::new(operation, errno))?;
        refused.map_or(Ok(dump), |(errno, detail)| Err(Error { operation: operation.into(), errno, detail }))
    }
}

/// One of several requests that are sent together.
struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
}

fn encode(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let at = bytes.len();
    bytes.resize(at + align(request.buffer_len()), 0);
    request.serialize(&mut bytes[at..]);
}

/// Whether a dump shows one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dump {
    Whole,
    Interrupted,
}

impl Dump {
    /// What becomes of it with one more message.
    pub(crate) fn and(self, received: &Received<'_>) -> Self {
        if received.flags & DUMP_INTERRUPTED == 0 { self } else { Self::Interrupted }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether more of an answer is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    More,
    Stop,
}

fn parse(received: &Received<'_>) -> Result<RouteNetlinkMessage, Errno> {
    let mut header = NetlinkHeader::default();
    header.message_type = received.kind;
    header.flags = received.flags;
    RouteNetlinkMessage::deserialize(&header, received.payload).map_err(|_| Errno::BADMSG)
}

fn split_message(bytes: &[u8]) -> Option<(Received<'_>, &[u8])> {
    let length = usize::try_from(read_u32(bytes, 0)?).ok()?;
    let payload = bytes.get(HEADER_BYTES..length)?;
    let message = Received {
        kind: read_u16(bytes, 4)?,
        flags: read_u16(bytes, 6)?,
        sequence: read_u32(bytes, 8)?,
        payload,
    };
    Some((message, bytes.get(align(length)..).unwrap_or_default()))
}

/// The error in an `NLMSG_ERROR` message with the kernel's own words, or nothing if it is an acknowledgement.
pub(crate) fn refusal(received: &Received<'_>) -> Option<(Errno, Option<String>)> {
    let code = read_u32(received.payload, 0)?.cast_signed();
    if code == 0 {
        return None;
    }
    Some((Errno::from_raw_os_error(-code), kernel_words(received)))
}

fn kernel_words(received: &Received<'_>) -> Option<String> {
    if received.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let echoed = if received.flags & NLM_F_CAPPED != 0 {
        HEADER_BYTES
    } else {
        align(usize::try_from(read_u32(received.payload, 4)?).ok()?)
    };
    let mut rest = received.payload.get(4 + echoed..)?;
    while let Some(length) = read_u16(rest, 0).map(usize::from) {
        let value = rest.get(4..length)?;
        if read_u16(rest, 2)? == NLMSGERR_ATTR_MSG {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(align(length)..)?;
    }
    None
}

/// Rounds up to the alignment of netlink messages and attributes.
pub(crate) fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn set_netlink_option(fd: BorrowedFd<'_>, option: i32) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the option value is a live c_int of this frame and its exact size is passed; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_found_behind_the_echoed_request() {
        let mut payload = (-17i32).to_ne_bytes().to_vec();
        payload.extend(18u32.to_ne_bytes());
        payload.extend([0; 16]);
        let mut attribute = 9u16.to_ne_bytes().to_vec();
        attribute.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        attribute.extend(b"busy\0\0\0\0");
        payload.extend(attribute);
        let received = Received { kind: NLMSG_ERROR, flags: NLM_F_ACK_TLVS, sequence: 1, payload: &payload };
        assert_eq!(refusal(&received), Some((Errno::EXIST, Some("busy".to_owned()))));
    }

    #[test]
    fn a_truncated_answer_is_not_read_past_its_end() {
        let payload = (-1i32).to_ne_bytes();
        let received = Received { kind: NLMSG_ERROR, flags: NLM_F_ACK_TLVS, sequence: 1, payload: &payload };
        assert_eq!(refusal(&received), Some((Errno::PERM, None)));
        assert!(split_message(&[200, 0, 0, 0, 1, 0]).is_none());
    }

    #[test]
    fn the_loopback_link_is_found_by_name_and_a_missing_one_is_an_error() {
        let mut socket = Socket::route().unwrap();
        let link = socket.link("lo").unwrap();
        assert_eq!(link.index, 1);
        assert_eq!(socket.find_link("cofferdam-none").unwrap(), None);
        let error = socket.link("cofferdam-none").unwrap_err();
        assert_eq!(error.errno(), Errno::NODEV);
        assert!(error.to_string().contains("cofferdam-none"), "{error}");
    }
}
