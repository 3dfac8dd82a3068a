//! The kernel boundary: the only crate of the workspace with unsafe code.
#![allow(unsafe_code)] // the one crate where it is lifted; see ARCHITECTURE.md, invariant 1

pub mod guest;
