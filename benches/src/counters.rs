//! What a launch asks of the kernel: counts that do not depend on how busy the machine is.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::contestant::{Contestant, NOTHING};

/// Counted over every process that a launch starts, the task itself included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// System calls.
    pub syscalls: u64,
    /// Processes made.
    pub processes: u64,
    /// Threads made.
    pub threads: u64,
    /// Programs executed.
    pub execs: u64,
    /// Blocks of memory asked for, where the launch is in a worker's process, which counts them.
    #[serde(default)]
    pub allocations: Option<u64>,
    /// The most memory that the program had while its task ran, in KiB; of an OCI runtime's `run` alone.
    #[serde(default)]
    pub peak_kib: Option<u64>,
}

/// Traces one launch by `driver`, which is the program of this crate, with strace.
///
/// An external program is traced from its own start. What runs in a worker's process is traced with the worker, and a worker
/// that launches nothing is subtracted.
pub fn count(driver: &Path, contestant: Contestant, bundle: &Path) -> Result<Counters> {
    let with = trace(driver, contestant, bundle)?;
    let without = trace(driver, NOTHING, bundle)?;
    let mut counted = with.minus(without);
    if !contestant.is_in_process() {
        // The worker's fork of the program is ours, not the program's.
        counted.processes = counted.processes.saturating_sub(1);
        counted.execs = counted.execs.saturating_sub(1);
    }
    counted.peak_kib = contestant.peak_kib(bundle)?;
    Ok(counted)
}

fn trace(driver: &Path, contestant: Contestant, bundle: &Path) -> Result<Counters> {
    let report = tempfile::NamedTempFile::new()?;
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-s", "0", "-o"])
        .arg(report.path())
        .arg(driver)
        .args(["once", contestant.name])
        .arg(bundle)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting strace")?;
    if !traced.status.success() {
        bail!("the traced launch ended with {}", traced.status);
    }
    let mut counters = parse(&fs::read_to_string(report.path()).context("reading the trace")?);
    if contestant.is_in_process() {
        let said = String::from_utf8_lossy(&traced.stdout);
        counters.allocations = Some(said.trim().parse().context("reading the count of allocations")?);
    }
    Ok(counters)
}

impl Counters {
    fn minus(self, other: Counters) -> Counters {
        Counters {
            syscalls: self.syscalls.saturating_sub(other.syscalls),
            processes: self.processes.saturating_sub(other.processes),
            threads: self.threads.saturating_sub(other.threads),
            execs: self.execs.saturating_sub(other.execs),
            allocations: self.allocations,
            peak_kib: self.peak_kib,
        }
    }
}

/// Lines are `PID name(arguments) = result`, or in two halves `… <unfinished ...>` and `<... name resumed>…`. The flags of a
/// clone are in the first half, its success is in the second.
pub(crate) fn parse(trace: &str) -> Counters {
    let mut counters = Counters::default();
    let mut makes_thread: HashMap<&str, bool> = HashMap::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        if call.starts_with("---") || call.starts_with("+++") {
            continue;
        }
        if !call.starts_with("<...") {
            counters.syscalls += 1;
            makes_thread.insert(pid, call.contains("CLONE_THREAD"));
        }
        let name = call.trim_start_matches("<... ").split(['(', ' ']).next().unwrap_or_default();
        match name {
            "clone" | "clone3" | "fork" | "vfork" if succeeded(call) => match makes_thread.get(pid) {
                Some(true) => counters.threads += 1,
                _ => counters.processes += 1,
            },
            "execve" | "execveat" if succeeded(call) => counters.execs += 1,
            _ => {}
        }
    }
    counters
}

/// Whether the line tells of a call that ended well; the first half of one in two halves does not tell.
fn succeeded(call: &str) -> bool {
    call.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with(['-', '?']))
}

/// What the calling thread or this process, as the clock says, has used of the processors.
pub(crate) fn processor_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_processes_threads_and_programs_are_told_apart() {
        let trace = "\
100 execve(\"/bin/x\", [], 0x7f /* 3 vars */) = 0
100 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_THREAD) = 101
101 futex(0x1, FUTEX_WAIT, 0 <unfinished ...>
100 clone3({flags=CLONE_NEWPID|CLONE_PIDFD, exit_signal=SIGCHLD}, 88 <unfinished ...>
101 <... futex resumed>) = 0
100 <... clone3 resumed> => {pidfd=[3]}, 88) = 102
102 execve(\"/nowhere\", [], 0x7f) = -1 ENOENT (No such file or directory)
102 exit_group(0) = ?
102 +++ exited with 0 +++
100 --- SIGCHLD {si_signo=SIGCHLD} ---
";
        assert_eq!(
            parse(trace),
            Counters { syscalls: 6, processes: 1, threads: 1, execs: 1, ..Counters::default() }
        );
    }
}
