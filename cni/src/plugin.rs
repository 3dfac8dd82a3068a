//! The plugin side: what a plugin is asked, and how it answers.
//!
//! ```text
//! program ──▶ Program (environment, standard input) ──▶ Request ──▶ Plugin ──▶ AddResult │ PluginError ──▶ standard output
//! caller  ─────────────── in process ─────────────────▶ Request ──▶ Plugin
//! ```
//!
//! A plugin gets the same whether it is linked into its caller or a program of its own: the names from the environment and
//! the object from standard input. It runs in the network namespace of the host. ADD undoes what it did before it returns an
//! error; DEL succeeds when there is nothing to delete; CHECK changes nothing; GC touches only what it can prove to be its
//! own.

mod delegate;
mod environment;
mod install;
mod program;

pub use program::Program;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde_json::Value;

use crate::caller::NetnsFate;
use crate::error::{Kind, Verb};
use crate::name::{ContainerId, IfName, NetworkName};
use crate::object::Object;
use crate::result::AddResult;
use crate::version::Version;

/// The number of an error, as the specification and this project assign them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// The version is not supported.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A field has a value that the plugin cannot do.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown; nothing needs to be cleaned.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO: Self = Self(5);
    /// Standard input is not what it should be.
    pub const DECODE: Self = Self(6);
    /// The configuration is wrong.
    pub const INVALID_CONFIG: Self = Self(7);
    /// The network namespace is wrong.
    pub const INVALID_NETNS: Self = Self(8);
    /// Try again later.
    pub const TRY_AGAIN: Self = Self(11);
    /// The plugin cannot serve ADD now.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// The plugin cannot serve ADD now, and existing containers may be cut off.
    pub const LIMITED: Self = Self(51);
    /// What was asked for belongs to somebody else (ours: from 100 on a plugin may choose).
    pub const CONFLICT: Self = Self(100);
    /// Nothing left to give.
    pub const EXHAUSTED: Self = Self(101);
    /// The attachment is not as ADD left it.
    pub const CHECK_FAILED: Self = Self(102);
    /// The kernel refused.
    pub const KERNEL: Self = Self(103);

    /// The family of the error. 999 and everything unknown say nothing: the reference plugins use it for all.
    pub fn kind(self) -> Kind {
        match self {
            Self::INCOMPATIBLE_VERSION | Self::UNSUPPORTED_FIELD => Kind::Unsupported,
            Self::UNKNOWN_CONTAINER => Kind::NotFound,
            Self::INVALID_ENVIRONMENT | Self::DECODE | Self::INVALID_CONFIG | Self::INVALID_NETNS => {
                Kind::InvalidInput
            }
            Self::TRY_AGAIN | Self::NOT_AVAILABLE | Self::LIMITED => Kind::Interrupted,
            Self::CONFLICT => Kind::Conflict,
            Self::EXHAUSTED => Kind::Exhausted,
            _ => Kind::Internal,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

/// A plugin's answer when it could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct PluginError {
    /// The number.
    pub code: Code,
    /// One line.
    pub message: String,
    /// More, if there is more.
    pub details: String,
}

impl PluginError {
    /// An error with one line of text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// A configuration that is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_CONFIG, message)
    }

    /// Adds the details.
    #[must_use]
    pub fn with_details(mut self, details: impl fmt::Display) -> Self {
        self.details = details.to_string();
        self
    }
}

impl PluginError {
    /// What is gone already needs no deleting: a missing link, address, route, rule or file is success for DEL.
    ///
    /// ```no_run
    /// # fn del(socket: &mut cofferdam_linux::netlink::Socket) -> Result<(), cofferdam_cni::PluginError> {
    /// cofferdam_cni::PluginError::unless_gone(socket.delete_link("mine0"))
    /// # }
    /// ```
    pub fn unless_gone(deleted: Result<(), cofferdam_linux::netlink::Error>) -> Result<(), Self> {
        use rustix::io::Errno;
        match deleted {
            Err(error)
                if matches!(
                    error.errno(),
                    Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL
                ) =>
            {
                Ok(())
            }
            deleted => Ok(deleted?),
        }
    }
}

impl From<cofferdam_linux::netlink::Error> for PluginError {
    fn from(error: cofferdam_linux::netlink::Error) -> Self {
        Self::new(Code::KERNEL, error.to_string())
    }
}

/// Calls another plugin on behalf of one, as bridge calls its address manager.
pub trait Delegate {
    /// Calls plugin `kind` with the environment and input of the running call, and the given verb.
    fn call(&self, kind: &str, verb: Verb) -> Result<AddResult, PluginError>;
}

