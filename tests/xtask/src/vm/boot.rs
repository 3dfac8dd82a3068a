//! Runs the machine and reads what it reports.
//!
//! The first serial line is the kernel's console and goes to a file. The second carries the suites' output and the
//! marks `## suite NAME`, `## ended NAME with STATUS …` and `## done`; a machine that ends without the last one failed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Machine;
use crate::command::{self, command};
use crate::suite::LibtestCount;
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
    count: LibtestCount,
    failed_suites: u32,
    is_complete: bool,
}

impl Report {
    fn line(&mut self, line: &str) {
        let Some(mark) = line.strip_prefix("## ") else {
            self.count.line(line);
            return;
        };
        self.is_complete |= mark == "done";
        if mark.starts_with("ended ") && !mark.contains(" with 0 ") {
            self.failed_suites += 1;
        }
    }

    /// A suite that died without a failed test, and a machine that did not finish, are failures too.
    fn tally(&self) -> Tally {
        let mut tally = self.count.total();
        tally.failed = tally.failed.max(self.failed_suites);
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
        let tally = report(&["## suite a", "test result: ok. 2 passed; 0 failed; 0 ignored"]);
        assert_eq!(tally, Tally { passed: 2, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_suite_that_dies_has_failed() {
        let tally = report(&["## suite a", "## ended a with 137 after 3 s", "## done"]);
        assert_eq!(tally, Tally { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn suites_that_pass_are_counted_without_their_skips() {
        let lines = [
            "skipped: no kvm",
            "test result: ok. 2 passed; 0 failed; 0 ignored",
            "## ended a with 0 after 1 s",
        ];
        let mut all = lines.to_vec();
        all.push("## done");
        assert_eq!(report(&all), Tally { passed: 1, failed: 0, skipped: 1 });
    }
}
