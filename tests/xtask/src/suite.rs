//! Runs tests and counts them: with nextest where it is installed, else with cargo's own runner.
//!
//! Rust's test harness has no "skipped". A test that cannot run on this host prints a line that begins with
//! [`SKIP`] and the reason, and returns; such a test is counted as skipped, and its reason is repeated.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::command;
use crate::tally::Tally;
use crate::workspace::Workspace;

/// How the line begins by which a test says that it could not run here.
const SKIP: &str = "skipped: ";

/// How the line begins that names a test which failed once: whoever reads the gate's output looks for it.
pub(crate) const LATER: &str = "passed at the second try only: ";

/// The crate whose tests compare the whole host before and after, and so run alone.
const HOST_SUITES: &str = "cofferdam-tests";

/// Tells the host suites where the programs are, which would build them otherwise.
const PROGRAMS_VARIABLE: &str = "COFFERDAM_BIN_DIR";

/// `cargo xtask test`: quick, for the person who is editing.
pub(crate) fn quick(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    let words =
        if has_nextest(workspace) { "nextest run --no-tests pass" } else { "test --lib --bins --tests" };
    let mut run = workspace.cargo(words);
    if arguments.is_empty() {
        run.args(["--workspace", "--exclude", HOST_SUITES]);
    }
    let succeeded = command::succeeds(run.args(arguments))?;
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tests of every crate but the host suites, in parallel.
pub(crate) fn crates(workspace: &Workspace) -> Result<Tally> {
    if has_nextest(workspace) {
        return nextest(workspace, &format!("not package({HOST_SUITES})"));
    }
    one_by_one(workspace, &["--workspace", "--exclude", HOST_SUITES])
}

/// The host suites, one test at a time.
pub(crate) fn host(workspace: &Workspace) -> Result<Tally> {
    if has_nextest(workspace) {
        return nextest(workspace, &format!("package({HOST_SUITES})"));
    }
    one_by_one(workspace, &["--package", HOST_SUITES])
}

/// Documentation tests, which nextest does not run.
pub(crate) fn documentation(workspace: &Workspace) -> Result<Tally> {
    libtest(&mut workspace.cargo("test --quiet --workspace --doc --no-fail-fast"))
}

fn has_nextest(workspace: &Workspace) -> bool {
    workspace.cargo("nextest --version").output().is_ok_and(|output| output.status.success())
}

fn nextest(workspace: &Workspace, filter: &str) -> Result<Tally> {
    // Nextest's store is below the workspace's root, wherever cargo's target folder may be.
    let report = workspace.root().join("target/nextest/ci/junit.xml");
    // A stale report would be counted if the build failed.
    let _ = std::fs::remove_file(&report);
    let mut run = workspace.cargo("nextest run --workspace --profile ci --no-tests pass --filterset");
    run.env(PROGRAMS_VARIABLE, workspace.programs());
    let succeeded = command::succeeds(run.arg(filter))?;
    let tally = if report.exists() { read_report(&report)? } else { Tally::default() };
    Ok(with_exit(tally, succeeded))
}

/// With cargo's own runner. Nextest gives each test a process, and many look at what their process holds.
fn one_by_one(workspace: &Workspace, which: &[&str]) -> Result<Tally> {
    let mut run = workspace.cargo("test --lib --bins --tests --no-fail-fast");
    run.args(which).args(["--", "--show-output", "--test-threads=1"]);
    libtest(run.env(PROGRAMS_VARIABLE, workspace.programs()))
}

/// Runs cargo's own test runner and counts from its summary lines and from the skips that tests print.
fn libtest(run: &mut Command) -> Result<Tally> {
    let mut count = LibtestCount::default();
    let status = command::watch(run, |line| count.line(line))?;
    Ok(with_exit(count.total(), status.success()))
}

/// Counts tests from the lines that cargo's own test runner prints.
#[derive(Debug, Default)]
struct LibtestCount {
    tally: Tally,
    skips: u32,
}

impl LibtestCount {
    /// Looks at one line of output.
    fn line(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.tally += read_summary(summary);
        } else if line.starts_with(SKIP) {
            self.skips += 1;
        }
    }

    /// The counts so far: tests that said they could not run are not among the passed.
    fn total(&self) -> Tally {
        let passed = self.tally.passed.saturating_sub(self.skips);
        Tally { passed, skipped: self.tally.skipped + self.skips, ..self.tally }
    }
}

