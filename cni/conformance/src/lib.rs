//! Conformance tests for CNI plugins: any program that says it is one, whoever wrote it.
//!
//! ```text
//! Subject ──▶ every case of groups.rs: own thread ─▶ own network and mount namespaces ─▶ Stage ─▶ calls, snapshots ─▶ Verdict
//! (program,    1 version … 16 performance              (the plugin's "host")                                   │
//!  profile)                                                                       text · TAP · JUnit ◀── Report
//! ```
//!
//! A case runs the plugin as a runtime would, in a network namespace that plays the host, with containers that are further
//! namespaces; `/etc`, `/run` and `/var` are covered by overlays, so what the plugin writes there is seen and is gone with
//! the case. The machine itself stays as it is. Every case names the section of the specification that it rests on and how
//! much it matters, and a failed one shows its calls in a form that a shell takes.
//!
//! Read first: `groups.rs` (what there is), `stage.rs` (what a case works with), `profile.rs` (what is known of a plugin).
//! Needs root. `ip`, `tc`, `nft` and `iptables-legacy-save` are used to look at the host, where they are installed.

mod case;
mod groups;
mod process;
mod profile;
mod report;
mod snapshot;
mod stage;
mod talk;
mod tamper;
mod xml;

pub use case::{Case, Choice, Outcome, Severity, Verdict, cases, run};
pub use profile::{Error, Profile, Subject};
pub use report::{Format, Report};
pub use snapshot::Snapshot;
