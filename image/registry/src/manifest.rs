//! Manifests and indexes: parsed strictly, from bytes whose digest is known.
//!
//! Accepted: OCI image manifest and index, Docker schema 2 manifest and list. A document that could be read as two things
//! (CVE-2021-41190) or whose inner media type contradicts the registry's Content-Type is refused.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::json::parse_json;
use crate::platform::Platform;

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed OCI layer; `+gzip` and `+zstd` follow it.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// What a manifest request accepts.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Layers of one image. overlayfs stacks 500; a store that has more merges the lowest. A layer costs a descriptor while an
/// image is put together, and a process may have a thousand and some.
pub const LAYER_LIMIT: usize = 1000;
/// The most descriptors that an index may list.
pub(crate) const DESCRIPTOR_LIMIT: usize = 1000;

/// A pointer to content: how it is to be read, its digest and its exact size.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// How the bytes are to be read.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The number of bytes.
    pub size: u64,
    /// In an index: the platform that the image runs on.
    #[serde(default)]
    platform: Option<WirePlatform>,
    /// Free text by key; names of images in layouts are kept here.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Where else the bytes are; see [`crate::ClientOptions::foreign_hosts`].
    #[serde(default)]
    pub urls: Vec<String>,
    /// In a list of referrers: what kind of artifact it is.
    #[serde(default)]
    pub artifact_type: String,
    /// The bytes themselves, in base64.
    #[serde(default)]
    data: Option<String>,
}

impl Descriptor {
    /// A descriptor without platform and annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
            artifact_type: String::new(),
            data: None,
        }
    }

    /// The bytes, if the descriptor holds them and they are what it says (image-spec 1.1, descriptor.md "data").
    pub fn embedded(&self) -> Option<Vec<u8>> {
        let bytes = STANDARD.decode(self.data.as_ref()?).ok()?;
        let mut hasher = Hasher::new(self.digest.algorithm());
        hasher.update(&bytes);
        (bytes.len() as u64 == self.size && hasher.finish() == self.digest).then_some(bytes)
    }

    /// The platform that an index gives for this image, normalised.
    pub fn platform(&self) -> Option<Platform> {
        let wire = self.platform.as_ref()?;
        Some(Platform::new(&wire.os, &wire.architecture, wire.variant.as_deref()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct WirePlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default, rename = "os.features")]
    os_features: Option<Vec<String>>,
}

impl WirePlatform {
    /// An image that needs a feature of the operating system is for hosts that name it; this one names none.
    fn is_plain(&self) -> bool {
        self.os_features.as_ref().is_none_or(Vec::is_empty)
    }
}

/// A manifest: a container image's configuration and layers, lowest first, or an artifact's config and blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// What kind of artifact it is (a signature, an SBOM, a chart); `None` for a container image.
    pub artifact: Option<String>,
}

/// An index: one image for several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The images.
    pub manifests: Vec<Descriptor>,
}

