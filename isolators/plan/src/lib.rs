//! Isolation as data.
//!
//! A [`Plan`] is the ordered list of [`Step`]s that make one container: what is done ([`Op`]), where ([`Stage`]), why
//! (a JSON pointer into the configuration) and how it is undone ([`Undo`]). Nothing here performs I/O: a plan is a pure
//! function of a container and of [`HostFeatures`], builds and tests on any operating system, and prints; the prints are
//! golden files that are read in review.
//!
//! Read first: [`op`] (everything that can be asked of the kernel), then [`step`] (stages and undo), then [`plan`].

pub mod host;
pub mod id;
pub mod op;
mod parts;
pub mod path;
pub mod plan;
pub mod print;
pub mod refusal;
pub mod stack;
pub mod step;

pub use host::{CgroupLayout, HostFeatures, OverlayApi, Standing, V1Hierarchy};
pub use id::ContainerId;
pub use op::{
    Barrier, Create, Hierarchies, IdMapping, Limit, Mapper, MountAttributes, Namespace, Op, Propagation,
    SecurityModule, Slot,
};
pub use path::{ContainerPath, HostPath, Text};
pub use plan::{Builder, Plan};
pub use refusal::Refusal;
pub use stack::{Folder, ImageKind, OverlayForm};
pub use step::{Stage, Step, Undo, Why};
