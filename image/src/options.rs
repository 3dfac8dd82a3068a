//! How a store is operated: what holds for every pull, import and collection in it.

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::limits::Limits;
use crate::owners::UnmappedOwners;

/// What a store does beside what each call asks for. The same structure for embedders, the command line and the
/// configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct StoreOptions {
    /// When what was stored survives a loss of power.
    pub durability: Durability,
    /// What becomes of compressed layers.
    pub keep_blobs: KeepBlobs,
    /// How full the file system may get before images that nobody uses are removed by themselves; never if `None`.
    pub watermarks: Option<Watermarks>,
    /// How layers that come in are kept, and snapshots made.
    pub layers: Backend,
    /// What becomes of entries whose owner does not exist in the user namespace of this process.
    pub unmapped_owners: UnmappedOwners,
    /// What a layer that comes in may ask of the host.
    pub limits: Limits,
}

/// When what was stored survives a loss of power. A crash of the program never costs anything, and in no mode is anything
/// served that a loss of power may have damaged: what was not known to be on disk is fetched again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Soon: nobody waits, the disk is told in the background, for several pulls at once.
    #[default]
    Deferred,
    /// When the call returns.
    Sync,
    /// When somebody asks for it by [`Store::settle`](crate::Store::settle). For nodes whose store need not outlive a boot.
    None,
}

/// What becomes of compressed layers. The store needs none: it gives an unpacked layer back byte by byte as a tar. The
/// compressed form cannot be made again, so a push or export under the very same digests takes a kept blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepBlobs {
    /// They are unpacked as they arrive and never written.
    Never,
    /// They may be written while a layer is fetched, so that a fetch that is cut off goes on where it was.
    #[default]
    UntilUnpacked,
    /// They stay with their image.
    Always,
}

/// How full the store's file system may get, in per cent of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Watermarks {
    /// Above this, images are removed that no snapshot uses, the least recently used first.
    pub high_percent: u8,
    /// Until this is reached.
    pub low_percent: u8,
}
