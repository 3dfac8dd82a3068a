//! Where the requests for one repository go: to mirrors in order, and to the registry itself last.
//!
//! ```text
//! reference ─▶ hosts.toml of its registry, or of _default ─▶ endpoints
//!          └─▶ else registries.conf, longest prefix        ─▶ endpoints
//!          └─▶ else the registry itself                    ─▶ one endpoint
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderMap;

use crate::error::Error;
use crate::hosts;
use crate::reference::ImageRef;
use crate::registries::{self, Registries};
use crate::transport::{Origin, Peer};

/// What a request asks of a host. A tag is only resolved by hosts that are trusted with it; content under a digest
/// may come from anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// What a tag means.
    Resolve,
    /// Content by digest.
    Pull,
    /// What refers to a digest.
    Referrers,
    /// Taking content.
    Push,
}

/// What a host is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) resolve: bool,
    pub(crate) pull: bool,
    pub(crate) referrers: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Capabilities =
        Capabilities { resolve: true, pull: true, referrers: true, push: true };

    fn cover(self, need: Need) -> bool {
        match need {
            Need::Resolve => self.resolve,
            Need::Pull => self.pull,
            Need::Referrers => self.referrers,
            Need::Push => self.push,
        }
    }
}

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// TLS first; plain HTTP where the other side does not speak TLS, if it is this machine or that is allowed.
    Probe,
    /// As [`Scheme::Probe`], with plain HTTP allowed whatever the client's options say.
    Insecure,
    /// TLS, always.
    Tls,
    /// Plain HTTP: the administrator wrote `http://`.
    Plain,
}

/// Certificates for one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsFiles {
    /// PEM files of authorities to trust beside the system's.
    pub(crate) authorities: Vec<PathBuf>,
    /// Certificate and key to show, where the host asks; one file may hold both.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    /// Whether the administrator said that the host's certificate is not to be checked.
    pub(crate) unchecked: bool,
}

/// One host, and the repository's name there.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// `host[:port]`.
    pub(crate) host: String,
    pub(crate) scheme: Scheme,
    /// The path before the repository's name, such as `/v2`.
    pub(crate) base: String,
    pub(crate) repository: String,
    /// The registry that this host stands in for, told as `?ns=`.
    pub(crate) namespace: Option<String>,
    pub(crate) capabilities: Capabilities,
    /// Sent with every request to this host. May hold secrets: never printed.
    pub(crate) headers: HeaderMap,
    pub(crate) tls: Arc<TlsFiles>,
    pub(crate) dial_timeout: Option<Duration>,
    /// Under which name its credentials are filed.
    pub(crate) credentials: String,
    /// Whether it is another host than the reference names.
    pub(crate) is_mirror: bool,
}

impl Endpoint {
    /// The registry itself, as the reference names it.
    pub(crate) fn of(reference: &ImageRef) -> Endpoint {
        Endpoint {
            host: reference.endpoint().to_owned(),
            scheme: Scheme::Probe,
            base: "/v2".to_owned(),
            repository: reference.repository().to_owned(),
            namespace: None,
            capabilities: Capabilities::ALL,
            headers: HeaderMap::new(),
            tls: Arc::default(),
            dial_timeout: None,
            credentials: reference.registry().to_owned(),
            is_mirror: false,
        }
    }

    /// The other side of a connection to this host.
    pub(crate) fn peer(&self, secure: bool) -> Peer {
        Peer {
            origin: Origin::of_registry(&self.host, secure),
            tls: Arc::clone(&self.tls),
            dial_timeout: self.dial_timeout,
        }
    }

    /// The path of something below the repository, such as `blobs/sha256:…`.
    pub(crate) fn path(&self, below: &str) -> String {
        let path = format!("{}/{}/{below}", self.base, self.repository);
        match &self.namespace {
            None => path,
            Some(namespace) => {
                let separator = if path.contains('?') { '&' } else { '?' };
                format!("{path}{separator}ns={}", namespace.replace(':', "%3A"))
            }
        }
    }

    pub(crate) fn covers(&self, need: Need) -> bool {
        self.capabilities.cover(need)
    }
}

/// Files in which an administrator lays out mirrors, certificates and rules for registries. The default is where
/// containerd, docker and podman look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFiles {
    /// Folders with `<host>/hosts.toml` and `_default/hosts.toml`, the first one that has a file for a host counts.
    pub hosts: Vec<PathBuf>,
    /// `registries.conf` in its second format; the files of `<path>.d` are read after it. Used for registries that no
    /// hosts.toml is for; what it blocks is blocked in any case.
    pub registries: Option<PathBuf>,
    /// Folders with `<host>/*.crt` (authorities) and `<host>/*.cert` with `*.key` (client certificates).
    pub certificates: Vec<PathBuf>,
}

impl Default for HostFiles {
    fn default() -> HostFiles {
        let folders = |names: &[&str]| names.iter().map(PathBuf::from).collect();
        HostFiles {
            hosts: folders(&["/etc/cofferdam/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]),
            registries: Some(PathBuf::from("/etc/containers/registries.conf")),
            certificates: folders(&["/etc/containers/certs.d", "/etc/docker/certs.d"]),
        }
    }
}

impl HostFiles {
    /// No files: every registry is spoken to directly.
    pub fn none() -> HostFiles {
        HostFiles { hosts: Vec::new(), registries: None, certificates: Vec::new() }
    }
}

/// The endpoints for a reference, in the order in which they are tried; never empty.
pub(crate) fn route(files: &HostFiles, reference: &ImageRef) -> Result<Vec<Endpoint>, Error> {
    let registries = match &files.registries {
        Some(path) => registries::load(path)?,
        None => Registries::default(),
    };
    registries.refuse_blocked(reference)?;
    if let Some(endpoints) = hosts::find(&files.hosts, reference)? {
        return Ok(endpoints);
    }
    Ok(registries.endpoints(reference))
}
