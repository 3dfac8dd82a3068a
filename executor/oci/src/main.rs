//! OCI runtime: a drop-in for runc.

fn main() {}
