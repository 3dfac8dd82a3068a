//! What a launcher hands to the shim it starts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{self, RecordError};
use crate::log::LogLimits;

/// Version of this file's and of the socket's form. A shim and its clients may be of different builds.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name of the launch file in the task's state directory.
pub const LAUNCH_FILE: &str = "launch.json";

/// Name of the control socket in the task's state directory.
pub const SOCKET: &str = "shim.sock";

/// Where the task's root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootfsSource {
    /// Layers of an image below a writable directory.
    Overlay {
        /// Read-only layers, uppermost first.
        lower: Vec<Layer>,
        /// Takes the task's changes.
        upper: PathBuf,
        /// Overlayfs's own scratch directory, beside `upper`.
        work: PathBuf,
        /// An empty directory that the layers are mounted over, in the container's mount namespace alone.
        onto: PathBuf,
        /// A file with an ext4 file system, in whose root `upper` and `work` are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<PathBuf>,
    },
    /// A directory with everything in it, the task's alone.
    Directory(PathBuf),
    /// The host's own tree, without changing root.
    Host,
}

/// A read-only layer. A directory is written as its path alone, as before there were images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layer {
    /// A directory.
    Directory(PathBuf),
    /// A file with an image of a file system.
    Image {
        /// An EROFS one.
        erofs: PathBuf,
    },
}

/// Everything the mechanical half of a task's supervision needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The container's name in the runtime.
    pub container: String,
    /// The runtime's state directory.
    pub runtime_root: PathBuf,
    /// Directory with `config.json`.
    pub bundle: PathBuf,
    /// Root file system.
    pub rootfs: RootfsSource,
    /// The task gets a terminal instead of pipes.
    pub terminal: bool,
    /// The task's standard input stays open for clients; otherwise it is empty.
    pub stdin: bool,
    /// Where its log goes: never a place that the task can write.
    pub log_directory: PathBuf,
    /// How much log is kept.
    pub log_limits: LogLimits,
    /// Who must be able to open the standard streams again by name (`/dev/stdout`).
    pub stdio_owner: (u32, u32),
    /// What the policy needs to know; its own business.
    pub policy: serde_json::Value,
}

impl Launch {
    /// Writes the launch file into a task's state directory.
    pub fn store(&self, state_directory: &Path) -> Result<(), RecordError> {
        durable::store(&state_directory.join(LAUNCH_FILE), self, durable::Durability::Process)
    }

    /// Reads it back; refuses a newer version than this build knows.
    pub fn load(state_directory: &Path) -> Result<Launch, RecordError> {
        let path = state_directory.join(LAUNCH_FILE);
        let launch: Launch = durable::load(&path)?;
        if launch.version > PROTOCOL_VERSION {
            let problem =
                format!("version {} is newer than this program's {PROTOCOL_VERSION}", launch.version);
            return Err(RecordError::Broken { path, problem });
        }
        Ok(launch)
    }
}
