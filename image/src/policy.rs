//! What may come in: rules by scope, in the form of containers' policy.json, and programs that are asked.
//!
//! Understood: `insecureAcceptAnything`, `reject`, and `sigstoreSigned` with `keyPath`, `keyPaths` or `keyData` (a public key
//! on P-256) and `signedIdentity` of `matchRepoDigestOrExact`, `matchRepository` or `exactRepository`. Everything else is
//! refused when the file is read: a rule that is not understood must not be taken for one that is kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cofferdam_registry::{Client, ImageRef, Resolved};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::cosign::{self, Identity, PublicKey};
use crate::error::Error;
use crate::event::Cancel;
use crate::verifier::Verifier;

/// The largest policy file, in bytes.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// What must hold of an image before any of its layers is fetched. By default nothing.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// The rules.
    pub policy: Policy,
    /// Programs that must all say yes.
    pub verifiers: Vec<Verifier>,
}

impl Admission {
    /// Fails unless the rules allow the image and every verifier does.
    pub(crate) fn check(
        &self,
        client: &Client,
        reference: &ImageRef,
        image: &Resolved,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        self.policy.check(client, reference, image)?;
        for verifier in &self.verifiers {
            verifier.ask(reference, image, cancel).map_err(|reason| Error::Refused {
                image: reference.familiar(),
                rule: format!("verifier {}", verifier.program.display()),
                reason,
            })?;
        }
        Ok(())
    }
}

/// Rules about images, by where they come from. The default allows everything.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Option<Arc<Rules>>,
}

/// The requirements that are understood.
const TYPES: [&str; 3] = ["insecureAcceptAnything", "reject", "sigstoreSigned"];

#[derive(Debug)]
struct Rules {
    path: PathBuf,
    default: Vec<Requirement>,
    scopes: BTreeMap<String, Vec<Requirement>>,
}

#[derive(Clone, Debug)]
enum Requirement {
    Accept,
    Reject,
    Signed { keys: Vec<PublicKey>, identity: Identity },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Written>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Written>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    r#type: String,
    #[serde(default)]
    key_path: Option<PathBuf>,
    #[serde(default)]
    key_paths: Vec<PathBuf>,
    #[serde(default)]
    key_data: Option<String>,
    #[serde(default)]
    signed_identity: Option<WrittenIdentity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WrittenIdentity {
    r#type: String,
    #[serde(default)]
    docker_repository: Option<String>,
}

impl Policy {
    /// Reads a policy file.
    pub fn load(path: &Path) -> Result<Policy, Error> {
        let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if size > FILE_LIMIT_BYTES {
            return Err(invalid(path, "it is larger than 1 MiB".to_owned()));
        }
        Policy::parse(&std::fs::read(path).map_err(Error::io("read", path))?, path)
    }

    /// Reads a policy; `path` is for messages, and relative paths of keys start beside it.
    pub fn parse(text: &[u8], path: &Path) -> Result<Policy, Error> {
        let file: File = serde_json::from_slice(text)
            .map_err(|error| invalid(path, unsupported(text).unwrap_or_else(|| error.to_string())))?;
        if file.default.is_empty() {
            return Err(invalid(path, "its default has no requirement".to_owned()));
        }
        let read = |written: Vec<Written>| {
            written.into_iter().map(|one| requirement(one, path)).collect::<Result<Vec<_>, _>>()
        };
        let default = read(file.default)?;
        let mut scopes = BTreeMap::new();
        for (transport, rules) in file.transports {
            // Rules about other ways in are not about registries.
            if transport != "docker" {
                continue;
            }
            for (scope, written) in rules {
                if written.is_empty() {
                    return Err(invalid(path, format!("scope {scope:?} has no requirement")));
                }
                scopes.insert(scope, read(written)?);
            }
        }
        Ok(Policy { rules: Some(Arc::new(Rules { path: path.to_owned(), default, scopes })) })
    }

    fn check(&self, client: &Client, reference: &ImageRef, image: &Resolved) -> Result<(), Error> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let (scope, requirements) = rules.find(reference);
        for requirement in requirements {
            let result = match requirement {
                Requirement::Accept => Ok(()),
                Requirement::Reject => Err("it is rejected".to_owned()),
                Requirement::Signed { keys, identity } => {
                    // Signing an index signs every image in it.
                    let digests = [&image.target, &image.digest];
                    let count = if image.target == image.digest { 1 } else { 2 };
                    cosign::check(client, reference, &digests[..count], keys, identity)
                }
            };
            result.map_err(|reason| Error::Refused {
                image: reference.familiar(),
                rule: format!("{} of the policy {}", scope_name(scope), rules.path.display()),
                reason,
            })?;
        }
        Ok(())
    }
}

impl Rules {
    /// The requirements of the longest scope: tag or digest, repository, namespaces, host, wildcard, all.
    fn find(&self, reference: &ImageRef) -> (&str, &[Requirement]) {
        let mut candidates = vec![reference.to_string()];
        candidates.extend(reference.tag().map(|tag| format!("{}:{tag}", reference.name())));
        let mut name = reference.name();
        candidates.push(name.clone());
        while let Some(slash) = name.rfind('/') {
            name.truncate(slash);
            candidates.push(name.clone());
        }
        let host = reference.registry().split(':').next().unwrap_or_default();
        let dots = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
        candidates.extend(dots);
        candidates.push(String::new());
        let found = candidates.iter().find_map(|scope| self.scopes.get_key_value(scope));
        match found {
            Some((scope, requirements)) => (scope, requirements),
            None => ("default", &self.default),
        }
    }
}

