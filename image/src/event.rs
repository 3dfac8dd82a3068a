//! What a pull tells its caller while it runs, and how the caller stops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cofferdam_registry::{Digest, Platform};
use serde::Serialize;

use crate::identity::DiffId;

/// One step of a pull or import. Layers are numbered from 0, lowest first; each gets exactly one of
/// [`LayerExists`](PullEvent::LayerExists) and [`LayerDone`](PullEvent::LayerDone), unless the operation fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PullEvent {
    /// The registry is asked what the reference means.
    Resolving {
        /// The reference, fully qualified.
        reference: String,
    },
    /// The manifest is known.
    Resolved {
        /// The image manifest's digest.
        digest: Digest,
        /// The image's platform.
        platform: Platform,
        /// The number of layers.
        layers: usize,
        /// The size of all layers' blobs.
        total_bytes: u64,
    },
    /// The layer is in the store already.
    LayerExists {
        /// Which layer.
        layer: usize,
        /// Its blob.
        digest: Digest,
        /// Its blob's size.
        total_bytes: u64,
    },
    /// Another process, or another image of this one, is fetching the same layer.
    LayerWaiting {
        /// Which layer.
        layer: usize,
    },
    /// The layer is being fetched and unpacked, in one pass.
    LayerStarted {
        /// Which layer.
        layer: usize,
        /// Its blob.
        digest: Digest,
        /// Its blob's size.
        total_bytes: u64,
    },
    /// Bytes of the blob that were processed so far; never falls.
    LayerProgress {
        /// Which layer.
        layer: usize,
        /// Bytes so far.
        bytes: u64,
        /// Bytes altogether.
        total_bytes: u64,
    },
    /// The layer is in the store.
    LayerDone {
        /// Which layer.
        layer: usize,
        /// What it unpacked to.
        diff_id: DiffId,
        /// The size of its tar.
        unpacked_bytes: u64,
    },
    /// Something was accepted that a strict reader would refuse.
    Warning {
        /// In words.
        message: String,
    },
    /// The image is in the store under its name.
    Finished {
        /// The image manifest's digest.
        digest: Digest,
    },
}

/// A switch that stops an operation from another thread. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A switch that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Asks every operation that holds this switch to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
