//! The grammar of container ids, and the only way from text to an id.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest id accepted, in bytes: an id is one file name (`NAME_MAX`).
pub const ID_MAX_BYTES: usize = 255;

/// A container id: `[A-Za-z0-9_+][A-Za-z0-9_.+-]*`, at most [`ID_MAX_BYTES`] bytes. Safe as one path component, and
/// never mistaken for an option.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// The text is not a container id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid container ID format: {0:?} (allowed: letters, digits and '_', '+', then also '.', '-'; at most 255 bytes)"
)]
pub struct InvalidId(String);

impl ContainerId {
    /// Checks `text` against the grammar.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let first = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'+';
        let rest = |c: u8| first(c) || c == b'.' || c == b'-';
        let ok =
            text.len() <= ID_MAX_BYTES && text.bytes().next().is_some_and(first) && text.bytes().all(rest);
        if ok { Ok(Self(text.to_owned())) } else { Err(InvalidId(text.to_owned())) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(&text)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_one_grammar() {
        for good in ["a", "0", "_x", "+x", "a.b", "a-b", "web_1", "A+B", &"x".repeat(255)] {
            assert!(ContainerId::parse(good).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "-rf", "a/b", "../x", "a b", "a\0", "a\n", "é", &"x".repeat(256)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
