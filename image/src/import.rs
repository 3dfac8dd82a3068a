//! Importing: images from a directory or an archive, through the same steps as from a registry.
//!
//! An OCI layout brings manifests and digests for everything. `docker save`'s older format brings only a configuration and
//! tars; the manifest is made here, with each tar as an uncompressed layer whose digest is its DiffID.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use cofferdam_registry::{
    CONFIG_LIMIT_BYTES, Descriptor, Digest, Document, Hasher, ImageRef, Index, MANIFEST_LIMIT_BYTES,
    Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform, Walk,
};
use serde::Deserialize;

use crate::archive::Files;
use crate::artifact::{self, Artifact};
use crate::decode::Compression;
use crate::error::{Error, LayerError};
use crate::event::{Cancel, PullEvent};
use crate::identity::DiffId;
use crate::image;
use crate::ingest::{Ingest, PARALLEL_LAYERS, content_plans, layer_plans, name_record, read_config};
use crate::keep::Keeper;
use crate::layout;
use crate::pull::check_platform;
use crate::workspace::Workspace;

/// How images are laid out in what is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A directory in the OCI image layout.
    OciDirectory,
    /// The same as a tar archive, compressed or not.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

/// Which names imported images get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// None: what an archive calls itself is its maker's word (CVE-2026-50195).
    #[default]
    Unnamed,
    /// This one, whatever it stood for; the archive must then hold one image.
    As(ImageRef),
    /// Those in the archive.
    FromArchive(Taken),
}

/// What becomes of a name in an archive that stands for another image already. A name moves in any case to what is the same
/// image in another form: with the same configuration, and so the same id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Taken {
    /// The whole import is refused before anything is stored.
    #[default]
    Refused,
    /// It stands for the imported image from now on. The other one stays, without that name, which is told.
    Replaced,
}

/// How images are imported.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// What the source is; found out if `None`.
    pub layout: Option<Layout>,
    /// Which names the images get.
    pub naming: Naming,
    /// Which image of an index is taken; this host's platform if `None`.
    pub platform: Option<Platform>,
    /// Stops the import from another thread.
    pub cancel: Cancel,
}

/// An image that was found in a layout.
struct Found {
    names: Vec<ImageRef>,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    config: Vec<u8>,
    /// The layers' files, lowest first.
    files: Vec<String>,
}

const NO_IMAGE: &str = "it holds no image";
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Imports a directory or an archive file.
pub(crate) fn import_path(
    store: &layout::Layout,
    path: &Path,
    options: &ImportOptions,
    progress: &dyn Fn(PullEvent),
) -> Result<Vec<Digest>, Error> {
    let label = path.display().to_string();
    if path.is_dir() {
        return import_files(store, &label, &Files::open_directory(path)?, options, progress);
    }
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    import_archive(store, &label, &mut file, options, progress)
}

/// Imports an archive from a stream.
pub(crate) fn import_archive(
    store: &layout::Layout,
    label: &str,
    source: &mut dyn Read,
    options: &ImportOptions,
    progress: &dyn Fn(PullEvent),
) -> Result<Vec<Digest>, Error> {
    let workspace = Workspace::create(store)?;
    let files = Files::spool(label, source, &workspace.path().join("spool"))?;
    import_files(store, label, &files, options, progress)
}

fn import_files(
    store: &layout::Layout,
    label: &str,
    files: &Files,
    options: &ImportOptions,
    progress: &dyn Fn(PullEvent),
) -> Result<Vec<Digest>, Error> {
    let is_oci = match options.layout {
        Some(layout) => layout != Layout::DockerArchive,
        None => files.open("oci-layout")?.is_some(),
    };
    if !is_oci && files.open("manifest.json")?.is_none() {
        let reason = "it is neither an OCI image layout (which has oci-layout) nor what docker save writes (which has manifest.json)";
        return Err(invalid(label, "archive", reason.to_owned()));
    }
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let found = if is_oci { find_oci(label, files, &platform)? } else { find_docker(label, files)? };
    if let Naming::As(name) = &options.naming
        && found.len() != 1
    {
        let reason =
            format!("it holds {} images, of which only one can be named {}", found.len(), name.familiar());
        return Err(invalid(label, "archive", reason));
    }
    if options.naming == Naming::FromArchive(Taken::Refused) {
        refuse_taken(store, &found)?;
    }
    found.iter().map(|image| bring_in(store, label, files, image, &platform, options, progress)).collect()
}

/// An archive must not quietly change what names mean.
fn refuse_taken(store: &layout::Layout, found: &[Found]) -> Result<(), Error> {
    for (image, name) in found.iter().flat_map(|image| image.names.iter().map(move |name| (image, name))) {
        if let Some(taken_by) = other_image(store, name, image)? {
            return Err(Error::NameTaken { name: name.familiar(), taken_by });
        }
    }
    Ok(())
}

