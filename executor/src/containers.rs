//! The runtime as the executor uses it: containers are named after their tasks.

use cofferdam_runtime::{ContainerId, Kind as RuntimeKind, Options, Runtime};
use cofferdam_shim::protocol::{Failure, FailureKind};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::TaskId;
use crate::release::Places;

/// The name of a task's container in the runtime.
pub(crate) fn container_id(id: &TaskId) -> String {
    id.to_string()
}

fn open(places: &Places, id: &TaskId) -> Result<(Runtime, ContainerId), Error> {
    let runtime = Runtime::open(&places.state.join("runtime"), Options::default()).map_err(failed)?;
    let container =
        ContainerId::parse(&container_id(id)).map_err(|error| Error::Worker(error.to_string()))?;
    Ok((runtime, container))
}

fn failed(error: cofferdam_runtime::Error) -> Error {
    let kind = match error.kind() {
        RuntimeKind::NotFound => FailureKind::NotFound,
        RuntimeKind::InvalidInput => FailureKind::InvalidInput,
        RuntimeKind::Unsupported => FailureKind::Unsupported,
        RuntimeKind::Conflict | RuntimeKind::AlreadyExists => FailureKind::Conflict,
        RuntimeKind::Denied => FailureKind::Denied,
        RuntimeKind::Exhausted => FailureKind::Exhausted,
        RuntimeKind::Interrupted | RuntimeKind::Internal => FailureKind::Internal,
    };
    Error::Supervisor(Failure::new(kind, error.to_string()))
}

/// Kills what is left of a task's container and removes every trace of it. One that is not there is deleted already.
pub(crate) fn delete(places: &Places, id: &TaskId) -> Result<(), Error> {
    let (runtime, container) = open(places, id)?;
    runtime.delete(&container, true).map(drop).map_err(failed)
}

/// Whether the layers of a task can be shown through id maps here.
pub(crate) fn maps_layers(places: &Places) -> Result<bool, Error> {
    let runtime = Runtime::open(&places.state.join("runtime"), Options::default()).map_err(failed)?;
    Ok(runtime.maps_layers())
}

/// What a task uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time since its start.
    pub cpu_nanos: u64,
    /// Memory that it cannot do without.
    pub memory_bytes: u64,
    /// Memory it may use.
    pub memory_limit_bytes: Option<u64>,
    /// The most memory it has used.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads now.
    pub pids: u64,
    /// Processes and threads it may have.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to block devices.
    pub written_bytes: u64,
    /// What passed its interfaces, without its loopback; nothing of a task with the host's network.
    #[serde(default)]
    pub networks: Vec<InterfaceStats>,
}

/// What passed an interface of a task, as the task sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStats {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received with errors.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets dropped on their way out.
    pub tx_dropped: u64,
}

/// What a task's container uses.
pub(crate) fn stats(places: &Places, id: &TaskId) -> Result<Stats, Error> {
    let (runtime, container) = open(places, id)?;
    let found = runtime.stats(&container).map_err(failed)?;
    let memory = found.memory.unwrap_or_default();
    let pids = found.pids.unwrap_or_default();
    Ok(Stats {
        cpu_nanos: found.cpu.usage_ns.unwrap_or_default(),
        memory_bytes: memory.working_set_bytes,
        memory_limit_bytes: memory.limit_bytes,
        memory_peak_bytes: memory.peak_bytes,
        pids: pids.current,
        pids_limit: pids.limit,
        read_bytes: found.io.iter().map(|device| device.read_bytes).sum(),
        written_bytes: found.io.iter().map(|device| device.write_bytes).sum(),
        networks: Vec::new(),
    })
}
