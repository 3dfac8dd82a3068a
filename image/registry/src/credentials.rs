//! Credentials: where they are looked for, and in which order.
//!
//! Files, first match wins: the explicit one alone if the caller names it; otherwise `$REGISTRY_AUTH_FILE`,
//! `$XDG_RUNTIME_DIR/containers/auth.json` (`/run/containers/<uid>/auth.json` without it),
//! `$XDG_CONFIG_HOME/containers/auth.json`, `$DOCKER_CONFIG/config.json` (`~/.docker/config.json` without it),
//! `~/.dockercfg`, which is nothing but the entries.
//! Within a file: a helper for the host (`credHelpers`), then `auths` by the longest key (`host/ns/repo`, `host/ns`,
//! `host`), then the file's `credsStore`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::Error;
use crate::helper;

/// The largest credential file that is read, in bytes.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// The file of the first dockers, which holds what is below `auths` today.
const OLD_NAME: &str = ".dockercfg";

/// A secret; it never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What is shown to a registry or to its token server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// User name and password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token (docker's `identitytoken`).
    IdentityToken(Secret),
    /// A ready bearer token (docker's `registrytoken`).
    RegistryToken(Secret),
}

/// Where credentials are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CredentialSource {
    /// The files that docker and podman use.
    #[default]
    Files,
    /// This file alone; it must exist.
    File(PathBuf),
    /// These credentials, for every registry that asks.
    Given(Credential),
    /// Nowhere.
    Anonymous,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl CredentialSource {
    /// Finds the credential for a repository of a registry, if there is one. May start a credential helper.
    /// A helper is given `limit` of time.
    pub(crate) async fn find(
        &self,
        registry: &str,
        repository: &str,
        limit: Duration,
    ) -> Result<Option<Credential>, Error> {
        match self {
            CredentialSource::Given(credential) => Ok(Some(credential.clone())),
            CredentialSource::Anonymous => Ok(None),
            CredentialSource::File(path) => match load(path)? {
                Some(config) => config.find(path, registry, repository, limit).await,
                None => Err(refuse(path, "no such file")),
            },
            CredentialSource::Files => {
                for path in default_files() {
                    if let Some(config) = load(&path)?
                        && let Some(credential) = config.find(&path, registry, repository, limit).await?
                    {
                        return Ok(Some(credential));
                    }
                }
                Ok(None)
            }
        }
    }
}

impl Config {
    async fn find(
        &self,
        path: &Path,
        registry: &str,
        repository: &str,
        limit: Duration,
    ) -> Result<Option<Credential>, Error> {
        if let Some((host, helper)) = self.cred_helpers.iter().find(|(host, _)| normalise(host) == registry)
            && let Some(found) = helper::get(helper, host, limit).await?
        {
            return Ok(Some(found));
        }
        for key in keys(registry, repository) {
            if let Some((_, entry)) = self.auths.iter().find(|(name, _)| normalise(name) == key)
                && let Some(found) = entry.credential(path)?
            {
                return Ok(Some(found));
            }
        }
        match &self.creds_store {
            Some(helper) => helper::get(helper, &store_key(registry), limit).await,
            None => Ok(None),
        }
    }
}

impl Entry {
    fn credential(&self, path: &Path) -> Result<Option<Credential>, Error> {
        let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(Secret(token))));
        }
        if let Some(token) = filled(&self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(Secret(token))));
        }
        let Some(auth) = filled(&self.auth) else {
            let pair = filled(&self.username).zip(filled(&self.password));
            return Ok(pair.map(|(user, password)| Credential::Basic { user, password: Secret(password) }));
        };
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let (user, password) = decoded
            .as_deref()
            .and_then(|text| text.split_once(':'))
            .ok_or_else(|| refuse(path, "an auth entry is not the base64 of user:password"))?;
        let password = Secret(password.trim_end_matches('\0').to_owned());
        Ok(Some(Credential::Basic { user: user.to_owned(), password }))
    }
}

