//! Runs machines and hands them their tests.
//!
//! ```text
//! machine                              here
//!   ## ready                     ──▶   takes the next test from the queue that all machines share
//!                                ◀──   LENGTH NUMBER SUITE TEST      (or `end`, and the machine powers off)
//!   ## again                     ──▶   says it once more: it did not come, or not with the LENGTH of its three words
//!   what the test wrote, if it failed
//!   ## passed|failed|skipped …   ──▶   counts it
//!   ## ready                     ──▶   …
//! ```
//!
//! This goes over the second serial line; the first is the kernel's console and goes to a file. Tests of which some
//! count everything on their host cannot share one, but each machine is a host of its own: as many run as have cores.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Machine;
use crate::command::command;
use crate::suite::LATER;
use crate::tally::Tally;

/// How much of the kernel's console is shown when a machine fails.
const CONSOLE_TAIL_LINES: usize = 60;

/// More would not be used: a handful of tests take most of the time.
const MACHINES_MAX: usize = 4;

/// A machine's memory.
const MEMORY_MIB: usize = 2048;

/// Without what hardware does fast and emulation slowly: string instructions byte by byte, a fifth level of page tables.
const CPU: &str = "max,erms=off,la57=off";

/// The first line is what the machine needs, the second what makes it fast.
///
/// Emulation translates code for the addresses at which it runs. A program that the kernel puts elsewhere each time
/// (`norandmaps` forbids that) is translated each time, which takes three to five times as long as running it. Nobody
/// attacks this machine's kernel, and namespaces that end wait for RCU's grace periods.
const KERNEL_OPTIONS: &str = "console=ttyS0 panic=-1 quiet random.trust_cpu=on cgroup_no_v1=all \
     norandmaps mitigations=off init_on_alloc=0 rcupdate.rcu_expedited=1";

/// How long a machine may be without a result or a question for work: somewhat longer than a test may take. That it asks for the
/// same test once more is neither: a machine whose line has lost something may do that for ever.
const SILENCE_MAX: Duration = Duration::from_secs(super::disk::TEST_LIMIT_S as u64 + 60);

/// How often a machine that stands still is replaced by another.
const BOOTS_MAX: usize = 3;

/// How many of the slowest tests are named at the end.
const SLOWEST: usize = 12;

/// One test of one suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) suite: String,
    pub(super) test: String,
    /// Whether it has failed once. A failure goes to the end of the queue, as it is tried again on this host.
    pub(super) is_second_try: bool,
}

impl Work {
    fn order(&self, number: u32) -> String {
        let number = number.to_string();
        let length = number.len() + self.suite.len() + self.test.len();
        format!("{length} {number} {} {}", self.suite, self.test)
    }
}

