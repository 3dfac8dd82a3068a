//! Images as the store knows them, and how they are found by name or id.

use std::collections::BTreeMap;

use cofferdam_registry::{Digest, Hasher, ImageRef, Platform};
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::artifact::{Artifact, ArtifactBlob, ArtifactRecord};
use crate::error::Error;
use crate::fixup::FixupRecord;
use crate::identity::DiffId;
use crate::layer;
use crate::layout::{self, Layout};
use crate::record::{self, Durable};
use crate::workspace::Workspace;

/// The fewest hexadecimal digits that may stand for an id.
const SHORT_ID_MIN_DIGITS: usize = 4;

/// An image in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The references that stand for it; none if all were moved to newer images.
    pub names: Vec<ImageRef>,
    /// The image manifest's digest, which identifies the image.
    pub digest: Digest,
    /// The configuration's digest: what docker and podman call the image id.
    pub id: Digest,
    /// The platform that the configuration names.
    pub platform: Platform,
    /// What it is if it is no container image: then there is no configuration, there are no layers, and nothing can be run.
    pub artifact: Option<Artifact>,
    /// The configuration: entry point, environment, user, history.
    pub config: ImageConfiguration,
    /// The layers, lowest first.
    pub layers: Vec<ImageLayer>,
    /// Bytes of all layers' tars, or of an artifact's blobs: about what the image takes on disk, layers shared with other
    /// images included.
    pub size_bytes: u64,
    /// When the image was built, in RFC 3339, if its builder said so.
    pub created: Option<String>,
    /// When the image came into this store, in seconds since 1970.
    pub stored_at: u64,
}

impl Image {
    /// Refuses an artifact: it has no root file system, and nothing that could be run.
    pub fn require_runnable(&self) -> Result<(), Error> {
        let Some(artifact) = &self.artifact else { return Ok(()) };
        let reference = self.names.first().map_or_else(|| self.digest.to_string(), ImageRef::familiar);
        Err(not_runnable(&reference, &artifact.kind))
    }
}

/// The refusal of an artifact where an image is wanted.
pub(crate) fn not_runnable(reference: &str, kind: &str) -> Error {
    let (reference, media_type) = (reference.to_owned(), kind.to_owned());
    cofferdam_registry::Error::NotRunnable { reference, media_type }.into()
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    /// The layer's identity.
    pub diff_id: DiffId,
    /// The blob that it came as.
    pub blob: Digest,
    /// The blob's size in bytes.
    pub blob_bytes: u64,
    /// The tar's size in bytes.
    pub unpacked_bytes: u64,
}

/// `images/<digest>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    pub(crate) platform: Platform,
    pub(crate) layers: Vec<ImageLayer>,
    /// The fix-up layer, relative to the store.
    pub(crate) fixup: Option<String>,
    /// What the lowest layers were merged into, relative to the store, if there are more than overlayfs stacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) merged: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact: Option<ArtifactRecord>,
    pub(crate) stored_at: u64,
}

/// `names/<hash>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(crate) name: ImageRef,
    pub(crate) image: Digest,
    /// What the registry answered for the name: the index's digest, where there is one.
    pub(crate) target: Digest,
}

impl ImageRecord {
    /// What the image cannot do without, relative to the store.
    pub(crate) fn needs(&self) -> Vec<String> {
        let layers = self.layers.iter().map(|layer| layout::layer(&layer.diff_id));
        let contents = self.contents().iter().map(|blob| layout::blob(&blob.digest));
        let documents = [layout::blob(&self.manifest), layout::blob(&self.config)];
        layers.chain(contents).chain(documents).chain(self.fixup.clone()).chain(self.merged.clone()).collect()
    }

    /// What the garbage collector keeps for this image, whether it is there or not: what it needs, and its blobs.
    pub(crate) fn keeps(&self) -> Vec<String> {
        let blobs = self.layers.iter().map(|layer| layout::blob(&layer.blob));
        self.needs().into_iter().chain(blobs).collect()
    }

