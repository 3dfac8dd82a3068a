//! The image store as the executor uses it.

use std::path::{Path, PathBuf};

use cofferdam_image::{
    Artifacts, Cancel, Digest, Image, ImageRef, Kind as ImageKind, Lower, Platform, PullConfig, PullEvent,
    PullOptions, PullPolicy, PushEvent, PushOptions, Removed, Snapshot, SnapshotOptions, Store,
};

use crate::demo;
use crate::error::{Error, Kind};
use crate::id::TaskId;
use crate::release::Places;
use crate::spec::PullWhen;

/// Where the store is below the data directory.
const STORE: &str = "images";

/// Opens the store.
pub(crate) fn open(places: &Places) -> Result<Store, Error> {
    Store::open_with(&places.root.join(STORE), places.store.clone()).map_err(failed)
}

/// Opens the image store of a data directory, without an executor.
pub fn open_store(root: &Path) -> Result<Store, Error> {
    Store::open(&root.join(STORE)).map_err(failed)
}

/// The stored image that a user means by a reference, an id or its beginning, or `demo` for the embedded image.
pub fn find_stored(store: &Store, name: &str) -> Result<Image, Error> {
    if let Some(image) = store.find(demo::stored_name(name)).map_err(failed)? {
        return Ok(image);
    }
    Err(unknown(name))
}

/// Takes a name away from a stored image, and the image with its last name, as [`Store::remove`] does; `demo` is the
/// embedded image.
pub fn remove_stored(store: &Store, name: &str, force: bool) -> Result<Removed, Error> {
    if demo::is_demo(name) {
        find_stored(store, name)?;
    }
    store.remove(demo::stored_name(name), force).map_err(failed)
}

fn unknown(name: &str) -> Error {
    if demo::is_demo(name) {
        let message = "the image demo is part of this program and not in the store now; `cofferdam pull demo` puts it there";
        return Error::Image { kind: Kind::NotFound, message: message.to_owned() };
    }
    failed(cofferdam_image::Error::UnknownImage { name: name.to_owned() })
}

/// Every tag of a repository. `name` has none itself, or one of them would be meant.
pub(crate) fn tags(
    store: &Store,
    name: &str,
    config: &PullConfig,
    cancel: Cancel,
) -> Result<Vec<ImageRef>, Error> {
    if name.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
        let message = format!("{name} names one image; all tags are those of a name without one");
        return Err(Error::Image { kind: Kind::InvalidInput, message });
    }
    let options = PullOptions { cancel, ..config.options().map_err(failed)? };
    store.tags(&parse(name)?, &options).map_err(failed)
}

/// An image wanted for a task or by `pull`.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// What the caller wrote.
    pub reference: String,
    /// When the registry is asked.
    pub when: PullWhen,
    /// Another platform than the host's.
    pub platform: Option<String>,
    /// Whether something that cannot be run will do.
    pub artifacts: Artifacts,
    /// How to talk to registries and what to let in, in place of what the executor's configuration says.
    pub pull: Option<PullConfig>,
    /// Stops the pull.
    pub cancel: Cancel,
}

impl ImageRequest {
    /// The image as `run` without options gets it.
    pub fn new(reference: impl Into<String>) -> ImageRequest {
        ImageRequest {
            reference: reference.into(),
            when: PullWhen::default(),
            platform: None,
            artifacts: Artifacts::Refused,
            pull: None,
            cancel: Cancel::new(),
        }
    }
}

/// An image to be pushed.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// What is pushed.
    pub source: PushSource,
    /// Where to, as a reference.
    pub target: String,
    /// How to talk to registries, in place of what the executor's configuration says.
    pub pull: Option<PullConfig>,
    /// Stops the push.
    pub cancel: Cancel,
}

/// Where an image to be pushed is.
#[derive(Clone, Debug)]
pub enum PushSource {
    /// In the store, under a name or an id.
    Store(String),
    /// In a directory in the OCI image layout.
    Layout {
        /// The directory.
        path: PathBuf,
        /// Its name in the layout's index; not needed where there is one image only.
        name: Option<String>,
    },
}

/// Pushes an image.
pub(crate) fn push(
    store: &Store,
    request: &PushRequest,
    config: &PullConfig,
    progress: &dyn Fn(PushEvent),
) -> Result<Digest, Error> {
    let target = parse(&request.target)?;
    let client = request.pull.as_ref().unwrap_or(config).options().map_err(failed)?.client;
    let options = PushOptions { client, cancel: request.cancel.clone() };
    let pushed = match &request.source {
        PushSource::Layout { path, name } => {
            store.push_layout(path, name.as_deref(), &target, &options, progress)
        }
        PushSource::Store(name) => {
            let image = find_stored(store, name)?;
            store.push(&image, &target, &options, progress)
        }
    };
    pushed.map_err(failed)
}

