//! As much of gRPC as a caller of one-shot methods needs: HTTP/2 (RFC 9113) on a unix socket, one stream a connection, and
//! messages of numbers, texts and messages (protobuf). Debian has no client for the interface that it is needed for, and
//! a library for a handful of test calls would bring a dozen crates.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long a method may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RESET: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GO_AWAY: u8 = 7;
}

/// Flags of frames; the meaning of the first is the kind's.
const ACKNOWLEDGED: u8 = 1;
const END_OF_STREAM: u8 = 1;
const END_OF_HEADERS: u8 = 4;

/// The one stream.
const STREAM: u32 = 1;

/// Calls a method, such as `/runtime.v1.RuntimeService/Version`, and gives its answer.
///
/// # Errors
/// Also when the method failed: its words are somewhere in the error, as the server packed them.
pub fn call(socket: &Path, method: &str, message: &Message) -> Result<Message> {
    let mut connection = UnixStream::connect(socket).with_context(|| format!("connecting to {socket:?}"))?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.write_all(PREFACE)?;
    send(&mut connection, kind::SETTINGS, 0, 0, &[])?;
    send(&mut connection, kind::HEADERS, END_OF_HEADERS, STREAM, &headers(method))?;
    let length = u32::try_from(message.0.len())?.to_be_bytes();
    let body = [&[0], &length[..], &message.0].concat();
    send(&mut connection, kind::DATA, END_OF_STREAM, STREAM, &body)?;
    let (mut answer, mut trailers) = (Vec::new(), Vec::new());
    loop {
        let (kind, flags, stream, payload) = receive(&mut connection).with_context(|| method.to_owned())?;
        match (kind, stream) {
            (kind::SETTINGS, _) if flags & ACKNOWLEDGED == 0 => {
                send(&mut connection, kind::SETTINGS, ACKNOWLEDGED, 0, &[])?;
            }
            (kind::PING, _) if flags & ACKNOWLEDGED == 0 => {
                send(&mut connection, kind::PING, ACKNOWLEDGED, 0, &payload)?;
            }
            (kind::DATA, STREAM) => answer.extend(&payload),
            (kind::HEADERS, STREAM) => trailers = payload,
            (kind::RESET | kind::GO_AWAY, _) => bail!("{method}: the server ends with {payload:?}"),
            _ => {}
        }
        if matches!(kind, kind::DATA | kind::HEADERS) && stream == STREAM && flags & END_OF_STREAM != 0 {
            break;
        }
    }
    // A method that failed answers with headers alone.
    ensure!(answer.len() >= 5, "{method} failed: {}", readable(&trailers));
    Ok(Message(answer.split_off(5)))
}

fn send(connection: &mut UnixStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len())?.to_be_bytes();
    let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
    Ok(connection.write_all(&frame)?)
}

fn receive(connection: &mut UnixStream) -> Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    connection.read_exact(&mut head)?;
    let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]]))?];
    connection.read_exact(&mut payload)?;
    Ok((head[3], head[4], u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]), payload))
}

/// The request's header block, RFC 7541: two fields by their number in the static table, the others as literals.
fn headers(method: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0x7e)], text.as_bytes()].concat();
    let named = |index: u8, value: &str| [vec![index], text(value)].concat();
    let literal = |name: &str, value: &str| [vec![0], text(name), text(value)].concat();
    [
        vec![0x83, 0x86],      // :method POST, :scheme http
        named(4, method),      // :path
        named(1, "localhost"), // :authority
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
    ]
    .concat()
}

/// What of a header block can be read as it is; the server's log has the words.
fn readable(block: &[u8]) -> String {
    String::from_utf8_lossy(block).chars().map(|c| if c.is_control() { '.' } else { c }).collect()
}

/// A protobuf message: fields by number, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// An empty one.
    pub fn new() -> Message {
        Message::default()
    }

    /// Adds a number; 0 is what a missing one means.
    pub fn number(mut self, field: u64, value: u64) -> Message {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    /// Adds a text.
    pub fn text(self, field: u64, text: &str) -> Message {
        self.bytes(field, text.as_bytes())
    }

    /// Adds a text for each of them.
    pub fn texts(self, field: u64, texts: &[&str]) -> Message {
        texts.iter().fold(self, |message, text| message.text(field, text))
    }

    /// Adds a message.
    pub fn message(self, field: u64, message: &Message) -> Message {
        self.bytes(field, &message.0)
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// The number of a field, 0 where it is missing.
    pub fn get_number(&self, field: u64) -> u64 {
        self.fields().into_iter().find(|(number, ..)| *number == field).map_or(0, |(_, value, _)| value)
    }

    /// The text of a field, empty where it is missing.
    pub fn get_text(&self, field: u64) -> String {
        String::from_utf8_lossy(&self.get_message(field).0).into_owned()
    }

    /// The message of a field, empty where it is missing.
    pub fn get_message(&self, field: u64) -> Message {
        let found = self.fields().into_iter().find(|(number, ..)| *number == field);
        found.map_or_else(Message::new, |(_, _, bytes)| Message(bytes.to_vec()))
    }

    /// Every field: its number, and its value or its bytes.
    fn fields(&self) -> Vec<(u64, u64, &[u8])> {
        let (mut rest, mut fields) = (self.0.as_slice(), Vec::new());
        while let Some(key) = read_varint(&mut rest) {
            let Some(value) = read_varint(&mut rest) else { break };
            let length = if key & 7 == 2 { usize::try_from(value).unwrap_or(usize::MAX) } else { 0 };
            let Some((bytes, after)) = rest.split_at_checked(length) else { break };
            fields.push((key >> 3, value, bytes));
            rest = after;
        }
        fields
    }
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let (number, rest) = bytes.split_at(end + 1);
    *bytes = rest;
    Some(number.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// protobuf.dev, "Encoding": the first examples.
    #[test]
    fn messages_are_written_and_read() {
        assert_eq!(Message::new().number(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::new().text(2, "testing").0, b"\x12\x07testing");
        let inner = Message::new().number(1, 150);
        let outer = Message::new().texts(1, &["a", "b"]).message(3, &inner).number(9, 7);
        assert_eq!(outer.get_message(3), inner);
        assert_eq!((outer.get_text(1), outer.get_number(9), outer.get_number(8)), ("a".into(), 7, 0));
    }
}
