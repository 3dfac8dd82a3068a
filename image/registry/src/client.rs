//! The pull client: a blocking surface over one I/O thread.
//!
//! All network work of a [`Client`] happens on one thread with a single-threaded runtime; callers block on its answers and
//! read blobs as ordinary [`std::io::Read`]ers. So the image store stays free of async code, and a pull costs one thread
//! for the network however many layers it fetches.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use serde::Deserialize;

use crate::auth::Scope;
use crate::blob::{self, BlobReader};
use crate::body;
use crate::credentials::CredentialSource;
use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::exchange::{Answer, Ask, Exchange};
use crate::manifest::{ACCEPT, Descriptor, Document, Manifest, choose};
use crate::platform::Platform;
use crate::reference::ImageRef;
use crate::retry::RetryPolicy;
use crate::thread::IoThread;
use crate::transport::Timeouts;

/// The largest manifest or index, in bytes: what registries themselves accept.
pub const MANIFEST_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// The largest image configuration, in bytes.
pub const CONFIG_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// How deep indexes may nest.
const INDEX_DEPTH_LIMIT: usize = 4;
/// How many tags an "unknown tag" message lists.
const TAGS_SHOWN: usize = 8;

/// Where plain HTTP is allowed when the other side does not speak TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// On this machine's loopback addresses.
    #[default]
    LoopbackOnly,
    /// Everywhere: the caller asked for it.
    Allowed,
}

/// How a client behaves. The default is what an operator expects without configuration.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// Where credentials are looked for.
    pub credentials: CredentialSource,
    /// Where plain HTTP is allowed.
    pub plain_http: PlainHttp,
    /// PEM files of certificate authorities to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Attempts and delays.
    pub retry: RetryPolicy,
}

/// A client for any number of registries.
pub struct Client {
    exchange: Arc<Exchange>,
    thread: IoThread,
}

/// An image as a registry has it, for one platform.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What the reference itself points at: the index, where there is one.
    pub target: Digest,
    /// The image manifest's digest.
    pub digest: Digest,
    /// The image manifest's bytes.
    pub bytes: Bytes,
    /// The image manifest.
    pub manifest: Manifest,
}

struct Fetched {
    bytes: Bytes,
    digest: Digest,
    content_type: String,
}

impl Client {
    /// Starts the I/O thread. No connection is made yet.
    pub fn new(options: ClientOptions) -> Result<Client, Error> {
        Ok(Client { exchange: Arc::new(Exchange::new(options)), thread: IoThread::start()? })
    }

    /// Finds the manifest of `reference` that suits `platform`, walking indexes. Every byte is checked against its digest.
    pub fn resolve(&self, reference: &ImageRef, platform: &Platform) -> Result<Resolved, Error> {
        let (reference, platform) = (reference.clone(), platform.clone());
        self.run(|exchange| async move { resolve(&exchange, &reference, &platform).await })
    }

    /// The digest that `reference` points at now, by a request without a body where the registry answers one.
    pub fn target(&self, reference: &ImageRef) -> Result<Digest, Error> {
        let reference = reference.clone();
        self.run(|exchange| async move { target(&exchange, &reference).await })
    }

    /// Fetches a small blob, such as a configuration, of at most `limit_bytes`; checks size and digest.
    pub fn fetch(
        &self,
        reference: &ImageRef,
        descriptor: &Descriptor,
        limit_bytes: u64,
    ) -> Result<Bytes, Error> {
        let (reference, descriptor) = (reference.clone(), descriptor.clone());
        self.run(|exchange| async move { fetch(&exchange, &reference, &descriptor, limit_bytes).await })
    }

    /// Opens a blob for reading. Broken transfers are resumed behind the reader's back. The reader gives exactly
    /// `descriptor.size` bytes or an error; comparing the digest is left to the caller, who hashes the stream anyway.
    pub fn open(&self, reference: &ImageRef, descriptor: &Descriptor) -> BlobReader {
        let (exchange, reference) = (Arc::clone(&self.exchange), reference.clone());
        blob::open(self.thread.handle(), exchange, reference, descriptor.clone())
    }

