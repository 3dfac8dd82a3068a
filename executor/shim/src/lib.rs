//! What outlives the agent: the parent of one task.
//!
//! A task must go on, and its exit status be known, when the program that launched it ends or is killed. So each task
//! has a process of its own above it: the shim. It creates the container (and so is the parent of its first process),
//! holds its standard streams, writes its log, answers on a control socket, and at the end deletes the container and
//! releases the rest. One shim a task, one thread a shim, all waiting in `poll`.
//!
//! Read first: [`supervise`](supervise()) (the loop), [`policy`] (facts up, orders down: what this crate leaves to the
//! executor), [`protocol`] (the control socket), [`log`](mod@log) (the log on disk).
//!
//! This crate knows nothing of images, networks and task states. It assumes a process of its own, single-threaded,
//! privileged as the runtime needs; [`detach`] describes how it is started.

mod client;
pub mod detach;
pub mod durable;
pub mod engine;
mod exit;
pub mod frame;
mod launch;
pub mod log;
pub mod policy;
pub mod protocol;
mod runtime_engine;
mod session;
mod supervise;
mod time;

pub use exit::Exit;
pub use launch::{LAUNCH_FILE, Launch, Layer, PROTOCOL_VERSION, RootfsSource, SOCKET};
pub use runtime_engine::RuntimeEngine;
pub use supervise::supervise;
pub use time::{Timestamp, TimestampError};
