//! What the host suites stand on: a census of the host, a private world to act in, images and a registry that other
//! programs made, and our own programs.
//!
//! - [`census`]: what the host holds (mounts, cgroups, namespaces, links, rules, descriptors, processes, files), and
//!   the difference between two moments. Read this first.
//! - [`world`]: private mount and network namespaces, so that a suite leaves the machine's own alone.
//! - [`programs`]: where `cofferdam` and `cofferdam-oci` are.
//! - [`bundle`], [`oci`]: OCI bundles made in code, and the runtimes, ours and its peers, that run them.
//! - [`callers`]: podman, containerd, Docker and Slurm in folders of their own, calling a runtime.
//! - [`images`]: a Debian, a busybox and an nginx image, made by debootstrap, umoci and skopeo and kept in a cache.
//! - [`registry`]: Debian's docker-registry on a loopback port, plain, with passwords, or with TLS.
//! - [`killed`]: when to kill -9 a program that must survive it.
//! - [`pace`]: how often to repeat and how long to wait, on hardware and in the virtual machine.
//! - [`criu`]: a CRIU that works on this kernel.
//! - [`needs`]: how a test says that it cannot run here.
//!
//! The harness judges the product, so it uses none of the product's crates. Nearly everything needs root.

pub mod bundle;
pub mod callers;
pub mod census;
pub mod criu;
pub mod images;
pub mod killed;
pub mod needs;
pub mod oci;
pub mod pace;
pub mod process;
pub mod programs;
pub mod registry;
pub mod user;
pub mod world;
