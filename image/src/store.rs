//! The store: the one door to images, layers and snapshots.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use cofferdam_registry::{Digest, ImageRef};
use serde::Serialize;

use crate::background::Background;
use crate::diff::{self, Change};
use crate::error::Error;
use crate::event::PullEvent;
use crate::export::{self, Export, ExportOptions};
use crate::gc::{self, Collected};
use crate::image::{self, Image, ImageLayer};
use crate::import::{self, ImportOptions};
use crate::layout::{self, Layout};
use crate::lock::{Lock, Mode};
use crate::options::{Durability, StoreOptions};
use crate::prune::{self, PruneOptions, Pruned};
use crate::pull::{self, PullOptions};
use crate::push::{self, PushEvent, PushOptions};
use crate::settle;
use crate::snapshot::{self, Snapshot, SnapshotOptions};
use crate::usage::{self, Usage};
use crate::verify::{self, Verified, VerifyOptions};
use crate::workspace::{self, Workspace};

/// A folder with images, layers and snapshots. Any number of processes may have it open; none of them is a daemon.
///
/// Calls block, some for as long as a download takes, and must not be made from async code directly. Extracting layers
/// needs root, or at least CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SETFCAP and CAP_SYS_ADMIN (for
/// overlayfs's own attributes).
#[derive(Clone, Debug)]
pub struct Store {
    layout: Arc<Layout>,
    background: Arc<Background>,
}

/// What [`Store::remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Names that no longer stand for anything.
    pub untagged: Vec<ImageRef>,
    /// The image's manifest digest, if the image itself went.
    pub deleted: Option<Digest>,
}

impl Store {
    /// Opens the store at `root` as [`StoreOptions::default`] says.
    pub fn open(root: &Path) -> Result<Store, Error> {
        Store::open_with(root, StoreOptions::default())
    }

    /// Opens the store at `root`, making it if needed, and clears away what dead processes left half-made.
    ///
    /// Refuses a backend that this host cannot have, and a store that belongs to another user or that was made in a format that this program does not know.
    pub fn open_with(root: &Path, options: StoreOptions) -> Result<Store, Error> {
        let layout = Layout::create(root, options)?;
        let backend = layout.options().layers;
        backend
            .is_supported(layout.root())
            .map_err(|source| Error::BackendUnavailable { backend, source })?;
        if workspace::any_dead(&layout)? {
            let store = Lock::wait(&layout.store_lock(), Mode::Exclusive)?;
            workspace::reap(&layout, &store)?;
        }
        let store = Store { layout: Arc::new(layout), background: Arc::default() };
        if !store.layout.list("trash")?.is_empty() {
            store.empty_trash_later();
        }
        if settle::is_expected(&store.layout) && store.options().durability != Durability::None {
            store.settle_later();
        }
        Ok(store)
    }