    /// The blobs of an artifact.
    pub(crate) fn contents(&self) -> &[ArtifactBlob] {
        self.artifact.as_ref().map_or(&[], |record| &record.artifact.blobs)
    }

    /// Bytes that are kept of it.
    pub(crate) fn size_bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.unpacked_bytes);
        layers.chain(self.contents().iter().map(|blob| blob.size)).fold(0, u64::saturating_add)
    }

    pub(crate) fn store(&self, layout: &Layout, workspace: &Workspace) -> Result<(), Error> {
        record::store(&layout.at(&layout::image(&self.manifest)), workspace.path(), self, Durable::Later)
    }
}

impl NameRecord {
    pub(crate) fn store(&self, layout: &Layout, workspace: &Workspace) -> Result<(), Error> {
        let path = layout.at(&layout::name(&self.name.to_string()));
        record::store(&path, workspace.path(), self, Durable::Later)
    }
}

/// The name's record, if the name stands for an image.
pub(crate) fn load_name(layout: &Layout, name: &ImageRef) -> Result<Option<NameRecord>, Error> {
    record::load(&layout.at(&layout::name(&name.to_string())))
}

pub(crate) fn load_record(layout: &Layout, manifest: &Digest) -> Result<Option<ImageRecord>, Error> {
    record::load(&layout.at(&layout::image(manifest)))
}

/// Every name, by the image that it stands for.
pub(crate) fn names(layout: &Layout) -> Result<BTreeMap<Digest, Vec<NameRecord>>, Error> {
    let mut names: BTreeMap<Digest, Vec<NameRecord>> = BTreeMap::new();
    for file in layout.list("names")? {
        if let Some(record) = record::load::<NameRecord>(&layout.at("names").join(file))? {
            names.entry(record.image.clone()).or_default().push(record);
        }
    }
    Ok(names)
}

/// Every image's record.
pub(crate) fn records(layout: &Layout) -> Result<Vec<ImageRecord>, Error> {
    let mut records = Vec::new();
    for file in layout.list("images")? {
        records.extend(record::load::<ImageRecord>(&layout.at("images").join(file))?);
    }
    Ok(records)
}

/// A manifest or configuration, whole.
pub(crate) fn document(layout: &Layout, label: &str, digest: &Digest) -> Result<Vec<u8>, Error> {
    let path = layout.at(&layout::blob(digest));
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    if is_whole(digest, &bytes) {
        return Ok(bytes);
    }
    let reason = format!("what is stored as {digest} has other bytes; pull or import the image again");
    Err(Error::Invalid { image: label.to_owned(), what: "document", reason })
}

fn is_whole(digest: &Digest, bytes: &[u8]) -> bool {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    hasher.finish() == *digest
}

/// The first thing that an image needs and that is not there, or that may be torn after a loss of power.
pub(crate) fn missing(layout: &Layout, image: &ImageRecord) -> Result<Option<String>, Error> {
    for layer in &image.layers {
        if layer::load(layout, &layer.diff_id)?.is_none() {
            return Ok(Some(layer.diff_id.to_string()));
        }
    }
    // What is made of layers is written after them, and may be torn where they are not.
    for made in image.fixup.iter().chain(&image.merged) {
        let made_record: Option<FixupRecord> = record::load(&layout.at(made).join("fixup.json"))?;
        if !made_record.is_some_and(|record| record.fence.holds()) {
            return Ok(Some(made.clone()));
        }
    }
    if let Some(blob) = missing_content(layout, image) {
        return Ok(Some(blob));
    }
    let has_document = |digest: &&Digest| {
        std::fs::read(layout.at(&layout::blob(digest))).is_ok_and(|bytes| is_whole(digest, &bytes))
    };
    let documents = [&image.manifest, &image.config];
    Ok(documents.iter().find(|digest| !has_document(digest)).map(ToString::to_string))
}

