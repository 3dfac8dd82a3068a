//! `cargo xtask ci`: the whole gate, as an ordered list of phases.
//!
//! Every phase runs even when one before it failed, so that one run shows everything that is wrong. The last line
//! is the sum over all runners: `N passed, N failed, N skipped`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command::{self, exists};
use crate::tally::Tally;
use crate::workspace::{self, Workspace};
use crate::{leftovers, packages, suite, tidy, vm};

/// Which phases to run; empty lists mean all.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) only: Vec<String>,
    pub(crate) skip: Vec<String>,
    /// Which tests of the suites.
    pub(crate) extent: Extent,
}

/// How many of the suites' tests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Those that fit a merge; the slow ones say that they were skipped.
    #[default]
    Merge,
    /// The slow ones too.
    Full,
}

struct Phase {
    name: &'static str,
    what: &'static str,
    run: fn(&Workspace) -> Result<Tally>,
}

const PHASES: &[Phase] = &[
    Phase { name: "packages", what: "Debian packages that the suites need", run: install },
    Phase { name: "format", what: "rustfmt", run: format },
    Phase { name: "lint", what: "clippy, warnings denied", run: lint },
    Phase { name: "tidy", what: "layers, unsafe code, figures", run: tidy::check },
    Phase { name: "deny", what: "licences and advisories", run: deny },
    Phase { name: "build", what: "all tests and programs", run: build },
    Phase { name: "test", what: "unit and integration tests", run: suite::crates },
    Phase { name: "doc", what: "documentation tests", run: suite::documentation },
    Phase { name: "suites", what: "host suites, one at a time", run: suite::host },
    Phase { name: "vm", what: "privileged suites on pure cgroup v2", run: vm::check },
];

pub(crate) fn run(workspace: &Workspace, choice: &Choice) -> Result<ExitCode> {
    choice.check()?;
    if !workspace.runs_slow_tests() {
        println!("without --full: tests too slow for every merge say so, and are counted as skipped");
    }
    let mut total = Tally::default();
    let mut times = Vec::new();
    for phase in PHASES.iter().filter(|phase| choice.wants(phase.name)) {
        println!("\n== {}: {}", phase.name, phase.what);
        let begun = Instant::now();
        let tally = leftovers::refuse(|| (phase.run)(workspace)).unwrap_or_else(|error| {
            println!("{} could not run: {error:#}", phase.name);
            Tally::FAILED
        });
        total += tally;
        times.push((phase.name, begun.elapsed(), tally));
    }
    print_times(&times);
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Choice {
    fn check(&self) -> Result<()> {
        let names: Vec<_> = PHASES.iter().map(|phase| phase.name).collect();
        match self.only.iter().chain(&self.skip).find(|name| !names.contains(&name.as_str())) {
            Some(unknown) => bail!("no phase {unknown:?}; there are: {}", names.join(", ")),
            None => Ok(()),
        }
    }

    fn wants(&self, name: &str) -> bool {
        let is_named = |list: &[String]| list.iter().any(|entry| entry == name);
        (self.only.is_empty() || is_named(&self.only)) && !is_named(&self.skip)
    }
}

fn print_times(times: &[(&str, Duration, Tally)]) {
    println!("\n== times");
    for (name, time, tally) in times {
        println!("{name:>10} {:>7.1} s   {tally}", time.as_secs_f64());
    }
    let all: Duration = times.iter().map(|(_, time, _)| *time).sum();
    println!("{:>10} {:>7.1} s\n", "all", all.as_secs_f64());
}

fn install(_: &Workspace) -> Result<Tally> {
    packages::install().map(|()| Tally::default())
}

fn format(workspace: &Workspace) -> Result<Tally> {
    check(workspace, "fmt --all --check")
}

fn lint(workspace: &Workspace) -> Result<Tally> {
    check(workspace, "clippy --quiet --workspace --all-targets -- --deny warnings")
}

fn deny(workspace: &Workspace) -> Result<Tally> {
    if !exists("cargo-deny") {
        println!("skipped: cargo-deny is not installed; licences and advisories were not checked");
        return Ok(Tally::SKIPPED);
    }
    check(workspace, "deny check licenses bans sources")
}

/// Tests drive the programs that this leaves in the target folder.
fn build(workspace: &Workspace) -> Result<Tally> {
    check(workspace, workspace::BUILD)
}

fn check(workspace: &Workspace, arguments: &str) -> Result<Tally> {
    Ok(Tally::of_check(command::succeeds(&mut workspace.cargo(arguments))?))
}