/// Boots machines, has them do all the work, repeats what they say and counts it.
pub(super) fn run_suites(machine: &Machine, work: Vec<Work>, deadline: Duration) -> Result<Tally> {
    let queue = Mutex::new(VecDeque::from(work));
    let count = machines();
    println!("  {} tests on {count} machines", lock(&queue).len());
    let reports: Vec<Result<Report>> = std::thread::scope(|scope| {
        let serve = |number| {
            let queue = &queue;
            move || serve(machine, number, queue, deadline)
        };
        let running: Vec<_> = (1..=count).map(|number| scope.spawn(serve(number))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut total = Report::default();
    for report in reports {
        total.add(report?);
    }
    let left: Vec<Work> = lock(&queue).drain(..).collect();
    for work in &left {
        println!("not run: {} {}", work.suite, work.test);
        total.tally += Tally::FAILED;
    }
    total.print_times();
    total.print_failures(left.len());
    Ok(total.tally)
}

/// One for each core, as long as there is memory.
fn machines() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available_kib = available.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<usize>().ok());
    let fitting = available_kib.map_or(1, |kib| kib / 1024 / (MEMORY_MIB + MEMORY_MIB / 4));
    cores.min(fitting).clamp(1, MACHINES_MAX)
}

/// Runs one machine until there is no work left, and another in its place if it stands still.
fn serve(machine: &Machine, number: usize, queue: &Mutex<VecDeque<Work>>, limit: Duration) -> Result<Report> {
    let deadline = Instant::now() + limit;
    let mut report = Report::default();
    for _ in 0..BOOTS_MAX {
        boot(machine, number, queue, deadline, &mut report)?;
        if report.is_complete || Instant::now() >= deadline {
            break;
        }
        lock(queue).extend(report.interrupted());
    }
    Ok(report.ended())
}

/// Boots a machine and gives it work, until it ends or says nothing for too long.
fn boot(
    machine: &Machine,
    number: usize,
    queue: &Mutex<VecDeque<Work>>,
    deadline: Instant,
    report: &mut Report,
) -> Result<()> {
    let console = console(machine, number);
    let mut qemu = qemu(machine);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    // `timeout` ends the machine from outside: whatever hangs in it, the gate goes on.
    let mut limited = command("timeout", "--kill-after 5");
    let left = deadline.saturating_duration_since(Instant::now());
    limited.arg(left.as_secs().max(1).to_string()).arg(qemu.get_program()).args(qemu.get_args());
    let mut child = limited.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting qemu")?;
    let mut answers = child.stdin.take().context("qemu's input")?;
    let (mut said, mut number_of_order) = (Vec::new(), 0);
    let lines = lines(child.stdout.take().context("qemu's output")?);
    let mut heard = Instant::now();
    loop {
        let line = match lines.recv_timeout(SILENCE_MAX.saturating_sub(heard.elapsed())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("[{number}] nothing was heard for {} s", SILENCE_MAX.as_secs());
                // `timeout` passes it on.
                command("kill", "").arg(child.id().to_string()).status().context("ending the machine")?;
                break;
            }
        };
        let line = line.trim_end();
        let Some(mark) = line.strip_prefix("## ") else {
            said.push(line.to_owned());
            continue;
        };
        if mark != "again" {
            heard = Instant::now();
        }
        if mark == "ready" || mark == "again" {
            if mark == "ready" {
                report.current = lock(queue).pop_front();
                number_of_order += 1;
            }
            let answer = report.current.as_ref().map_or("end".into(), |work| work.order(number_of_order));
            // A machine that has gone does not read: the loop ends, and what it was given counts as failed.
            let _ = writeln!(answers, "{answer}");
            continue;
        }
        said.push(line.to_owned());
        println!("[{number}] {}", said.join(&format!("\n[{number}] ")));
        said.clear();
        lock(queue).extend(report.line(mark));
    }
    child.wait().context("waiting for qemu")?;
    if !report.is_complete {
        println!("[{number}] {}", said.join(&format!("\n[{number}] ")));
        println!("machine {number} ended too early, during {:?}; its console:", report.current);
        print_console(&console);
    }
    Ok(())
}

