//! What the guest program (`executor/guest`) needs of the kernel and std does not offer: signals for its process 1,
//! the window size, system calls through other ABIs, and attempts at calls that a task must not be able to make.
//!
//! These files are compiled twice: here, where they are linted and tested with the rest of the kernel boundary, and into the
//! guest program, which includes them by path. That program is built by one rustc call without any crate, so these modules
//! use std and the C library that std links, and nothing else of this crate.

pub mod abi;
pub mod attempt;
pub mod signals;
pub mod terminal;