/// The image that the name stands for, if that is another one. A manifest tells in which form the layers were exported.
fn other_image(store: &layout::Layout, name: &ImageRef, found: &Found) -> Result<Option<Digest>, Error> {
    let Some(there) = image::load_name(store, name)? else { return Ok(None) };
    let record = image::load_record(store, &there.image)?;
    let is_same = there.image == Digest::of(&found.manifest_bytes)
        || record.is_some_and(|record| record.config == found.manifest.config.digest);
    Ok((!is_same).then_some(there.image))
}

fn bring_in(
    store: &layout::Layout,
    label: &str,
    files: &Files,
    found: &Found,
    wanted: &Platform,
    options: &ImportOptions,
    progress: &dyn Fn(PullEvent),
) -> Result<Digest, Error> {
    let descriptors = &found.manifest.layers;
    let (layers, platform) = match found.manifest.artifact {
        Some(_) => (content_plans(descriptors), artifact::platform()),
        None => {
            let (_, diff_ids, platform) = read_config(label, &found.config, descriptors.len())?;
            check_platform(label, wanted, &platform)?;
            (layer_plans(descriptors, &diff_ids), platform)
        }
    };
    let digest = Digest::of(&found.manifest_bytes);
    progress(PullEvent::Resolved {
        digest: digest.clone(),
        platform: platform.clone(),
        layers: descriptors.len(),
        total_bytes: descriptors.iter().map(|descriptor| descriptor.size).fold(0, u64::saturating_add),
    });
    let workspace = Workspace::create(store)?;
    let ingest = Ingest {
        layout: store,
        workspace: &workspace,
        label: label.to_owned(),
        manifest: &found.manifest_bytes,
        manifest_digest: digest.clone(),
        config: &found.config,
        config_digest: found.manifest.config.digest.clone(),
        layers,
        artifact: Artifact::of(&found.manifest),
        cancel: options.cancel.clone(),
        parallel: PARALLEL_LAYERS,
    };
    let keeper = Keeper::new(store, workspace.path());
    let open = |index: usize| match files.open(&found.files[index])? {
        Some(file) if found.manifest.artifact.is_some() => Ok(Box::new(file) as Box<dyn Read>),
        Some(file) => keeper.keep(index, Box::new(file)),
        None => Err(LayerError::from(invalid(label, "archive", format!("it lacks {}", found.files[index])))),
    };
    let names = match &options.naming {
        Naming::FromArchive(_) => found.names.clone(),
        Naming::As(name) => vec![name.clone()],
        Naming::Unnamed => Vec::new(),
    };
    ingest.run(platform, None, &open, progress)?;
    keeper.publish(descriptors.iter().map(|blob| (&blob.digest, blob.size)))?;
    for name in names {
        if let Some(other) = other_image(store, &name, found)? {
            let message =
                format!("{} was the name of image {other}, which stays without it", name.familiar());
            progress(PullEvent::Warning { message });
        }
        name_record(&name, &digest, &digest).store(store, &workspace)?;
    }
    Ok(digest)
}

fn invalid(label: &str, what: &'static str, reason: impl Into<String>) -> Error {
    Error::Invalid { image: label.to_owned(), what, reason: reason.into() }
}

fn require(label: &str, files: &Files, name: &str, limit_bytes: u64) -> Result<Vec<u8>, Error> {
    let missing = || {
        invalid(label, "archive", format!("it lacks {name}, or {name} is larger than {limit_bytes} bytes"))
    };
    files.read(name, limit_bytes)?.ok_or_else(missing)
}

/// A blob of an OCI layout, checked against its descriptor.
fn require_blob(
    label: &str,
    files: &Files,
    descriptor: &Descriptor,
    limit_bytes: u64,
) -> Result<Vec<u8>, Error> {
    let bytes = require(label, files, &layout::blob(&descriptor.digest), limit_bytes)?;
    let mut hasher = Hasher::new(descriptor.digest.algorithm());
    hasher.update(&bytes);
    if hasher.finish() != descriptor.digest || bytes.len() as u64 != descriptor.size {
        return Err(invalid(
            label,
            "archive",
            format!("blob {} does not match its digest and size", descriptor.digest),
        ));
    }
    Ok(bytes)
}

