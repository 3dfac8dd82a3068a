//! `registries.conf`, second format, as podman and its kin write it: what is blocked, where a prefix really is, mirrors.
//!
//! Read: `prefix`, `location`, `insecure`, `blocked`, `mirror` (with `location`, `insecure`, `pull-from-mirror`),
//! `mirror-by-digest-only`. Names without a registry are not searched for: what they mean must not depend on who answers
//! first, so `unqualified-search-registries` and `aliases` are passed over.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::endpoint::{Endpoint, Scheme};
use crate::error::Error;
use crate::hosts::{read, refuse, refuse_toml};
use crate::reference::ImageRef;

/// What the files say, later entries for a prefix in place of earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Registries {
    entries: Vec<Entry>,
}

#[derive(Deserialize, Default)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
    /// The first format's only table.
    #[serde(default)]
    registries: Option<toml::Value>,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Entry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
    mirror_by_digest_only: bool,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: PullFrom,
}

#[derive(Clone, Copy, Debug, Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// Reads `path` and then the `*.conf` files of `<path>.d` in the order of their names.
pub(crate) fn load(path: &Path) -> Result<Registries, Error> {
    let mut registries = Registries::default();
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let entries = std::fs::read_dir(PathBuf::from(folder)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
    files.sort();
    for file in std::iter::once(path.to_owned()).chain(files) {
        if let Some(text) = read(&file)? {
            registries.add(parse(&text, &file)?);
        }
    }
    Ok(registries)
}

/// What one text says.
#[cfg(test)]
pub(crate) fn parse_all(text: &str, path: &Path) -> Result<Registries, Error> {
    let mut registries = Registries::default();
    registries.add(parse(text, path)?);
    Ok(registries)
}

/// The entries of one file.
fn parse(text: &str, path: &Path) -> Result<Vec<Entry>, Error> {
    let file: File = toml::from_str(text).map_err(|error| refuse_toml(path, text, &error))?;
    if file.registries.is_some() {
        return Err(refuse(path, "it is in the first format ([registries.…]); write [[registry]] tables"));
    }
    let mut entries = file.registry;
    for entry in &mut entries {
        if entry.prefix.is_empty() {
            entry.prefix.clone_from(&entry.location);
        }
        if entry.prefix.is_empty() {
            return Err(refuse(path, "a registry has neither prefix nor location"));
        }
        let wild = entry.prefix.starts_with("*.");
        if entry.prefix.trim_start_matches("*.").contains('*') || (wild && entry.prefix.contains('/')) {
            return Err(refuse(path, &format!("prefix {:?}: only *.domain is understood", entry.prefix)));
        }
        if entry.location.is_empty() && !wild {
            entry.location.clone_from(&entry.prefix);
        }
        let mirrors = entry.mirror.iter().map(|mirror| mirror.location.as_str());
        for location in mirrors.chain((!wild).then_some(entry.location.as_str())) {
            check_location(location)
                .map_err(|reason| refuse(path, &format!("location {location:?}: {reason}")))?;
        }
    }
    Ok(entries)
}

fn check_location(location: &str) -> Result<(), &'static str> {
    let host = location.split('/').next().unwrap_or_default();
    if location.contains("://") {
        return Err("a location has no scheme; insecure = true allows plain HTTP");
    }
    if host.is_empty() || location.contains(['@', '?', '#', ' ']) || location.ends_with('/') {
        return Err("it is not host[:port][/path]");
    }
    format!("https://{location}").parse::<hyper::Uri>().map(drop).map_err(|_| "it is not host[:port][/path]")
}

