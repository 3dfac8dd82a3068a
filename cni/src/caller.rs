//! The caller: what an embedder configures once and calls for every attachment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::capability::Capabilities;
use crate::directory::Networks;
use crate::error::Error;
use crate::lock::Sharing;
use crate::name::{ContainerId, IfName, NetworkName};
use crate::observe::Observer;
use crate::plugin::Plugin;
use crate::record::Record;
use crate::store::Store;

/// Which implementation of a plugin is used if there are two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// The built-in one if it can do all that the configuration asks, else the program on the plugin path.
    #[default]
    Auto,
    /// The built-in one.
    Builtin,
    /// The program on the plugin path.
    External,
}

/// The longest an operation may take, all plugins of the chain together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// ADD: an address server may be slow.
    pub add: Duration,
    /// DEL.
    pub del: Duration,
    /// CHECK.
    pub check: Duration,
    /// GC.
    pub gc: Duration,
    /// STATUS.
    pub status: Duration,
    /// Waiting for somebody else's operation on the same container or network.
    pub lock: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            add: seconds(90),
            del: seconds(60),
            check: seconds(10),
            gc: seconds(120),
            status: seconds(10),
            lock: seconds(60),
        }
    }
}

/// What a caller works with.
#[derive(Clone)]
pub struct Options {
    /// Directory of records and locks; made if missing. Never share it with another kind of runtime: GC deletes what its
    /// own records do not know.
    pub state: PathBuf,
    /// Absolute directories searched for plugin programs.
    pub plugin_path: Vec<PathBuf>,
    /// Plugins linked into this program.
    pub builtins: &'static [&'static dyn Plugin],
    /// Which of two implementations is used.
    pub prefer: Prefer,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Further variables of our environment that external plugins may see.
    pub pass_environment: Vec<String>,
    /// Whether a network that allows several versions is spoken to in one that its plugins say they know.
    pub probe_versions: bool,
    /// Is told of every call, and of what is odd.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Options {
    /// Options for a state directory: no plugins, the default deadlines.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            plugin_path: Vec::new(),
            builtins: &[],
            prefer: Prefer::default(),
            deadlines: Deadlines::default(),
            pass_environment: Vec::new(),
            probe_versions: true,
            observer: None,
        }
    }
}

/// What becomes of the container's network namespace after a detach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetnsFate {
    /// It stays: everything inside is taken away. Deleting a veth pair waits 11 to 50 ms in the kernel.
    #[default]
    Stays,
    /// Its last holder closes it at once: what is inside goes with it, so only the host's side is cleaned.
    Ends,
}

/// What becomes of an argument that no plugin of the network can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Undeclared {
    /// An error for what its user would miss: ports, bandwidth, addresses, the device. A warning for the rest.
    #[default]
    Refuse,
    /// A warning.
    Warn,
}

/// One interface of one container on one network.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// The container, or the pod.
    pub container: ContainerId,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Name of the interface inside.
    pub if_name: IfName,
    /// Pairs for `CNI_ARGS`; `IgnoreUnknown=1` is put before them.
    pub args: Vec<(String, String)>,
    /// Ports, addresses and so on.
    pub capabilities: Capabilities,
    /// What if no plugin declares one of them.
    pub undeclared: Undeclared,
}

impl Attachment {
    /// An attachment that asks for nothing in particular.
    pub fn new(container: ContainerId, netns: impl Into<PathBuf>, if_name: IfName) -> Self {
        Self {
            container,
            netns: netns.into(),
            if_name,
            args: Vec::new(),
            capabilities: Capabilities::default(),
            undeclared: Undeclared::default(),
        }
    }
}

/// Attaches containers to networks and detaches them. Any number of callers, in any number of processes, may share a
/// state directory.
#[derive(Clone)]
pub struct Caller {
    pub(crate) options: Options,
    pub(crate) store: Store,
}

impl Caller {
    /// Opens the state directory.
    pub fn open(options: Options) -> Result<Self, Error> {
        let store = Store::open(&options.state)?;
        Ok(Self { options, store })
    }

    /// Forgets an attachment whose DEL cannot succeed: its record goes, what its plugins made stays.
    pub fn forget(
        &self,
        network: &NetworkName,
        container: &ContainerId,
        if_name: &IfName,
    ) -> Result<(), Error> {
        let _held = self.lock_container(container)?;
        self.store.remove(network, container, if_name)
    }

    /// Removes what stays of a network that is no more when its last attachment is gone: its lock.
    pub fn forget_network(&self, network: &NetworkName) -> Result<(), Error> {
        let path = self.store.lock_path("network", network.as_str());
        self.lock_network(network.as_str(), Sharing::Exclusive).map(|lock| drop(lock.removing(&path)))
    }

    /// The same for every network that nobody configures any more and that has no attachment. Returns their names.
    pub fn forget_networks_but(&self, configured: &Networks) -> Result<Vec<NetworkName>, Error> {
        let (records, _) = self.records()?;
        let is_used = |name: &NetworkName| {
            configured.get(name.as_str()).is_some()
                || records.iter().any(|record| record.network() == name)
                || !self.store.torn(None, Some(name)).is_empty()
        };
        let mut gone = self.store.known_networks();
        gone.retain(|name| !is_used(name));
        gone.iter().try_for_each(|name| self.forget_network(name))?;
        Ok(gone)
    }

    /// Every stored attachment, also those that a crash left half done, and for each unreadable record why.
    pub fn records(&self) -> Result<(Vec<Record>, Vec<Error>), Error> {
        self.store.all()
    }
}
