//! What can go wrong in the store, while unpacking and while importing.

use std::io;
use std::path::{Path, PathBuf};

use cofferdam_registry::{Digest, Kind};

use crate::backend::{Backend, Unavailable};

/// A failed operation on images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry or what it sent.
    #[error(transparent)]
    Registry(#[from] cofferdam_registry::Error),
    /// A layer cannot be unpacked.
    #[error("image {image}: layer {layer}: {source}")]
    Layer {
        /// The image.
        image: String,
        /// The layer's blob digest.
        layer: String,
        /// What is wrong with it.
        source: Box<LayerError>,
    },
    /// A manifest, configuration or archive breaks a rule.
    #[error("image {image}: invalid {what}: {reason}")]
    Invalid {
        /// The image or archive.
        image: String,
        /// Which document.
        what: &'static str,
        /// The rule that it breaks.
        reason: String,
    },
    /// The image is for another platform.
    #[error("wrong platform: {image} is for {actual}, not for {wanted}")]
    WrongPlatform {
        /// The image.
        image: String,
        /// What was asked for.
        wanted: String,
        /// What the image's configuration says.
        actual: String,
    },
    /// The host cannot have the backend that was asked for.
    #[error("layers cannot be kept as {backend}: {source}; overlay-dir and copy work everywhere")]
    BackendUnavailable {
        /// What was asked for.
        backend: Backend,
        /// Why not.
        source: Unavailable,
    },
    /// A writable layer cannot be limited.
    #[error("the writable layer cannot be limited to {bytes} bytes: {reason}")]
    QuotaUnavailable {
        /// The limit.
        bytes: u64,
        /// Why not.
        reason: String,
    },
    /// No such image in the store.
    #[error("no such image: {name}; `cofferdam image ls` lists those that there are")]
    UnknownImage {
        /// What was asked for.
        name: String,
    },
    /// A short id that several images begin with.
    #[error("{name} is ambiguous: {} images match", .matches.len())]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The images' digests.
        matches: Vec<Digest>,
    },
    /// The image cannot be removed.
    #[error("image {image} is in use by {}", .users.join(", "))]
    InUse {
        /// The image.
        image: String,
        /// Snapshots, or further names.
        users: Vec<String>,
    },
    /// A snapshot of that key exists.
    #[error("snapshot {key} exists already")]
    SnapshotExists {
        /// The key.
        key: String,
    },
    /// A name that an import was to set stands for another image.
    #[error(
        "{name} is the name of image {taken_by} already; import under another name, without names, or allow it to be replaced"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The image that has it.
        taken_by: Digest,
    },
    /// The image was stored, but is not all there any more: a layer was found damaged, or power was lost too early.
    #[error("image {image} is incomplete: layer {layer} {reason}; pull or import it again")]
    Incomplete {
        /// The image.
        image: String,
        /// The layer that is missing.
        layer: String,
        /// What became of it.
        reason: String,
    },
    /// A layer cannot be given back as a tar.
    #[error("image {image}: layer {layer} cannot be exported: {reason}")]
    NotExportable {
        /// The image.
        image: String,
        /// The layer's DiffID.
        layer: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The store was made by a program with another format.
    #[error(
        "the store {} has format {found}, this program knows {oldest} to {newest}: use the program that made it, or another folder",
        .root.display()
    )]
    Format {
        /// The store.
        root: PathBuf,
        /// Its format.
        found: u32,
        /// The oldest format that can be read.
        oldest: u32,
        /// The newest.
        newest: u32,
    },
    /// An argument that cannot be used.
    #[error("invalid {what} {input:?}: {reason}")]
    InvalidInput {
        /// Which argument.
        what: &'static str,
        /// The argument.
        input: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// The policy or a verifier does not let the image in.
    #[error("image {image} is refused by {rule}: {reason}")]
    Refused {
        /// The image.
        image: String,
        /// Which rule or program.
        rule: String,
        /// What is missing.
        reason: String,
    },
    /// A record on disk was written by a newer cofferdam, or is not what was written.
    #[error("{}: {reason}", .path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {operation} {}: {source}{}", .path.display(), room(.source))]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Registry(error) => error.kind(),
            Error::Layer { source, .. } => source.kind(),
            Error::Invalid { .. } | Error::InvalidInput { .. } => Kind::InvalidInput,
            Error::WrongPlatform { .. } | Error::UnknownImage { .. } => Kind::NotFound,
            Error::BackendUnavailable { .. } | Error::QuotaUnavailable { .. } => Kind::Unsupported,
            Error::Ambiguous { .. } | Error::InUse { .. } => Kind::Conflict,
            Error::NameTaken { .. } => Kind::AlreadyExists,
            Error::Incomplete { .. } => Kind::NotFound,
            Error::NotExportable { .. } | Error::Format { .. } => Kind::Unsupported,
            Error::Refused { .. } => Kind::Denied,
            Error::SnapshotExists { .. } => Kind::AlreadyExists,
            Error::Record { .. } => Kind::Internal,
            Error::Io { source, .. } => kind_of(source),
            Error::Cancelled => Kind::Interrupted,
        }
    }

    /// Wraps a failed system call; meant for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source: source.into() }
    }
}

