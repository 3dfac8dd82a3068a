//! What must hold for a container, as steps.
//!
//! One file an isolator, one table that lists them in order ([`compile::ISOLATORS`]), one compiler from a container to a
//! [`cofferdam_plan::Plan`]. Everything here is pure: no file, system call, clock or environment is touched
//! (ARCHITECTURE.md, invariant 2). What can be refused is refused here, with a JSON pointer into the configuration.
//!
//! Read first: [`container`] (what goes in), [`compile`] (the table), then any isolator.

pub mod arrival;
pub mod capabilities;
pub mod cgroup;
pub mod cgroups;
pub mod compile;
pub mod container;
pub mod devices;
pub mod hooks;
pub mod identity;
pub mod intel_rdt;
pub mod labels;
pub mod mount_options;
pub mod mounts;
pub mod namespaces;
pub mod net_devices;
pub mod process;
pub mod rlimits;
pub mod rootfs;
pub mod scheduling;
pub mod seccomp;
pub mod sysctl;
pub mod update;

pub use compile::{compile, compile_joining};
pub use container::{CgroupManager, Console, Container, Gate, Joining, Layer, Rootfs};
