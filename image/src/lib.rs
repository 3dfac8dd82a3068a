//! Images on disk: pulled or imported, unpacked in one pass, found again, stacked for a mount.
//!
//! What this crate does: it keeps a [`Store`], a folder that any number of processes share without a daemon. What it does
//! not: it mounts nothing, runs nothing and knows nothing of containers; [`Store::prepare`] returns the directories that an
//! overlay mount takes.
//!
//! ```no_run
//! use cofferdam_image::{ImageRef, PullOptions, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open("/var/lib/cofferdam/images".as_ref())?;
//! let image = store.pull(&ImageRef::parse("busybox:1.36")?, &PullOptions::default(), &|event| println!("{event:?}"))?;
//! let snapshot = store.prepare("my-task", &image)?;
//! println!("mount {:?} over {:?}", snapshot.upper, snapshot.lower);
//! # Ok(())
//! # }
//! ```
//!
//! Read first: `layout` (what is where), `ingest` (how an image comes in), `layer` (lock, publish), `unpack` (from bytes to a
//! tree, on two threads), `extract` (what becomes of each entry), `fixup` (what depends on how layers are stacked). Everything is verified while it streams past:
//! blob digest, size, DiffID; nothing is visible before all three match.
//!
//! Privileges: unpacking sets owners, device nodes and overlayfs's attributes, so it needs root. Threads: two a layer while
//! an image comes in, a third one for a layer of many small files, and short-lived ones that delete and sync in the background.

mod archive;
mod artifact;
mod attributes;
mod backend;
mod background;
mod builder;
mod contents;
mod copy;
mod cosign;
mod decode;
mod diff;
mod directory;
mod entry;
mod erofs;
mod error;
mod event;
mod export;
mod extract;
mod filler;
mod fixup;
mod gc;
mod identity;
mod image;
mod import;
mod ingest;
mod keep;
mod layer;
mod layout;
mod limits;
mod lock;
mod merge;
mod options;
mod owners;
mod partial;
mod path;
mod policy;
mod prune;
mod pull;
mod push;
mod quota;
mod recipe;
mod record;
mod ring;
mod settle;
mod snapshot;
mod stack;
mod store;
mod tar;
mod trash;
mod unpack;
mod usage;
mod verifier;
mod verify;
mod workspace;

pub use artifact::{Artifact, ArtifactBlob};
pub use backend::{Backend, Unavailable};
pub use builder::ImageBuilder;
pub use cofferdam_registry::{
    ClientOptions, Credential, CredentialSource, Digest, HostFiles, ImageRef, InvalidReference, Kind,
    PlainHttp, Platform, Proxies, Pushed, RangePolicy, RetryPolicy, Secret, Timeouts,
};
pub use diff::{Change, ChangeKind};
pub use error::{Error, LayerError};
pub use event::{Cancel, PullEvent};
pub use export::{Export, ExportOptions};
pub use gc::Collected;
pub use identity::{ChainId, DiffId};
pub use image::{Image, ImageLayer};
pub use import::{ImportOptions, Layout, Naming, Taken};
pub use limits::Limits;
pub use options::{Durability, KeepBlobs, StoreOptions, Watermarks};
pub use owners::UnmappedOwners;
pub use policy::{Admission, Policy};
pub use prune::{PruneOptions, Pruned, Unused};
pub use pull::{Artifacts, PullConfig, PullOptions, PullPolicy};
pub use push::{PushEvent, PushOptions};
pub use quota::{QuotaCheck, SMALLEST_BYTES as SMALLEST_WRITABLE_BYTES, probe as probe_quotas};
pub use snapshot::{Lower, Snapshot, SnapshotOptions};
pub use store::{Removed, Store};
pub use usage::{ImageUsage, Usage};
pub use verifier::{VERIFIER_TIMEOUT, Verifier};
pub use verify::{Damaged, Finding, Verdict, Verified, VerifyOptions};
