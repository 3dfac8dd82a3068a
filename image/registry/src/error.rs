//! What can go wrong between asking for an image and having its bytes.

use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;

/// The class of a failure; each edge (exit code, gRPC code, Mesos reason) maps it in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The thing that was named does not exist.
    NotFound,
    /// The thing to be made is there already.
    AlreadyExists,
    /// The request, or what the other side sent, breaks a rule.
    InvalidInput,
    /// Known, but not supported here.
    Unsupported,
    /// The thing is in use.
    Conflict,
    /// Not allowed.
    Denied,
    /// A limit or a resource was exhausted.
    Exhausted,
    /// Cancelled, timed out or cut off; trying again may help.
    Interrupted,
    /// An operation of this host failed.
    Internal,
}

/// A failed request to a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reference does not parse.
    #[error(transparent)]
    Reference(#[from] crate::reference::InvalidReference),
    /// A digest does not parse.
    #[error(transparent)]
    Digest(#[from] crate::digest::InvalidDigest),
    /// The registry's host name has no address.
    #[error("unknown host {host}: {reason}; check the image name and this machine's DNS")]
    UnknownHost {
        /// The name that was looked up.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// No TCP connection.
    #[error("cannot connect to {host}: {reason}; check the registry's address and whether it runs")]
    Connect {
        /// `host:port`.
        host: String,
        /// The last address's failure.
        reason: String,
    },
    /// No TLS session.
    #[error("TLS with {host} failed: {reason}")]
    Tls {
        /// `host:port`.
        host: String,
        /// What the TLS library said.
        reason: String,
    },
    /// Only plain HTTP would work, which is for loopback or by explicit choice.
    #[error("{host} does not speak TLS; plain HTTP is refused unless asked for (--plain-http)")]
    PlainHttpRefused {
        /// `host:port`.
        host: String,
    },
    /// A named time limit ran out.
    #[error("{operation} with {host} took longer than {limit:?}")]
    Timeout {
        /// The operation that was waited for.
        operation: &'static str,
        /// `host:port`.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// The connection broke, or what came over it was not HTTP.
    #[error("{operation} with {host} failed: {reason}")]
    Transfer {
        /// What was being done.
        operation: &'static str,
        /// `host:port`.
        host: String,
        /// What the HTTP library said.
        reason: String,
    },
    /// The registry has no such repository.
    #[error("unknown image: {registry} has no repository {repository}; check how it is spelled")]
    UnknownRepository {
        /// The registry.
        registry: String,
        /// The repository that it does not have.
        repository: String,
    },
    /// The repository has no such tag or digest.
    #[error("unknown tag: {name} has no {target}{}", available_tags(.available))]
    UnknownTag {
        /// Registry and repository.
        name: String,
        /// The tag or digest that was asked for.
        target: String,
        /// Some tags that exist.
        available: Vec<String>,
    },
    /// The registry lost a blob that its manifest lists.
    #[error("{name} has no blob {digest}, though its manifest lists it")]
    UnknownBlob {
        /// Registry and repository.
        name: String,
        /// The missing blob.
        digest: Digest,
    },
    /// Credentials are missing or were not accepted.
    #[error(
        "unauthorised: {registry} refuses {repository}: {reason}; credentials come from --authfile or the usual files of podman and docker"
    )]
    Unauthorised {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// What it said, and which credentials were used.
        reason: String,
    },
    /// The registry forbids this, credentials or not.
    #[error("denied: {registry} forbids {repository}: {reason}")]
    Denied {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// What it said.
        reason: String,
    },
    /// 429 after every retry.
    #[error("{host} limits the rate of requests; gave up after {attempts} attempts")]
    RateLimited {
        /// `host:port`.
        host: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A status that no retry helps with, or that persisted.
    #[error("{url} answered {status}: {reason}")]
    Status {
        /// The URL without its query, which may hold a signature.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        reason: String,
    },
    /// A redirect that must not be followed.
    #[error("refused to follow {host} to {target}: {rule}")]
    Redirect {
        /// Who redirected.
        host: String,
        /// Where to, without the query.
        target: String,
        /// The rule.
        rule: &'static str,
    },
    /// Bytes do not have the digest they were asked for by.
    #[error("wrong digest: {what} is {actual}, expected {expected}")]
    DigestMismatch {
        /// What was fetched.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Bytes do not have the size that their descriptor gives.
    #[error("wrong size: {what} has {actual} bytes, its descriptor says {expected}")]
    SizeMismatch {
        /// What was fetched.
        what: String,
        /// The descriptor's size in bytes.
        expected: u64,
        /// The bytes that came, or one more than expected where reading stopped.
        actual: u64,
    },
    /// A document is larger than any real one.
    #[error("{what} is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What was fetched.
        what: String,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// The image exists, but not for the platform that was asked for.
    #[error("wrong platform: {reference} has no image for {wanted}; available: {}", listed(.available))]
    WrongPlatform {
        /// The reference.
        reference: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: Vec<String>,
    },
    /// The manifest is an artifact's, not a container image's.
    #[error("not a runnable image: {reference} is an artifact of type {media_type}")]
    NotRunnable {
        /// The reference.
        reference: String,
        /// Its artifact type, or its config's media type.
        media_type: String,
    },
    /// Docker's schema 1, gone since 2019.
    #[error(
        "{reference} is a Docker schema 1 manifest ({media_type}), which is not supported; push the image again"
    )]
    Schema1 {
        /// The reference.
        reference: String,
        /// The media type.
        media_type: String,
    },
    /// A manifest or index breaks the specification.
    #[error("invalid manifest of {reference}: {reason}")]
    InvalidManifest {
        /// The reference.
        reference: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// A document of the protocol is not what the specification says.
    #[error("{host} sent an unusable {what}: {reason}")]
    Protocol {
        /// `host:port`.
        host: String,
        /// Which document or header.
        what: &'static str,
        /// The rule that it breaks.
        reason: String,
    },
    /// A file about hosts (hosts.toml, registries.conf) cannot be used.
    #[error("{}: {reason}", .path.display())]
    HostFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The administrator blocked it.
    #[error("{name} is blocked: registries.conf blocks {prefix}")]
    Blocked {
        /// Registry and repository.
        name: String,
        /// The prefix that is blocked.
        prefix: String,
    },
    /// No host that is configured for the registry is for this kind of request.
    #[error("no host for {registry} may be asked to {what}; see the capabilities in its hosts.toml")]
    NoHost {
        /// The registry.
        registry: String,
        /// What was to be done.
        what: &'static str,
    },
    /// A proxy variable cannot be used.
    #[error(transparent)]
    Proxy(#[from] crate::proxy::InvalidProxy),
    /// The bytes are only at other hosts, where they are not fetched from unasked.
    #[error(
        "{name} has no blob {digest}; it is a foreign layer at {}, which is not among the hosts that are allowed",
        .hosts.join(", ")
    )]
    Foreign {
        /// Registry and repository.
        name: String,
        /// The blob.
        digest: Digest,
        /// Where it is said to be.
        hosts: Vec<String>,
    },
    /// What is to be pushed cannot be read.
    #[error("cannot read {what} to push it: {reason}")]
    Source {
        /// The blob or document.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A credential file cannot be used.
    #[error("credential file {}: {reason}", .path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A credential helper failed; what it printed is never shown.
    #[error("credential helper {helper}: {reason}")]
    CredentialHelper {
        /// The program.
        helper: String,
        /// Why not.
        reason: String,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The I/O thread could not be started or has ended.
    #[error("the registry client's I/O thread: {reason}")]
    Thread {
        /// Why.
        reason: String,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Error {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Reference(_) | Error::Digest(_) | Error::InvalidManifest { .. } => Kind::InvalidInput,
            Error::DigestMismatch { .. } | Error::SizeMismatch { .. } | Error::Protocol { .. } => {
                Kind::InvalidInput
            }
            Error::CredentialFile { .. } | Error::CredentialHelper { .. } => Kind::InvalidInput,
            Error::HostFile { .. } | Error::Proxy(_) => Kind::InvalidInput,
            Error::Blocked { .. } | Error::NoHost { .. } | Error::Foreign { .. } => Kind::Denied,
            Error::Source { .. } => Kind::Internal,
            Error::UnknownHost { .. } | Error::UnknownRepository { .. } => Kind::NotFound,
            Error::UnknownTag { .. } | Error::UnknownBlob { .. } | Error::WrongPlatform { .. } => {
                Kind::NotFound
            }
            Error::NotRunnable { .. } | Error::Schema1 { .. } => Kind::Unsupported,
            Error::Unauthorised { .. } | Error::Denied { .. } => Kind::Denied,
            Error::PlainHttpRefused { .. } | Error::Redirect { .. } => Kind::Denied,
            Error::RateLimited { .. } | Error::TooLarge { .. } => Kind::Exhausted,
            Error::Connect { .. } | Error::Tls { .. } | Error::Timeout { .. } => Kind::Interrupted,
            Error::Transfer { .. } | Error::Status { .. } | Error::Cancelled => Kind::Interrupted,
            Error::Thread { .. } => Kind::Internal,
        }
    }
}

fn available_tags(tags: &[String]) -> String {
    if tags.is_empty() { String::new() } else { format!("; it has {}", tags.join(", ")) }
}