    /// How the store is operated.
    pub fn options(&self) -> &StoreOptions {
        self.layout.options()
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Pulls an image. `progress` is called on this thread.
    pub fn pull(
        &self,
        reference: &ImageRef,
        options: &PullOptions,
        progress: &dyn Fn(PullEvent),
    ) -> Result<Image, Error> {
        let digest = pull::pull(&self.layout, reference, options, progress)?;
        self.stored()?;
        self.image(&digest)?.ok_or_else(|| Error::UnknownImage { name: reference.familiar() })
    }

    /// Every tag that the reference's repository has in its registry, as references, for pulling them all.
    pub fn tags(&self, reference: &ImageRef, options: &PullOptions) -> Result<Vec<ImageRef>, Error> {
        pull::tags(reference, options)
    }

    /// Pushes a stored image, byte for byte as it was pulled, and returns its digest. `progress` is called on this thread.
    pub fn push(
        &self,
        image: &Image,
        target: &ImageRef,
        options: &PushOptions,
        progress: &dyn Fn(PushEvent),
    ) -> Result<Digest, Error> {
        push::push_stored(&self.layout, &image.digest, target, options, progress)
    }

    /// Pushes the image of an OCI layout: the one named `name` in its index, or its only one.
    pub fn push_layout(
        &self,
        layout: &Path,
        name: Option<&str>,
        target: &ImageRef,
        options: &PushOptions,
        progress: &dyn Fn(PushEvent),
    ) -> Result<Digest, Error> {
        push::push_layout(layout, name, target, options, progress)
    }

    /// Imports every image of an archive, read from a stream of any kind.
    pub fn import(
        &self,
        source: &mut dyn Read,
        options: &ImportOptions,
        progress: &dyn Fn(PullEvent),
    ) -> Result<Vec<Image>, Error> {
        let digests = import::import_archive(&self.layout, "archive", source, options, progress)?;
        self.imported(&digests)
    }

    /// Imports every image of an archive file, or of a directory in the OCI image layout.
    pub fn import_path(
        &self,
        path: &Path,
        options: &ImportOptions,
        progress: &dyn Fn(PullEvent),
    ) -> Result<Vec<Image>, Error> {
        let digests = import::import_path(&self.layout, path, options, progress)?;
        self.imported(&digests)
    }

    fn imported(&self, digests: &[Digest]) -> Result<Vec<Image>, Error> {
        self.stored()?;
        let images = digests.iter().map(|digest| {
            self.image(digest)?.ok_or_else(|| Error::UnknownImage { name: digest.to_string() })
        });
        images.collect()
    }

    /// Finds an image by a reference, or by the beginning of its id or digest (at least four digits).
    pub fn find(&self, name: &str) -> Result<Option<Image>, Error> {
        match image::find(&self.layout, name)? {
            Some(digest) => self.image(&digest),
            None => Ok(None),
        }
    }

    /// The image with that manifest digest.
    pub fn image(&self, digest: &Digest) -> Result<Option<Image>, Error> {
        let Some(record) = image::load_record(&self.layout, digest)? else { return Ok(None) };
        image::assemble(&self.layout, record, &image::names(&self.layout)?)
    }

    /// Every image, the newest in the store first.
    pub fn images(&self) -> Result<Vec<Image>, Error> {
        let names = image::names(&self.layout)?;
        let mut images = Vec::new();
        for record in image::records(&self.layout)? {
            images.extend(image::assemble(&self.layout, record, &names)?);
        }
        images.sort_by_key(|image| std::cmp::Reverse(image.stored_at));
        Ok(images)
    }

    /// Makes a further name stand for an image.
    pub fn tag(&self, image: &Image, name: &ImageRef) -> Result<(), Error> {
        let workspace = Workspace::create(&self.layout)?;
        let target = image.digest.clone();
        image::NameRecord { name: name.clone(), image: image.digest.clone(), target }
            .store(&self.layout, &workspace)?;
        self.stored()
    }

    /// Takes a name away from its image, and the image with its last name. Given an id, all names go. An image that a
    /// snapshot uses, or an id with several names, is removed only by `force`; the snapshot keeps the layers it needs.
    pub fn remove(&self, name: &str, force: bool) -> Result<Removed, Error> {
        let digest =
            image::find(&self.layout, name)?.ok_or_else(|| Error::UnknownImage { name: name.to_owned() })?;
        let all = image::names(&self.layout)?.remove(&digest).unwrap_or_default();
        let own: Vec<ImageRef> = all.into_iter().map(|record| record.name).collect();
        let named = ImageRef::parse(name).ok().filter(|reference| own.contains(reference));
        let untagged = match named {
            Some(reference) => vec![reference],
            None if own.len() > 1 && !force => {
                let users = own.iter().map(ImageRef::familiar).collect();
                return Err(Error::InUse { image: name.to_owned(), users });
            }
            None => own.clone(),
        };
        let last = untagged.len() == own.len();
        let mut removed = Removed { untagged, deleted: None };
        if last {
            self.refuse_if_used(name, &digest, force)?;
        }
        for reference in &removed.untagged {
            self.layout.discard(&self.layout.at(&layout::name(&reference.to_string())))?;
        }
        if last {
            self.layout.discard(&self.layout.at(&layout::image(&digest)))?;
            removed.deleted = Some(digest);
            self.gc()?;
        }
        Ok(removed)
    }

    fn refuse_if_used(&self, name: &str, digest: &Digest, force: bool) -> Result<(), Error> {
        let snapshots = snapshot::records(&self.layout)?.into_iter();
        let users: Vec<String> =
            snapshots.filter(|record| record.image == *digest).map(|record| record.key).collect();
        if users.is_empty() || force {
            return Ok(());
        }
        Err(Error::InUse { image: name.to_owned(), users })
    }

    /// Removes layers and documents that no image, snapshot or running operation needs. Images stay, named or not.
    pub fn gc(&self) -> Result<Collected, Error> {
        let collected = gc::collect(&self.layout)?;
        self.empty_trash_later();
        Ok(collected)
    }

    /// Removes images that nobody uses, and everything that goes with them.
    pub fn prune(&self, options: &PruneOptions) -> Result<Pruned, Error> {
        let pruned = prune::prune(&self.layout, options)?;
        self.empty_trash_later();
        Ok(pruned)
    }

    /// What takes how much. Walks everything.
    pub fn usage(&self) -> Result<Usage, Error> {
        usage::usage(&self.layout)
    }

    /// Writes images as an archive to a stream. After an error what was written is no archive.
    pub fn export(
        &self,
        exports: &[Export],
        options: &ExportOptions,
        stream: &mut dyn Write,
    ) -> Result<(), Error> {
        export::export_stream(&self.layout, exports, options, stream)
    }

    /// Writes images to a file or an empty or new directory, which is there as a whole or not at all.
    pub fn export_path(&self, exports: &[Export], options: &ExportOptions, path: &Path) -> Result<(), Error> {
        export::export_path(&self.layout, exports, options, path)
    }

    /// What the stack of layers `to` shows other than the stack `from`, both lowest first.
    pub fn diff(&self, from: &[ImageLayer], to: &[ImageLayer]) -> Result<Vec<Change>, Error> {
        diff::diff(&self.layout, from, to)
    }

    /// Prepares a writable snapshot of `image` and returns its directories; mounting them is the caller's.
    pub fn prepare(&self, key: &str, image: &Image) -> Result<Snapshot, Error> {
        self.prepare_with(key, image, &SnapshotOptions::default())
    }

    /// As [`Store::prepare`], with wishes.
    pub fn prepare_with(
        &self,
        key: &str,
        image: &Image,
        options: &SnapshotOptions,
    ) -> Result<Snapshot, Error> {
        image.require_runnable()?;
        self.require_complete(image)?;
        let snapshot = snapshot::prepare(&self.layout, key, image, options)?;
        prune::touch(&self.layout, &image.digest);
        Ok(snapshot)
    }

    /// Refuses an image of which something is missing that was there: it was found damaged, or power was lost too early.
    pub fn require_complete(&self, image: &Image) -> Result<(), Error> {
        let unknown = || Error::UnknownImage { name: image.digest.to_string() };
        let record = image::load_record(&self.layout, &image.digest)?.ok_or_else(unknown)?;
        let Some(layer) = image::missing(&self.layout, &record)? else { return Ok(()) };
        let label = image.names.first().map_or_else(|| image.digest.to_string(), ImageRef::familiar);
        let reason = "was found damaged, or was not on disk yet when power was lost".to_owned();
        Err(Error::Incomplete { image: label, layer, reason })
    }

    /// The snapshot that was prepared under `key`.
    pub fn snapshot(&self, key: &str) -> Result<Option<Snapshot>, Error> {
        snapshot::load(&self.layout, key)
    }

    /// Every snapshot.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        snapshot::all(&self.layout)
    }

