//! D-Bus messages as bytes: D-Bus specification, "Type System" and "Message Protocol". Only what is sent and read here.

use cofferdam_plan::op::{UnitProperty, UnitValue};

/// Longest message that is read, in bytes. Answers are a path or a sentence.
pub(super) const MESSAGE_MAX_BYTES: usize = 1 << 20;

/// Length of the fixed part of a header: everything before the fields' own bytes.
pub(super) const FIXED_BYTES: usize = 16;

const LITTLE_ENDIAN: u8 = b'l';
const BIG_ENDIAN: u8 = b'B';
const PROTOCOL: u8 = 1;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Return,
    Error,
    Signal,
    /// One that this program does not know, to be passed over.
    Other,
}

/// Bytes of a message, aligned as they grow.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn uint32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn uint64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// A text or an object path.
    pub(super) fn text(&mut self, text: &str) {
        self.uint32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    pub(super) fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// A list whose elements are aligned to `to`; its length does not count the padding before the first.
    pub(super) fn list(&mut self, to: usize, fill: impl FnOnce(&mut Self)) {
        self.uint32(0);
        let place = self.0.len() - 4;
        self.align(to);
        let begin = self.0.len();
        fill(self);
        let length = length(self.0.len() - begin).to_le_bytes();
        self.0[place..place + 4].copy_from_slice(&length);
    }

    /// A property as `(sv)`.
    fn property(&mut self, property: &UnitProperty) {
        self.align(8);
        self.text(&property.name);
        match &property.value {
            UnitValue::Boolean(value) => self.variant("b", |out| out.uint32(u32::from(*value))),
            UnitValue::Int32(value) => self.variant("i", |out| out.uint32(value.cast_unsigned())),
            UnitValue::Uint32(value) => self.variant("u", |out| out.uint32(*value)),
            UnitValue::Int64(value) => self.variant("x", |out| out.uint64(value.cast_unsigned())),
            UnitValue::Uint64(value) => self.variant("t", |out| out.uint64(*value)),
            UnitValue::Text(value) => self.variant("s", |out| out.text(value)),
            UnitValue::Texts(values) => {
                self.variant("as", |out| out.list(4, |out| values.iter().for_each(|value| out.text(value))));
            }
            UnitValue::Bytes(value) => self.variant("ay", |out| out.list(1, |out| out.0.extend(value))),
            UnitValue::Pairs(pairs) => self.variant("a(ss)", |out| {
                out.list(8, |out| {
                    for (one, other) in pairs {
                        out.align(8);
                        out.text(one);
                        out.text(other);
                    }
                });
            }),
        }
    }

    fn variant(&mut self, signature: &str, value: impl FnOnce(&mut Self)) {
        self.signature(signature);
        value(self);
    }

    /// `a(sv)`, with the processes of the unit at its end.
    pub(super) fn properties(&mut self, properties: &[UnitProperty], processes: &[u32]) {
        self.list(8, |out| {
            properties.iter().for_each(|property| out.property(property));
            if !processes.is_empty() {
                out.align(8);
                out.text("PIDs");
                out.variant("au", |out| out.list(4, |out| processes.iter().for_each(|pid| out.uint32(*pid))));
            }
        });
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A method to call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    /// The types of the arguments.
    pub(super) signature: &'a str,
}

impl Call<'_> {
    /// The whole message.
    pub(super) fn message(&self, serial: u32, arguments: Writer) -> Vec<u8> {
        const METHOD_CALL: u8 = 1;
        let mut out = Writer::default();
        [LITTLE_ENDIAN, METHOD_CALL, 0, PROTOCOL].into_iter().for_each(|byte| out.byte(byte));
        let body = arguments.into_bytes();
        out.uint32(length(body.len()));
        out.uint32(serial);
        out.list(8, |out| {
            let mut field = |code: u8, signature: &str, text: &str| {
                out.align(8);
                out.byte(code);
                out.variant(
                    signature,
                    |out| if signature == "g" { out.signature(text) } else { out.text(text) },
                );
            };
            field(1, "o", self.path);
            field(2, "s", self.interface);
            field(3, "s", self.member);
            field(6, "s", self.destination);
            if !self.signature.is_empty() {
                field(8, "g", self.signature);
            }
        });
        out.align(8);
        let mut bytes = out.into_bytes();
        bytes.extend(body);
        bytes
    }
}

