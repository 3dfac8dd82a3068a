//! Sending an image: blobs that the registry lacks, then the manifest (distribution-spec 1.1 "Push").
//!
//! ```text
//! HEAD blob ── there ───────────────────────────────▶ nothing to do
//!        └── missing ─▶ POST uploads/?mount=…&from=… ── 201 ─▶ nothing to send
//!                                                   └── 202 ─▶ PUT the whole blob to the session
//! ```

use hyper::header::{CONTENT_TYPE, LOCATION};
use hyper::{Method, StatusCode};

use crate::client::ask;
use crate::digest::Digest;
use crate::endpoint::Need;
use crate::error::Error;
use crate::exchange::{Answer, Ask, Exchange, Target, follow};
use crate::payload::{OpenSource, Payload};
use crate::reference::ImageRef;
use crate::transport::Peer;

/// How a blob came to be in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it over from another of its repositories.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

/// A blob to be pushed.
#[derive(Clone)]
pub struct BlobSource {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Opens its bytes; may be called more than once, for every attempt.
    pub open: OpenSource,
    /// A repository of the same registry that has it.
    pub mount_from: Option<String>,
}

/// Whether the repository has the blob.
pub(crate) async fn exists(
    exchange: &Exchange,
    reference: &ImageRef,
    digest: &Digest,
) -> Result<bool, Error> {
    let request = ask(reference, Need::Push, Method::HEAD, format!("blobs/{digest}"));
    let answer = exchange.get(&request).await?;
    match answer.status() {
        StatusCode::OK => Ok(true),
        // Who does not answer the question is sent the blob, and knows then.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => Ok(false),
        _ => Err(refusal(exchange, reference, answer).await),
    }
}

/// Makes sure that the repository has the blob.
pub(crate) async fn blob(
    exchange: &Exchange,
    reference: &ImageRef,
    blob: &BlobSource,
) -> Result<Pushed, Error> {
    if exists(exchange, reference, &blob.digest).await? {
        return Ok(Pushed::Existed);
    }
    let path = match &blob.mount_from {
        Some(from) => {
            let from = from.replace('/', "%2F");
            format!("blobs/uploads/?mount={}&from={from}", blob.digest)
        }
        None => "blobs/uploads/".to_owned(),
    };
    let source = blob.mount_from.clone();
    let request = Ask { source: source.clone(), ..ask(reference, Need::Push, Method::POST, path) };
    let answer = exchange.get(&request).await?;
    match answer.status() {
        StatusCode::CREATED => return Ok(Pushed::Mounted),
        StatusCode::ACCEPTED => {}
        _ => return Err(refusal(exchange, reference, answer).await),
    }
    let (peer, path) = session(&answer, &blob.digest)?;
    exchange.drain(answer).await;
    let upload = Ask {
        source,
        target: Target::At(peer, path),
        content_type: Some("application/octet-stream".to_owned()),
        payload: Payload::Source { open: blob.open.clone(), size: blob.size },
        ..ask(reference, Need::Push, Method::PUT, String::new())
    };
    let answer = exchange.get(&upload).await?;
    match answer.status() {
        StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(Pushed::Sent),
        _ => Err(refusal(exchange, reference, answer).await),
    }
}

/// Where the bytes go: the session's URL with the digest added to its query.
fn session(answer: &Answer, digest: &Digest) -> Result<(Peer, String), Error> {
    let origin = answer.origin();
    let location = answer.response.headers().get(LOCATION);
    let (target, path) = follow(origin, origin, &answer.path, location)?;
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}digest={digest}");
    let peer = if target == *origin { answer.peer.clone() } else { Peer::stranger(target) };
    Ok((peer, path))
}

/// Puts a manifest or index under the reference's tag, or under its digest.
pub(crate) async fn manifest(
    exchange: &Exchange,
    reference: &ImageRef,
    media_type: &str,
    bytes: Vec<u8>,
) -> Result<Digest, Error> {
    let algorithm = reference.digest().map(Digest::algorithm).unwrap_or(crate::digest::Algorithm::Sha256);
    let mut hasher = crate::digest::Hasher::new(algorithm);
    hasher.update(&bytes);
    let digest = hasher.finish();
    if let Some(expected) = reference.digest().filter(|expected| **expected != digest) {
        let what = format!("the manifest for {reference}");
        return Err(Error::DigestMismatch { what, expected: expected.clone(), actual: digest });
    }
    // A tag is what people look for; a digest alone names what has none.
    let target = reference.tag().map_or_else(|| reference.target(), str::to_owned);
    let path = format!("manifests/{target}");
    let request = Ask {
        content_type: Some(media_type.to_owned()),
        payload: Payload::Bytes(bytes.into()),
        ..ask(reference, Need::Push, Method::PUT, path)
    };
    let answer = exchange.get(&request).await?;
    match answer.status() {
        StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => Ok(digest),
        _ => Err(refusal(exchange, reference, answer).await),
    }
}

async fn refusal(exchange: &Exchange, reference: &ImageRef, answer: Answer) -> Error {
    let (status, url) = (answer.status(), answer.url.clone());
    let is_json = answer.header(CONTENT_TYPE).is_some_and(|kind| kind.contains("json"));
    let (code, reason) = exchange.read_error(answer).await;
    let reason = if is_json && !code.is_empty() { format!("{code}: {reason}") } else { reason };
    let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
    match status {
        StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED => {
            Error::Denied { registry, repository, reason }
        }
        StatusCode::UNAUTHORIZED => Error::Unauthorised { registry, repository, reason },
        _ => Error::Status { url, status: status.as_u16(), reason },
    }
}
