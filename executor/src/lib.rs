//! Task engine: launch, watch, exec, attach, stats, kill, recover.

pub mod doctor;
pub mod id;
pub mod passwd;
pub mod request;
pub mod restart;
pub mod signal;
pub mod spec;
pub mod status;
pub mod transition;
