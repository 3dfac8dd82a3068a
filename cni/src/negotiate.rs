//! Which versions plugins speak, and which one a network is spoken to in.
//!
//! A plugin is asked (VERSION) only if the network leaves a choice, and once: the answer is kept beside the records until the
//! program changes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::call::Operation;
use crate::caller::Caller;
use crate::config::NetworkList;
use crate::error::{Error, Failure, Kind, Verb};
use crate::exec;
use crate::lock::{Lock, Sharing};
use crate::name::NetworkName;
use crate::record::Implementation;
use crate::resolve::Resolved;
use crate::store::{Durable, replace};
use crate::version::Version;

/// How long a plugin may think about its versions: a constant, to anybody else.
const LIMIT: Duration = Duration::from_secs(5);
/// What plugins from before the verb say to it.
const NO_SUCH_VERB: &str = "unknown CNI_COMMAND: VERSION";

/// A plugin of a network, and what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginFacts {
    /// Its name.
    pub kind: String,
    /// Who would do its ADD.
    pub implementation: Implementation,
    /// The versions it speaks that we speak too, oldest first.
    pub versions: Vec<Version>,
}

/// What tells one program from another at the same path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp(u64, u64, i64, i64, u64);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answered {
    stamp: Stamp,
    versions: Vec<String>,
}

impl Caller {
    /// Asks every plugin of a network which versions it speaks. All must be there, and must speak the network's.
    pub fn validate(&self, list: &NetworkList) -> Result<Vec<PluginFacts>, Error> {
        let mut facts = Vec::new();
        for plugin in &list.plugins {
            let who = self.resolve(&plugin.kind, &plugin.object, &list.name)?;
            let versions = self.versions_of(&plugin.kind, &who, &list.name)?;
            facts.push(PluginFacts {
                kind: plugin.kind.clone(),
                implementation: who.implementation(),
                versions,
            });
        }
        narrow(list, &facts)?;
        Ok(facts)
    }

    /// The list in the highest version that all its plugins know.
    pub(crate) fn agree<'a>(
        &self,
        list: &'a NetworkList,
        plugins: &[Resolved],
    ) -> Result<Cow<'a, NetworkList>, Error> {
        if !self.options.probe_versions || list.versions.len() < 2 {
            return Ok(Cow::Borrowed(list));
        }
        let mut facts = Vec::new();
        for (plugin, who) in list.plugins.iter().zip(plugins) {
            match self.versions_of(&plugin.kind, who, &list.name) {
                Ok(versions) => facts.push(PluginFacts {
                    kind: plugin.kind.clone(),
                    implementation: who.implementation(),
                    versions,
                }),
                // It will say itself what it thinks of the version.
                Err(error) => self.warn(&error.to_string()),
            }
        }
        let version = narrow(list, &facts)?;
        if version == list.version {
            return Ok(Cow::Borrowed(list));
        }
        Ok(Cow::Owned(NetworkList { version, ..list.clone() }))
    }

    fn versions_of(&self, kind: &str, who: &Resolved, network: &NetworkName) -> Result<Vec<Version>, Error> {
        match who {
            Resolved::Builtin(_) => Ok(Version::SUPPORTED.to_vec()),
            Resolved::External(path) => self.versions_of_program(kind, path, network),
        }
    }

    fn versions_of_program(
        &self,
        kind: &str,
        path: &Path,
        network: &NetworkName,
    ) -> Result<Vec<Version>, Error> {
        let stamp = stamp(path).map_err(Error::state("look at the plugin", path))?;
        let cache = &self.store.versions;
        if let Some(answered) = load(cache).remove(path).filter(|answered| answered.stamp == stamp) {
            return Ok(answered.versions.iter().filter_map(|text| Version::parse(text)).collect());
        }
        let versions = self.ask_for_versions(kind, path, network)?;
        let mut all = load(cache);
        let texts = versions.iter().map(ToString::to_string).collect();
        all.insert(path.into(), Answered { stamp, versions: texts });
        all.retain(|path, _| path.exists());
        // What is not kept is asked again.
        if let Ok(text) = serde_json::to_vec(&all) {
            let _ = replace(cache, &text, Durable::No);
        }
        Ok(versions)
    }

    fn ask_for_versions(
        &self,
        kind: &str,
        path: &Path,
        network: &NetworkName,
    ) -> Result<Vec<Version>, Error> {
        let lock = self.store.lock_path("version", kind);
        let what = format!("the versions of plugin {kind}");
        let _lock =
            Lock::take(&lock, Sharing::Exclusive, self.options.deadlines.lock, &what)?.removing(&lock);
        let tree = self.store.tree("version", kind);
        let (verb, version) = (Verb::Version, Version::NEWEST);
        let deadline = Instant::now() + LIMIT.min(self.options.deadlines.status);
        let operation =
            Operation { caller: self, network, version, verb, subject: None, tree: &tree, deadline };
        let mut environment = operation.environment(verb);
        for (name, value) in &mut environment {
            // Old plugins look whether these are there before they look what they are asked.
            if matches!(name.as_str(), "CNI_CONTAINERID" | "CNI_IFNAME" | "CNI_NETNS") {
                "dummy".clone_into(value);
            }
        }
        let input = format!(r#"{{"cniVersion":"{version}"}}"#);
        let started = Instant::now();
        let limit = deadline.saturating_duration_since(started);
        let fail = |message: String, tail: &str| {
            let mut failure = operation.failure(kind, verb, message);
            failure.elapsed = started.elapsed();
            failure.stderr_tail = tail.into();
            failure
        };
        let run = exec::run(path, &environment, input.as_bytes(), limit, &tree);
        let output = run.map_err(|error| {
            let mut failure: Box<Failure> = fail(error.to_string(), error.stderr_tail());
            if matches!(error, exec::ExecError::Deadline(..)) {
                failure.kind = Kind::Interrupted;
            }
            Error::Plugin(failure)
        })?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        read(&stdout).ok_or_else(|| {
            let said: String = stdout.trim().chars().take(200).collect();
            let message = format!("ended with {} and told no versions: {said:?}", output.status);
            Error::Plugin(fail(message, &output.stderr_tail))
        })
    }
}

