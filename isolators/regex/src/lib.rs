//! What oci-spec asks of the crate `regex` is one pattern, for `process.execCPUAffinity`. The full engine would be a sixth of
//! the OCI runtime's binary, and with it of the memory that a launch touches; this one is the small engine of its authors.

pub use regex_lite::{Error, Regex};