fn find_oci(label: &str, files: &Files, platform: &Platform) -> Result<Vec<Found>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker = require(label, files, "oci-layout", 4096)?;
    let marker: Marker =
        serde_json::from_slice(&marker).map_err(|error| invalid(label, "oci-layout", error.to_string()))?;
    if !marker.image_layout_version.starts_with("1.") {
        return Err(invalid(
            label,
            "oci-layout",
            format!("version {} is not known", marker.image_layout_version),
        ));
    }
    let bytes = require(label, files, "index.json", MANIFEST_LIMIT_BYTES)?;
    let Document::Index(index) = Document::parse(&bytes, "", label)? else {
        return Err(invalid(label, "index.json", "it is not an index"));
    };
    if index.manifests.is_empty() {
        return Err(invalid(label, "archive", NO_IMAGE));
    }
    // Entries of one name are one image for several platforms. Without names, only different platforms can be of one image, and an
    // artifact is for none.
    let mut groups: BTreeMap<(Option<String>, usize), Vec<Descriptor>> = BTreeMap::new();
    for descriptor in index.manifests {
        let name =
            descriptor.annotations.get(CONTAINERD_NAME).or(descriptor.annotations.get(REF_NAME)).cloned();
        let is_artifact = |descriptor: &Descriptor| !descriptor.artifact_type.is_empty();
        let is_other = |group: &Vec<Descriptor>| {
            !is_artifact(&descriptor)
                && group.iter().all(|known| !is_artifact(known) && known.platform() != descriptor.platform())
        };
        let at = |number: &usize| groups.get(&(name.clone(), *number)).is_none_or(is_other);
        let number = if name.is_none() { (0..).find(at).unwrap_or(0) } else { 0 };
        groups.entry((name, number)).or_default().push(descriptor);
    }
    let mut found = Vec::new();
    for ((name, _), manifests) in groups {
        let image = read_oci(label, files, Index { manifests }, platform)?;
        // `skopeo copy … oci:dir:tag` writes the tag alone, which names no repository.
        let name = name.filter(|name| name.contains(['/', ':'])).and_then(|name| ImageRef::parse(&name).ok());
        found.push(Found { names: name.into_iter().collect(), ..image });
    }
    Ok(found)
}

fn read_oci(label: &str, files: &Files, mut index: Index, platform: &Platform) -> Result<Found, Error> {
    let mut walk = Walk::new(platform, label);
    loop {
        walk.enter(&index)?;
        index = loop {
            let chosen = walk.follow()?;
            let bytes = require_blob(label, files, &chosen, MANIFEST_LIMIT_BYTES)?;
            let manifest = match Document::parse(&bytes, &chosen.media_type, label)? {
                Document::Index(nested) => break nested,
                Document::Manifest(manifest) => manifest,
            };
            let config = require_blob(label, files, &manifest.config, CONFIG_LIMIT_BYTES)?;
            if !walk.must_look(&chosen) || (manifest.artifact.is_none() && walk.suits(&config)) {
                let files = manifest.layers.iter().map(|layer| layout::blob(&layer.digest)).collect();
                return Ok(Found { names: Vec::new(), manifest, manifest_bytes: bytes, config, files });
            }
        };
    }
}

fn find_docker(label: &str, files: &Files) -> Result<Vec<Found>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
        #[serde(default)]
        layers: Vec<String>,
    }
    let bytes = require(label, files, "manifest.json", MANIFEST_LIMIT_BYTES)?;
    let saved: Vec<Saved> =
        serde_json::from_slice(&bytes).map_err(|error| invalid(label, "manifest.json", error.to_string()))?;
    if saved.is_empty() {
        return Err(invalid(label, "archive", NO_IMAGE));
    }
    let mut found = Vec::new();
    for image in saved {
        let config = require(label, files, &image.config, CONFIG_LIMIT_BYTES)?;
        let (_, diff_ids, _) = read_config(label, &config, image.layers.len())?;
        let mut layers = Vec::new();
        for (file, diff_id) in image.layers.iter().zip(&diff_ids) {
            layers.push(describe(label, files, file, diff_id)?);
        }
        let manifest = Manifest {
            config: Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64),
            layers,
            artifact: None,
        };
        let tags = image.repo_tags.unwrap_or_default();
        found.push(Found {
            names: tags.iter().filter_map(|tag| ImageRef::parse(tag).ok()).collect(),
            manifest_bytes: write_manifest(&manifest),
            manifest,
            config,
            files: image.layers,
        });
    }
    Ok(found)
}

/// A tar is its own blob; a compressed one has to be read to know its digest.
fn describe(label: &str, files: &Files, name: &str, diff_id: &DiffId) -> Result<Descriptor, Error> {
    let missing = || invalid(label, "archive", format!("it lacks {name}"));
    let mut file = files.open(name)?.ok_or_else(missing)?;
    let failed = |operation| Error::io(operation, Path::new(name));
    let size = file.metadata().map_err(failed("examine"))?.len();
    let mut magic = Vec::new();
    (&file).take(4).read_to_end(&mut magic).map_err(failed("read"))?;
    let suffix = match Compression::of_magic(&magic) {
        Compression::None => return Ok(Descriptor::new(OCI_LAYER, diff_id.digest().clone(), size)),
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    file.rewind().map_err(failed("read"))?;
    let mut hasher = Hasher::new(cofferdam_registry::Algorithm::Sha256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).map_err(failed("read"))? {
            0 => return Ok(Descriptor::new(&format!("{OCI_LAYER}{suffix}"), hasher.finish(), size)),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// The manifest's bytes, the same for the same image.
pub(crate) fn write_manifest(manifest: &Manifest) -> Vec<u8> {
    let descriptor = |descriptor: &Descriptor| {
        serde_json::json!({
            "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size,
        })
    };
    let json = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(&manifest.config),
        "layers": manifest.layers.iter().map(descriptor).collect::<Vec<_>>(),
    });
    json.to_string().into_bytes()
}
