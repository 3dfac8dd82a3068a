//! runtime-spec 1.3, clause by clause, on our runtime and on its peers: one file a chapter, every case with the clause that
//! it holds a runtime to.
//!
//! A case that a peer fails is no failure of ours: it is printed as a difference, and `docs/conformance.md` keeps the table
//! of a run. With `COFFERDAM_CONFORMANCE` set to a file's path, the rows of that table are added to the file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod case;

mod cgroups;
mod devices;
mod hooks;
mod kernel;
mod lifecycle;
mod mounts;
mod namespaces;
mod paths;
mod process;
mod root;
mod state;
mod user;
