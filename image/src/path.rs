//! Names of entries in records: bytes on disk, text in JSON.

use serde::{Deserialize, Serialize};

/// A path within a layer. In JSON, bytes that are not printable ASCII, and `%`, are percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct EntryPath(Vec<u8>);

impl EntryPath {
    pub(crate) fn new(bytes: Vec<u8>) -> EntryPath {
        EntryPath(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<EntryPath> for String {
    fn from(path: EntryPath) -> String {
        use std::fmt::Write;
        let mut text = String::with_capacity(path.0.len());
        for byte in path.0 {
            if byte.is_ascii_graphic() && byte != b'%' {
                text.push(byte as char);
            } else {
                // Writing to a String cannot fail.
                let _ = write!(text, "%{byte:02x}");
            }
        }
        text
    }
}

impl TryFrom<String> for EntryPath {
    type Error = &'static str;

    fn try_from(text: String) -> Result<EntryPath, &'static str> {
        crate::entry::percent_decode(&text).map(EntryPath).ok_or("invalid percent-encoding")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_json() {
        for bytes in [&b"usr/bin"[..], b"", b"a b\n%41\xff\"\\"] {
            let path = EntryPath::new(bytes.to_vec());
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<EntryPath>(&json).unwrap(), path, "{json}");
        }
    }
}