    fn run<T, F>(&self, job: impl FnOnce(Arc<Exchange>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.thread.run(job(Arc::clone(&self.exchange)))?
    }
}

/// The request for `path` below a reference's repository.
pub(crate) fn ask(reference: &ImageRef, method: Method, path: &str) -> Ask {
    let repository = reference.repository().to_owned();
    Ask {
        path: format!("/v2/{repository}/{path}"),
        scope: Scope { registry: reference.registry().to_owned(), repository },
        endpoint: reference.endpoint().to_owned(),
        method,
        accept: None,
        from: 0,
    }
}

async fn resolve(exchange: &Exchange, reference: &ImageRef, platform: &Platform) -> Result<Resolved, Error> {
    let mut fetched = fetch_manifest(exchange, reference, "").await?;
    let target = fetched.digest.clone();
    let name = reference.to_string();
    for _ in 0..=INDEX_DEPTH_LIMIT {
        let chosen = match Document::parse(&fetched.bytes, &fetched.content_type, &name)? {
            Document::Manifest(manifest) => {
                return Ok(Resolved { target, digest: fetched.digest, bytes: fetched.bytes, manifest });
            }
            Document::Index(index) => choose(&index, platform, &name)?,
        };
        let next = fetch_manifest(exchange, &reference.at(chosen.digest.clone()), &chosen.media_type).await?;
        if next.bytes.len() as u64 != chosen.size {
            let (what, actual) = (format!("manifest {}", chosen.digest), next.bytes.len() as u64);
            return Err(Error::SizeMismatch { what, expected: chosen.size, actual });
        }
        fetched = next;
    }
    Err(Error::InvalidManifest {
        reference: name,
        reason: format!("indexes nest deeper than {INDEX_DEPTH_LIMIT}"),
    })
}

/// `expected_type` is what an index said that the manifest is; empty if nothing did.
async fn fetch_manifest(
    exchange: &Exchange,
    reference: &ImageRef,
    expected_type: &str,
) -> Result<Fetched, Error> {
    let path = format!("manifests/{}", reference.target());
    let answer = exchange.get(&Ask { accept: Some(ACCEPT), ..ask(reference, Method::GET, &path) }).await?;
    if answer.status() != StatusCode::OK {
        return Err(explain(exchange, reference, answer).await);
    }
    let header = answer.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let served = header.unwrap_or_default().to_owned();
    let what = format!("the manifest of {reference}");
    let bytes =
        body::collect(&exchange.transport, &answer.origin, answer.response, &what, MANIFEST_LIMIT_BYTES)
            .await?;
    let digest = match reference.digest() {
        Some(expected) => verify(&bytes, expected, &what)?,
        None => Digest::of(&bytes),
    };
    let content_type = if expected_type.is_empty() { served } else { expected_type.to_owned() };
    Ok(Fetched { bytes, digest, content_type })
}

async fn target(exchange: &Exchange, reference: &ImageRef) -> Result<Digest, Error> {
    let path = format!("manifests/{}", reference.target());
    let answer = exchange.get(&Ask { accept: Some(ACCEPT), ..ask(reference, Method::HEAD, &path) }).await?;
    let digest = answer.response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    match digest.map(Digest::parse) {
        Some(Ok(digest)) if answer.status() == StatusCode::OK => Ok(digest),
        // Not every registry answers HEAD, and those that refuse it explain themselves only to GET.
        _ => Ok(fetch_manifest(exchange, reference, "").await?.digest),
    }
}

async fn fetch(
    exchange: &Exchange,
    reference: &ImageRef,
    descriptor: &Descriptor,
    limit_bytes: u64,
) -> Result<Bytes, Error> {
    let what = format!("blob {}", descriptor.digest);
    if descriptor.size > limit_bytes {
        return Err(Error::TooLarge { what, limit_bytes });
    }
    let answer = exchange.get(&ask(reference, Method::GET, &format!("blobs/{}", descriptor.digest))).await?;
    if answer.status() != StatusCode::OK {
        return Err(explain_blob(exchange, reference, &descriptor.digest, answer).await);
    }
    let bytes =
        body::collect(&exchange.transport, &answer.origin, answer.response, &what, limit_bytes).await?;
    if bytes.len() as u64 != descriptor.size {
        return Err(Error::SizeMismatch { what, expected: descriptor.size, actual: bytes.len() as u64 });
    }
    verify(&bytes, &descriptor.digest, &what)?;
    Ok(bytes)
}

fn verify(bytes: &[u8], expected: &Digest, what: &str) -> Result<Digest, Error> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected {
        return Ok(actual);
    }
    Err(Error::DigestMismatch { what: what.to_owned(), expected: expected.clone(), actual })
}

/// Registries answer a missing repository and a missing tag alike; one more request tells them apart.
async fn explain(exchange: &Exchange, reference: &ImageRef, answer: Answer) -> Error {
    let (status, url) = (answer.status(), answer.url.clone());
    let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
    let (code, reason) = exchange.read_error(answer).await;
    match status {
        StatusCode::NOT_FOUND if code == "NAME_UNKNOWN" => Error::UnknownRepository { registry, repository },
        StatusCode::NOT_FOUND => match tags(exchange, reference).await {
            Some(available) => {
                Error::UnknownTag { name: reference.name(), target: reference.target(), available }
            }
            None => Error::UnknownRepository { registry, repository },
        },
        StatusCode::FORBIDDEN => Error::Denied { registry, repository, reason },
        StatusCode::UNAUTHORIZED => Error::Unauthorised { registry, repository, reason },
        _ => Error::Status { url, status: status.as_u16(), reason },
    }
}

pub(crate) async fn explain_blob(
    exchange: &Exchange,
    reference: &ImageRef,
    digest: &Digest,
    answer: Answer,
) -> Error {
    match answer.status() {
        StatusCode::NOT_FOUND => Error::UnknownBlob { name: reference.name(), digest: digest.clone() },
        _ => exchange.refusal(answer).await,
    }
}

/// Some tags of the repository; `None` if there is no such repository.
async fn tags(exchange: &Exchange, reference: &ImageRef) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        tags: Option<Vec<String>>,
    }
    let answer = exchange.get(&ask(reference, Method::GET, &format!("tags/list?n={TAGS_SHOWN}"))).await;
    let answer = match answer {
        Ok(answer) if answer.status() == StatusCode::NOT_FOUND => return None,
        Ok(answer) if answer.status() == StatusCode::OK => answer,
        _ => return Some(Vec::new()),
    };
    let bytes =
        body::collect(&exchange.transport, &answer.origin, answer.response, "tags", MANIFEST_LIMIT_BYTES);
    let list: Option<List> = bytes.await.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut tags = list.and_then(|list| list.tags).unwrap_or_default();
    tags.truncate(TAGS_SHOWN);
    Some(tags)
}