/// A message that came in.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// The call that it answers; 0 for none.
    pub(super) answers: u32,
    pub(super) interface: String,
    pub(super) member: String,
    pub(super) error: String,
    little: bool,
    body: Vec<u8>,
}

impl Message {
    /// The length of a whole message, from its first [`FIXED_BYTES`]; `None` for what is none, or too long.
    pub(super) fn length(fixed: &[u8; FIXED_BYTES]) -> Option<usize> {
        let mut reader = Reader { bytes: fixed, at: 4, little: endianness(fixed[0])? };
        let (body, _serial, fields) = (reader.uint32()?, reader.uint32()?, reader.uint32()?);
        let (body, fields) = (usize::try_from(body).ok()?, usize::try_from(fields).ok()?);
        let header = FIXED_BYTES.checked_add(fields)?.checked_next_multiple_of(8)?;
        header.checked_add(body).filter(|length| *length <= MESSAGE_MAX_BYTES && fixed[3] == PROTOCOL)
    }

    /// Reads a whole message; `None` for what is none.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let little = endianness(*bytes.first()?)?;
        let kind = match bytes.get(1)? {
            1 => Kind::Call,
            2 => Kind::Return,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => Kind::Other,
        };
        let mut reader = Reader { bytes, at: 12, little };
        let end = FIXED_BYTES + usize::try_from(reader.uint32()?).ok()?;
        let body = bytes.get(end.next_multiple_of(8)..)?.to_vec();
        let mut message = Self {
            kind,
            answers: 0,
            interface: String::new(),
            member: String::new(),
            error: String::new(),
            little,
            body,
        };
        while reader.at < end {
            reader.align(8);
            let (code, signature) = (reader.byte()?, reader.signature()?);
            match (signature.as_str(), code) {
                ("u", 5) => message.answers = reader.uint32()?,
                ("u", _) => drop(reader.uint32()?),
                ("s" | "o", 2) => message.interface = reader.text()?,
                ("s" | "o", 3) => message.member = reader.text()?,
                ("s" | "o", 4) => message.error = reader.text()?,
                ("s" | "o", _) => drop(reader.text()?),
                ("g", _) => drop(reader.signature()?),
                // The specification knows no field of another type.
                _ => return None,
            }
        }
        Some(message)
    }

    /// The body, to be read in the order of its types.
    pub(super) fn body(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0, little: self.little }
    }
}

fn endianness(flag: u8) -> Option<bool> {
    match flag {
        LITTLE_ENDIAN => Some(true),
        BIG_ENDIAN => Some(false),
        _ => None,
    }
}