/// A runner that failed without a failed test (it did not build, it was killed) is one failure.
fn with_exit(mut tally: Tally, succeeded: bool) -> Tally {
    if !succeeded && tally.failed == 0 {
        tally += Tally::FAILED;
    }
    tally
}

/// Reads `ok. 3 passed; 0 failed; 1 ignored; …`.
fn read_summary(summary: &str) -> Tally {
    let mut tally = Tally::default();
    let counts = summary.split_once(". ").map_or(summary, |(_, counts)| counts);
    for part in counts.split(';') {
        let Some((number, what)) = part.trim().split_once(' ') else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        match what {
            "passed" => tally.passed += number,
            "failed" => tally.failed += number,
            "ignored" => tally.skipped += number,
            _ => {}
        }
    }
    tally
}

fn read_report(report: &Path) -> Result<Tally> {
    let text = std::fs::read_to_string(report).with_context(|| format!("reading {}", report.display()))?;
    let mut tally = Tally::default();
    for (name, outcome) in cases(&text) {
        match outcome {
            Outcome::Passed => tally += Tally::PASSED,
            Outcome::Failed => tally += Tally::FAILED,
            Outcome::PassedLater => {
                println!("  {LATER}{name}");
                tally += Tally::PASSED;
            }
            Outcome::Skipped(reason) => {
                println!("  {SKIP}{name}: {reason}");
                tally += Tally::SKIPPED;
            }
        }
    }
    Ok(tally)
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome<'a> {
    Passed,
    Failed,
    /// At the second try.
    PassedLater,
    Skipped(&'a str),
}

/// The test cases of a JUnit report as nextest writes it: one `testcase` element each, output escaped within.
fn cases(report: &str) -> impl Iterator<Item = (&str, Outcome<'_>)> {
    report.split("<testcase ").skip(1).map(|case| {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let name = case.split("name=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("?");
        (name, outcome(case))
    })
}

fn outcome(case: &str) -> Outcome<'_> {
    if case.contains("<failure") || case.contains("<error") {
        return Outcome::Failed;
    }
    if case.contains("<flakyFailure") || case.contains("<flakyError") {
        return Outcome::PassedLater;
    }
    let reason = case.split(['\n', '>']).find_map(|line| line.strip_prefix(SKIP));
    reason.map_or(Outcome::Passed, |reason| Outcome::Skipped(reason.split('<').next().unwrap_or(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_line_is_counted() {
        let tally = read_summary(
            "FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s",
        );
        assert_eq!(tally, Tally { passed: 3, failed: 1, skipped: 2 });
    }

    #[test]
    fn a_report_is_counted_with_its_skips() {
        let report = r#"<testsuites><testsuite name="a">
            <testcase name="one" classname="a"><system-out>running 1 test
test one ... ok</system-out></testcase>
            <testcase name="two" classname="a"><failure type="x">skipped: not this</failure></testcase>
            <testcase name="three" classname="a"><system-out>
running 1 test
skipped: needs root
test three ... ok</system-out></testcase>
            <testcase name="four" classname="a"/>
            <testcase name="six" classname="a"><flakyFailure type="x"><system-out>skipped: no</system-out>
</flakyFailure></testcase>
            <testcase name="five" classname="a"><system-err>skipped: no curl</system-err></testcase>"#;
        let found: Vec<_> = cases(report).collect();
        assert_eq!(
            found,
            [
                ("one", Outcome::Passed),
                ("two", Outcome::Failed),
                ("three", Outcome::Skipped("needs root")),
                ("four", Outcome::Passed),
                ("six", Outcome::PassedLater),
                ("five", Outcome::Skipped("no curl")),
            ]
        );
    }
}
