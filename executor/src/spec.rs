//! What is asked for when a task is launched.

use std::collections::BTreeMap;
use std::time::Duration;

use cofferdam_shim::log::LogLimits;
use serde::{Deserialize, Serialize};

use crate::id::TaskName;
use crate::request::network::NetworkRequest;
use crate::request::port::PortMapping;
use crate::request::size::MilliCpus;
use crate::request::ulimit::Ulimit;
use crate::request::userns::UserNamespaceChoice;
use crate::request::volume::{Tmpfs, Volume};
use crate::restart::RestartPolicy;
use crate::signal::Signal;

/// Processes a task may have unless it asks otherwise: far above any sane service, far below what exhausts a host.
pub const DEFAULT_PIDS_LIMIT: i64 = 4096;

/// What the task's root file system is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// An image, by any reference that `pull` takes or by the beginning of its id.
    Image(String),
    /// The host's own tree: isolation by namespaces and cgroups only.
    HostRootfs,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullWhen {
    /// Before every launch.
    Always,
    /// When the store has none of this name.
    #[default]
    Missing,
    /// Never.
    Never,
    /// When the registry's is another than ours.
    Newer,
}

/// Whether something of a task's stays when the task is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Until it is removed.
    #[default]
    UntilRemoved,
    /// Nothing stays (`--rm`).
    Nothing,
}

/// What the task may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory; none means what the host has.
    pub memory_bytes: Option<u64>,
    /// CPU time.
    pub cpus: Option<MilliCpus>,
    /// Which CPUs, as `0-3,5`.
    pub cpuset: Option<String>,
    /// Processes and threads; -1 means no limit, none means [`DEFAULT_PIDS_LIMIT`].
    pub pids: Option<i64>,
}

/// The system calls that the task may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeccompChoice {
    /// The built-in profile.
    #[default]
    Default,
    /// All of them.
    Unconfined,
    /// A profile in Docker's JSON.
    Profile(String),
}

/// How the task is kept in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// Capabilities to add to the default set, by name; `ALL` means every one we have.
    pub capabilities_add: Vec<String>,
    /// Capabilities to take away; `ALL` means every one.
    pub capabilities_drop: Vec<String>,
    /// System calls.
    pub seccomp: SeccompChoice,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// AppArmor profile.
    pub apparmor: Option<String>,
    /// SELinux label.
    pub selinux_label: Option<String>,
}

impl Default for Security {
    fn default() -> Security {
        Security {
            capabilities_add: Vec::new(),
            capabilities_drop: Vec::new(),
            seccomp: SeccompChoice::Default,
            no_new_privileges: true,
            apparmor: None,
            selinux_label: None,
        }
    }
}

/// What the task is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkChoice {
    /// Nothing but its own loopback.
    None,
    /// The host's network, without isolation.
    Host,
    /// These networks, in order `eth0`, `eth1` …; `bridge` is built in.
    Networks(Vec<NetworkRequest>),
}

impl NetworkChoice {
    /// The built-in bridge.
    pub fn bridge() -> NetworkChoice {
        NetworkChoice::Networks(vec![NetworkRequest::named("bridge")])
    }
}

/// How a task is to resolve names. Empty parts leave it to its networks, and then to the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsRequest {
    /// Name servers, the first asked first.
    pub servers: Vec<std::net::IpAddr>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
}

/// A task to launch. [`TaskSpec::image`] fills in what `run` without options means; the fields are yours to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Its name; one is made up if it has none.
    pub name: Option<TaskName>,
    /// Its root file system.
    pub source: Source,
    /// Platform of the image (`linux/arm64`); the host's if none.
    pub platform: Option<String>,
    /// When to fetch the image.
    pub pull: PullWhen,
    /// Replaces the image's entry point. An empty one removes it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Vec<String>,
    /// `NAME=VALUE`, over the image's.
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    pub workdir: Option<String>,
    /// Replaces the image's user: name or number, with or without group.
    pub user: Option<String>,
    /// Supplementary groups to add, by name or number.
    pub groups: Vec<String>,
    /// Its host name; the beginning of its id if none.
    pub hostname: Option<String>,
    /// It gets a terminal.
    pub terminal: bool,
    /// Its standard input stays open for clients.
    pub stdin: bool,
    /// Its root file system cannot be written.
    pub read_only: bool,
    /// What of the host's it sees.
    pub volumes: Vec<Volume>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// What it may write to its root file system, in bytes; as much as there is room for if none.
    #[serde(default)]
    pub writable_bytes: Option<u64>,
    /// Size of `/dev/shm`.
    pub shm_bytes: u64,
    /// What it may use.
    pub resources: Resources,
    /// How it is kept in.
    pub security: Security,
    /// Whose ids its ids are.
    #[serde(default)]
    pub user_namespace: UserNamespaceChoice,
    /// Limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// What it is connected to.
    pub network: NetworkChoice,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortMapping>,
    /// How it resolves names, before what its networks say.
    #[serde(default)]
    pub dns: DnsRequest,
    /// A small init of ours runs as its first process.
    pub init: bool,
    /// The first signal of a stop; the image's or SIGTERM if none.
    pub stop_signal: Option<Signal>,
    /// How long a stop waits before SIGKILL.
    pub stop_grace: Duration,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// What stays of it.
    pub keep: Keep,
    /// Words for the caller's own use; they mean nothing to us.
    pub labels: BTreeMap<String, String>,
    /// How much of its output is kept.
    pub log: LogLimits,
}

impl TaskSpec {
    /// A task that runs this image as it says.
    pub fn image(reference: impl Into<String>) -> TaskSpec {
        TaskSpec::of(Source::Image(reference.into()))
    }

    /// A task that runs a program of the host's.
    pub fn host_rootfs(command: impl IntoIterator<Item = impl Into<String>>) -> TaskSpec {
        TaskSpec::of(Source::HostRootfs).command(command)
    }

    /// The same task with this command.
    pub fn command(mut self, command: impl IntoIterator<Item = impl Into<String>>) -> TaskSpec {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// The same task with this name.
    pub fn named(mut self, name: TaskName) -> TaskSpec {
        self.name = Some(name);
        self
    }

    fn of(source: Source) -> TaskSpec {
        TaskSpec {
            name: None,
            source,
            platform: None,
            pull: PullWhen::default(),
            entrypoint: None,
            command: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
            groups: Vec::new(),
            hostname: None,
            terminal: false,
            stdin: false,
            read_only: false,
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            writable_bytes: None,
            shm_bytes: 64 << 20,
            resources: Resources::default(),
            security: Security::default(),
            user_namespace: UserNamespaceChoice::default(),
            ulimits: Vec::new(),
            network: NetworkChoice::bridge(),
            ports: Vec::new(),
            dns: DnsRequest::default(),
            init: false,
            stop_signal: None,
            stop_grace: Duration::from_secs(10),
            restart: RestartPolicy::default(),
            keep: Keep::default(),
            labels: BTreeMap::new(),
            log: LogLimits::default(),
        }
    }
}