/// The first blob of an artifact that is not there, or that may be torn after a loss of power.
fn missing_content(layout: &Layout, image: &ImageRecord) -> Option<String> {
    let artifact = image.artifact.as_ref()?;
    let is_there = |blob: &ArtifactBlob| {
        let metadata = std::fs::metadata(layout.at(&layout::blob(&blob.digest)));
        artifact.fence.holds() && metadata.is_ok_and(|metadata| metadata.len() == blob.size)
    };
    let missing = image.contents().iter().find(|blob| !is_there(blob));
    missing.map(|blob| blob.digest.to_string())
}

/// Puts an image together from its record; `None` if its configuration is lost.
pub(crate) fn assemble(
    layout: &Layout,
    record: ImageRecord,
    names: &BTreeMap<Digest, Vec<NameRecord>>,
) -> Result<Option<Image>, Error> {
    let path = layout.at(&layout::blob(&record.config));
    let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
    if !is_whole(&record.config, &bytes) {
        return Ok(None);
    }
    let config = match &record.artifact {
        Some(_) => ImageConfiguration::default(),
        None => match serde_json::from_slice::<ImageConfiguration>(&bytes) {
            Ok(config) => config,
            Err(_) => return Ok(None),
        },
    };
    let own = names.get(&record.manifest).into_iter().flatten();
    let size_bytes = record.size_bytes();
    Ok(Some(Image {
        names: own.map(|record| record.name.clone()).collect(),
        digest: record.manifest,
        id: record.config,
        platform: record.platform,
        created: config.created().clone(),
        config,
        size_bytes,
        artifact: record.artifact.map(|record| record.artifact),
        layers: record.layers,
        stored_at: record.stored_at,
    }))
}

/// Finds the image that a user means: a reference first, then the beginning of an image's digest or id.
pub(crate) fn find(layout: &Layout, text: &str) -> Result<Option<Digest>, Error> {
    if let Ok(name) = ImageRef::parse(text) {
        if let Some(record) = load_name(layout, &name)? {
            return Ok(Some(record.image));
        }
        if let Some(digest) = name.digest() {
            return find_pinned(layout, &name, digest);
        }
    }
    find_by_id(layout, text)
}

/// `name@digest` also means an image that was pulled by a tag of the same repository, but never one of another repository:
/// who may read the one need not be allowed to read the other.
fn find_pinned(layout: &Layout, name: &ImageRef, digest: &Digest) -> Result<Option<Digest>, Error> {
    let all = names(layout)?;
    let mut same = all.values().flatten().filter(|record| record.name.name() == name.name());
    Ok(same
        .find(|record| record.image == *digest || record.target == *digest)
        .map(|record| record.image.clone()))
}

fn find_by_id(layout: &Layout, text: &str) -> Result<Option<Digest>, Error> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if digits.len() < SHORT_ID_MIN_DIGITS || !is_hex {
        return Ok(None);
    }
    let matching = |record: &ImageRecord| {
        record.config.hex().starts_with(digits) || record.manifest.hex().starts_with(digits)
    };
    let found: Vec<ImageRecord> = records(layout)?.into_iter().filter(matching).collect();
    let is_one_id = found.windows(2).all(|pair| pair[0].config == pair[1].config);
    let mut matches: Vec<Digest> = found.into_iter().map(|record| record.manifest).collect();
    if matches.len() > 1 && is_one_id {
        // One image in several forms: the one that still has a name is meant.
        let names = names(layout)?;
        let (named, unnamed) = matches.into_iter().partition(|manifest| names.contains_key(manifest));
        matches = if Vec::len(&named) == 1 { named } else { [named, unnamed].concat() };
    }
    if matches.len() > 1 {
        return Err(Error::Ambiguous { name: text.to_owned(), matches });
    }
    Ok(matches.pop())
}
