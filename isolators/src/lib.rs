//! What must hold for a container: one file an isolator, one compiler from container to plan.

pub mod capabilities;
pub mod seccomp;
