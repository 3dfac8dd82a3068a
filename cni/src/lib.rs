//! CNI 1.1: the caller side and the plugin side. <https://www.cni.dev/docs/spec/>
//!
//! ```text
//!                     ┌────────────── NetworkList (config, directory) ──────────────┐
//! Caller::attach ──▶ lock ──▶ record "adding" ──▶ plugin 1 ─▶ plugin 2 ─▶ … ──▶ record "added" ──▶ AddResult
//!                                  │                 └── fails ──▶ DEL in reverse, record removed
//! Caller::detach ──▶ lock ──▶ record ──▶ … plugin 2 ─▶ plugin 1 ──▶ record removed
//! ```
//!
//! Read first: `caller.rs` (what an embedder calls), `config.rs` (what a network is), `plugin.rs` (what a plugin is),
//! `record.rs` (what survives a crash). A plugin is a program on the plugin path or a [`Plugin`] linked into this one; both
//! get the same bytes. Every call is synchronous and works in the network namespace of the calling thread, which plays
//! the host. Running plugins needs the privileges the plugins need, usually root.

mod advice;
mod attach;
mod call;
mod caller;
mod capability;
mod config;
mod detach;
mod directory;
mod dns;
mod error;
mod exec;
mod explain;
mod gc;
mod kept;
mod lock;
mod name;
mod negotiate;
mod object;
mod observe;
mod plugin;
mod record;
mod resolve;
mod result;
mod store;
mod tree;
mod version;

pub use caller::{Attachment, Caller, Deadlines, NetnsFate, Options, Prefer, Undeclared};
pub use capability::{Bandwidth, Capabilities, IpRange, PortMapping, Protocol};
pub use config::{ConfigError, NetworkList, PluginConfig};
pub use directory::{Networks, Problem};
pub use dns::merge_dns;
pub use error::{Error, Failure, Kind, Verb};
pub use explain::{Explained, Explanation};
pub use gc::Valid;
pub use name::{ContainerId, IfName, InvalidName, NetworkName};
pub use negotiate::PluginFacts;
pub use object::Object;
pub use observe::{Call, Observer};
pub use plugin::{Code, Delegate, Plugin, PluginError, Program, Request};
pub use record::{Implementation, Record, RecordState};
pub use result::{AddResult, Dns, Interface, IpConfig, Prefix, ResultError, Route};
pub use version::Version;