/// What a plugin is asked about one attachment, or, for GC and STATUS, about a network.
pub struct Request<'a> {
    /// The network.
    pub network: &'a NetworkName,
    /// The version of the configuration.
    pub version: Version,
    /// The container; for GC and STATUS a placeholder that must not be used.
    pub container: &'a ContainerId,
    /// The interface inside the container; for GC and STATUS a placeholder that must not be used.
    pub if_name: &'a IfName,
    /// The container's network namespace; absent in DEL when it is gone.
    pub netns: Option<PathBuf>,
    /// What becomes of the namespace after DEL.
    pub netns_fate: NetnsFate,
    /// The pairs of `CNI_ARGS`.
    pub args: &'a [(String, String)],
    /// What an external plugin would read from standard input.
    pub config: &'a Object,
    /// Result of the plugins before (ADD), or of the whole chain (CHECK, DEL).
    pub previous: Option<AddResult>,
    /// Calls other plugins.
    pub delegate: &'a dyn Delegate,
}

impl Request<'_> {
    /// What marks everything that belongs to this attachment: `network/container/interface`.
    pub fn owner(&self) -> String {
        owner(self.network, self.container, self.if_name)
    }

    /// The whole configuration as a type of the plugin's own.
    ///
    /// What the type does not name is passed over, or collected where it has a field with `#[serde(flatten)]`. A key whose
    /// value is `null` counts as absent, at every depth. Numbers longer than 64 bits survive in [`Request::config`] only.
    ///
    /// ```
    /// #[derive(serde::Deserialize)]
    /// struct Config {
    ///     mtu: Option<u32>,
    ///     #[serde(flatten)]
    ///     rest: serde_json::Map<String, serde_json::Value>,
    /// }
    ///
    /// fn config(request: &cofferdam_cni::Request<'_>) -> Result<Config, cofferdam_cni::PluginError> {
    ///     request.settings()
    /// }
    /// ```
    pub fn settings<T: serde::de::DeserializeOwned>(&self) -> Result<T, PluginError> {
        decode(&self.config.to_text())
            .map_err(|error| PluginError::new(Code::DECODE, format!("the configuration: {error}")))
    }

    /// The result of the plugins before, which a plugin that is never the first of a chain needs.
    pub fn chained(&self) -> Result<AddResult, PluginError> {
        let missing = "there is no prevResult: this plugin must come after one that makes an interface";
        self.previous.clone().ok_or_else(|| PluginError::config(missing))
    }

    /// Calls `kind` (an address manager, as a rule) for ADD and goes on with what it gave. If going on fails, `kind` is
    /// called for DEL, and the first failure is returned.
    pub fn delegate_add<T>(
        &self,
        kind: &str,
        go_on: impl FnOnce(AddResult) -> Result<T, PluginError>,
    ) -> Result<T, PluginError> {
        let given = self.delegate.call(kind, Verb::Add)?;
        go_on(given).inspect_err(|_| {
            // The first failure is the one worth telling; the caller's DEL tries again.
            let _ = self.delegate.call(kind, Verb::Del);
        })
    }

    /// Runs `work` in the container's network namespace, on a thread of its own. Errors as [`Request::open_netns`].
    pub fn in_netns<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, PluginError> + Send,
    ) -> Result<T, PluginError> {
        use std::os::fd::AsFd;
        let netns = self.open_netns()?;
        cofferdam_linux::namespace::with_netns(netns.as_fd(), work).map_err(|errno| {
            PluginError::new(Code::INVALID_NETNS, format!("cannot enter the network namespace: {errno}"))
        })?
    }

    /// A value of the configuration; an unreadable one is a decode error that names the key. `null` counts as absent, in
    /// it too.
    pub fn get<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, PluginError> {
        let raw = self.config.raw(key).map_or("null", serde_json::value::RawValue::get);
        decode(raw).map_err(|error| PluginError::new(Code::DECODE, format!("{key}: {error}")))
    }

    /// An argument of the capability `key`, if the caller gave it.
    pub fn capability<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, PluginError> {
        let arguments: Object = self.get("runtimeConfig")?.unwrap_or_default();
        let value = arguments.raw(key).map(|raw| decode(raw.get())).transpose();
        value.map_err(|error| PluginError::new(Code::DECODE, format!("runtimeConfig.{key}: {error}")))
    }

    /// The value of an argument in `CNI_ARGS`.
    pub fn argument(&self, key: &str) -> Option<&str> {
        self.args.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Opens the container's network namespace, which ADD and CHECK need and which must not be the caller's own.
    pub fn open_netns(&self) -> Result<OwnedFd, PluginError> {
        let path = self.netns.as_deref();
        let path = path.ok_or_else(|| PluginError::new(Code::INVALID_ENVIRONMENT, "CNI_NETNS is missing"))?;
        let wrong = |why: String| PluginError::new(Code::INVALID_NETNS, format!("{}: {why}", path.display()));
        let netns = cofferdam_linux::namespace::open_netns(path)
            .map_err(|errno| wrong(format!("not a network namespace: {errno}")))?;
        if cofferdam_linux::process::namespace_kind(std::os::fd::AsFd::as_fd(&netns)) != Ok(CLONE_NEWNET) {
            return Err(wrong("is a namespace of another kind".into()));
        }
        let same = cofferdam_linux::namespace::current_netns()
            .and_then(|own| {
                use std::os::fd::AsFd;
                cofferdam_linux::namespace::same_namespace(own.as_fd(), netns.as_fd())
            })
            .map_err(|errno| wrong(errno.to_string()))?;
        if same { Err(wrong("is the host's own network namespace".into())) } else { Ok(netns) }
    }

    /// The attachments that GC must keep, as their marks; an error if the caller did not say. `null` is what libcni says for
    /// none.
    pub fn valid_owners(&self) -> Result<Vec<String>, PluginError> {
        #[derive(serde::Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container: ContainerId,
            ifname: IfName,
        }
        const KEY: &str = "cni.dev/valid-attachments";
        if self.config.raw(KEY).is_none() {
            return Err(PluginError::config(format!("{KEY} is missing")));
        }
        let valid: Vec<Valid> = self.get(KEY)?.unwrap_or_default();
        Ok(valid.iter().map(|one| owner(self.network, &one.container, &one.ifname)).collect())
    }

    /// What begins every mark of this network.
    pub fn network_mark(&self) -> String {
        format!("{}/", self.network)
    }
}

