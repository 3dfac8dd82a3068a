//! Exporting: images as an OCI layout, in a directory or an archive, or as docker's archive. The same bytes each time.
//!
//! A layer whose blob was kept, or is its tar, goes out as it came, and then so does the manifest. Any other goes out as the
//! tar that its tree and recipe give, in a manifest that says so: the configuration, and with it the image's id, is the same,
//! and from the second export on nothing changes any more.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use cofferdam_linux::removal;
use cofferdam_registry::{
    Digest, Hasher, ImageRef, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Platform,
};
use serde_json::{Value, json};

use crate::artifact::Artifact;
use crate::decode::{Expected, TarStream};
use crate::error::{Error, LayerError};
use crate::event::Cancel;
use crate::export::target::Target;
use crate::identity::DiffId;
use crate::image::{self, ImageLayer, ImageRecord};
use crate::import::{CONTAINERD_NAME, Layout as Form, REF_NAME};
use crate::layer::{self, LayerRecord, RECIPE};
use crate::layout::{self, Layout};
use crate::limits::Limits;
use crate::recipe::{LayerTar, replay};
use crate::record;
use crate::workspace::Workspace;

mod target;

/// An image to export, and the names that it has in what is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The image, by its manifest digest.
    pub image: Digest,
    /// Its names; none for an image without.
    pub names: Vec<ImageRef>,
}

/// How images are exported.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Into what.
    pub layout: Form,
    /// Stops the export from another thread.
    pub cancel: Cancel,
}

impl Default for ExportOptions {
    fn default() -> ExportOptions {
        ExportOptions { layout: Form::OciArchive, cancel: Cancel::default() }
    }
}

/// Exports an archive to a stream. After an error what was written is no archive.
pub(crate) fn export_stream(
    layout: &Layout,
    exports: &[Export],
    options: &ExportOptions,
    stream: &mut dyn Write,
) -> Result<(), Error> {
    if options.layout == Form::OciDirectory {
        let (input, reason) = ("-".to_owned(), "a directory cannot be written to a stream".to_owned());
        return Err(Error::InvalidInput { what: "target", input, reason });
    }
    export(layout, exports, options, &mut Target::archive(stream))
}

/// Exports to a file or directory that is there as a whole or not at all.
pub(crate) fn export_path(
    layout: &Layout,
    exports: &[Export],
    options: &ExportOptions,
    path: &Path,
) -> Result<(), Error> {
    // A pipe or a device takes a stream.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        let mut file = File::options().write(true).open(path).map_err(Error::io("open", path))?;
        return export_stream(layout, exports, options, &mut file);
    }
    let partial = beside(path)?;
    let done = match options.layout {
        Form::OciDirectory => export_directory(layout, exports, options, &partial),
        _ => export_file(layout, exports, options, &partial),
    };
    let done = done.and_then(|()| fs::rename(&partial, path).map_err(Error::io("write", path)));
    if done.is_err() {
        // What cannot be removed either is named by the error's path.
        let _ = removal::remove_tree(&partial);
    }
    done
}

/// A name for what is not finished, in the same folder.
fn beside(path: &Path) -> Result<PathBuf, Error> {
    let refuse = |reason: &str| Error::InvalidInput {
        what: "target",
        input: path.display().to_string(),
        reason: reason.to_owned(),
    };
    let name = path.file_name().ok_or_else(|| refuse("it has no name"))?;
    if path.is_dir() && fs::read_dir(path).map_err(Error::io("read", path))?.next().is_some() {
        return Err(refuse("there is a directory of that name, which is not empty"));
    }
    let partial = format!(".{}.partial-{}", name.to_string_lossy(), record::unique());
    Ok(path.with_file_name(partial))
}

fn export_directory(
    layout: &Layout,
    exports: &[Export],
    options: &ExportOptions,
    path: &Path,
) -> Result<(), Error> {
    fs::create_dir(path).map_err(Error::io("create", path))?;
    export(layout, exports, options, &mut Target::directory(path))
}

fn export_file(
    layout: &Layout,
    exports: &[Export],
    options: &ExportOptions,
    path: &Path,
) -> Result<(), Error> {
    let file = File::create_new(path).map_err(Error::io("create", path))?;
    let mut file = io::BufWriter::with_capacity(256 * 1024, file);
    export(layout, exports, options, &mut Target::archive(&mut file))?;
    file.flush().map_err(Error::io("write", path))
}

fn export(
    layout: &Layout,
    exports: &[Export],
    options: &ExportOptions,
    target: &mut Target<'_>,
) -> Result<(), Error> {
    let workspace = Workspace::create(layout)?;
    let mut prepared = Vec::new();
    for export in exports {
        let unknown = || Error::UnknownImage { name: export.image.to_string() };
        let record = image::load_record(layout, &export.image)?.ok_or_else(unknown)?;
        prepared.push((export, record));
    }
    workspace.lease(layout, prepared.iter().flat_map(|(_, record)| record.keeps()))?;
    let images: Vec<Prepared> = prepared
        .into_iter()
        .map(|(export, record)| prepare(layout, export, record))
        .collect::<Result<_, _>>()?;
    let exporter = Exporter { layout, cancel: &options.cancel };
    match options.layout {
        Form::DockerArchive => exporter.docker(&images, target)?,
        Form::OciDirectory | Form::OciArchive => exporter.oci(&images, target)?,
    }
    target.finish()
}

