//! The way through an image's indexes: what to look at next, best first.
//!
//! ```text
//! enter(index) ─▶ follow() ▶ fetch ─┬─ an index ────────────────────────▶ enter
//!                   ▲              └─ a manifest ─▶ must_look? ─ no ───▶ the image
//!                   │                                  │ yes: its configuration
//!                   └───────────── suits? ─ no ────────┘
//! ```
//! An entry that names a platform is believed. One without may be a nested index in which nothing suits, or an image for
//! another machine: then the walk goes on behind it. Reading is the caller's, so registries and archives are walked alike.

use serde::Deserialize;

use crate::error::Error;
use crate::manifest::{DESCRIPTOR_LIMIT, Descriptor, Index, available, candidates};
use crate::platform::Platform;

/// How deep indexes may nest.
const DEPTH_LIMIT: usize = 4;

/// A search for the image that suits a platform.
pub struct Walk {
    wanted: Platform,
    /// What was asked for, for messages.
    label: String,
    /// What was not looked at yet, the best last, each with the number of indexes above it.
    open: Vec<(usize, Descriptor)>,
    /// Indexes above what is looked at.
    depth: usize,
    /// Descriptors of all indexes together.
    total: usize,
    available: Vec<String>,
}

impl Walk {
    /// A walk that has seen nothing yet. `label` is what messages call the image.
    pub fn new(wanted: &Platform, label: &str) -> Walk {
        let (wanted, label) = (wanted.clone(), label.to_owned());
        Walk { wanted, label, open: Vec::new(), depth: 0, total: 0, available: Vec::new() }
    }

    /// Takes in an index: the first, or what [`Walk::follow`] led to.
    pub fn enter(&mut self, index: &Index) -> Result<(), Error> {
        self.depth += 1;
        self.total += index.manifests.len();
        let refuse = |reason| Error::InvalidManifest { reference: self.label.clone(), reason };
        if self.depth > DEPTH_LIMIT {
            return Err(refuse(format!("indexes nest deeper than {DEPTH_LIMIT}")));
        }
        if self.total > DESCRIPTOR_LIMIT {
            return Err(refuse(format!("its indexes list more than {DESCRIPTOR_LIMIT} images")));
        }
        let found = candidates(index, &self.wanted);
        self.open.extend(found.into_iter().rev().map(|descriptor| (self.depth, descriptor.clone())));
        self.available.extend(available(index));
        Ok(())
    }

    /// What to look at next; an error that lists what there is if nothing is left.
    pub fn follow(&mut self) -> Result<Descriptor, Error> {
        let Some((depth, descriptor)) = self.open.pop() else {
            let mut available = std::mem::take(&mut self.available);
            available.dedup();
            let (reference, wanted) = (self.label.clone(), self.wanted.to_string());
            return Err(Error::WrongPlatform { reference, wanted, available });
        };
        self.depth = depth;
        Ok(descriptor)
    }

    /// Whether an image's configuration decides if it is the one: its entry names no platform, and there is more to look at.
    pub fn must_look(&self, descriptor: &Descriptor) -> bool {
        descriptor.platform().is_none() && !self.open.is_empty()
    }

    /// Whether this is the configuration of an image that suits.
    pub fn suits(&mut self, config: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Config {
            os: String,
            architecture: String,
            variant: Option<String>,
        }
        let Ok(config) = serde_json::from_slice::<Config>(config) else { return false };
        let platform = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
        let suits = self.wanted.preference(&platform).is_some();
        if !suits {
            self.available.push(platform.to_string());
        }
        suits
    }
}
