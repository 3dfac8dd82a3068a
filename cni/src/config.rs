//! A network configuration list: what a file of the configuration directory says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::advice;
use crate::name::{InvalidName, NetworkName};
use crate::object::Object;
use crate::version::Version;

/// Keys the caller writes; what a file says under them never reaches a plugin.
const RESERVED: [&str; 2] = ["runtimeConfig", "prevResult"];
const RESERVED_PREFIX: &str = "cni.dev/";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not JSON, or not of the expected shape.
    #[error("not a network configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A key has a value that is not understood.
    #[error("the value of {key:?} is not understood: {why}")]
    Value {
        /// Which key.
        key: String,
        /// Why not.
        why: String,
    },
    /// No name.
    #[error("the key \"name\" is missing")]
    NameMissing,
    /// The name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A plugin without a usable type.
    #[error("plugin number {number} has no usable \"type\": it must be a file name without '/'")]
    Type {
        /// Counted from 1.
        number: usize,
    },
    /// `plugins` is there but empty.
    #[error("\"plugins\" is an empty list")]
    PluginsEmpty,
    /// No `plugins`, and nothing in the folder of drop-ins.
    #[error("there is no \"plugins\", and no *.conf in the folder {}", folder.display())]
    NoPlugins {
        /// The folder that was looked into.
        folder: PathBuf,
    },
    /// No `plugins` although only those count.
    #[error("there is no \"plugins\" although \"loadOnlyInlinedPlugins\" is set")]
    OnlyInlinedButNone,
    /// A drop-in is bad, so the network is: a dropped firewall plugin must not go unnoticed.
    #[error("drop-in {}: {source}", path.display())]
    DropIn {
        /// The drop-in.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ConfigError>,
    },
    /// No version in common.
    #[error("CNI version {wanted} is not supported; supported are {}", supported_text())]
    Version {
        /// What the file asks for.
        wanted: String,
    },
}

fn supported_text() -> String {
    Version::SUPPORTED.map(|version| version.to_string()).join(", ")
}

/// A named chain of plugins.
#[derive(Debug, Clone)]
pub struct NetworkList {
    /// Name of the network.
    pub name: NetworkName,
    /// The version spoken with its plugins: the highest that the file allows and we speak.
    pub version: Version,
    /// Every version that the file allows and we speak, the highest first.
    pub versions: Vec<Version>,
    /// CHECK succeeds without asking the plugins.
    pub disable_check: bool,
    /// GC does nothing.
    pub disable_gc: bool,
    /// The plugins in the order of ADD, never empty.
    pub plugins: Vec<PluginConfig>,
    /// The file it came from.
    pub source: Option<PathBuf>,
    /// What is odd about it: keys that were dropped, that occur twice, that look like a known one.
    pub warnings: Vec<String>,
}

/// One plugin of a list.
#[derive(Debug, Clone)]
pub struct PluginConfig {
    /// Name of the plugin.
    pub kind: String,
    /// Everything the file says, less what the caller writes.
    pub object: Object,
}

impl PluginConfig {
    fn parse(mut object: Object, number: usize, warnings: &mut Vec<String>) -> Result<Self, ConfigError> {
        let kind = value::<String>(&object, "type")?
            .filter(|kind| !kind.is_empty() && !kind.contains('/') && kind != "." && kind != "..")
            .ok_or(ConfigError::Type { number })?;
        let place = format!("plugin {kind}: ");
        advice::about(&object, &advice::PLUGIN_KEYS, &place, warnings);
        let dropped = object.remove_keys(|key| RESERVED.contains(&key) || key.starts_with(RESERVED_PREFIX));
        let dropped =
            dropped.iter().map(|key| format!("{place}{key:?} is the caller's to write; it is left out"));
        warnings.extend(dropped);
        Ok(Self { kind, object })
    }

    /// Whether the plugin declares the capability.
    pub fn declares(&self, capability: &str) -> bool {
        let declared = self.object.get::<BTreeMap<String, serde_json::Value>>("capabilities");
        matches!(declared, Ok(Some(map)) if map.get(capability) == Some(&true.into()))
    }
}

