//! Runs the machine and reads what it reports.
//!
//! The first serial line is the kernel's console and goes to a file. The second carries the suites' output and the
//! marks `## passed TEST`, `## failed TEST`, `## skipped TEST: REASON` and `## done`; a machine that ends without the
//! last one has failed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Machine;
use crate::command::{self, command};
use crate::tally::Tally;

/// How much of the kernel's console is shown when a run fails.
const CONSOLE_TAIL_LINES: usize = 60;

/// Boots, repeats the suites' output and counts it.
pub(super) fn run_suites(machine: &Machine, deadline: Duration) -> Result<Tally> {
    let mut qemu = qemu(machine);
    qemu.arg("-serial").arg(format!("file:{}", machine.console.display())).args(["-serial", "stdio"]);
    let mut report = Report::default();
    // `timeout` ends the machine from outside: whatever hangs in it, the gate goes on.
    let mut limited = command("timeout", "--kill-after 5");
    limited.arg(deadline.as_secs().to_string()).arg(qemu.get_program()).args(qemu.get_args());
    command::watch(&mut limited, |line| report.line(line.trim_end()))?;
    if !report.is_complete {
        println!("the machine ended before its suites did; its console:");
        let console = std::fs::read(&machine.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<_> = console.lines().collect();
        for line in &lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..] {
            println!("  | {line}");
        }
    }
    Ok(report.tally())
}

/// Boots with the console on this terminal.
pub(super) fn interact(machine: &Machine) -> Result<()> {
    let mut qemu = qemu(machine);
    qemu.args(["-serial", "mon:stdio"]).stdin(std::process::Stdio::inherit());
    qemu.status().map(drop).context("starting qemu")
}

fn qemu(machine: &Machine) -> Command {
    // TCG, not KVM: nested virtualisation is rare where gates run, and the emulated machine is the same everywhere.
    let mut qemu = command("qemu-system-x86_64", "-accel tcg,thread=multi -cpu max -smp 2 -m 2048");
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-append", "console=ttyS0 panic=-1 quiet random.trust_cpu=on cgroup_no_v1=all"])
        .arg("-kernel")
        .arg(&machine.kernel)
        .arg("-initrd")
        .arg(&machine.initramfs)
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,cache=unsafe", machine.disk.display()));
    qemu
}

/// What the machine has reported so far.
#[derive(Debug, Default)]
struct Report {
    tally: Tally,
    is_complete: bool,
}

impl Report {
    fn line(&mut self, line: &str) {
        let Some(mark) = line.strip_prefix("## ") else { return };
        match mark.split(' ').next() {
            Some("passed") => self.tally += Tally::PASSED,
            Some("failed") => self.tally += Tally::FAILED,
            Some("skipped") => self.tally += Tally::SKIPPED,
            Some("done") => self.is_complete = true,
            _ => {}
        }
    }

    /// A machine that did not finish is a failure too.
    fn tally(&self) -> Tally {
        let mut tally = self.tally;
        if !self.is_complete {
            tally += Tally::FAILED;
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Tally {
        let mut report = Report::default();
        lines.iter().for_each(|line| report.line(line));
        report.tally()
    }

    #[test]
    fn a_machine_that_stops_early_has_failed() {
        assert_eq!(report(&["## suite a", "## passed one"]), Tally { passed: 1, failed: 1, skipped: 0 });
    }

    #[test]
    fn marks_are_counted_and_what_tests_write_is_not() {
        let lines = [
            "## suite a",
            "## passed one",
            "passed two",
            "## skipped three: no kvm",
            "## failed four",
            "## ended a after 1 s",
            "## done",
        ];
        assert_eq!(report(&lines), Tally { passed: 1, failed: 1, skipped: 1 });
    }
}
