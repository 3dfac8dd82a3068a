//! Benchmarks: launches beside their peers and beside the floor, which is the kernel's own cost of the same launch, and networks
//! ([`cni`]) beside the reference plugins.
//!
//! ```text
//! cofferdam-benches pull [--record]                    see `pull`: images pulled beside the peers
//! cofferdam-benches launch|lifecycle|exec [--record]   one table: p50, p99, ratio to the floor, system calls, processes
//!        │
//!        ├─ worker floor    BUNDLE ┐
//!        ├─ worker cofferdam-oci … ├ one process each, told "go" in turn (A B C A B C …), answers in nanoseconds
//!        └─ worker runc …          ┘
//! ```
//! Read first: [`launch`] (the order of things), [`contestant`] (who runs, and how), [`floor`] (what the kernel must do).
//! Needs root. Works in temporary folders, in cgroups named `cofferdam-*`, and removes both.

pub mod budget;
pub mod bundle;
pub mod cni;
pub mod contestant;
pub mod counters;
pub mod floor;
pub mod launch;
pub mod library;
mod peak;
pub mod pull;
pub mod record;
pub mod statistics;
pub mod worker;
