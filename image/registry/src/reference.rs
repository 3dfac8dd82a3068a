//! Image references: what a user types, made unambiguous.
//!
//! The grammar and the normalisation are those of the distribution project's `reference` package, so that a name means
//! here what it means to docker and podman: `busybox` is `docker.io/library/busybox:latest`. Short names are never searched
//! for on several registries: which registry answers first must not decide what runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The longest repository name that the grammar allows, in bytes.
const REPOSITORY_LIMIT_BYTES: usize = 255;
/// The longest tag that the grammar allows, in bytes.
const TAG_LIMIT_BYTES: usize = 128;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// A fully qualified image reference: `registry/repository[:tag][@digest]`.
///
/// At least one of tag and digest is present. When both are, the digest decides what is fetched and the tag is a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {input:?}: {reason}")]
pub struct InvalidReference {
    /// The text that was refused.
    pub input: String,
    /// The rule that it breaks.
    pub reason: String,
}

impl ImageRef {
    /// Parses and normalises what a user typed.
    pub fn parse(input: &str) -> Result<ImageRef, InvalidReference> {
        let refuse = |reason: &str| InvalidReference { input: input.to_owned(), reason: reason.to_owned() };
        // Other tools' transports (`docker://`), or an address out of a browser.
        if let Some((scheme, rest)) = input.split_once("://") {
            return Err(refuse(&format!(
                "leave {scheme}:// away, the name begins with the registry: {rest}"
            )));
        }
        let (name, digest) = match input.split_once('@') {
            Some((name, digest)) => {
                let digest = Digest::parse(digest).map_err(|error| refuse(&error.to_string()))?;
                (name, Some(digest))
            }
            None => (input, None),
        };
        let (name, tag) = split_tag(name);
        if let Some(tag) = tag {
            check_tag(tag).map_err(refuse)?;
        }
        if digest.is_none() && name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refuse("64 hexadecimal digits name an image id, not a repository"));
        }
        let (registry, repository) = split_registry(name);
        check_registry(&registry).map_err(refuse)?;
        check_repository(&repository).map_err(refuse)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(ImageRef { registry, repository, tag, digest })
    }

    /// The registry as it is named, `host[:port]`; Docker Hub is `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host to talk to: Docker Hub's API lives under another name than its images.
    pub fn endpoint(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }

    /// The repository within the registry, such as `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given or implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository at `digest`, without a tag.
    pub fn at(&self, digest: Digest) -> ImageRef {
        ImageRef { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The last path segment of a manifest request: the digest if there is one, the tag otherwise.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// `registry/repository` without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What a person would type: without `docker.io/library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = InvalidReference;

    fn from_str(input: &str) -> Result<ImageRef, InvalidReference> {
        ImageRef::parse(input)
    }
}

impl TryFrom<String> for ImageRef {
    type Error = InvalidReference;

    fn try_from(input: String) -> Result<ImageRef, InvalidReference> {
        ImageRef::parse(&input)
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> String {
        reference.to_string()
    }
}

/// A colon is a tag's only after the last slash; before it, it is a port's.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => (before, Some(tag)),
        _ => (name, None),
    }
}

/// The first component is a registry if it could not be a repository's: a dot, a colon, upper case, or `localhost`.
fn split_registry(name: &str) -> (String, String) {
    let looks_like_host = |first: &str| {
        first == "localhost" || first.contains(['.', ':']) || first.chars().any(|c| c.is_ascii_uppercase())
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let valid = tag.len() <= TAG_LIMIT_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
    if valid { Ok(()) } else { Err("a tag is 1 to 128 of A-Z a-z 0-9 _ . - and starts with none of . -") }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or("an IPv6 registry is written [address]:port")?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| "the registry is not an IPv6 address")?;
            (None, port.strip_prefix(':').or(if port.is_empty() { None } else { Some("") }))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if let Some(port) = port
        && (port.is_empty() || port.starts_with('+') || port.parse::<u16>().is_err())
    {
        return Err("the registry's port is not a number from 0 to 65535");
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match host {
        Some(host) if !host.split('.').all(label) => Err("the registry is not a host name"),
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.len() > REPOSITORY_LIMIT_BYTES {
        return Err("the repository name is longer than 255 bytes");
    }
    if repository.split('/').all(is_path_component) {
        return Ok(());
    }
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("the repository name must be lower case");
    }
    Err("repository components are a-z 0-9, joined by single . _ - (or __, or several -)")
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = component;
    loop {
        let run = rest.bytes().take_while(|byte| alphanumeric(*byte)).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        if rest.is_empty() {
            return true;
        }
        let separator = match rest.as_bytes() {
            [b'.', ..] => 1,
            [b'_', b'_', ..] => 2,
            [b'_', ..] => 1,
            bytes => bytes.iter().take_while(|byte| **byte == b'-').count(),
        };
        if separator == 0 {
            return false;
        }
        rest = &rest[separator..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (input, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("127.0.0.1:5000/x:tag", "127.0.0.1:5000/x:tag", "127.0.0.1:5000/x:tag"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("[::1]:5000/a/b", "[::1]:5000/a/b:latest", "[::1]:5000/a/b:latest"),
            ("ghcr.io/a-b/c__d.e:v1", "ghcr.io/a-b/c__d.e:v1", "ghcr.io/a-b/c__d.e:v1"),
        ] {
            let reference = ImageRef::parse(input).unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
        }
        let pinned = ImageRef::parse(&format!("name@{digest}")).unwrap();
        assert_eq!(pinned.tag(), None);
        assert_eq!(pinned.target(), digest);
        let both = ImageRef::parse(&format!("name:tag@{digest}")).unwrap();
        assert_eq!((both.tag(), both.target()), (Some("tag"), digest));
    }

    #[test]
    fn malformed_names_are_refused() {
        let hex = "a".repeat(64);
        let long = format!("a/{}", "b".repeat(255));
        for input in [
            "",
            ":tag",
            "a:",
            "Busybox",
            "docker.io/Library/x",
            "a//b",
            "a/",
            "/a",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "host:port/x",
            "exa mple.com/x",
            "a@sha256:12",
            "a:.tag",
            "http://x/y",
            "..",
            "a/../b",
            "[::1/x",
            "[zz]:1/x",
            &hex,
            &long,
        ] {
            assert!(ImageRef::parse(input).is_err(), "{input:?} was accepted");
        }
        let error = ImageRef::parse("docker://quay.io/a/b:c").unwrap_err();
        assert!(error.reason.contains("leave docker:// away") && error.reason.ends_with("quay.io/a/b:c"));
    }
}
