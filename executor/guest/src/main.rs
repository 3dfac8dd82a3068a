//! Programs that run inside a task: the demo, an init.

fn main() {}