/// What a machine says, line by line, for whoever does not want to wait for ever.
fn lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        for line in lines {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

fn console(machine: &Machine, number: usize) -> PathBuf {
    machine.cache.join(format!("console-{number}.log"))
}

fn print_console(console: &PathBuf) {
    let console = std::fs::read(console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<_> = console.lines().collect();
    for line in &lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..] {
        println!("  | {line}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Boots with the console on this terminal.
pub(super) fn interact(machine: &Machine) -> Result<()> {
    let mut qemu = qemu(machine);
    qemu.args(["-serial", "mon:stdio"]).stdin(Stdio::inherit());
    qemu.status().map(drop).context("starting qemu")
}

/// TCG, not KVM: nested virtualisation is rare where gates run, and the emulated machine is the same everywhere.
fn qemu(machine: &Machine) -> Command {
    let mut qemu = command("qemu-system-x86_64", "-accel tcg,thread=multi -smp 2 -cpu");
    qemu.arg(CPU)
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-append", KERNEL_OPTIONS])
        .arg("-kernel")
        .arg(&machine.kernel)
        .arg("-initrd")
        .arg(&machine.initramfs)
        // What a machine writes is its own, and forgotten.
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,cache=unsafe,snapshot=on", machine.disk.display()));
    qemu
}

/// What a machine has reported so far.
#[derive(Debug, Default)]
struct Report {
    tally: Tally,
    is_complete: bool,
    /// What it is at.
    current: Option<Work>,
    /// Seconds and name of every test.
    times: Vec<(u32, String)>,
    /// What failed once.
    later: Vec<String>,
    /// What failed for good, said once more at the end.
    failures: Vec<String>,
}

impl Report {
    /// Reads a mark: `passed SUITE TEST (3 s)`, `done`. Gives what is to be tried again.
    fn line(&mut self, mark: &str) -> Option<Work> {
        let is_second_try = self.current.as_ref().is_some_and(|work| work.is_second_try);
        self.tally += match mark.split(' ').next()? {
            "passed" => Tally::PASSED,
            "failed" if !is_second_try => {
                return self.current.take().map(|work| Work { is_second_try: true, ..work });
            }
            "failed" => {
                self.failures.push(mark.to_owned());
                Tally::FAILED
            }
            "skipped" => Tally::SKIPPED,
            "done" => {
                self.is_complete = true;
                return None;
            }
            _ => return None,
        };
        let name = self.current.take().map(|work| format!("{} {}", work.suite, work.test))?;
        if is_second_try && mark.starts_with("passed") {
            self.later.push(name.clone());
        }
        let seconds = mark.rsplit_once(" (").and_then(|(_, rest)| rest.strip_suffix(" s)")?.parse().ok());
        self.times.extend(seconds.map(|seconds| (seconds, name)));
        None
    }

    /// The machine stands still, or has gone, during a test: another may try it once more.
    fn interrupted(&mut self) -> Option<Work> {
        let work = self.current.take()?;
        if work.is_second_try {
            self.failures.push(format!("{} {}: no machine came to its end", work.suite, work.test));
            self.tally += Tally::FAILED;
            return None;
        }
        Some(Work { is_second_try: true, ..work })
    }

    /// A machine that did not finish is a failure too.
    fn ended(mut self) -> Report {
        if !self.is_complete {
            self.failures.push(format!("a machine ended too early, during {:?}", self.current));
            self.tally += Tally::FAILED;
        }
        self
    }

    fn add(&mut self, other: Report) {
        self.tally += other.tally;
        self.times.extend(other.times);
        self.later.extend(other.later);
        self.failures.extend(other.failures);
    }

    /// Last of all, where whoever reads but the end of it sees it.
    fn print_failures(&self, not_run: usize) {
        for failure in &self.failures {
            println!("  failed: {failure}");
        }
        if not_run > 0 {
            println!("  failed: {not_run} tests were not run, for want of time or machines");
        }
    }

    fn print_times(&mut self) {
        self.times.sort_by(|one, other| other.cmp(one));
        let all: u32 = self.times.iter().map(|(seconds, _)| seconds).sum();
        println!("  {all} s of tests, of which");
        for (seconds, name) in self.times.iter().take(SLOWEST) {
            println!("  {seconds:>5} s {name}");
        }
        for name in &self.later {
            println!("  {LATER}{name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(is_second_try: bool) -> Work {
        Work { suite: "a".into(), test: "b".into(), is_second_try }
    }

    fn report(marks: &[&str], is_second_try: bool) -> (Report, Vec<Work>) {
        let mut report = Report::default();
        let mut again = Vec::new();
        for mark in marks {
            report.current = Some(work(is_second_try));
            again.extend(report.line(mark));
        }
        (report.ended(), again)
    }

    #[test]
    fn a_machine_that_stops_early_has_failed() {
        assert_eq!(report(&["passed a one"], false).0.tally, Tally { passed: 1, failed: 1, skipped: 0 });
    }

    #[test]
    fn marks_are_counted_with_their_times() {
        let marks = ["booted", "passed a one (3 s)", "skipped a three: no kvm", "failed a b (40 s)", "done"];
        let (first, again) = report(&marks, false);
        assert_eq!(first.tally, Tally { passed: 1, failed: 0, skipped: 1 });
        assert_eq!((first.times, first.later), (vec![(3, "a b".to_owned())], Vec::new()));
        assert_eq!(again, [work(true)]);
        let (second, again) = report(&marks, true);
        assert_eq!(second.tally, Tally { passed: 1, failed: 1, skipped: 1 });
        assert_eq!((second.later, again), (vec!["a b".to_owned()], Vec::new()));
        assert_eq!(second.failures, ["failed a b (40 s)"]);
    }

    #[test]
    fn what_a_machine_stood_still_in_is_tried_once_more() {
        let mut report = Report { current: Some(work(false)), ..Report::default() };
        assert_eq!(report.interrupted(), Some(work(true)));
        assert_eq!(report.interrupted(), None);
        report.current = Some(work(true));
        assert_eq!(report.interrupted(), None);
        assert_eq!((report.tally.failed, report.failures.len()), (1, 1));
    }
}
