//! Pushing: from an image in the store, or in an OCI layout on disk, to a registry.
//!
//! What is pushed is what was pulled, byte for byte: the same manifest under the same digest. The registry may have its blobs
//! already, may take them over from another of its repositories, or is sent them, where their compressed form is still there.
//! A layer that came as its tar, as those of docker's archives do, is put together again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_registry::{
    BlobSource, Client, ClientOptions, Descriptor, Digest, Document, ImageRef, MANIFEST_LIMIT_BYTES,
    OCI_MANIFEST, OpenSource, Pushed,
};
use serde::Serialize;

use crate::error::Error;
use crate::event::Cancel;
use crate::identity::DiffId;
use crate::image;
use crate::layer::{self, RECIPE};
use crate::layout::{self, Layout};
use crate::recipe::LayerTar;

/// How an image is pushed.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// Credentials, mirrors, certificates, proxies, time limits, retries.
    pub client: ClientOptions,
    /// Stops the push from another thread.
    pub cancel: Cancel,
}

/// One step of a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PushEvent {
    /// A blob is in the registry now.
    Blob {
        /// Its digest.
        digest: Digest,
        /// Its size in bytes.
        total_bytes: u64,
        /// How it came there.
        how: Pushed,
    },
    /// The image is in the registry under its name.
    Finished {
        /// Its digest.
        digest: Digest,
    },
}

/// Where documents and blobs are read from: `blobs/<algorithm>/<hex>` below a folder.
struct Blobs {
    root: PathBuf,
    /// The store that they are in, which has layers unpacked.
    store: Option<Layout>,
}

impl Blobs {
    fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join(layout::blob(digest))
    }

    /// How a blob is read; `None` if it is not here, nor what it could be made of.
    fn source(&self, digest: &Digest) -> Result<Option<OpenSource>, Error> {
        let path = self.path(digest);
        if path.exists() {
            return Ok(Some(Arc::new(move || Ok(Box::new(File::open(&path)?)))));
        }
        let Some(store) = self.store.clone() else { return Ok(None) };
        let diff_id = DiffId::new(digest.clone());
        let Some(record) = layer::load(&store, &diff_id)? else { return Ok(None) };
        let recipe = store.at(&layout::layer(&diff_id)).join(RECIPE);
        if record.replaced.is_some() || !recipe.exists() {
            return Ok(None);
        }
        // The registry compares the digest: a damaged layer is refused there.
        Ok(Some(Arc::new(move || {
            let tree = layer::open_tree(&store, &record).map_err(io::Error::other)?;
            Ok(Box::new(LayerTar::open(&recipe, tree).map_err(io::Error::other)?))
        })))
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.path(digest);
        let size = std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        if size > MANIFEST_LIMIT_BYTES {
            let limit_bytes = MANIFEST_LIMIT_BYTES;
            return Err(cofferdam_registry::Error::TooLarge {
                what: path.display().to_string(),
                limit_bytes,
            }
            .into());
        }
        std::fs::read(&path).map_err(Error::io("read", &path))
    }
}

/// Pushes the stored image with this manifest. Blobs that the store does not keep must be in the registry, in any
/// repository that the image was pulled from.
pub(crate) fn push_stored(
    layout: &Layout,
    manifest: &Digest,
    target: &ImageRef,
    options: &PushOptions,
    progress: &dyn Fn(PushEvent),
) -> Result<Digest, Error> {
    let names = image::names(layout)?.remove(manifest).unwrap_or_default();
    let same = names.iter().map(|record| &record.name).filter(|name| name.registry() == target.registry());
    let elsewhere = same.map(|name| name.repository().to_owned()).find(|name| name != target.repository());
    let blobs = Blobs { root: layout.root().to_owned(), store: Some(layout.clone()) };
    let push = Push::new(blobs, elsewhere, target, options, progress)?;
    push.image(manifest, OCI_MANIFEST)
}

/// Pushes the image of an OCI layout: the one that `name` stands for in its index, or its only one.
pub(crate) fn push_layout(
    root: &Path,
    name: Option<&str>,
    target: &ImageRef,
    options: &PushOptions,
    progress: &dyn Fn(PushEvent),
) -> Result<Digest, Error> {
    let path = root.join("index.json");
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let label = path.display().to_string();
    let invalid = |reason: String| Error::Invalid { image: label.clone(), what: "index", reason };
    let Document::Index(index) = Document::parse(&bytes, "", &label)? else {
        return Err(invalid("it is a manifest".to_owned()));
    };
    let named = |descriptor: &&Descriptor| {
        let own = descriptor.annotations.get("org.opencontainers.image.ref.name");
        name.is_none_or(|name| own.is_some_and(|own| own == name))
    };
    let mut found = index.manifests.iter().filter(named);
    let (Some(chosen), None) = (found.next(), found.next()) else {
        return Err(invalid(match name {
            Some(name) => format!("it does not have exactly one image named {name:?}"),
            None => "it does not have exactly one image; say which by its name".to_owned(),
        }));
    };
    let blobs = Blobs { root: root.to_owned(), store: None };
    Push::new(blobs, None, target, options, progress)?.image(&chosen.digest, &chosen.media_type)
}

