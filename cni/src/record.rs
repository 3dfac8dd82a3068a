//! The record of an attachment: on disk before the first plugin runs, off disk after the last has cleaned up.
//!
//! ```text
//! (none) ── written, durable ──▶ adding ── after each plugin ──▶ adding ── durable ──▶ added ──▶ (removed)
//!                                  └── found after a crash: DEL over the whole list, then removed ───────┘
//! ```
//!
//! It holds the keys of libcni's cache (`cniCacheV1`), so its tools read it, and ours under `cofferdam`. Where it lies and
//! how it changes is the business of `store.rs`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::caller::Attachment;
use crate::config::{ConfigError, NetworkList};
use crate::error::Error;
use crate::name::{ContainerId, IfName, NetworkName};
use crate::object::Object;
use crate::result::AddResult;

/// `kind` of libcni's cache files.
const KIND: &str = "cniCacheV1";
/// Version of our own part.
const FORMAT: u32 = 1;

/// How far an attachment got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    /// ADD has begun and not ended; found at rest, it was interrupted.
    Adding,
    /// ADD has succeeded.
    Added,
}

/// Who did the ADD of one plugin, and so must do its DEL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Implementation {
    /// The plugin linked into this program.
    Builtin,
    /// The program at this path.
    Path(PathBuf),
}

/// Our part of the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ours {
    format: u32,
    state: RecordState,
    boot_id: String,
    created_unix_s: u64,
    plugins: Vec<Implementation>,
}