/// A requirement of a type that is not understood, if there is one: it tells more than the fields that belong to it.
fn unsupported(text: &[u8]) -> Option<String> {
    let file: Value = serde_json::from_slice(text).ok()?;
    let transports = file["transports"].as_object();
    let scopes =
        transports.into_iter().flat_map(Map::values).filter_map(Value::as_object).flat_map(Map::values);
    let mut written = scopes.chain([&file["default"]]).filter_map(Value::as_array).flatten();
    written.find_map(|one| one["type"].as_str().filter(|kind| !TYPES.contains(kind))).map(not_supported)
}

fn not_supported(kind: &str) -> String {
    format!("requirement {kind:?} is not supported")
}

fn scope_name(scope: &str) -> String {
    match scope {
        "default" => "the default".to_owned(),
        "" => "the default for registries".to_owned(),
        scope => format!("scope {scope:?}"),
    }
}

fn requirement(written: Written, path: &Path) -> Result<Requirement, Error> {
    match written.r#type.as_str() {
        "insecureAcceptAnything" => Ok(Requirement::Accept),
        "reject" => Ok(Requirement::Reject),
        "sigstoreSigned" => {
            Ok(Requirement::Signed { keys: keys(&written, path)?, identity: identity(&written, path)? })
        }
        other => Err(invalid(path, not_supported(other))),
    }
}

fn keys(written: &Written, path: &Path) -> Result<Vec<PublicKey>, Error> {
    let mut keys = Vec::new();
    for file in written.key_path.iter().chain(&written.key_paths) {
        let file = path.parent().unwrap_or(Path::new("/")).join(file);
        let key = PublicKey::load(&file);
        keys.push(key.map_err(|reason| invalid(path, format!("key {}: {reason}", file.display())))?);
    }
    if let Some(data) = &written.key_data {
        let pem = STANDARD.decode(data).map_err(|_| invalid(path, "keyData is not base64".to_owned()))?;
        keys.push(PublicKey::parse(&pem).map_err(|reason| invalid(path, format!("keyData: {reason}")))?);
    }
    if keys.is_empty() {
        return Err(invalid(path, "sigstoreSigned needs keyPath, keyPaths or keyData".to_owned()));
    }
    Ok(keys)
}

fn identity(written: &Written, path: &Path) -> Result<Identity, Error> {
    let Some(identity) = &written.signed_identity else { return Ok(Identity::Same) };
    match (identity.r#type.as_str(), &identity.docker_repository) {
        ("matchRepoDigestOrExact", None) => Ok(Identity::Same),
        ("matchRepository", None) => Ok(Identity::Repository),
        ("exactRepository", Some(name)) => Ok(Identity::Exact(name.clone())),
        (other, _) => Err(invalid(path, format!("signedIdentity {other:?} is not supported"))),
    }
}

fn invalid(path: &Path, reason: String) -> Error {
    Error::InvalidInput { what: "policy", input: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope_of(policy: &Policy, name: &str) -> String {
        let reference = ImageRef::parse(name).unwrap();
        policy.rules.as_ref().unwrap().find(&reference).0.to_owned()
    }

    #[test]
    fn a29_the_longest_scope_counts() {
        let reject = r#"[{"type":"reject"}]"#;
        let text = format!(
            r#"{{"default":{reject},"transports":{{"docker":{{"":{reject},"a.io":{reject},"a.io/b":{reject},"a.io/b/c":{reject},
               "a.io/b/c:v1":{reject},"*.corp.io":{reject},"*.io":{reject},"h:5000/x":{reject}}},"oci":{{"":{reject}}}}}}}"#
        );
        let policy = Policy::parse(text.as_bytes(), Path::new("p")).unwrap();
        for (name, scope) in [
            ("a.io/b/c:v1", "a.io/b/c:v1"),
            ("a.io/b/c:v2", "a.io/b/c"),
            ("a.io/b/d", "a.io/b"),
            ("a.io/bb", "a.io"),
            ("r.corp.io/x", "*.corp.io"),
            ("other.io/x", "*.io"),
            ("h:5000/x:y", "h:5000/x"),
            ("h:5001/x", ""),
        ] {
            assert_eq!(scope_of(&policy, name), scope, "{name}");
        }
        let bare = Policy::parse(br#"{"default":[{"type":"reject"}]}"#, Path::new("p")).unwrap();
        assert_eq!(scope_of(&bare, "x"), "default");
    }

    #[test]
    fn a29_d20_what_is_not_understood_is_refused_when_it_is_read() {
        for (text, expected) in [
            ("{}", "missing field"),
            (r#"{"default":[]}"#, "no requirement"),
            (r#"{"default":[{"type":"signedBy"}]}"#, "not supported"),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"docker":{"x":[{"type":"signedBy","keyType":"GPGKeys"}]}}}"#,
                "requirement \"signedBy\" is not supported",
            ),
            (r#"{"default":[{"type":"reject","x":1}]}"#, "unknown field"),
            (r#"{"default":[{"type":"sigstoreSigned"}]}"#, "needs keyPath"),
            (r#"{"default":[{"type":"sigstoreSigned","keyPath":"/nowhere"}]}"#, "/nowhere"),
            (r#"{"default":[{"type":"sigstoreSigned","keyData":"AAAA"}]}"#, "PEM"),
            (r#"{"default":[{"type":"reject"}],"transports":{"docker":{"x":[]}}}"#, "no requirement"),
            (r#"{"default":[{"type":"reject"}],"more":1}"#, "unknown field"),
        ] {
            let error = Policy::parse(text.as_bytes(), Path::new("/p")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
