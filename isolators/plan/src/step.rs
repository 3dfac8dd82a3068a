//! A step: an operation with its place, its reason and its undo.

use std::fmt;

use crate::op::{DeviceChange, Op};
use crate::path::HostPath;

/// Where and when a step runs.
///
/// ```text
/// parent   host ──▶ clone ──▶ attach ────────────────────────┐ barriers
/// child               └─────▶ reach ──▶ enter ──▶ confine ◀──┘──▶ gate ──▶ exec
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Parent, before the process exists.
    Host,
    /// Parent: the clone itself.
    Clone,
    /// Parent, on the child, while the child builds.
    Attach,
    /// Child, while its ids are still the caller's: what the container's root could not open.
    Reach,
    /// Child: namespaces and mounts.
    Enter,
    /// Child: giving up privileges.
    Confine,
    /// Child: waiting for `start`.
    Gate,
    /// Child: becoming the task.
    Exec,
}

impl Stage {
    /// Whether the parent runs steps of this stage.
    pub const fn is_parent(self) -> bool {
        matches!(self, Self::Host | Self::Clone | Self::Attach)
    }

    /// The name as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Clone => "clone",
            Self::Attach => "attach",
            Self::Reach => "reach",
            Self::Enter => "enter",
            Self::Confine => "confine",
            Self::Gate => "gate",
            Self::Exec => "exec",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a step is undone when a later one fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    /// Nothing is left to undo; the text says why.
    Nothing(&'static str),
    /// Remove the container's cgroup from every hierarchy.
    RemoveCgroup,
    /// Remove a file that the step made.
    RemoveFile(HostPath),
    /// Remove a directory that the step made.
    RemoveDirectory(HostPath),
    /// Have systemd end a unit and forget it.
    StopUnit(String),
    /// Write what the file held before.
    RestoreCgroupFile,
    /// Write the limits that the class of service had before.
    RestoreSchemata(HostPath),
    /// Put other device rules in force.
    ReplaceDevices(DeviceChange),
    /// Move a network device back out of the child's network namespace, where it would be destroyed.
    ReturnNetDevice {
        /// Its name on the host.
        device: String,
        /// Its name in the container.
        name: String,
    },
    /// Kill and reap the child; its namespaces go with it.
    KillChild,
}

/// Why a step is there: a JSON pointer into the configuration, or a word for what every container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why(pub String);

impl<T: Into<String>> From<T> for Why {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where it runs.
    pub stage: Stage,
    /// What it does.
    pub op: Op,
    /// Why it is there.
    pub why: Why,
}