fn load(path: &Path) -> Result<Option<Config>, Error> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) => return Err(refuse(path, "not a regular file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse(path, &error.to_string())),
    };
    if size > FILE_LIMIT_BYTES {
        return Err(refuse(path, "larger than 1 MiB"));
    }
    let bytes = std::fs::read(path).map_err(|error| refuse(path, &error.to_string()))?;
    // The parser's own message may quote a secret, so only the position is passed on.
    let invalid = |error: serde_json::Error| {
        refuse(path, &format!("invalid JSON at line {} column {}", error.line(), error.column()))
    };
    if path.file_name().is_some_and(|name| name == OLD_NAME) {
        let auths = serde_json::from_slice(&bytes).map_err(invalid)?;
        return Ok(Some(Config { auths, ..Config::default() }));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(invalid)
}

fn refuse(path: &Path, reason: &str) -> Error {
    Error::CredentialFile { path: path.to_owned(), reason: reason.to_owned() }
}

/// The keys that may hold a repository's credential, longest first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut key = format!("{registry}/{repository}");
    let mut keys = vec![key.clone()];
    while let Some(slash) = key.rfind('/') {
        key.truncate(slash);
        keys.push(key.clone());
    }
    keys
}

/// Docker writes keys as URLs, and Docker Hub's under three names.
fn normalise(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let is_url = bare.len() != key.len();
    let bare = bare.trim_end_matches('/');
    let bare =
        if is_url { bare.strip_suffix("/v1").or(bare.strip_suffix("/v2")).unwrap_or(bare) } else { bare };
    match bare {
        "index.docker.io" | "registry-1.docker.io" | "index.docker.io/v1" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

fn store_key(registry: &str) -> String {
    if registry == "docker.io" { "https://index.docker.io/v1/".to_owned() } else { registry.to_owned() }
}

fn default_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let runtime = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let uid = rustix::process::geteuid().as_raw();
    let fallback = || Some(PathBuf::from(format!("/run/containers/{uid}/auth.json")));
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    [
        variable("REGISTRY_AUTH_FILE"),
        runtime.or_else(fallback),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
        home.map(|dir| dir.join(OLD_NAME)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_for(json: &str, registry: &str, repository: &str) -> Option<String> {
        let config: Config = serde_json::from_str(json).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        match runtime.block_on(config.find(Path::new("x"), registry, repository, Duration::ZERO)).unwrap() {
            Some(Credential::Basic { user, .. }) => Some(user),
            Some(other) => Some(format!("{other:?}")),
            None => None,
        }
    }

    #[test]
    fn a7_the_longest_key_wins_and_docker_hub_has_one_name() {
        let auth = |user: &str| STANDARD.encode(format!("{user}:p"));
        let json = format!(
            r#"{{"auths":{{"h.io":{{"auth":"{}"}},"h.io/ns":{{"auth":"{}"}},"h.io/ns/repo":{{"auth":"{}"}},
               "https://index.docker.io/v1/":{{"auth":"{}"}},"https://old.io/v2/":{{"username":"e","password":"p"}},
               "tok.io":{{"identitytoken":"t"}},"empty.io":{{}}}}}}"#,
            auth("a"),
            auth("b"),
            auth("c"),
            auth("d")
        );
        for (registry, repository, user) in [
            ("h.io", "other", Some("a")),
            ("h.io", "ns/x", Some("b")),
            ("h.io", "ns/repo", Some("c")),
            ("h.io", "ns/repo/sub", Some("c")),
            ("h.io", "ns2/x", Some("a")),
            ("docker.io", "library/busybox", Some("d")),
            ("old.io", "x", Some("e")),
            ("tok.io", "x", Some("IdentityToken((secret))")),
            ("empty.io", "x", None),
            ("none.io", "x", None),
        ] {
            assert_eq!(user_for(&json, registry, repository).as_deref(), user, "{registry}/{repository}");
        }
    }
}
