//! Project automation: ci, test, bench, vm, golden, tidy.

fn main() {}
