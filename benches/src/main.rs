//! Launch, pull and network benchmarks beside peers and the floor.

fn main() {}