fn owner(network: &NetworkName, container: &ContainerId, if_name: &IfName) -> String {
    format!("{network}/{container}/{if_name}")
}

/// Refuses a configuration that the plugin cannot do. DEL and GC go on: what could not be added has to go all the same, with
/// whatever the plugins before it in the chain have made.
pub(crate) fn refuse_unsupported(
    plugin: &dyn Plugin,
    config: &Object,
    verb: Verb,
) -> Result<(), PluginError> {
    match verb {
        Verb::Del | Verb::Gc => Ok(()),
        _ => plugin.supports(config).map_err(|why| PluginError::new(Code::UNSUPPORTED_FIELD, why)),
    }
}

/// The kind of a network namespace, as clone(2) has it.
const CLONE_NEWNET: u64 = 0x4000_0000;

/// A plugin.
///
/// Every operation has to be there: a plugin cannot forget one and then answer it with a success that means nothing.
///
/// ```compile_fail
/// use cofferdam_cni::{AddResult, Plugin, PluginError, Request};
///
/// struct Half;
///
/// impl Plugin for Half {
///     fn kind(&self) -> &'static str { "half" }
///     fn add(&self, _: &Request<'_>) -> Result<AddResult, PluginError> { Ok(AddResult::default()) }
///     fn del(&self, _: &Request<'_>) -> Result<(), PluginError> { Ok(()) }
///     // No check, no gc, no status: this does not compile.
/// }
/// ```
pub trait Plugin: Sync {
    /// The name configurations call it by.
    fn kind(&self) -> &'static str;

    /// The versions of the specification that it speaks, oldest first.
    fn versions(&self) -> &'static [Version] {
        &Version::SUPPORTED
    }

    /// Whether it can do all that the configuration asks; the text says what it cannot. An external plugin of the same
    /// name is then preferred; a plugin that is a program answers with code 2.
    fn supports(&self, config: &Object) -> Result<(), String> {
        let _ = config;
        Ok(())
    }

    /// Attaches. Undoes its own work before it returns an error.
    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError>;

    /// Detaches. What is not there needs no deleting.
    fn del(&self, request: &Request<'_>) -> Result<(), PluginError>;

    /// Compares the attachment with what ADD made.
    fn check(&self, request: &Request<'_>) -> Result<(), PluginError>;

    /// Deletes what belongs to no valid attachment of the network.
    fn gc(&self, request: &Request<'_>) -> Result<(), PluginError>;

    /// Whether ADD could be served now.
    fn status(&self, request: &Request<'_>) -> Result<(), PluginError>;
}

/// Reads as the reference plugins do, for whom a key whose value is `null` is not there.
fn decode<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    if text.contains("null") {
        return serde_json::from_str(&without_null(serde_json::from_str(text)?).to_string());
    }
    serde_json::from_str(text)
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let said = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(said.map(|(key, value)| (key, without_null(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_null).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_counts_as_absent_at_every_depth() {
        let read: Value = decode(r#"{"a":null,"b":{"c":null,"d":[{"e":null,"f":"null"}]}}"#).unwrap();
        assert_eq!(read, json!({"b": {"d": [{"f": "null"}]}}));
        assert_eq!(decode::<Option<u8>>("null").unwrap(), None);
    }
}
