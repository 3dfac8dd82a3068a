//! What a pull asks of the kernel and of the registry: counts that do not depend on how busy the machine is.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cofferdam_image::{Durability, ImageRef, PullOptions, Store, StoreOptions};
use serde::Deserialize;

use super::images::{self, Coder, Shape};
use super::server;
use crate::counters;

/// Counted over every thread and process of one pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// System calls but those of [`CHANGING`].
    pub syscalls: u64,
    /// Processes made.
    pub processes: u64,
    /// Threads made.
    pub threads: u64,
    /// Requests to the registry.
    pub requests: u64,
}

/// Calls whose number depends on who runs when: waits, what is received at once, and the allocator's, whose arenas are shared.
const CHANGING: [&str; 9] =
    ["futex", "epoll_wait", "sched_yield", "recvfrom", "madvise", "mmap", "munmap", "mprotect", "brk"];

/// Small images of which every pull is the same: `budgets.json` has their names.
const COUNTED: [Shape; 2] = [
    Shape {
        name: "two-layers",
        note: "two layers of 100 files",
        layers: 2,
        files: 100,
        file_bytes: 30_000,
        coder: Coder::Gzip,
    },
    Shape {
        name: "small-files",
        note: "one layer of 1000 small files",
        layers: 1,
        files: 1000,
        file_bytes: 1000,
        coder: Coder::Gzip,
    },
];

/// Pulls each of the counted images by `driver`, which is the program of this crate, under strace.
pub fn count(driver: &Path) -> Result<Vec<(&'static str, Counts)>> {
    let folder = tempfile::tempdir()?;
    COUNTED.iter().map(|shape| Ok((shape.name, count_one(driver, *shape, folder.path())?))).collect()
}

fn count_one(driver: &Path, shape: Shape, folder: &Path) -> Result<Counts> {
    let server = server::start(&[images::make(shape, folder)?])?;
    let report = folder.join(format!("{}.trace", shape.name));
    let status = Command::new("strace")
        .args(["-f", "-qq", "-s", "0", "-o"])
        .arg(&report)
        .arg(driver)
        .args(["pull-once", &server.image(shape.name)])
        .arg(folder.join(format!("{}.store", shape.name)))
        .stdin(Stdio::null())
        .status()
        .context("starting strace")?;
    if !status.success() {
        bail!("the traced pull ended with {status}");
    }
    let trace = std::fs::read_to_string(&report).context("reading the trace")?;
    let counted = counters::parse(&without_changing(&trace));
    Ok(Counts {
        syscalls: counted.syscalls,
        processes: counted.processes,
        threads: counted.threads,
        requests: server.requests(),
    })
}

fn without_changing(trace: &str) -> String {
    let is_kept = |line: &&str| {
        let call = line.split_once(char::is_whitespace).map_or("", |(_, call)| call.trim_start());
        !CHANGING.iter().any(|name| call.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')))
    };
    trace.lines().filter(is_kept).collect::<Vec<&str>>().join("\n")
}

/// Pulls once, by the library: what is traced. Settling is left out: a slow machine would still be at it in the trace.
pub fn once(image: &str, store: &Path) -> Result<()> {
    let unsettled = StoreOptions { durability: Durability::None, ..StoreOptions::default() };
    let store = Store::open_with(store, unsettled)?;
    store.pull(&ImageRef::parse(image)?, &PullOptions::default(), &|_| {})?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_left_out() {
        let trace = "1 openat(3, \"x\") = 4\n2 futex(0x1, FUTEX_WAIT <unfinished ...>\n2 <... futex resumed>) = 0\n1  brk(0) = 0\n";
        assert_eq!(without_changing(trace), "1 openat(3, \"x\") = 4\n2 <... futex resumed>) = 0");
    }
}
