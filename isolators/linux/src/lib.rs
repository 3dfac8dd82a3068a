//! The kernel boundary: system calls as typed functions.
//!
//! This is the only crate of the workspace with unsafe code (ARCHITECTURE.md, invariant 1). Most calls come from rustix,
//! whose raw backend neither allocates nor touches `errno`; what rustix lacks is added here, one function a system call,
//! descriptors owned and close-on-exec, and every unsafe block argues why it is sound.
//!
//! Functions marked *child-safe* allocate nothing and take no lock: they may run in the child between clone and exec.
#![allow(unsafe_code)]

pub mod allocations;
pub mod bpf;
pub mod cgroup;
pub mod confined;
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
pub mod entry;
pub mod feature;
pub mod fork;
pub mod guest;
pub mod image_file;
pub mod keyring;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod nft;
pub mod process;
pub mod quota;
pub mod removal;
pub mod report;
pub mod rootfs;
pub mod sealed;
pub mod seccomp;
pub mod sibling;
pub mod signal;
pub mod spawn;
pub mod start;
pub mod tap;
pub mod terminal;
pub mod text;
pub mod wait;
