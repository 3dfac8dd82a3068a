//! Content digests: the only names under which bytes are requested, stored or compared.
//!
//! A [`Digest`] is made by [`Digest::parse`], which accepts exactly the registered algorithms with lower-case hexadecimal
//! of the exact length (image-spec 1.1, descriptor.md "Digests"). Everything else is refused before any request is made or
//! any path is joined, so a digest can be used as a file name as it stands.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A hash algorithm that a digest may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, which every implementation must support.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon and as a folder in a content store.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// `algorithm:hex`, known to be well-formed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a string is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {input:?}: {reason}")]
pub struct InvalidDigest {
    /// The text that was refused, at most 160 bytes of it.
    pub input: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl Digest {
    /// Parses `sha256:<64 hex>` or `sha512:<128 hex>`; upper case, other lengths and other algorithms are refused.
    pub fn parse(input: &str) -> Result<Digest, InvalidDigest> {
        let refuse = |reason| InvalidDigest { input: input.chars().take(160).collect(), reason };
        let (name, hex) = input.split_once(':').ok_or_else(|| refuse("expected algorithm:hex"))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(refuse("unsupported algorithm, expected sha256 or sha512")),
        };
        if hex.len() != algorithm.hex_length() {
            return Err(refuse("wrong number of hexadecimal digits"));
        }
        if !hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Err(refuse("expected lower-case hexadecimal"));
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }

    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal part alone.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve hexadecimal digits: enough for people, never for machines.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(input: &str) -> Result<Digest, InvalidDigest> {
        Digest::parse(input)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(input: String) -> Result<Digest, InvalidDigest> {
        Digest::parse(&input)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// A digest in the making: bytes go in as they stream past, the digest comes out at the end.
#[derive(Clone)]
pub struct Hasher {
    state: State,
}

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// An empty hasher for `algorithm`.
    pub fn new(algorithm: Algorithm) -> Hasher {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        };
        Hasher { state }
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.state {
            State::Sha256(hasher) => {
                Digest { algorithm: Algorithm::Sha256, hex: hex(&hasher.finalize()).into() }
            }
            State::Sha512(hasher) => {
                Digest { algorithm: Algorithm::Sha512, hex: hex(&hasher.finalize()).into() }
            }
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_known_bytes_are_right() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"abc");
        assert!(hasher.finish().to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
    }

    #[test]
    fn anything_but_a_registered_lower_case_digest_is_refused() {
        let good = "a".repeat(64);
        assert!(Digest::parse(&format!("sha256:{good}")).is_ok());
        let (upper, short, long) = ("A".repeat(64), "a".repeat(63), "a".repeat(65));
        for bad in [
            String::new(),
            "sha256".into(),
            "sha256:".into(),
            "sha256:../../../../etc/passwd".into(),
            format!("sha256:{upper}"),
            format!("sha256:{short}"),
            format!("sha256:{long}"),
            format!("sha1:{}", "a".repeat(40)),
            format!("md5:{}", "a".repeat(32)),
            format!("sha512:{good}"),
            format!("SHA256:{good}"),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad} was accepted");
        }
    }
}
