//! The command line from outside: real tasks in a private world, and a census after each test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod builders;
mod host;
mod images;
mod killed;
mod mistakes;
mod networks;
mod registries;
mod running;
mod storage;
mod user_namespaces;
mod workbench;
