//! The two identities that a layer has beside its blob's digest.

use std::fmt;

use cofferdam_registry::Digest;
use serde::{Deserialize, Serialize};

/// The digest of a layer's uncompressed tar (image-spec 1.1, config.md "Layer DiffID"). Layers are stored under it: what a
/// layer looks like on disk is a function of its own tar alone, whatever lies below it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(Digest);

impl DiffId {
    /// A digest that is known to be of an uncompressed tar.
    pub fn new(digest: Digest) -> DiffId {
        DiffId(digest)
    }

    /// The digest itself.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiffId({})", self.0)
    }
}

/// The identity of a stack of layers (image-spec 1.1, config.md "Layer ChainID").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// The identity of `layers`, lowest first; `None` for no layers at all.
    pub fn of(layers: &[DiffId]) -> Option<ChainId> {
        let (first, rest) = layers.split_first()?;
        let chain = rest
            .iter()
            .fold(first.0.clone(), |below, layer| Digest::of(format!("{below} {layer}").as_bytes()));
        Some(ChainId(chain))
    }

    /// The digest itself.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_one_is_its_diff_id_and_longer_ones_are_folded() {
        let a = DiffId::new(Digest::of(b"a"));
        let b = DiffId::new(Digest::of(b"b"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(std::slice::from_ref(&a)).unwrap().digest(), a.digest());
        let both = ChainId::of(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(*both.digest(), Digest::of(format!("{a} {b}").as_bytes()));
    }
}