impl NetworkList {
    /// Reads a configuration list. Drop-ins are looked for in `folder/<name>/` if a folder is given.
    pub fn parse(text: &str, folder: Option<&Path>) -> Result<Self, ConfigError> {
        let object: Object = serde_json::from_str(text)?;
        let mut warnings = Vec::new();
        advice::about(&object, &advice::LIST_KEYS, "", &mut warnings);
        let name = name_of(&object)?;
        let only_inlined = flag(&object, "loadOnlyInlinedPlugins")?;
        let inlined = value::<Vec<Object>>(&object, "plugins")?;
        if inlined.as_ref().is_some_and(Vec::is_empty) {
            return Err(ConfigError::PluginsEmpty);
        }
        if inlined.is_none() && only_inlined {
            return Err(ConfigError::OnlyInlinedButNone);
        }
        let mut plugins = Vec::new();
        for (at, plugin) in inlined.unwrap_or_default().into_iter().enumerate() {
            plugins.push(PluginConfig::parse(plugin, at + 1, &mut warnings)?);
        }
        let folder = folder.map(|folder| folder.join(name.as_str()));
        if let Some(folder) = folder.as_deref().filter(|_| !only_inlined) {
            plugins.extend(drop_ins(folder, &mut warnings)?);
        }
        if plugins.is_empty() {
            return Err(ConfigError::NoPlugins { folder: folder.unwrap_or_default() });
        }
        let versions = negotiate(&object)?;
        Ok(Self {
            name,
            version: versions[0],
            versions,
            disable_check: flag(&object, "disableCheck")?,
            disable_gc: flag(&object, "disableGC")?,
            plugins,
            source: None,
            warnings,
        })
    }

    /// Reads the configuration of a single plugin and wraps it into a list with the same name and version.
    pub fn parse_single(text: &str) -> Result<Self, ConfigError> {
        let object: Object = serde_json::from_str(text)?;
        let (versions, mut warnings) = (negotiate(&object)?, Vec::new());
        Ok(Self {
            name: name_of(&object)?,
            version: versions[0],
            versions,
            disable_check: false,
            disable_gc: false,
            plugins: vec![PluginConfig::parse(object, 1, &mut warnings)?],
            source: None,
            warnings,
        })
    }

    /// Reads a file: a list if it is named `*.conflist`, a single plugin otherwise.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let list = path.extension().is_some_and(|extension| extension == "conflist");
        let mut network = if list { Self::parse(&text, path.parent())? } else { Self::parse_single(&text)? };
        network.source = Some(path.into());
        Ok(network)
    }

    /// The list as JSON, drop-ins included; what [`Self::parse`] reads back without a folder.
    pub fn to_text(&self) -> String {
        self.to_object().to_text()
    }

    /// The same with every version that the file allows, for the copy of a file that was good once.
    pub(crate) fn to_text_of_file(&self) -> String {
        let mut list = self.to_object();
        let versions: Vec<_> = self.versions.iter().map(ToString::to_string).collect();
        let _ = list.set("cniVersions", &versions);
        list.to_text()
    }

    fn to_object(&self) -> Object {
        let mut list = Object::new();
        let plugins: Vec<&Object> = self.plugins.iter().map(|plugin| &plugin.object).collect();
        // Strings, booleans and raw values always serialise.
        let _ = list.set("cniVersion", &self.version.to_string());
        let _ = list.set("name", &self.name);
        if self.disable_check {
            let _ = list.set("disableCheck", &true);
        }
        if self.disable_gc {
            let _ = list.set("disableGC", &true);
        }
        let _ = list.set("plugins", &plugins);
        list
    }

    /// Whether some plugin of the list declares the capability.
    pub fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.declares(capability))
    }
}

fn name_of(object: &Object) -> Result<NetworkName, ConfigError> {
    let name = value::<String>(object, "name")?.ok_or(ConfigError::NameMissing)?;
    Ok(NetworkName::parse(&name)?)
}

/// The versions the file allows that we speak, the highest first; never empty.
fn negotiate(object: &Object) -> Result<Vec<Version>, ConfigError> {
    let mut wanted = value::<Vec<String>>(object, "cniVersions")?.unwrap_or_default();
    wanted.extend(value::<String>(object, "cniVersion")?);
    wanted.retain(|version| !version.is_empty());
    if wanted.is_empty() {
        return Ok(vec![Version::OLDEST]);
    }
    let mut spoken: Vec<Version> = wanted.iter().filter_map(|text| Version::parse(text)).collect();
    spoken.retain(|version| version.is_supported());
    spoken.sort_by(|one, other| other.cmp(one));
    spoken.dedup();
    if spoken.is_empty() { Err(ConfigError::Version { wanted: wanted.join(", ") }) } else { Ok(spoken) }
}

/// A boolean, or a text that says one, as libcni reads it.
fn flag(object: &Object, key: &str) -> Result<bool, ConfigError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Text(String),
    }
    let why = || ConfigError::Value { key: key.into(), why: "must be true or false".into() };
    match object.get::<Flag>(key).map_err(|_| why())? {
        None => Ok(false),
        Some(Flag::Bool(flag)) => Ok(flag),
        Some(Flag::Text(text)) => text.to_ascii_lowercase().parse().map_err(|_| why()),
    }
}

