//! What a pull tells its caller while it runs, and how the caller stops it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
        /// How fast they come, over the last second or so.
        bytes_per_second: u64,
        /// How long the rest will take at that speed, in milliseconds; `None` while nothing comes.
        eta_ms: Option<u64>,
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

/// How fast a layer comes in: a mean that forgets, so that it follows a connection that changes.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes: u64,
    at: Instant,
    bytes_per_second: f64,
}

/// After so long, a measurement counts for about two thirds of the mean.
const PACE_MEMORY: Duration = Duration::from_secs(1);

impl Pace {
    pub(crate) fn new() -> Pace {
        Pace { bytes: 0, at: Instant::now(), bytes_per_second: 0.0 }
    }

    /// Notes how many bytes there are now; returns bytes a second and the milliseconds that the rest will take.
    pub(crate) fn advance(&mut self, bytes: u64, total_bytes: u64) -> (u64, Option<u64>) {
        let now = Instant::now();
        let seconds = now.duration_since(self.at).as_secs_f64().max(0.000_001);
        let measured = bytes.saturating_sub(self.bytes) as f64 / seconds;
        let first = self.bytes_per_second == 0.0;
        let weight = if first { 1.0 } else { 1.0 - (-seconds / PACE_MEMORY.as_secs_f64()).exp() };
        self.bytes_per_second += weight * (measured - self.bytes_per_second);
        (self.bytes, self.at) = (bytes, now);
        let left = total_bytes.saturating_sub(bytes) as f64;
        let eta_ms = (self.bytes_per_second >= 1.0).then(|| (left / self.bytes_per_second * 1000.0) as u64);
        (self.bytes_per_second as u64, eta_ms)
    }
}

/// A switch that stops an operation from another thread. Clones share it.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Switch>);

#[derive(Default)]
struct Switch {
    is_set: AtomicBool,
    /// Called once when the switch is set.
    hooks: Mutex<Vec<(u64, Hook)>>,
    next: AtomicU64,
}

type Hook = Box<dyn Fn() + Send>;

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

impl Cancel {
    /// A switch that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Asks every operation that holds this switch to stop.
    pub fn cancel(&self) {
        self.0.is_set.store(true, Ordering::SeqCst);
        for (_, hook) in self.hooks().drain(..) {
            hook();
        }
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_set.load(Ordering::SeqCst)
    }

    /// Has `hook` called when the switch is set, as long as what is returned lives; at once if it is set already.
    pub(crate) fn on_cancel(&self, hook: impl Fn() + Send + 'static) -> Hooked {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut hooks = self.hooks();
        hooks.push((id, Box::new(hook)));
        // Under the hooks' lock: whoever sets the switch drains them after this, or has set it before.
        if self.is_cancelled() {
            for (_, hook) in hooks.drain(..) {
                hook();
            }
        }
        Hooked { cancel: self.clone(), id }
    }

    fn hooks(&self) -> MutexGuard<'_, Vec<(u64, Hook)>> {
        self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hook on a switch; dropping it takes the hook away.
pub(crate) struct Hooked {
    cancel: Cancel,
    id: u64,
}

impl Drop for Hooked {
    fn drop(&mut self) {
        self.cancel.hooks().retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_called_once_whenever_it_comes() {
        let count = Arc::new(AtomicU64::new(0));
        let cancel = Cancel::new();
        let hook = |count: &Arc<AtomicU64>| {
            let count = Arc::clone(count);
            move || {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        drop(cancel.on_cancel(hook(&count)));
        let _kept = cancel.on_cancel(hook(&count));
        cancel.cancel();
        cancel.cancel();
        let _late = cancel.on_cancel(hook(&count));
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
}
