//! The interpreter of plans.
//!
//! [`apply`] is one loop over the steps of a [`cofferdam_plan::Plan`]. It never sees a configuration. The parent half runs
//! the host and attach stages, clones the child, and undoes in reverse when anything fails; the child half ([`child`])
//! runs the rest. Between clone and exec the child allocates nothing, takes no lock and logs nothing: it walks operations
//! whose texts were laid out beforehand, over a table of descriptors, and records each step in a shared page.
//!
//! ```text
//! parent   host ─ clone ─ attach ──────── wait ───────▶ created | executed | failed (undo in reverse)
//!                   │       │ barriers      ▲ one byte, or end of file
//! child             └─ enter ─ confine ─ gate ─ exec
//! ```
//!
//! Privileges: those that the plan's operations need. Threads: the caller may have any number; it becomes the parent of
//! the new process and reaps it.

mod applied;
mod attach;
mod change;
mod channel;
pub mod child;
mod device;
mod error;
mod helper;
mod host;
pub mod probe;
mod resctrl;
mod stack;
mod undo;

pub use applied::{Applied, Attendant, Fault, Inputs, Progress, StepTime, apply};
pub use change::{Changed, change};
pub use channel::{LEND, LateFailure, START};
pub use error::{Failure, in_words};
pub use host::create_cgroup;
pub use undo::kill;