struct Push<'a> {
    client: Client,
    blobs: Blobs,
    /// A repository of the same registry that has the image's blobs.
    mount_from: Option<String>,
    target: &'a ImageRef,
    options: &'a PushOptions,
    progress: &'a dyn Fn(PushEvent),
}

impl<'a> Push<'a> {
    fn new(
        blobs: Blobs,
        mount_from: Option<String>,
        target: &'a ImageRef,
        options: &'a PushOptions,
        progress: &'a dyn Fn(PushEvent),
    ) -> Result<Push<'a>, Error> {
        let client = Client::new(options.client.clone())?;
        Ok(Push { client, blobs, mount_from, target, options, progress })
    }

    /// Everything that the manifest or index needs, then it itself, under the target's name.
    fn image(&self, digest: &Digest, media_type: &str) -> Result<Digest, Error> {
        let stopper = self.client.stopper();
        let _stopping = self.options.cancel.on_cancel(move || stopper.stop());
        let bytes = self.blobs.document(digest)?;
        let mut done = BTreeSet::new();
        let media_type = self.contents(&bytes, media_type, 0, &mut done)?;
        let digest = self.client.push_manifest(self.target, &media_type, &bytes)?;
        (self.progress)(PushEvent::Finished { digest: digest.clone() });
        Ok(digest)
    }

    /// Returns the document's media type, its own word before the one that it was found under.
    fn contents(
        &self,
        bytes: &[u8],
        media_type: &str,
        depth: usize,
        done: &mut BTreeSet<Digest>,
    ) -> Result<String, Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Own {
            #[serde(default)]
            media_type: Option<String>,
        }
        let label = self.target.to_string();
        match Document::parse(bytes, "", &label)? {
            Document::Manifest(manifest) => {
                for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                    if done.insert(blob.digest.clone()) {
                        self.blob(blob)?;
                    }
                }
            }
            Document::Index(index) if depth < INDEX_DEPTH_LIMIT => {
                for entry in &index.manifests {
                    let inner = self.blobs.document(&entry.digest)?;
                    let kind = self.contents(&inner, &entry.media_type, depth + 1, done)?;
                    self.client.push_manifest(&self.target.at(entry.digest.clone()), &kind, &inner)?;
                }
            }
            Document::Index(_) => {
                let reason = format!("indexes nest deeper than {INDEX_DEPTH_LIMIT}");
                return Err(Error::Invalid { image: label, what: "index", reason });
            }
        }
        let own: Option<Own> = serde_json::from_slice(bytes).ok();
        Ok(own.and_then(|own| own.media_type).unwrap_or_else(|| media_type.to_owned()))
    }

    fn blob(&self, blob: &Descriptor) -> Result<(), Error> {
        let own = self.blobs.source(&blob.digest)?;
        let is_here = own.is_some();
        let absent = || Err(io::Error::new(io::ErrorKind::NotFound, "the store does not keep it"));
        let source = BlobSource {
            digest: blob.digest.clone(),
            size: blob.size,
            open: own.unwrap_or_else(|| Arc::new(absent)),
            mount_from: self.mount_from.clone(),
        };
        let how = match is_here || self.mount_from.is_some() {
            true => self
                .client
                .push_blob(self.target, &source)
                .map_err(|error| if is_here { error.into() } else { self.missing(blob) })?,
            false if self.client.has_blob(self.target, &blob.digest)? => Pushed::Existed,
            false => return Err(self.missing(blob)),
        };
        (self.progress)(PushEvent::Blob { digest: blob.digest.clone(), total_bytes: blob.size, how });
        Ok(())
    }

    fn missing(&self, blob: &Descriptor) -> Error {
        cofferdam_registry::Error::Source {
            what: format!("blob {} of {}", blob.digest, self.target.familiar()),
            reason:
                "the store keeps layers unpacked, and the registry has it in no repository that is known; \
                     pull the image with keep-blobs = \"always\", or push from an OCI layout"
                    .to_owned(),
        }
        .into()
    }
}

/// How deep indexes may nest.
const INDEX_DEPTH_LIMIT: usize = 4;
