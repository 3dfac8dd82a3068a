//! The client: a blocking surface over one I/O thread.
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

use crate::blob::{self, BlobOptions, BlobReader};
use crate::body;
use crate::credentials::CredentialSource;
use crate::digest::{Digest, Hasher};
use crate::endpoint::{HostFiles, Need};
use crate::error::Error;
use crate::exchange::{Answer, Ask, Exchange, Target};
use crate::manifest::{ACCEPT, Descriptor, Document, Manifest};
use crate::payload::Payload;
use crate::platform::Platform;
use crate::proxy::Proxies;
use crate::push::{self, BlobSource, Pushed};
use crate::reference::ImageRef;
use crate::referrers;
use crate::retry::RetryPolicy;
use crate::tags;
use crate::thread::IoThread;
use crate::transport::Timeouts;
use crate::walk::Walk;

/// The largest manifest or index, in bytes: what registries themselves accept.
pub const MANIFEST_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
/// The largest image configuration, in bytes.
pub const CONFIG_LIMIT_BYTES: u64 = 8 * 1024 * 1024;

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
    /// Where mirrors, certificates and rules for registries are laid out.
    pub hosts: HostFiles,
    /// The proxies to use; those of the environment if `None`.
    pub proxies: Option<Proxies>,
    /// Hosts that foreign layers may be fetched from, without credentials. By default none.
    pub foreign_hosts: Vec<String>,
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
    /// What the registry calls that document.
    pub target_type: String,
    /// That document's size in bytes.
    pub target_size: u64,
    /// The image manifest's digest.
    pub digest: Digest,
    /// The image manifest's bytes.
    pub bytes: Bytes,
    /// The image manifest.
    pub manifest: Manifest,
}

/// Stops a client's requests from another thread; clones share it.
#[derive(Clone)]
pub struct Stopper(Arc<Exchange>);

impl Stopper {
    /// Makes every request of the client, running or to come, fail as cancelled.
    pub fn stop(&self) {
        self.0.stopped.send_replace(true);
    }
}

/// A manifest or index as a registry has it.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The document's bytes.
    pub bytes: Bytes,
    /// Their digest.
    pub digest: Digest,
    /// What the registry, or whoever referred to it, calls the document.
    pub content_type: String,
}

impl Client {
    /// Starts the I/O thread. No connection is made yet.
    pub fn new(options: ClientOptions) -> Result<Client, Error> {
        Ok(Client { exchange: Arc::new(Exchange::new(options)?), thread: IoThread::start()? })
    }

