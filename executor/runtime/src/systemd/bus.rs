//! A connection to a message bus, or straight to a service: blocking, and every wait has a deadline.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::Problem;
use super::wire::{Call, FIXED_BYTES, Kind, Message, Writer};

/// How long the other side may take for one answer, in seconds: it answers in milliseconds, or hangs. A manager that is
/// just reloading takes a second or two.
const CALL_SECONDS: u64 = 10;

/// Most messages that are kept while an answer is waited for. Only signals about units come unasked.
const INBOX_MAX: usize = 4096;

/// Longest line of the authentication, in bytes.
const LINE_MAX_BYTES: usize = 1024;

/// An authenticated connection.
pub(super) struct Bus {
    stream: UnixStream,
    address: String,
    serial: u32,
    inbox: VecDeque<Message>,
}

impl Bus {
    /// Connects to the first address that answers; each failure is named.
    pub(super) fn connect(addresses: &[String]) -> Result<Self, Problem> {
        let mut failed = Vec::new();
        for address in addresses {
            match Self::open(address) {
                Ok(bus) => return Ok(bus),
                Err(problem) => failed.push(problem.to_string()),
            }
        }
        Err(Problem::Unreachable { tried: failed.join("; ") })
    }

    fn open(address: &str) -> Result<Self, Problem> {
        let deadline = Instant::now() + Duration::from_secs(CALL_SECONDS);
        let failed = |problem: String| Problem::Connection { address: address.to_owned(), problem };
        let stream = connect(address).map_err(|errno| failed(cofferdam_apply::in_words(errno)))?;
        let mut bus = Self { stream, address: address.to_owned(), serial: 0, inbox: VecDeque::new() };
        bus.authenticate(deadline)?;
        // A service that is spoken to straight knows no names, and says so.
        let hello = Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            signature: "",
        };
        match bus.call(hello, Writer::default()) {
            Ok(_) | Err(Problem::Refused { .. }) => Ok(bus),
            Err(problem) => Err(problem),
        }
    }

    /// D-Bus specification, "Authentication Protocol": EXTERNAL, by what the kernel says of us. We do not name our uid: in a
    /// user namespace it is another than the other side sees. All in one piece: systemd, which answers when it has read the
    /// whole, would not look at a first message that arrives together with the end of it before there is a second.
    fn authenticate(&mut self, deadline: Instant) -> Result<(), Problem> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n", deadline)?;
        let mut answer = self.line(deadline)?;
        if answer.starts_with("DATA") {
            answer = self.line(deadline)?;
        }
        if answer.starts_with("OK") {
            Ok(())
        } else {
            Err(self.broken(format!("authentication is answered by {answer:?}")))
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<String, Problem> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.fill(&mut byte, deadline)?;
            line.extend(byte);
            if line.len() > LINE_MAX_BYTES {
                return Err(self.broken("authentication is answered by an endless line".into()));
            }
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Calls a method and waits for its answer.
    pub(super) fn call(&mut self, call: Call<'_>, arguments: Writer) -> Result<Message, Problem> {
        let deadline = Instant::now() + Duration::from_secs(CALL_SECONDS);
        self.serial += 1;
        let serial = self.serial;
        let named = |problem| match problem {
            Problem::Silent { address, seconds, .. } => {
                Problem::Silent { what: call.member.to_owned(), address, seconds }
            }
            other => other,
        };
        self.send(&call.message(serial, arguments), deadline).map_err(named)?;
        loop {
            let message = self.receive(deadline).map_err(named)?;
            match message.kind {
                Kind::Return if message.answers == serial => return Ok(message),
                Kind::Error if message.answers == serial => {
                    let words = message.body().text().unwrap_or_default();
                    let (call, name) = (call.member.to_owned(), message.error);
                    return Err(Problem::Refused { call, name, words });
                }
                Kind::Signal if self.inbox.len() < INBOX_MAX => self.inbox.push_back(message),
                _ => {}
            }
        }
    }

    /// Waits for a signal of which `wanted` makes something.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        seconds: u64,
        wanted: impl Fn(&Message) -> Option<T>,
    ) -> Result<T, Problem> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let message = match self.inbox.pop_front() {
                Some(message) => message,
                None => self.receive(deadline).map_err(|problem| match problem {
                    Problem::Silent { address, .. } => {
                        Problem::Silent { what: what.to_owned(), address, seconds }
                    }
                    other => other,
                })?,
            };
            if message.kind == Kind::Signal
                && let Some(found) = wanted(&message)
            {
                return Ok(found);
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, Problem> {
        let mut fixed = [0; FIXED_BYTES];
        self.fill(&mut fixed, deadline)?;
        let length = Message::length(&fixed).ok_or_else(|| self.broken("sends what is no message".into()))?;
        let mut bytes = fixed.to_vec();
        bytes.resize(length, 0);
        self.fill(&mut bytes[FIXED_BYTES..], deadline)?;
        Message::read(&bytes).ok_or_else(|| self.broken("sends a message that cannot be read".into()))
    }

    fn fill(&mut self, mut bytes: &mut [u8], deadline: Instant) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let left = self.left(deadline)?;
            self.stream.set_read_timeout(Some(left)).map_err(|error| self.failed(&error))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(self.broken("closes the connection".into())),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let left = self.left(deadline)?;
            self.stream.set_write_timeout(Some(left)).map_err(|error| self.failed(&error))?;
            // std sends with MSG_NOSIGNAL: a manager that is gone is an error, not a signal.
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(())
    }

    fn left(&self, deadline: Instant) -> Result<Duration, Problem> {
        let left = deadline.saturating_duration_since(Instant::now());
        let silent = || Problem::Silent {
            what: "the connection".into(),
            address: self.address.clone(),
            seconds: CALL_SECONDS,
        };
        // A timeout of zero would mean none.
        if left.is_zero() { Err(silent()) } else { Ok(left) }
    }

    fn broken(&self, problem: String) -> Problem {
        Problem::Connection { address: self.address.clone(), problem }
    }

    fn failed(&self, error: &std::io::Error) -> Problem {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        self.broken(cofferdam_apply::in_words(errno))
    }
}

/// What the deadline decides about, not the call.
fn is_pause(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// D-Bus specification, "Server Addresses": a list of which the first that is a unix socket is taken.
fn connect(address: &str) -> Result<UnixStream, Errno> {
    let socket = address.split(';').find_map(|one| one.strip_prefix("unix:")).ok_or(Errno::AFNOSUPPORT)?;
    let key = |name: &str| {
        socket.split(',').find_map(|pair| pair.strip_prefix(name)).and_then(unescape).ok_or(Errno::INVAL)
    };
    let target = match key("path=") {
        Ok(path) => SocketAddrUnix::new(path)?,
        Err(_) => SocketAddrUnix::new_abstract_name(&key("abstract=")?)?,
    };
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A full backlog would make even this wait.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(Duration::from_secs(CALL_SECONDS)))?;
    rustix::net::connect(&socket, &target)?;
    Ok(socket.into())
}

/// `%41` is `A`.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unescaped() {
        assert_eq!(unescape("/run/a%20b%2cc").as_deref(), Some(&b"/run/a b,c"[..]));
        assert_eq!(unescape("%4"), None);
        assert_eq!(unescape("%zz"), None);
        assert_eq!(connect("tcp:host=x").map(drop), Err(Errno::AFNOSUPPORT));
        assert_eq!(connect("unix:path=/nonexistent/bus").map(drop), Err(Errno::NOENT));
    }
}
