//! Run container images as isolated tasks, without a daemon.

fn main() {}
