//! Signatures made with `cosign sign --key`: ECDSA over P-256 with SHA-256, kept in the image's own repository.
//!
//! ```text
//! image digest ─▶ tag sha256-<hex>.sig, referrers ─▶ manifest ─▶ its layers: a payload each, the signature beside it
//!                                                                └▶ key? digest? repository? ─▶ accepted
//! ```
//! A signature counts only for the digest and the repository that its payload names (CVE-2022-35929); lists of signatures are
//! read to a limit (CVE-2023-46737).

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cofferdam_registry::{Client, Descriptor, Digest, Document, Fetched, ImageRef};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

/// The most signatures that are looked at for one image.
const SIGNATURE_LIMIT: usize = 64;
/// The largest payload, in bytes.
const PAYLOAD_LIMIT_BYTES: u64 = 64 * 1024;
/// The largest key file, in bytes.
const KEY_LIMIT_BYTES: u64 = 64 * 1024;
/// What a signature's payload is called.
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// What a signature is called among referrers.
const ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Where a layer's signature is.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What the payload calls itself.
const PAYLOAD_KIND: &str = "cosign container image signature";
/// SubjectPublicKeyInfo of an uncompressed point on P-256 up to the point (RFC 5480): everything before 65 bytes of key.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A public key on P-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey {
    point: Vec<u8>,
}

impl PublicKey {
    /// Reads a file in PEM, as `cosign generate-key-pair` writes it.
    pub(crate) fn load(path: &Path) -> Result<PublicKey, String> {
        let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
        if size > KEY_LIMIT_BYTES {
            return Err("larger than 64 KiB".to_owned());
        }
        PublicKey::parse(&std::fs::read(path).map_err(|error| error.to_string())?)
    }

    /// Reads a key in PEM.
    pub(crate) fn parse(pem: &[u8]) -> Result<PublicKey, String> {
        let der =
            SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| "not a public key in PEM".to_owned())?;
        match der.strip_prefix(&P256_PREFIX) {
            Some(point) if point.len() == 65 && point[0] == 4 => Ok(PublicKey { point: point.to_vec() }),
            _ => Err("not a public key on the curve P-256".to_owned()),
        }
    }

    fn verifies(&self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point).verify(payload, signature).is_ok()
    }
}

/// Which repository a signature must name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The one that is pulled from, and its tag if both name one.
    Same,
    /// The one that is pulled from, under any tag.
    Repository,
    /// This one, under any tag.
    Exact(String),
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: SignedIdentity,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct SignedIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Looks for a signature by one of `keys` for one of `digests`. An error says what was found instead.
pub(crate) fn check(
    client: &Client,
    reference: &ImageRef,
    digests: &[&Digest],
    keys: &[PublicKey],
    identity: &Identity,
) -> Result<(), String> {
    let mut seen = 0;
    let mut last = None;
    for digest in digests {
        for document in documents(client, reference, digest)? {
            for layer in signatures(&document, reference)? {
                seen += 1;
                if seen > SIGNATURE_LIMIT {
                    return Err(format!("none of its first {SIGNATURE_LIMIT} signatures counts"));
                }
                match check_one(client, reference, digest, &layer, keys, identity) {
                    Ok(()) => return Ok(()),
                    Err(reason) => last = Some(reason),
                }
            }
        }
    }
    Err(match last {
        Some(reason) => format!("none of its {seen} signatures counts: {reason}"),
        None => "it has no signature".to_owned(),
    })
}

/// The manifests that may hold signatures of a digest.
fn documents(client: &Client, reference: &ImageRef, digest: &Digest) -> Result<Vec<Fetched>, String> {
    let failed = |error: cofferdam_registry::Error| format!("its signatures cannot be fetched: {error}");
    let tag = format!("{}-{}.sig", digest.algorithm().as_str(), digest.hex());
    let tagged =
        ImageRef::parse(&format!("{}:{tag}", reference.name())).map_err(|error| error.to_string())?;
    let mut found: Vec<Fetched> = client.document(&tagged).map_err(failed)?.into_iter().collect();
    if found.is_empty() {
        let referrers = client.referrers(reference, digest, Some(ARTIFACT_TYPE)).map_err(failed)?;
        for referrer in referrers.into_iter().take(SIGNATURE_LIMIT) {
            found.extend(client.document(&reference.at(referrer.digest)).map_err(failed)?);
        }
    }
    Ok(found)
}

fn signatures(document: &Fetched, reference: &ImageRef) -> Result<Vec<Descriptor>, String> {
    let name = format!("a signature of {reference}");
    match Document::parse(&document.bytes, &document.content_type, &name) {
        Ok(Document::Manifest(manifest)) => {
            Ok(manifest.layers.into_iter().filter(|layer| layer.media_type == PAYLOAD_TYPE).collect())
        }
        Ok(Document::Index(_)) => Err("its signature is an index".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn check_one(
    client: &Client,
    reference: &ImageRef,
    digest: &Digest,
    layer: &Descriptor,
    keys: &[PublicKey],
    identity: &Identity,
) -> Result<(), String> {
    let signature = layer.annotations.get(ANNOTATION).and_then(|text| STANDARD.decode(text).ok());
    let signature = signature.ok_or("one is not base64")?;
    let payload = client.fetch(reference, layer, PAYLOAD_LIMIT_BYTES).map_err(|error| error.to_string())?;
    if !keys.iter().any(|key| key.verifies(&payload, &signature)) {
        return Err("one is by another key, or of another payload".to_owned());
    }
    // Only what is signed is read.
    let payload: Payload = serde_json::from_slice(&payload).map_err(|_| "one has an unknown payload")?;
    let critical = payload.critical;
    if critical.kind != PAYLOAD_KIND {
        return Err("one is not a signature of an image".to_owned());
    }
    if critical.image.digest != digest.to_string() {
        return Err(format!("one is for {}", show(&critical.image.digest)));
    }
    let wanted = match identity {
        Identity::Same | Identity::Repository => reference.name(),
        Identity::Exact(name) => name.clone(),
    };
    let named = ImageRef::parse(&critical.identity.reference).map_err(|_| "one names no repository")?;
    // A payload without a tag is for every tag; one with a tag is for that alone, and for what is asked for by its digest.
    let tag = critical.identity.reference.strip_prefix(&named.name()).and_then(|rest| rest.strip_prefix(':'));
    let is_other =
        |tag: &str| *identity == Identity::Same && reference.tag().is_some_and(|wanted| wanted != tag);
    if named.name() != wanted || tag.is_some_and(is_other) {
        return Err(format!("one is for {}", show(&critical.identity.reference)));
    }
    Ok(())
}

fn show(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(160).collect()
}
