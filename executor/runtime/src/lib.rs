//! The OCI lifecycle: create, start, state, kill, delete, exec, and what goes with them.
//!
//! One operation a file, synchronous, no async runtime, no global state. `create` compiles the configuration to a plan
//! (`cofferdam-isolators`), writes the container's state with everything that will have to be undone, and has the plan
//! applied (`cofferdam-apply`). Every door (the OCI command line, the shim, an agent) ends here, so what is proven through
//! one is proven through all.
//!
//! ```text
//! ROOT/ID/state.json   written before anything is touched, so that `delete` can always clean up
//! ROOT/ID/start.sock   the gate: there while the container is created and not started
//! ROOT/ID/cgroup       links that note the cgroup and the process once more, for `delete --force` without a readable
//! ROOT/ID/process      state file, or while another operation hangs
//! ```
//!
//! Read first: [`runtime`] (the handle), [`state`] (what is on disk), [`create`].
//!
//! Privileges: root, or a user namespace in the configuration. Threads: any; the caller of [`Runtime::create`] becomes the
//! parent of the container's first process, and reaps it.

pub mod bundle;
pub mod checkpoint;
pub mod configuration;
pub mod create;
mod criu;
pub mod delete;
pub mod error;
pub mod example;
pub mod exec;
pub mod explain;
pub mod features;
pub mod foreground;
pub mod hooks;
pub mod kill;
pub mod limits;
pub mod list;
pub mod listen;
mod lock;
pub mod readiness;
pub mod resources;
pub mod restore;
pub mod runtime;
pub mod signals;
mod specified;
pub mod start;
pub mod state;
pub mod systemd;
pub mod terminal;
pub mod update;

pub use checkpoint::{CgroupMode, Checkpoint};
pub use cofferdam_apply::{Fault, StepTime};
pub use cofferdam_isolators::{CgroupManager, Layer, Rootfs};
pub use cofferdam_linux::cgroup::{BlockIo, Statistics};
pub use cofferdam_linux::main;
pub use cofferdam_linux::terminal::send_descriptor;
pub use cofferdam_plan::{ContainerId, HostFeatures, Namespace, Plan};
pub use create::{Console, Create, Created, Stdio};
pub use error::{Error, Kind};
pub use exec::{Exec, Executed};
pub use explain::explain;
pub use limits::Limits;
pub use oci_spec::runtime::{BoxBuilder as ConsoleSize, LinuxResources, Process, Spec};
pub use restore::{Restore, Restored};
pub use runtime::{Options, Runtime};
pub use state::{State, Status, now_rfc3339};
pub use update::Change;

/// Version of the runtime-spec that this crate follows.
pub const SPEC_VERSION: &str = "1.3.0";

/// Goes on as a copy of this program that nothing in a container can overwrite; see [`cofferdam_linux::sealed`].
pub fn become_sealed() -> Result<(), Error> {
    cofferdam_linux::sealed::become_sealed()
        .map_err(error::system("sealing this program against its containers"))
}