/// The record of one attachment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    kind: String,
    container_id: ContainerId,
    #[serde(default, deserialize_with = "null_is_default")]
    config: String,
    if_name: IfName,
    network_name: NetworkName,
    #[serde(default, deserialize_with = "null_is_default")]
    netns: PathBuf,
    #[serde(default, deserialize_with = "null_is_default")]
    cni_args: Vec<(String, String)>,
    #[serde(default, deserialize_with = "null_is_default")]
    capability_args: Object,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    /// Absent in a record of libcni's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cofferdam: Option<Ours>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Record {
    /// A record of an ADD that is about to begin.
    pub(crate) fn new(list: &NetworkList, attachment: &Attachment, plugins: Vec<Implementation>) -> Self {
        Self {
            kind: KIND.into(),
            container_id: attachment.container.clone(),
            config: STANDARD.encode(list.to_text()),
            if_name: attachment.if_name.clone(),
            network_name: list.name.clone(),
            netns: attachment.netns.clone(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capabilities.to_object(),
            result: None,
            cofferdam: Some(Ours {
                format: FORMAT,
                state: RecordState::Adding,
                boot_id: boot_id(),
                created_unix_s: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs()),
                plugins,
            }),
        }
    }

    /// An attachment of which nothing but its name is known.
    pub(crate) fn unknown(network: &NetworkName, container: &ContainerId, if_name: &IfName) -> Self {
        Self {
            kind: KIND.into(),
            container_id: container.clone(),
            config: String::new(),
            if_name: if_name.clone(),
            network_name: network.clone(),
            netns: PathBuf::new(),
            cni_args: Vec::new(),
            capability_args: Object::new(),
            result: None,
            cofferdam: None,
        }
    }

    /// A record of what is whole in the text of another that cannot be read, for DEL: what is missing is taken from
    /// `otherwise`. A text without our keys is a bare result, which is what libcni stored before it had records.
    pub(crate) fn salvaged(text: &str, otherwise: &Record) -> Self {
        let found = Object::salvage(text);
        let mut record = otherwise.clone();
        let is_record = found.raw("kind").is_some();
        if !is_record && found.raw("cniVersion").is_some() {
            record.result = RawValue::from_string(text.into()).ok();
            record.cofferdam = None;
            return record;
        }
        let get = |key: &str| found.get::<String>(key).ok().flatten();
        if let Some(config) = get("config").filter(|config| parse_config(config).is_ok()) {
            record.config = config;
        }
        record.netns = get("netns").map_or(record.netns, PathBuf::from);
        record.cni_args = found.get("cniArgs").ok().flatten().unwrap_or(record.cni_args);
        record.capability_args = found.get("capabilityArgs").ok().flatten().unwrap_or(record.capability_args);
        record.result = found.raw("result").map(RawValue::to_owned).or(record.result);
        record.cofferdam = found.get("cofferdam").ok().flatten().or(record.cofferdam);
        record
    }

    /// The container.
    pub fn container(&self) -> &ContainerId {
        &self.container_id
    }

    /// The network.
    pub fn network(&self) -> &NetworkName {
        &self.network_name
    }

    /// The interface inside the container.
    pub fn if_name(&self) -> &IfName {
        &self.if_name
    }

    /// The path its network namespace had.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// How far the attachment got.
    pub fn state(&self) -> RecordState {
        self.cofferdam.as_ref().map_or(RecordState::Added, |ours| ours.state)
    }

    /// When ADD began, in seconds since 1970.
    pub fn created_unix_s(&self) -> u64 {
        self.cofferdam.as_ref().map_or(0, |ours| ours.created_unix_s)
    }

    /// Who did each plugin's ADD, in the order of the list.
    pub fn plugins(&self) -> &[Implementation] {
        self.cofferdam.as_ref().map_or(&[], |ours| &ours.plugins)
    }

    /// Whether the machine has been started again since: namespaces, links and rules are gone, leases on disk are not.
    pub fn is_from_another_boot(&self) -> bool {
        self.cofferdam.as_ref().is_some_and(|ours| ours.boot_id != boot_id())
    }

    /// Whether libcni has written it, for another runtime or an older one.
    pub(crate) fn is_libcnis(&self) -> bool {
        self.cofferdam.is_none()
    }

    /// The configuration that ADD used.
    pub fn network_list(&self) -> Result<NetworkList, Error> {
        Ok(parse_config(&self.config)?)
    }

    /// The result so far: of the whole chain if the state is [`RecordState::Added`].
    pub fn result(&self) -> Option<AddResult> {
        let raw = self.result.as_deref()?;
        AddResult::parse(raw.get(), crate::version::Version::NEWEST).ok()
    }

    /// The arguments of the capability `portMappings`, which tell who holds a port.
    pub fn port_mappings(&self) -> Vec<crate::capability::PortMapping> {
        self.capability_args.get("portMappings").ok().flatten().unwrap_or_default()
    }

    /// The arguments of the capability `aliases`: further names of the container on the network.
    pub fn aliases(&self) -> Vec<String> {
        self.capability_args.get("aliases").ok().flatten().unwrap_or_default()
    }

    pub(crate) fn raw_result(&self) -> Option<&RawValue> {
        self.result.as_deref()
    }

    /// The result so far in a version; as it is if it cannot be said in that.
    pub(crate) fn result_in(&self, version: crate::version::Version) -> Option<Box<RawValue>> {
        let raw = self.result.as_deref()?;
        let converted = crate::call::accept(raw.get(), version).map(|(raw, _)| raw);
        Some(converted.unwrap_or_else(|_| raw.to_owned()))
    }

    pub(crate) fn args(&self) -> &[(String, String)] {
        &self.cni_args
    }

    pub(crate) fn capabilities(&self) -> &Object {
        &self.capability_args
    }

    pub(crate) fn set_result(&mut self, result: Option<Box<RawValue>>) {
        self.result = result;
    }

    pub(crate) fn set_added(&mut self) {
        if let Some(ours) = &mut self.cofferdam {
            ours.state = RecordState::Added;
        }
    }

    /// Whether it is a record that we understand.
    pub(crate) fn is_ours_to_read(&self) -> bool {
        self.kind == KIND && self.cofferdam.as_ref().is_none_or(|ours| ours.format <= FORMAT)
    }

    pub(crate) fn is_of(&self, network: &NetworkName, container: &ContainerId, if_name: &IfName) -> bool {
        (&self.network_name, &self.container_id, &self.if_name) == (network, container, if_name)
    }
}

fn parse_config(config: &str) -> Result<NetworkList, ConfigError> {
    let unreadable = |why: String| ConfigError::Value { key: "config".into(), why };
    let bytes = STANDARD.decode(config).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    // A caller that keeps what the file said keeps a single plugin's as it is.
    match NetworkList::parse(&text, None) {
        Err(ConfigError::NoPlugins { .. }) => NetworkList::parse_single(&text),
        parsed => parsed,
    }
}

/// Identifies this run of the kernel; empty if it cannot be told, which compares equal to itself.
fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}