    /// A switch that stops this client's requests.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.exchange))
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
        self.open_with(reference, descriptor, BlobOptions::default())
    }

    /// As [`Client::open`], from a later byte on, in several ranges, or with somebody watching.
    pub fn open_with(
        &self,
        reference: &ImageRef,
        descriptor: &Descriptor,
        options: BlobOptions,
    ) -> BlobReader {
        let (exchange, reference) = (Arc::clone(&self.exchange), reference.clone());
        blob::open(self.thread.handle(), exchange, reference, descriptor.clone(), options)
    }

    /// Makes `count` connections to the host that blobs of the reference will probably come from, in the background.
    pub fn warm(&self, reference: &ImageRef, count: usize) {
        let (exchange, reference) = (Arc::clone(&self.exchange), reference.clone());
        self.thread.handle().spawn(async move {
            let Ok(route) = exchange.route(&reference) else { return };
            if let Some(endpoint) = route.iter().find(|endpoint| endpoint.covers(Need::Pull)) {
                exchange.transport.warm(&endpoint.peer(!exchange.is_plain(endpoint)), count);
            }
        });
    }

    /// Fetches one manifest or index of any kind, unparsed; checks its digest if the reference has one. `None` if the
    /// registry has none.
    pub fn document(&self, reference: &ImageRef) -> Result<Option<Fetched>, Error> {
        let reference = reference.clone();
        self.run(|exchange| async move {
            match fetch_manifest(&exchange, &reference, "").await {
                Ok(fetched) => Ok(Some(fetched)),
                Err(Error::UnknownTag { .. } | Error::UnknownRepository { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// What refers to `digest` in the reference's repository, those of one artifact type alone if it is given.
    pub fn referrers(
        &self,
        reference: &ImageRef,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let (reference, digest) = (reference.clone(), digest.clone());
        let artifact_type = artifact_type.map(str::to_owned);
        self.run(|exchange| async move {
            referrers::list(&exchange, &reference, &digest, artifact_type.as_deref()).await
        })
    }

    /// Every tag of the reference's repository, as references, in the registry's order.
    pub fn tags(&self, reference: &ImageRef) -> Result<Vec<ImageRef>, Error> {
        let reference = reference.clone();
        self.run(|exchange| async move { tags::all(&exchange, &reference).await })
    }

    /// Whether the repository has a blob already.
    pub fn has_blob(&self, reference: &ImageRef, digest: &Digest) -> Result<bool, Error> {
        let (reference, digest) = (reference.clone(), digest.clone());
        self.run(|exchange| async move { push::exists(&exchange, &reference, &digest).await })
    }

    /// Makes sure that the repository has a blob: it may be there, be mounted from another repository, or be sent whole.
    pub fn push_blob(&self, reference: &ImageRef, blob: &BlobSource) -> Result<Pushed, Error> {
        let (reference, blob) = (reference.clone(), blob.clone());
        self.run(|exchange| async move { push::blob(&exchange, &reference, &blob).await })
    }

    /// Puts a manifest or index under the reference's tag or digest, and returns its digest. What it refers to must be there.
    pub fn push_manifest(
        &self,
        reference: &ImageRef,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Error> {
        let (reference, bytes) = (reference.clone(), bytes.to_vec());
        let media_type = media_type.to_owned();
        self.run(|exchange| async move { push::manifest(&exchange, &reference, &media_type, bytes).await })
    }

    fn run<T, F>(&self, job: impl FnOnce(Arc<Exchange>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut stopped = self.exchange.stopped.subscribe();
        let job = job(Arc::clone(&self.exchange));
        self.thread.run(async move {
            tokio::select! {
                result = job => result,
                _ = stopped.wait_for(|stopped| *stopped) => Err(Error::Cancelled),
            }
        })?
    }
}

/// The request for what is at `path` below a reference's repository.
pub(crate) fn ask(reference: &ImageRef, need: Need, method: Method, path: String) -> Ask {
    Ask {
        reference: reference.clone(),
        need,
        method,
        target: Target::Below(path),
        accept: None,
        range: None,
        content_type: None,
        payload: Payload::Empty,
        source: None,
    }
}

/// A manifest by tag is only asked of hosts that are trusted with tags.
fn need_of(reference: &ImageRef) -> Need {
    if reference.digest().is_some() { Need::Pull } else { Need::Resolve }
}

async fn resolve(exchange: &Exchange, reference: &ImageRef, platform: &Platform) -> Result<Resolved, Error> {
    let mut fetched = fetch_manifest(exchange, reference, "").await?;
    let target = fetched.digest.clone();
    let (target_type, target_size) = (fetched.content_type.clone(), fetched.bytes.len() as u64);
    let name = reference.to_string();
    let mut walk = Walk::new(platform, &name);
    let mut entry: Option<Descriptor> = None;
    loop {
        match Document::parse(&fetched.bytes, &fetched.content_type, &name)? {
            Document::Index(index) => walk.enter(&index)?,
            Document::Manifest(manifest) => {
                let is_wanted = match &entry {
                    Some(entry) if walk.must_look(entry) => {
                        manifest.artifact.is_none()
                            && walk.suits(
                                &fetch(exchange, reference, &manifest.config, CONFIG_LIMIT_BYTES).await?,
                            )
                    }
                    _ => true,
                };
                if is_wanted {
                    let Fetched { bytes, digest, .. } = fetched;
                    return Ok(Resolved { target, target_type, target_size, digest, bytes, manifest });
                }
            }
        }
        let chosen = walk.follow()?;
        let next = fetch_manifest(exchange, &reference.at(chosen.digest.clone()), &chosen.media_type).await?;
        if next.bytes.len() as u64 != chosen.size {
            let (what, actual) = (format!("manifest {}", chosen.digest), next.bytes.len() as u64);
            return Err(Error::SizeMismatch { what, expected: chosen.size, actual });
        }
        (fetched, entry) = (next, Some(chosen));
    }
}

/// `expected_type` is what an index said that the manifest is; empty if nothing did.
async fn fetch_manifest(
    exchange: &Exchange,
    reference: &ImageRef,
    expected_type: &str,
) -> Result<Fetched, Error> {
    let path = format!("manifests/{}", reference.target());
    let request = Ask { accept: Some(ACCEPT), ..ask(reference, need_of(reference), Method::GET, path) };
    let answer = exchange.get(&request).await?;
    if answer.status() != StatusCode::OK {
        return Err(explain(exchange, reference, answer).await);
    }
    let served = answer.header(CONTENT_TYPE).unwrap_or_default().to_owned();
    let what = format!("the manifest of {reference}");
    let origin = answer.peer.origin;
    let bytes =
        body::collect(&exchange.transport, &origin, answer.response, &what, MANIFEST_LIMIT_BYTES).await?;
    let digest = match reference.digest() {
        Some(expected) => verify(&bytes, expected, &what)?,
        None => Digest::of(&bytes),
    };
    let content_type = if expected_type.is_empty() { served } else { expected_type.to_owned() };
    Ok(Fetched { bytes, digest, content_type })
}

async fn target(exchange: &Exchange, reference: &ImageRef) -> Result<Digest, Error> {
    let path = format!("manifests/{}", reference.target());
    let request = Ask { accept: Some(ACCEPT), ..ask(reference, need_of(reference), Method::HEAD, path) };
    let answer = exchange.get(&request).await?;
    let digest = answer.header("docker-content-digest");
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
    if let Some(bytes) = descriptor.embedded() {
        return Ok(bytes.into());
    }
    let path = format!("blobs/{}", descriptor.digest);
    let answer = exchange.get(&ask(reference, Need::Pull, Method::GET, path)).await?;
    if answer.status() != StatusCode::OK {
        return Err(explain_blob(exchange, reference, &descriptor.digest, answer).await);
    }
    let origin = answer.peer.origin;
    let bytes = body::collect(&exchange.transport, &origin, answer.response, &what, limit_bytes).await?;
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
        StatusCode::NOT_FOUND => match tags::some(exchange, reference).await {
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
