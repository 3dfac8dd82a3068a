//! The caller with scripted plugins and with the reference's: order of calls, exact input and environment, retries,
//! deadlines, undoing, records, locks, and what is left when somebody is killed.
//!
//! Needs no privileges but for what says so: scripted plugins only write down what they were asked, and any namespace file
//! serves as the container's. Each test carries the number of the statement that it proves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod bed;
mod configuration;
mod input;
mod jobs;
mod killed;
mod locks;
mod processes;
mod records;
mod results;
#[path = "../support/scripted.rs"]
mod scripted;
mod verbs;
mod versions;