/// Either of the two documents that a manifest request may answer.
#[allow(clippy::large_enum_variant, reason = "one lives for as long as it is looked at")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several images.
    Index(Index),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Parses a manifest or index of any kind. `content_type` is what the registry or the referring descriptor called it, or
    /// empty; `reference` is for messages only.
    pub fn parse(bytes: &[u8], content_type: &str, reference: &str) -> Result<Document, Error> {
        let invalid = |reason: String| Error::InvalidManifest { reference: reference.to_owned(), reason };
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        refuse_schema1(content_type, reference)?;
        // The deserialiser would also take an array for a structure, field by field.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(invalid("it is not a JSON object".to_owned()));
        }
        let wire: Wire = match parse_json(bytes) {
            Ok(wire) => wire,
            Err(error) => {
                refuse_unversioned_schema1(bytes, reference)?;
                return Err(invalid(error.to_string()));
            }
        };
        if wire.schema_version == 1 {
            refuse_schema1(SCHEMA1[0], reference)?;
        }
        if wire.schema_version != 2 {
            return Err(invalid(format!("schemaVersion is {}, expected 2", wire.schema_version)));
        }
        let known = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        if let Some(inner) = &wire.media_type {
            refuse_schema1(inner, reference)?;
            if known.contains(&content_type) && inner != content_type {
                return Err(invalid(format!("mediaType is {inner}, but it was served as {content_type}")));
            }
        }
        let media_type = wire.media_type.as_deref().unwrap_or(content_type);
        match (wire.manifests, wire.config, wire.layers) {
            (Some(manifests), None, None) => {
                if [OCI_MANIFEST, DOCKER_MANIFEST].contains(&media_type) {
                    return Err(invalid(format!("an index calls itself {media_type}")));
                }
                if manifests.len() > DESCRIPTOR_LIMIT {
                    return Err(invalid(format!("it lists more than {DESCRIPTOR_LIMIT} images")));
                }
                Ok(Document::Index(Index { manifests }))
            }
            (None, Some(config), layers) => {
                if [OCI_INDEX, DOCKER_LIST].contains(&media_type) {
                    return Err(invalid(format!("a manifest calls itself {media_type}")));
                }
                let layers = layers.unwrap_or_default();
                if layers.len() > LAYER_LIMIT {
                    return Err(invalid(format!(
                        "it has {} layers, the limit is {LAYER_LIMIT}",
                        layers.len()
                    )));
                }
                let artifact = artifact_type(&config, wire.artifact_type);
                Ok(Document::Manifest(Manifest { config, layers, artifact }))
            }
            (Some(_), ..) => Err(invalid("it is both a manifest and an index".to_owned())),
            (None, None, _) => Err(invalid("it has neither a config nor manifests".to_owned())),
        }
    }
}

fn refuse_schema1(media_type: &str, reference: &str) -> Result<(), Error> {
    if !SCHEMA1.contains(&media_type) {
        return Ok(());
    }
    Err(Error::Schema1 { reference: reference.to_owned(), media_type: media_type.to_owned() })
}

/// Schema 1 has other fields than ours, so it fails to parse; it still deserves its own message.
fn refuse_unversioned_schema1(bytes: &[u8], reference: &str) -> Result<(), Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: u64,
    }
    match serde_json::from_slice::<Version>(bytes) {
        Ok(Version { schema_version: 1 }) => refuse_schema1(SCHEMA1[0], reference),
        _ => Ok(()),
    }
}

/// Signatures, SBOMs and charts are manifests too: they say so, or their config is not an image configuration.
fn artifact_type(config: &Descriptor, told: Option<String>) -> Option<String> {
    let is_image = [OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str());
    told.or_else(|| (!is_image).then(|| config.media_type.clone()))
}

/// What of an index suits `wanted`, best first; last, what names no platform: nested indexes and lone images, which have
/// to be looked into.
pub(crate) fn candidates<'a>(index: &'a Index, wanted: &Platform) -> Vec<&'a Descriptor> {
    let rank = |descriptor: &Descriptor| match descriptor.platform() {
        Some(platform) => wanted.preference(&platform),
        None => Some(usize::MAX),
    };
    let plain = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_none_or(WirePlatform::is_plain);
    let mut ranked: Vec<(usize, &Descriptor)> = index
        .manifests
        .iter()
        .filter(plain)
        .filter_map(|descriptor| Some((rank(descriptor)?, descriptor)))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, descriptor)| descriptor).collect()
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

