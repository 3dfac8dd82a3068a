//! Netlink attributes of nf_tables: length, type, value, padded to four bytes; numbers in network byte order.

use crate::netlink::align;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 4;

/// Writes attributes one behind the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes(pub(super) Vec<u8>);

impl Attributes {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn long(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) -> &mut Self {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Reads attributes one after the other; stops at the first that does not fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The value of the first attribute of this kind.
    pub(super) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find_map(|(found, value)| (found == kind).then_some(value))
    }

    pub(super) fn text(self, kind: u16) -> Option<String> {
        let bytes = self.find(kind)?;
        Some(String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next()?).into_owned())
    }

    pub(super) fn number(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(super) fn long(self, kind: u16) -> Option<u64> {
        self.find(kind)?.try_into().ok().map(u64::from_be_bytes)
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u16::from_ne_bytes(self.0.get(0..2)?.try_into().ok()?).into();
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = self.0.get(HEADER_BYTES..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The comment in user data: a list of (type byte, length byte, value); type 0 is the comment, ended by NUL.
pub(super) fn comment_of(user_data: &[u8]) -> String {
    let mut rest = user_data;
    while let [kind, length, value @ ..] = rest {
        let length = usize::from(*length);
        let Some(text) = value.get(..length) else { break };
        if *kind == 0 {
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            return String::from_utf8_lossy(text).into_owned();
        }
        rest = &value[length..];
    }
    String::new()
}

/// User data holding a comment; what does not fit into its length byte is cut off.
pub(super) fn user_data_of(comment: &str) -> Vec<u8> {
    const LONGEST: usize = 253;
    let text = &comment.as_bytes()[..comment.len().min(LONGEST)];
    let mut data = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    data.extend(text);
    data.push(0);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_as_written_and_are_padded() {
        let mut out = Attributes::default();
        out.text(1, "abc").number(2, 7).nest(3, |inner| {
            inner.bytes(1, &[9]);
        });
        assert_eq!(out.0.len() % 4, 0);
        let reader = Reader(&out.0);
        assert_eq!(reader.text(1).as_deref(), Some("abc"));
        assert_eq!(reader.number(2), Some(7));
        assert_eq!(Reader(reader.find(3).unwrap()).find(1), Some(&[9][..]));
    }

    #[test]
    fn a_comment_survives_and_an_over_long_one_is_cut() {
        assert_eq!(comment_of(&user_data_of("net/id/eth0")), "net/id/eth0");
        assert_eq!(comment_of(&user_data_of(&"x".repeat(400))).len(), 253);
        assert_eq!(comment_of(&[5, 2, 1, 1, 0, 2, b'a', 0]), "a");
        assert_eq!(comment_of(&[0, 200, b'a']), "");
    }
}
