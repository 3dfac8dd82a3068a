//! Making an image in memory: one layer from a list of files, as bytes of an OCI layout archive.
//!
//! For images that a program carries with it, and for tests. The result is a function of what was added: no time, no order
//! of a directory listing, no host name goes into it.

use std::collections::BTreeMap;

use cofferdam_registry::{
    Descriptor, Digest, ImageRef, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Platform,
};
use serde_json::{Map, Value, json};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use crate::entry::normalise;
use crate::error::{Error, LayerError};
use crate::import::write_manifest;

/// An image in the making.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    platform: Platform,
    name: Option<ImageRef>,
    entries: BTreeMap<String, BuilderEntry>,
    config: Map<String, Value>,
    env: Vec<String>,
    labels: Map<String, Value>,
}

#[derive(Clone, Debug)]
struct BuilderEntry {
    mode: u32,
    owner: (u32, u32),
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Directory,
    File(Vec<u8>),
    Symlink(String),
}

impl ImageBuilder {
    /// An empty image for this host's architecture.
    pub fn new() -> ImageBuilder {
        let host = Platform::host();
        ImageBuilder {
            // The oldest variant: the builder knows nothing about what the files need.
            platform: Platform { variant: None, ..host },
            name: None,
            entries: BTreeMap::new(),
            config: Map::new(),
            env: Vec::new(),
            labels: Map::new(),
        }
    }

    /// Sets the platform that the configuration names.
    pub fn platform(mut self, platform: Platform) -> ImageBuilder {
        self.platform = platform;
        self
    }

    /// Sets the name that the archive carries for the image.
    pub fn name(mut self, name: &ImageRef) -> ImageBuilder {
        self.name = Some(name.clone());
        self
    }

    /// Adds a file of root's. Directories above it get mode 0755 unless they are added themselves.
    pub fn file(self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) -> ImageBuilder {
        self.add(path, mode, What::File(contents.into()))
    }