/// The platforms that an index names.
pub(crate) fn available(index: &Index) -> Vec<String> {
    let platforms = index.manifests.iter().filter(|d| !is_attestation(d)).filter_map(Descriptor::platform);
    let mut names: Vec<String> = platforms.map(|platform| platform.to_string()).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{HEX}","size":2}}"#)
    }

    #[test]
    fn documents_that_contradict_themselves_are_refused() {
        let config = descriptor(OCI_CONFIG);
        let cases = [
            (
                format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#),
                OCI_MANIFEST,
                "both",
            ),
            (format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#), OCI_INDEX, "calls itself"),
            (r#"{"schemaVersion":2,"manifests":[]}"#.into(), OCI_MANIFEST, "calls itself"),
            (
                format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#),
                OCI_MANIFEST,
                "served as",
            ),
            (r#"{"schemaVersion":3,"manifests":[]}"#.into(), "", "schemaVersion is 3"),
            (r#"{"schemaVersion":2,"schemaVersion":2,"manifests":[]}"#.into(), "", "duplicate"),
            (r#"{"schemaVersion":2,"manifests":[]} x"#.into(), "", "trailing"),
            ("\u{feff}{}".into(), "", "not a JSON object"),
            (r#"[2,null,null,null,null,[]]"#.into(), "", "not a JSON object"),
            (format!("{{\"x\":{}", "[".repeat(100_000)), "", "recursion"),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[],"x":{}{}}}"#, "[".repeat(200), "]".repeat(200)),
                "",
                "recursion",
            ),
            (r#"{"schemaVersion":2,"manifests":[],"x":[{"y":1,"y":2}]}"#.into(), "", "duplicate field `y`"),
            (r#"{"schemaVersion":2,"manifests":[],"annotations":{"a":"","a":"b"}}"#.into(), "", "duplicate"),
            (r#"{"schemaVersion":2,"manifests":[],"x":"\ud800"}"#.into(), "", "hex escape"),
            (
                format!(r#"{{"schemaVersion":2,"config":{}}}"#, config.replace("2}", "-1}")),
                "",
                "invalid value",
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{}}}"#,
                    config.replace("2}", "99999999999999999999}")
                ),
                "",
                "invalid",
            ),
            (
                format!(r#"{{"schemaVersion":2,"config":{}}}"#, config.replace("sha256", "md5")),
                "",
                "algorithm",
            ),
            (r#"{"schemaVersion":2}"#.into(), "", "neither"),
        ];
        for (json, content_type, expected) in cases {
            let error = Document::parse(json.as_bytes(), content_type, "x").unwrap_err().to_string();
            assert!(error.contains(expected), "{json:.80}: {error}");
        }
    }

    #[test]
    fn schema_1_is_refused_and_artifacts_are_known_by_name() {
        let schema1 = r#"{"schemaVersion":1,"name":"x","fsLayers":[],"signatures":[]}"#;
        assert!(matches!(Document::parse(schema1.as_bytes(), "", "x"), Err(Error::Schema1 { .. })));
        assert!(matches!(Document::parse(b"{}", SCHEMA1[1], "x"), Err(Error::Schema1 { .. })));
        let helm = descriptor("application/vnd.cncf.helm.config.v1+json");
        let artifact = format!(r#"{{"schemaVersion":2,"config":{helm},"layers":[]}}"#);
        assert!(matches!(
            Document::parse(artifact.as_bytes(), OCI_MANIFEST, "x"),
            Ok(Document::Manifest(Manifest { artifact: Some(kind), .. })) if kind.contains("helm")
        ));
        let image = format!(r#"{{"schemaVersion":2,"config":{},"layers":[]}}"#, descriptor(DOCKER_CONFIG));
        assert!(matches!(
            Document::parse(image.as_bytes(), DOCKER_MANIFEST, "x"),
            Ok(Document::Manifest(Manifest { artifact: None, .. }))
        ));
    }

    #[test]
    fn the_platforms_of_an_index_are_listed_and_chosen_from() {
        let entry = |os: &str, arch: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{HEX}","size":2,
                     "platform":{{"os":"{os}","architecture":"{arch}"}}}}"#
            )
        };
        let entries =
            [entry("linux", "arm64"), entry("linux", "s390x"), entry("unknown", "unknown")].join(",");
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#);
        let Document::Index(index) = Document::parse(json.as_bytes(), OCI_INDEX, "x").unwrap() else {
            panic!()
        };
        assert_eq!(available(&index), ["linux/arm64", "linux/s390x"]);
        assert!(candidates(&index, &Platform::parse("linux/amd64").unwrap()).is_empty());
        assert_eq!(candidates(&index, &Platform::parse("linux/arm64").unwrap()).len(), 1);
    }
}
