//! What std does not offer, from where unsafe code is allowed. The documentation is in `isolators/linux/src/guest.rs`.
#![allow(unreachable_pub)] // public there, where they are part of a library

#[path = "../../../isolators/linux/src/guest/abi.rs"]
pub(crate) mod abi;
#[path = "../../../isolators/linux/src/guest/attempt.rs"]
pub(crate) mod attempt;
#[path = "../../../isolators/linux/src/guest/signals.rs"]
pub(crate) mod signals;
#[path = "../../../isolators/linux/src/guest/terminal.rs"]
pub(crate) mod terminal;