/// The highest version of the list that all plugins know, or the plugin that leaves none.
fn narrow(list: &NetworkList, facts: &[PluginFacts]) -> Result<Version, Error> {
    let text = |versions: &[Version]| versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut left = list.versions.clone();
    for plugin in facts {
        left.retain(|version| plugin.versions.contains(version));
        if left.is_empty() {
            return Err(Error::NoCommonVersion {
                network: list.name.clone(),
                wanted: text(&list.versions),
                plugin: plugin.kind.clone(),
                known: text(&plugin.versions),
            });
        }
    }
    Ok(left[0])
}

fn load(path: &Path) -> BTreeMap<PathBuf, Answered> {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let meta = std::fs::metadata(path)?;
    Ok(Stamp(meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

/// The versions in an answer; `None` if it is no answer.
fn read(stdout: &str) -> Option<Vec<Version>> {
    #[derive(Deserialize)]
    struct Said {
        #[serde(rename = "cniVersion", default)]
        version: String,
        #[serde(rename = "supportedVersions")]
        supported: Option<Vec<String>>,
        #[serde(default)]
        msg: String,
    }
    let said: Said = serde_json::from_str(stdout).ok()?;
    if said.msg == NO_SUCH_VERB {
        return Some(vec![Version::OLDEST]);
    }
    let parse = |text: &String| Version::parse(text).filter(|version| version.is_supported());
    match said.supported {
        Some(supported) => {
            let mut versions: Vec<Version> = supported.iter().filter_map(parse).collect();
            versions.sort();
            Some(versions)
        }
        // The specification of 0.2.0 had no list.
        None if said.version == "0.2.0" => Some(Version::SUPPORTED[..2].to_vec()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v16_answers_of_every_age_are_read_and_junk_is_not() {
        let read = |text: &str| {
            read(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let newest = r#"{"cniVersion":"1.0.0","supportedVersions":["1.0.0","0.3.1","9.0.0"]}"#;
        assert_eq!(read(newest).as_deref(), Some("0.3.1 1.0.0"));
        assert_eq!(read(r#"{"cniVersion":"0.2.0"}"#).as_deref(), Some("0.1.0 0.2.0"));
        let old = r#"{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}"#;
        assert_eq!(read(old).as_deref(), Some("0.1.0"));
        for junk in ["", "junk", "[]", r#"{"cniVersion":"1.0.0"}"#, r#"{"code":4,"msg":"no"}"#] {
            assert_eq!(read(junk), None, "{junk}");
        }
    }
}