/// An image whose documents are ready.
struct Prepared {
    names: Vec<ImageRef>,
    platform: Platform,
    manifest: Vec<u8>,
    manifest_type: String,
    config: Vec<u8>,
    config_digest: Digest,
    layers: Vec<Piece>,
    artifact: Option<Artifact>,
}

/// A layer on its way out.
struct Piece {
    layer: ImageLayer,
    record: LayerRecord,
    /// Its blob was kept, or is its tar.
    is_exact: bool,
    has_blob: bool,
}

impl Piece {
    fn digest(&self) -> &Digest {
        if self.is_exact { &self.layer.blob } else { self.layer.diff_id.digest() }
    }

    fn size(&self) -> u64 {
        if self.is_exact { self.layer.blob_bytes } else { self.layer.unpacked_bytes }
    }
}

fn prepare(layout: &Layout, export: &Export, image: ImageRecord) -> Result<Prepared, Error> {
    let label = export.names.first().map_or_else(|| export.image.to_string(), ImageRef::familiar);
    let mut layers = Vec::new();
    for layer in &image.layers {
        let incomplete = || Error::Incomplete {
            image: label.clone(),
            layer: layer.diff_id.to_string(),
            reason: "is not in the store any more".to_owned(),
        };
        let record = layer::load(layout, &layer.diff_id)?.ok_or_else(incomplete)?;
        let blob = layout.at(&layout::blob(&layer.blob)).metadata();
        let has_blob = blob.is_ok_and(|metadata| metadata.len() == layer.blob_bytes);
        let is_exact = has_blob || layer.blob == *layer.diff_id.digest();
        layers.push(Piece { layer: layer.clone(), record, is_exact, has_blob });
    }
    let mut manifest = image::document(layout, &label, &image.manifest)?;
    if layers.iter().any(|piece| !piece.is_exact) {
        manifest = as_tars(&label, &manifest, &layers)?;
    }
    Ok(Prepared {
        manifest_type: media_type(&manifest),
        names: export.names.clone(),
        platform: image.platform.clone(),
        manifest,
        config: image::document(layout, &label, &image.config)?,
        config_digest: image.config.clone(),
        layers,
        artifact: image.artifact.map(|record| record.artifact),
    })
}

fn media_type(manifest: &[u8]) -> String {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    manifest["mediaType"].as_str().unwrap_or(OCI_MANIFEST).to_owned()
}

/// The manifest of the same image with tars where blobs were not kept. Annotations stay.
fn as_tars(label: &str, manifest: &[u8], layers: &[Piece]) -> Result<Vec<u8>, Error> {
    let invalid = |reason: String| Error::Invalid { image: label.to_owned(), what: "manifest", reason };
    let mut manifest: Value = serde_json::from_slice(manifest).map_err(|error| invalid(error.to_string()))?;
    manifest["mediaType"] = json!(OCI_MANIFEST);
    manifest["config"]["mediaType"] = json!(OCI_CONFIG);
    let descriptors =
        manifest["layers"].as_array_mut().ok_or_else(|| invalid("it has no layers".to_owned()))?;
    for (descriptor, piece) in descriptors.iter_mut().zip(layers) {
        let suffix = match descriptor["mediaType"].as_str().unwrap_or_default() {
            kind if !piece.is_exact || kind.ends_with("tar") => "",
            kind if kind.ends_with("zstd") => "+zstd",
            _ => "+gzip",
        };
        descriptor["mediaType"] = json!(format!("{OCI_LAYER}{suffix}"));
        descriptor["digest"] = json!(piece.digest());
        descriptor["size"] = json!(piece.size());
    }
    Ok(manifest.to_string().into_bytes())
}

struct Exporter<'a> {
    layout: &'a Layout,
    cancel: &'a Cancel,
}