/// What is wrong with a layer: its bytes, its archive or one entry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The layer did not arrive.
    #[error(transparent)]
    Registry(#[from] cofferdam_registry::Error),
    /// The blob's bytes are not those of its digest.
    #[error("corrupt layer: the blob's digest is {actual}, expected {expected}")]
    BlobDigest {
        /// What the manifest says.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The blob is shorter or longer than its descriptor says.
    #[error("corrupt layer: the blob has {actual} bytes, its descriptor says {expected}")]
    BlobSize {
        /// What the manifest says, in bytes.
        expected: u64,
        /// What came, or one byte more than expected where reading stopped.
        actual: u64,
    },
    /// The unpacked tar is not the one that the configuration names.
    #[error("wrong DiffID: the layer's tar is {actual}, the configuration says {expected}")]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The compressed stream is damaged.
    #[error("corrupt layer: {format} stream: {reason}")]
    Compression {
        /// gzip or zstd.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// The archive is damaged.
    #[error("corrupt layer: tar archive at byte {position}: {reason}")]
    Tar {
        /// How many bytes of the archive were read.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry breaks a rule.
    #[error("entry {path:?}: {rule}")]
    Entry {
        /// The entry's name, escaped where it is not text.
        path: String,
        /// The rule.
        rule: String,
    },
    /// A layer lists a file twice, of which its tree has one: the tar cannot be given back without its blob.
    #[error(
        "it lists {path:?} twice, of which only the last was unpacked: pull the image with keep-blobs = \"always\""
    )]
    ListedTwice {
        /// The file.
        path: String,
    },
    /// A limit was passed.
    #[error("the layer is refused: {what} exceeds the limit of {limit}{}", crate::limits::remedy(*.name))]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// What the limit is called where it can be set; see [`Limits`](crate::Limits).
        name: Option<&'static str>,
    },
    /// A system call for an entry failed.
    #[error("entry {path:?}: cannot {operation}: {source}{}", room(.source))]
    EntryIo {
        /// The entry's name.
        path: String,
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The blob could not be read.
    #[error("cannot read the blob: {0}")]
    Read(io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(Box<Error>),
    /// The caller cancelled, or another layer failed.
    #[error("cancelled")]
    Cancelled,
}

impl LayerError {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            LayerError::Registry(error) => error.kind(),
            LayerError::Limit { .. } => Kind::Exhausted,
            LayerError::EntryIo { source, .. } | LayerError::Read(source) => kind_of(source),
            LayerError::Store(error) => error.kind(),
            LayerError::Cancelled => Kind::Interrupted,
            _ => Kind::InvalidInput,
        }
    }

    pub(crate) fn entry(path: &[u8], rule: impl Into<String>) -> LayerError {
        LayerError::Entry { path: printable(path), rule: rule.into() }
    }

    pub(crate) fn entry_io<'a, E: Into<io::Error>>(
        path: &'a [u8],
        operation: &'static str,
    ) -> impl FnOnce(E) -> LayerError + use<'a, E> {
        // Put in words when it failed: a layer of many files makes this for each of them, several times.
        move |source| LayerError::EntryIo { path: printable(path), operation, source: source.into() }
    }
}

impl From<Error> for LayerError {
    fn from(error: Error) -> LayerError {
        match error {
            Error::Cancelled => LayerError::Cancelled,
            error => LayerError::Store(Box::new(error)),
        }
    }
}

/// An entry's name as text, at most 256 characters; control characters are escaped by the messages' `{:?}`.
fn printable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(256).collect()
}

/// How room is made where there is none.
fn room(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; `cofferdam image prune --all` makes room",
        _ => "",
    }
}

fn kind_of(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::AlreadyExists => Kind::AlreadyExists,
        io::ErrorKind::PermissionDenied => Kind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            Kind::Exhausted
        }
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut => Kind::Interrupted,
        _ => Kind::Internal,
    }
}