impl Registries {
    fn add(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.entries.retain(|known| known.prefix != entry.prefix);
            self.entries.push(entry);
        }
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .filter(|entry| matches(&entry.prefix, name))
            .max_by_key(|entry| entry.prefix.len())
    }

    /// Fails if the reference's prefix is blocked.
    pub(crate) fn refuse_blocked(&self, reference: &ImageRef) -> Result<(), Error> {
        match self.find(&reference.name()) {
            Some(entry) if entry.blocked => {
                Err(Error::Blocked { name: reference.name(), prefix: entry.prefix.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Mirrors in order, then the location.
    pub(crate) fn endpoints(&self, reference: &ImageRef) -> Vec<Endpoint> {
        let name = reference.name();
        let Some(entry) = self.find(&name) else { return vec![Endpoint::of(reference)] };
        // A wildcard stands for the host that it matched.
        let wild = entry.prefix.starts_with("*.");
        let prefix = if wild { reference.registry() } else { entry.prefix.as_str() };
        let rest = name.strip_prefix(prefix).unwrap_or_default();
        let mut endpoints = Vec::new();
        for mirror in &entry.mirror {
            let from =
                if entry.mirror_by_digest_only { PullFrom::DigestOnly } else { mirror.pull_from_mirror };
            let mut endpoint = at(&format!("{}{rest}", mirror.location), mirror.insecure, reference);
            endpoint.is_mirror = true;
            endpoint.capabilities.push = false;
            endpoint.capabilities.resolve = from != PullFrom::DigestOnly;
            // What a tag resolved to is asked for by digest, so a mirror for tags alone still serves content.
            endpoints.push(endpoint);
        }
        let location = if wild && entry.location.is_empty() { prefix } else { entry.location.as_str() };
        let mut last = at(&format!("{location}{rest}"), entry.insecure, reference);
        last.is_mirror = last.host != reference.endpoint();
        endpoints.push(last);
        endpoints
    }
}

/// A prefix ends where a component of the name does.
fn matches(prefix: &str, name: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next().unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        return host.len() > domain.len() && host.ends_with(domain);
    }
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

fn at(place: &str, insecure: bool, reference: &ImageRef) -> Endpoint {
    let (host, repository) = place.split_once('/').unwrap_or((place, ""));
    let mut endpoint = Endpoint::of(reference);
    if host != reference.registry() {
        // Docker Hub answers under another name than its images have.
        endpoint.host = if host == "docker.io" { "registry-1.docker.io".to_owned() } else { host.to_owned() };
        host.clone_into(&mut endpoint.credentials);
    }
    repository.clone_into(&mut endpoint.repository);
    endpoint.scheme = if insecure { Scheme::Insecure } else { Scheme::Probe };
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str, name: &str) -> Result<Vec<(String, String)>, Error> {
        let registries = parse_all(text, Path::new("registries.conf"))?;
        let reference = ImageRef::parse(name).unwrap();
        registries.refuse_blocked(&reference)?;
        Ok(registries.endpoints(&reference).into_iter().map(|e| (e.host, e.repository)).collect())
    }

    #[test]
    fn a9_registries_are_found_by_their_longest_prefix_and_rewritten() {
        let text = r#"
            unqualified-search-registries = ["evil.io"]
            [[registry]]
            location = "docker.io"
            [[registry.mirror]]
            location = "cache.io/hub"
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "a.io/team"
            location = "b.io:5000/x/y"
            [[registry]]
            prefix = "a.io/team/secret"
            blocked = true
            [[registry]]
            prefix = "*.corp"
            [[registry.mirror]]
            location = "m.corp/all"
            insecure = true
        "#;
        for (name, expected) in [
            (
                "busybox",
                &[("cache.io", "hub/library/busybox"), ("registry-1.docker.io", "library/busybox")][..],
            ),
            ("a.io/team/app", &[("b.io:5000", "x/y/app")]),
            ("a.io/teamwork/app", &[("a.io", "teamwork/app")]),
            ("r.corp/app", &[("m.corp", "all/app"), ("r.corp", "app")]),
            ("other.io/x", &[("other.io", "x")]),
        ] {
            let expected: Vec<(String, String)> =
                expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            assert_eq!(route(text, name).unwrap(), expected, "{name}");
        }
        let error = route(text, "a.io/team/secret/x").unwrap_err();
        assert!(matches!(&error, Error::Blocked { prefix, .. } if prefix == "a.io/team/secret"), "{error}");
    }

    #[test]
    fn registries_that_cannot_be_read_are_refused() {
        for (text, expected) in [
            ("[registries.search]\nregistries = [\"x\"]", "first format"),
            ("[[registry]]\nblocked = true", "neither prefix nor location"),
            ("[[registry]]\nlocation = \"https://x\"", "no scheme"),
            ("[[registry]]\nprefix = \"a.*.io\"", "only *.domain"),
            ("[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"\"", "host[:port]"),
            ("[[registry]]\nlocation = 3", "line 2"),
        ] {
            let error = route(text, "x.io/y").unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