fn value<'de, T: Deserialize<'de>>(object: &'de Object, key: &str) -> Result<Option<T>, ConfigError> {
    object.get(key).map_err(|error| ConfigError::Value { key: key.into(), why: error.to_string() })
}

/// The plugins of `folder/*.conf` by name; a missing folder has none.
fn drop_ins(folder: &Path, warnings: &mut Vec<String>) -> Result<Vec<PluginConfig>, ConfigError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "conf") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    files.into_iter().map(|path| drop_in(path, warnings)).collect()
}

fn drop_in(path: PathBuf, warnings: &mut Vec<String>) -> Result<PluginConfig, ConfigError> {
    let mut read = || {
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        PluginConfig::parse(serde_json::from_str(&text)?, 1, warnings)
    };
    read().map_err(|source| ConfigError::DropIn { path: path.clone(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        NetworkList::parse(text, None).unwrap_err().to_string()
    }

    #[test]
    fn the_highest_common_version_is_chosen_and_none_is_an_error() {
        let list = |versions: &str| format!(r#"{{"name":"n",{versions}"plugins":[{{"type":"x"}}]}}"#);
        let version = |versions: &str| NetworkList::parse(&list(versions), None).unwrap().version.to_string();
        assert_eq!(version(r#""cniVersions":["0.4.0","1.0.0","9.0.0"],"#), "1.0.0");
        assert_eq!(version(""), "0.1.0");
        assert_eq!(version(r#""cniVersion":"1.1","#), "1.1.0");
        let refused = error(&list(r#""cniVersion":"9.0.0","#));
        assert!(refused.contains("9.0.0") && refused.contains("1.1.0"), "{refused}");
    }

    #[test]
    fn each_way_to_have_no_plugins_is_its_own_error() {
        assert!(error(r#"{"name":"n","plugins":[]}"#).contains("empty"));
        assert!(error(r#"{"name":"n"}"#).contains("no *.conf"));
        assert!(error(r#"{"name":"n","loadOnlyInlinedPlugins":"True"}"#).contains("loadOnlyInlinedPlugins"));
        assert!(error(r#"{"name":"n","plugins":[{"type":"a/b"}]}"#).contains("number 1"));
        assert!(error(r#"{"name":"../x","plugins":[{"type":"x"}]}"#).contains("../x"));
    }

    #[test]
    fn what_the_caller_writes_is_dropped_from_the_file() {
        let text = r#"{"name":"n","type":"x","prevResult":{},"runtimeConfig":{},"cni.dev/x":1,"keep":12345678901234567890}"#;
        let list = NetworkList::parse_single(text).unwrap();
        let keys: Vec<_> = list.plugins[0].object.keys().collect();
        assert_eq!(keys, ["name", "type", "keep"]);
    }

    #[test]
    fn drop_ins_are_appended_by_name_unless_only_inlined_plugins_count() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("n");
        std::fs::create_dir_all(folder.join("sub.conf")).unwrap();
        std::fs::write(folder.join("b.conf"), r#"{"type":"b"}"#).unwrap();
        std::fs::write(folder.join("a.conf"), r#"{"type":"a"}"#).unwrap();
        std::fs::write(folder.join("c.json"), "junk").unwrap();
        let kinds = |text: &str| -> Vec<String> {
            let list = NetworkList::parse(text, Some(dir.path())).unwrap();
            list.plugins.into_iter().map(|plugin| plugin.kind).collect()
        };
        assert_eq!(kinds(r#"{"name":"n","plugins":[{"type":"x"}]}"#), ["x", "a", "b"]);
        assert_eq!(kinds(r#"{"name":"n"}"#), ["a", "b"]);
        assert_eq!(kinds(r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#), ["x"]);
        std::fs::write(folder.join("d.conf"), "{").unwrap();
        assert!(matches!(
            NetworkList::parse(r#"{"name":"n"}"#, Some(dir.path())),
            Err(ConfigError::DropIn { .. })
        ));
    }

    #[test]
    fn a_list_reads_back_as_it_was() {
        let text =
            r#"{"name":"n","cniVersion":"1.0.0","disableCheck":true,"plugins":[{"type":"x","n":1.0}]}"#;
        let list = NetworkList::parse(text, None).unwrap();
        let again = NetworkList::parse(&list.to_text(), None).unwrap();
        assert_eq!(again.to_text(), list.to_text());
        assert!(again.disable_check);
    }
}