fn parse(reference: &str) -> Result<ImageRef, Error> {
    let invalid = |error: cofferdam_image::InvalidReference| Error::Image {
        kind: Kind::InvalidInput,
        message: error.to_string(),
    };
    ImageRef::parse(reference).map_err(invalid)
}

/// Has the image in the store, fetching it if that is wanted.
pub(crate) fn ensure(
    store: &Store,
    request: &ImageRequest,
    config: &PullConfig,
    progress: &dyn Fn(PullEvent),
) -> Result<Image, Error> {
    if demo::is_demo(&request.reference) {
        return demo::ensure(store);
    }
    let image = find_or_pull(store, request, config, progress)?;
    if request.artifacts == Artifacts::Refused {
        image.require_runnable().map_err(failed)?;
    }
    Ok(image)
}

fn find_or_pull(
    store: &Store,
    request: &ImageRequest,
    config: &PullConfig,
    progress: &dyn Fn(PullEvent),
) -> Result<Image, Error> {
    let platform = request
        .platform
        .as_deref()
        .map(Platform::parse)
        .transpose()
        .map_err(|error| Error::Image { kind: Kind::InvalidInput, message: error.to_string() })?;
    let is_meant = |name: &ImageRef| ImageRef::parse(&request.reference).is_ok_and(|meant| meant == *name);
    // An id, or the beginning of one, names an image of the store and nothing in a registry.
    if matches!(request.when, PullWhen::Missing | PullWhen::Never)
        && platform.is_none()
        && let Some(image) = store.find(&request.reference).map_err(failed)?
    {
        match store.require_complete(&image) {
            Ok(()) => return Ok(image),
            // A pull brings back what is missing.
            Err(_) if request.when == PullWhen::Missing && image.names.iter().any(is_meant) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let reference = parse(&request.reference)?;
    let policy = match request.when {
        PullWhen::Always => PullPolicy::Always,
        PullWhen::Missing => PullPolicy::Missing,
        PullWhen::Never => PullPolicy::Never,
        PullWhen::Newer => PullPolicy::Newer,
    };
    let options = request.pull.as_ref().unwrap_or(config).options().map_err(failed)?;
    let (artifacts, cancel) = (request.artifacts, request.cancel.clone());
    let options = PullOptions { platform, policy, artifacts, cancel, ..options };
    store.pull(&reference, &options, progress).map_err(failed)
}

/// The directories of a task's root file system, made if they are missing.
pub(crate) fn prepare(
    store: &Store,
    id: &TaskId,
    image: &Image,
    writable_bytes: Option<u64>,
) -> Result<Snapshot, Error> {
    store.prepare_with(&key(id), image, &SnapshotOptions { writable_bytes }).map_err(failed)
}

/// The directories of a task's root file system, uppermost first.
pub(crate) fn layers(places: &Places, id: &TaskId) -> Result<Vec<Lower>, Error> {
    let snapshot = open(places)?.snapshot(&key(id)).map_err(failed)?;
    Ok(snapshot.map(|snapshot| snapshot.layers().collect()).unwrap_or_default())
}

/// Removes a task's changes to its image; the image's layers are free to go then.
pub(crate) fn remove_snapshot(places: &Places, id: &TaskId) -> Result<(), Error> {
    let store = open(places)?;
    if store.remove_snapshot(&key(id)).map_err(failed)? {
        // The store deletes in the background, and this process may end before that.
        store.settle().map_err(failed)?;
    }
    Ok(())
}

fn key(id: &TaskId) -> String {
    format!("task-{id}")
}

/// Translates the store's errors; what they say is complete.
pub(crate) fn failed(error: cofferdam_image::Error) -> Error {
    let kind = match error.kind() {
        ImageKind::NotFound => Kind::NotFound,
        ImageKind::AlreadyExists => Kind::AlreadyExists,
        ImageKind::InvalidInput => Kind::InvalidInput,
        ImageKind::Unsupported => Kind::Unsupported,
        ImageKind::Conflict => Kind::Conflict,
        ImageKind::Denied => Kind::Denied,
        ImageKind::Exhausted => Kind::Exhausted,
        ImageKind::Interrupted => Kind::Interrupted,
        _ => Kind::Internal,
    };
    Error::Image { kind, message: error.to_string() }
}