    /// Removes a snapshot with everything written to it; it must not be mounted. Returns whether there was one.
    pub fn remove_snapshot(&self, key: &str) -> Result<bool, Error> {
        let existed = snapshot::remove(&self.layout, key)?;
        self.empty_trash_later();
        Ok(existed)
    }

    /// Looks whether what is stored is still what was pulled or imported. What is damaged is discarded, so that the next pull
    /// or import heals it. Reads all of it, and takes as long.
    pub fn verify(&self, options: &VerifyOptions) -> Result<Verified, Error> {
        let verified = verify::verify(&self.layout, options)?;
        self.empty_trash_later();
        Ok(verified)
    }

    /// Waits until everything stored would survive a loss of power and everything removed has left the disk. Done in the
    /// background otherwise; a process that ends earlier leaves it to the next.
    pub fn settle(&self) -> Result<(), Error> {
        self.background.finish();
        if settle::is_expected(&self.layout) {
            settle::settle(&self.layout)?;
        }
        self.layout.empty_trash()
    }

    /// Something came in: it is made durable as the options say, and makes room for itself.
    fn stored(&self) -> Result<(), Error> {
        settle::expect(&self.layout)?;
        if let Some(marks) = self.options().watermarks {
            let layout = Arc::clone(&self.layout);
            // Where no room can be made the next operation says that the disk is full.
            self.background.start(move || drop(prune::make_room(&layout, marks)));
        }
        match self.options().durability {
            Durability::Sync => settle::settle(&self.layout),
            Durability::Deferred => {
                self.settle_later();
                Ok(())
            }
            Durability::None => Ok(()),
        }
    }

    fn settle_later(&self) {
        let layout = Arc::clone(&self.layout);
        // What cannot be made durable now stays marked, and is tried again by whoever opens the store next.
        self.background.start_soon(move || drop(settle::settle(&layout)));
    }

    fn empty_trash_later(&self) {
        let layout = Arc::clone(&self.layout);
        self.background.start(move || drop(layout.empty_trash()));
    }
}