    /// Adds a directory of root's.
    pub fn directory(self, path: &str, mode: u32) -> ImageBuilder {
        self.add(path, mode, What::Directory)
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> ImageBuilder {
        self.add(path, 0o777, What::Symlink(target.to_owned()))
    }

    /// Changes the owner of what was added as `path`.
    pub fn owner(mut self, path: &str, uid: u32, gid: u32) -> ImageBuilder {
        if let Some(entry) = self.entries.get_mut(path.trim_matches('/')) {
            entry.owner = (uid, gid);
        }
        self
    }

    /// Sets the program that runs, with its first arguments.
    pub fn entrypoint(self, words: &[&str]) -> ImageBuilder {
        self.set("Entrypoint", json!(words))
    }

    /// Sets the arguments that a user may replace; the program itself if there is no entry point.
    pub fn command(self, words: &[&str]) -> ImageBuilder {
        self.set("Cmd", json!(words))
    }

    /// Sets the working directory.
    pub fn working_directory(self, path: &str) -> ImageBuilder {
        self.set("WorkingDir", json!(path))
    }

    /// Sets the user, as in `user[:group]`.
    pub fn user(self, user: &str) -> ImageBuilder {
        self.set("User", json!(user))
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> ImageBuilder {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Adds a label.
    pub fn label(mut self, name: &str, value: &str) -> ImageBuilder {
        self.labels.insert(name.to_owned(), json!(value));
        self
    }

    /// The image as an OCI layout archive, which [`Store::import`](crate::Store::import) takes.
    pub fn build(&self) -> Result<Vec<u8>, Error> {
        let layer = self.layer()?;
        let config = self.config(&layer);
        let manifest = Manifest {
            config: Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64),
            layers: vec![Descriptor::new(OCI_LAYER, Digest::of(&layer), layer.len() as u64)],
            artifact: None,
        };
        let manifest = write_manifest(&manifest);
        let mut archive = Vec::new();
        let file = |archive: &mut Vec<u8>, path: &str, bytes: &[u8]| {
            let entry = BuilderEntry { mode: 0o644, owner: (0, 0), what: What::File(bytes.to_vec()) };
            append(archive, path, &entry)
        };
        file(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file(&mut archive, "index.json", &self.index(&manifest))?;
        for blob in [&manifest, &config, &layer] {
            file(&mut archive, &crate::layout::blob(&Digest::of(blob)), blob)?;
        }
        archive.extend_from_slice(&[0; 1024]);
        Ok(archive)
    }

    fn add(mut self, path: &str, mode: u32, what: What) -> ImageBuilder {
        let entry = BuilderEntry { mode, owner: (0, 0), what };
        self.entries.insert(path.trim_matches('/').to_owned(), entry);
        self
    }

    fn set(mut self, key: &str, value: Value) -> ImageBuilder {
        self.config.insert(key.to_owned(), value);
        self
    }

    fn layer(&self) -> Result<Vec<u8>, Error> {
        let directory = BuilderEntry { mode: 0o755, owner: (0, 0), what: What::Directory };
        let mut all: BTreeMap<&str, &BuilderEntry> = BTreeMap::new();
        for path in self.entries.keys() {
            let ends = path.match_indices('/').map(|(at, _)| at);
            all.extend(ends.map(|end| (&path[..end], &directory)));
        }
        all.extend(self.entries.iter().map(|(path, entry)| (path.as_str(), entry)));
        all.entry("").or_insert(&directory);
        let mut tar = Vec::new();
        for (path, entry) in all {
            append(&mut tar, path, entry)?;
        }
        tar.extend_from_slice(&[0; 1024]);
        Ok(tar)
    }

    fn config(&self, layer: &[u8]) -> Vec<u8> {
        let mut config = self.config.clone();
        if !self.env.is_empty() {
            config.insert("Env".to_owned(), json!(self.env));
        }
        if !self.labels.is_empty() {
            config.insert("Labels".to_owned(), Value::Object(self.labels.clone()));
        }
        let mut json = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(layer)]},
        });
        if let Some(variant) = &self.platform.variant {
            json["variant"] = json!(variant);
        }
        json.to_string().into_bytes()
    }

    fn index(&self, manifest: &[u8]) -> Vec<u8> {
        let mut entry =
            json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(manifest), "size": manifest.len()});
        if let Some(name) = &self.name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).to_string().into_bytes()
    }
}

impl Default for ImageBuilder {
    fn default() -> ImageBuilder {
        ImageBuilder::new()
    }
}

fn append(tar: &mut Vec<u8>, path: &str, entry: &BuilderEntry) -> Result<(), Error> {
    let refuse =
        |reason: String| Error::InvalidInput { what: "path in an image", input: path.to_owned(), reason };
    let name = normalise(path.as_bytes()).map_err(|error: LayerError| refuse(error.to_string()))?;
    let data = match &entry.what {
        What::File(contents) => contents.as_slice(),
        _ => &[],
    };
    let mut builder = EntryBuilder::new_gnu();
    match &entry.what {
        What::Directory => {
            builder.path([b"./", name.as_slice(), b"/"].concat()).entry_type(EntryType::Directory)
        }
        What::File(_) => builder.path(&name).entry_type(EntryType::Regular),
        What::Symlink(target) => builder.path(&name).link_name(target).entry_type(EntryType::Symlink),
    };
    let (uid, gid) = entry.owner;
    let numbers = builder
        .mode(entry.mode)
        .and_then(|builder| builder.uid(uid.into()))
        .and_then(|builder| builder.gid(gid.into()))
        .and_then(|builder| builder.size(data.len() as u64))
        .and_then(|builder| builder.mtime(0));
    numbers.map_err(|error| refuse(error.to_string()))?;
    tar.extend_from_slice(&builder.finish_bytes());
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
    Ok(())
}