impl Exporter<'_> {
    fn oci(&self, images: &[Prepared], target: &mut Target<'_>) -> Result<(), Error> {
        target.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let entries: Vec<Value> = images.iter().flat_map(index_entries).collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        target.file("index.json", index.to_string().as_bytes())?;
        let mut written = BTreeSet::new();
        for image in images {
            for (digest, bytes) in
                [(&Digest::of(&image.manifest), &image.manifest), (&image.config_digest, &image.config)]
            {
                if written.insert(digest.clone()) {
                    target.file(&layout::blob(digest), bytes)?;
                }
            }
            for piece in &image.layers {
                if written.insert(piece.digest().clone()) {
                    target.begin(&layout::blob(piece.digest()), piece.size())?;
                    match piece.has_blob {
                        true => self.copy_blob(&piece.layer.blob, target)?,
                        false => self.write_tar(image, piece, target)?,
                    }
                    target.end()?;
                }
            }
            for blob in image.artifact.iter().flat_map(|artifact| &artifact.blobs) {
                if written.insert(blob.digest.clone()) {
                    target.begin(&layout::blob(&blob.digest), blob.size)?;
                    self.copy_blob(&blob.digest, target)?;
                    target.end()?;
                }
            }
        }
        Ok(())
    }

    fn docker(&self, images: &[Prepared], target: &mut Target<'_>) -> Result<(), Error> {
        if let Some(artifact) = images.iter().find_map(|image| image.artifact.as_ref()) {
            let input = artifact.kind.clone();
            let reason =
                "docker's archive holds container images alone; export it as an OCI layout".to_owned();
            return Err(Error::InvalidInput { what: "artifact for docker's archive", input, reason });
        }
        let tar = |piece: &Piece| format!("{}.tar", piece.layer.diff_id.digest().hex());
        let entry = |image: &Prepared| {
            json!({
                "Config": format!("{}.json", image.config_digest.hex()),
                "RepoTags": image.names.iter().map(ImageRef::familiar).collect::<Vec<_>>(),
                "Layers": image.layers.iter().map(tar).collect::<Vec<_>>(),
            })
        };
        let entries: Vec<Value> = images.iter().map(entry).collect();
        target.file("manifest.json", json!(entries).to_string().as_bytes())?;
        let mut written = BTreeSet::new();
        for image in images {
            let config = format!("{}.json", image.config_digest.hex());
            if written.insert(config.clone()) {
                target.file(&config, &image.config)?;
            }
            for piece in &image.layers {
                if written.insert(tar(piece)) {
                    target.begin(&tar(piece), piece.layer.unpacked_bytes)?;
                    self.write_tar(image, piece, target)?;
                    target.end()?;
                }
            }
        }
        Ok(())
    }

    fn copy_blob(&self, digest: &Digest, target: &mut Target<'_>) -> Result<(), Error> {
        let path = self.layout.at(&layout::blob(digest));
        let mut blob = File::open(&path).map_err(Error::io("open", &path))?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; 256 * 1024];
        loop {
            self.check_cancelled()?;
            match blob.read(&mut buffer).map_err(Error::io("read", &path))? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    target.write(&buffer[..count])?;
                }
            }
        }
        if hasher.finish() == *digest {
            return Ok(());
        }
        let reason = format!("what is stored as {digest} has other bytes; pull or import the image again");
        Err(Error::Invalid { image: path.display().to_string(), what: "blob", reason })
    }

    /// Writes a layer's tar and refuses in the end if it is not the one that it should be.
    fn write_tar(&self, image: &Prepared, piece: &Piece, target: &mut Target<'_>) -> Result<(), Error> {
        let diff_id = &piece.layer.diff_id;
        let mut write = |bytes: &[u8]| {
            self.check_cancelled()?;
            Ok(target.write(bytes)?)
        };
        let written = match piece.has_blob {
            true => self.decode(piece, &mut write),
            false => self.put_together(piece, diff_id, &mut write),
        };
        written.map_err(|error| match error {
            LayerError::Store(error) => *error,
            LayerError::Cancelled => Error::Cancelled,
            error => Error::NotExportable {
                image: image
                    .names
                    .first()
                    .map_or_else(|| image.config_digest.to_string(), ImageRef::familiar),
                layer: diff_id.to_string(),
                reason: error.to_string(),
            },
        })
    }

    fn put_together(
        &self,
        piece: &Piece,
        diff_id: &DiffId,
        write: &mut dyn FnMut(&[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let recipe = self.layout.at(&layout::layer(diff_id)).join(RECIPE);
        let tar = LayerTar::open(&recipe, layer::open_tree(self.layout, &piece.record)?)?;
        replay(tar, diff_id, write).map(drop).map_err(|error| piece.record.explain(error))
    }

    fn decode(
        &self,
        piece: &Piece,
        write: &mut dyn FnMut(&[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let path = self.layout.at(&layout::blob(&piece.layer.blob));
        let blob = File::open(&path).map_err(Error::io("open", &path))?;
        let expected =
            Expected { digest: Some(piece.layer.blob.clone()), size: Some(piece.layer.blob_bytes) };
        let mut stream = TarStream::open(blob, expected, Limits::NONE)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return stream.finish().map(drop),
                count => write(&buffer[..count])?,
            }
        }
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// An image's descriptor, once for each of its names.
fn index_entries(image: &Prepared) -> Vec<Value> {
    let mut entry = json!({
        "mediaType": image.manifest_type,
        "digest": Digest::of(&image.manifest),
        "size": image.manifest.len(),
    });
    match &image.artifact {
        Some(artifact) => entry["artifactType"] = json!(artifact.kind),
        None => entry["platform"] = platform_of(image),
    }
    let named = |name: &ImageRef| {
        let mut entry = entry.clone();
        entry["annotations"] = json!({CONTAINERD_NAME: name.to_string(), REF_NAME: name.to_string()});
        entry
    };
    if image.names.is_empty() { vec![entry] } else { image.names.iter().map(named).collect() }
}

fn platform_of(image: &Prepared) -> Value {
    let mut platform = json!({"architecture": image.platform.architecture, "os": image.platform.os});
    if let Some(variant) = &image.platform.variant {
        platform["variant"] = json!(variant);
    }
    platform
}
