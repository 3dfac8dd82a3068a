//! What can go wrong when a network is attached or detached.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigError;
use crate::name::{ContainerId, IfName, InvalidName, NetworkName};
use crate::plugin::Code;

/// An operation of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Is the attachment as it was made?
    Check,
    /// Collect what belongs to no attachment.
    Gc,
    /// Could an attachment be made?
    Status,
    /// Which versions are spoken?
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// The family of an error, for exit codes and status reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Something named does not exist.
    NotFound,
    /// Something is there already.
    AlreadyExists,
    /// The request or the configuration is wrong.
    InvalidInput,
    /// Nobody here can do that.
    Unsupported,
    /// Somebody else has it.
    Conflict,
    /// Not allowed.
    Denied,
    /// Nothing left to give.
    Exhausted,
    /// Took too long, or try again later.
    Interrupted,
    /// Anything else.
    Internal,
}

/// Why a plugin did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// The plugin.
    pub plugin: String,
    /// What it was asked.
    pub verb: Verb,
    /// The network.
    pub network: NetworkName,
    /// The container, for verbs about an attachment.
    pub container: Option<ContainerId>,
    /// The code it answered, if it answered.
    pub code: Option<Code>,
    /// What it said, or what became of it.
    pub message: String,
    /// More of what it said.
    pub details: String,
    /// How long it took.
    pub elapsed: Duration,
    /// The end of what it wrote to its standard error.
    pub stderr_tail: String,
    /// The family, as far as code and circumstances tell.
    pub kind: Kind,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plugin, verb, network, .. } = self;
        write!(out, "plugin {plugin}: {verb} for network {network}")?;
        if let Some(container) = &self.container {
            write!(out, ", container {container}")?;
        }
        write!(out, ": {}", self.message)?;
        if !self.details.is_empty() {
            write!(out, ": {}", self.details)?;
        }
        match self.code {
            Some(code) => write!(out, " (code {code}, after {} ms)", self.elapsed.as_millis())?,
            None => write!(out, " (after {} ms)", self.elapsed.as_millis())?,
        }
        if !self.stderr_tail.trim().is_empty() {
            write!(out, "; it wrote: {}", self.stderr_tail.trim())?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// An operation on an attachment that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A plugin failed.
    #[error(transparent)]
    Plugin(Box<Failure>),
    /// A plugin failed in ADD, and so did the clean-up; the record stays for a later detach.
    #[error("{add}; undoing it failed as well: {undo}")]
    Undo {
        /// The first failure.
        add: Box<Failure>,
        /// The failure of the clean-up.
        undo: Box<Error>,
    },
    /// There is no such plugin.
    #[error(
        "network {network}: there is no plugin {plugin:?} built in, nor on the plugin path {}{note}",
        path_text(searched)
    )]
    PluginMissing {
        /// Name of the plugin.
        plugin: String,
        /// The network that wants it.
        network: NetworkName,
        /// The directories that were searched.
        searched: Vec<PathBuf>,
        /// What was found but could not be used.
        note: String,
    },
    /// The attachment exists.
    #[error("container {container} is already attached to network {network} as {if_name}")]
    Attached {
        /// The container.
        container: ContainerId,
        /// The network.
        network: NetworkName,
        /// The interface.
        if_name: IfName,
    },
    /// The attachment does not exist.
    #[error("container {container} is not attached to network {network} as {if_name}")]
    NotAttached {
        /// The container.
        container: ContainerId,
        /// The network.
        network: NetworkName,
        /// The interface.
        if_name: IfName,
    },
    /// Nobody in the chain does what was asked for.
    #[error(
        "network {network}: {capability} was asked for, but no plugin of the network declares that capability"
    )]
    Undeclared {
        /// The network.
        network: NetworkName,
        /// The capability.
        capability: String,
    },
    /// An interface of this name is the namespace's own.
    #[error("network {network}: an interface \"lo\" can only be the loopback plugin's")]
    Loopback {
        /// The network.
        network: NetworkName,
    },
    /// The network and its plugins speak no version in common.
    #[error("network {network} allows the CNI versions {wanted}; plugin {plugin} knows {known}")]
    NoCommonVersion {
        /// The network.
        network: NetworkName,
        /// What the network allows.
        wanted: String,
        /// The plugin that leaves nothing.
        plugin: String,
        /// What the plugin knows.
        known: String,
    },
    /// A verb that the network's version does not have.
    #[error("network {network}: {verb} needs CNI version {needed}, the network speaks {version}")]
    VerbUnsupported {
        /// The network.
        network: NetworkName,
        /// The verb.
        verb: Verb,
        /// The version that has it.
        needed: crate::version::Version,
        /// The network's version.
        version: crate::version::Version,
    },
    /// An argument that the environment cannot carry.
    #[error("the CNI argument {key}={value} holds ';' or '='")]
    Argument {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// What is at the path is not a network namespace.
    #[error("{} is not a network namespace: {errno}", path.display())]
    Netns {
        /// The path.
        path: PathBuf,
        /// Why.
        errno: rustix::io::Errno,
    },
    /// Somebody holds a lock for too long.
    #[error("gave up waiting for {what} after {} ms; it is held by process {holder}", waited.as_millis())]
    Locked {
        /// What is locked.
        what: String,
        /// Who holds it.
        holder: String,
        /// For how long we waited.
        waited: Duration,
    },
    /// The state directory does not do what it should.
    #[error("cannot {operation} {}: {source}", path.display())]
    State {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Several failures of an operation that tries everything.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

fn path_text(path: &[PathBuf]) -> String {
    if path.is_empty() {
        return "(which is empty)".into();
    }
    path.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":")
}

impl Error {
    /// The family of the error.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Plugin(failure) | Self::Undo { add: failure, .. } => failure.kind,
            Self::PluginMissing { .. } | Self::NotAttached { .. } => Kind::NotFound,
            Self::Attached { .. } => Kind::AlreadyExists,
            Self::Undeclared { .. } | Self::VerbUnsupported { .. } | Self::NoCommonVersion { .. } => {
                Kind::Unsupported
            }
            Self::Argument { .. }
            | Self::Loopback { .. }
            | Self::Netns { .. }
            | Self::Name(_)
            | Self::Config(_) => Kind::InvalidInput,
            Self::Locked { .. } => Kind::Interrupted,
            Self::State { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Kind::Denied
            }
            Self::State { .. } => Kind::Internal,
            Self::Several(errors) => errors.first().map_or(Kind::Internal, Self::kind),
        }
    }

    pub(crate) fn state(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::State { operation, path, source }
    }
}