/// Reads values one after the other; `None` beyond the end.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    little: bool,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(*bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn uint32(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take()?;
        Some(if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn string(&mut self, length: usize) -> Option<String> {
        let end = self.at.checked_add(length)?;
        let (nul, text) = self.bytes.get(self.at..=end)?.split_last()?;
        self.at = end + 1;
        String::from_utf8(text.to_vec()).ok().filter(|_| *nul == 0)
    }

    /// A text or an object path.
    pub(super) fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.uint32()?).ok()?;
        self.string(length)
    }

    pub(super) fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.string(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zvariant::serialized::{Context, Data};
    use zvariant::{LE, Value, to_bytes};

    fn property(name: &str, value: UnitValue) -> UnitProperty {
        UnitProperty { name: name.to_owned(), value }
    }

    /// zvariant, the encoder of the zbus project, agrees on every type of a property.
    #[test]
    fn properties_are_encoded_as_zvariant_does() {
        let ours = [
            property("Description", UnitValue::Text("a container".into())),
            property("Delegate", UnitValue::Boolean(true)),
            property("MemoryMax", UnitValue::Uint64(u64::MAX)),
            property("Nice", UnitValue::Int32(-5)),
            property("Odd", UnitValue::Int64(-7)),
            property("Mode", UnitValue::Uint32(0o755)),
            property("After", UnitValue::Texts(vec!["a.service".into(), "b".into()])),
            property("AllowedCPUs", UnitValue::Bytes(vec![3, 0, 1])),
            property(
                "DeviceAllow",
                UnitValue::Pairs(vec![("char-pts".into(), "rwm".into()), ("x".into(), "r".into())]),
            ),
            property("None", UnitValue::Pairs(Vec::new())),
        ];
        let theirs: Vec<(&str, Value<'_>)> = vec![
            ("Description", Value::from("a container")),
            ("Delegate", Value::from(true)),
            ("MemoryMax", Value::from(u64::MAX)),
            ("Nice", Value::from(-5_i32)),
            ("Odd", Value::from(-7_i64)),
            ("Mode", Value::from(0o755_u32)),
            ("After", Value::from(vec!["a.service", "b"])),
            ("AllowedCPUs", Value::from(vec![3_u8, 0, 1])),
            ("DeviceAllow", Value::from(vec![("char-pts", "rwm"), ("x", "r")])),
            ("None", Value::from(Vec::<(String, String)>::new())),
            ("PIDs", Value::from(vec![7_u32])),
        ];
        let mut writer = Writer::default();
        writer.text("x.scope");
        writer.text("replace");
        writer.properties(&ours, &[7]);
        writer.list(8, |_| {});
        let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
        let expected =
            to_bytes(Context::new_dbus(LE, 0), &("x.scope", "replace", theirs, auxiliary)).unwrap();
        assert_eq!(writer.into_bytes(), expected.bytes());
    }

    const PING: Call<'_> = Call {
        destination: "org.example",
        path: "/a/b",
        interface: "org.example.Iface",
        member: "Ping",
        signature: "ss",
    };

    #[test]
    fn a_header_is_one_to_zvariant_and_to_ourselves() {
        let mut arguments = Writer::default();
        arguments.text("one");
        arguments.text("two");
        let bytes = PING.message(7, arguments);
        let fixed = bytes.first_chunk().unwrap();
        assert_eq!(Message::length(fixed), Some(bytes.len()));
        let data = Data::new(bytes.clone(), Context::new_dbus(LE, 0));
        type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Value<'a>)>);
        let (header, length): (Header<'_>, usize) = data.deserialize().unwrap();
        assert_eq!((header.0, header.1, header.3, header.5), (b'l', 1, 1, 7));
        let field = |code| header.6.iter().find(|field| field.0 == code).unwrap().1.clone();
        assert_eq!(field(3), Value::from("Ping"));
        let body = data.slice(length.next_multiple_of(8)..);
        assert_eq!(usize::try_from(header.4).unwrap(), body.len());
        let ours = Message::read(&bytes).unwrap();
        assert_eq!(
            (ours.kind, ours.member.as_str(), ours.interface.as_str()),
            (Kind::Call, "Ping", "org.example.Iface")
        );
        let mut body = ours.body();
        assert_eq!((body.text().unwrap(), body.text().unwrap()), ("one".into(), "two".into()));
        assert_eq!(body.text(), None);
    }

    #[test]
    fn what_is_cut_or_is_no_message_is_refused() {
        let mut arguments = Writer::default();
        arguments.text("one");
        let bytes = PING.message(7, arguments);
        for length in 0..bytes.len() {
            if let Some(cut) = Message::read(&bytes[..length]) {
                assert_eq!(cut.body().text(), None, "{length}");
            }
        }
        let mut fixed = *bytes.first_chunk().unwrap();
        fixed[0] = b'x';
        assert_eq!(Message::length(&fixed), None);
        let mut fixed = *bytes.first_chunk().unwrap();
        fixed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::length(&fixed), None);
    }
}
