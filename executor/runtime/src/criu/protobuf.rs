//! As much of protobuf's encoding as CRIU's messages need: varints and byte strings, keyed by field number.

/// A message being written.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// A number, an enumeration or a truth value.
    pub(crate) fn number(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field) << 3);
        self.varint(value);
    }

    /// A signed number: negative ones are written as their two's complement in 64 bits.
    pub(crate) fn signed(&mut self, field: u32, value: i32) {
        self.number(field, i64::from(value).cast_unsigned());
    }

    /// A truth value; false is the default and is left out.
    pub(crate) fn flag(&mut self, field: u32, value: bool) {
        if value {
            self.number(field, 1);
        }
    }

    /// Text or bytes.
    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A message within.
    pub(crate) fn message(&mut self, field: u32, fill: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// The message.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A varint.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
}

/// Reads the fields of a message, in order. `None` when it is not one. Fixed-width fields are skipped.
pub(crate) fn fields(mut text: &[u8]) -> Option<Vec<(u32, Value<'_>)>> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let key = varint(&mut text)?;
        let field = u32::try_from(key >> 3).ok()?;
        match key & 7 {
            0 => found.push((field, Value::Number(varint(&mut text)?))),
            1 => drop(take(&mut text, 8)?),
            2 => {
                let size = usize::try_from(varint(&mut text)?).ok()?;
                found.push((field, Value::Bytes(take(&mut text, size)?)));
            }
            5 => drop(take(&mut text, 4)?),
            _ => return None,
        }
    }
    Some(found)
}

fn take<'a>(text: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let (taken, rest) = text.split_at_checked(size)?;
    *text = rest;
    Some(taken)
}

/// At most ten bytes, seven bits each, the lowest first.
fn varint(text: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(text, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of protobuf's own documentation of its encoding.
    #[test]
    fn numbers_and_text_are_written_as_documented() {
        let mut writer = Writer::default();
        writer.number(1, 150);
        writer.bytes(2, b"testing");
        writer.message(3, |inner| inner.number(1, 150));
        let expected = [&b"\x08\x96\x01\x12\x07testing"[..], b"\x1a\x03\x08\x96\x01"].concat();
        assert_eq!(writer.finish(), expected);
    }

    #[test]
    fn what_was_written_is_read() {
        let mut writer = Writer::default();
        writer.signed(7, -1);
        writer.flag(2, true);
        writer.flag(3, false);
        writer.bytes(68, b"x");
        let text = writer.finish();
        let expected = [(7, Value::Number(u64::MAX)), (2, Value::Number(1)), (68, Value::Bytes(b"x"))];
        assert_eq!(fields(&text).unwrap(), expected);
    }

    #[test]
    fn what_is_cut_or_no_message_is_refused() {
        for text in [
            &b"\x08"[..],
            b"\x08\x96",
            b"\x12\x07test",
            b"\x0b",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(fields(text), None, "{text:?}");
        }
        assert_eq!(fields(b"").unwrap(), []);
    }
}
