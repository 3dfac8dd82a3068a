//! A case, its verdict, and the loop that runs them.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam_cni::Version;

use crate::groups;
use crate::profile::{Error, Subject};
use crate::report::Report;
use crate::stage::Stage;

/// How much a failure matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nice to have.
    Quality,
    /// Runtimes and operators expect it.
    Should,
    /// The specification demands it, or a runtime that follows the specification leaks or breaks without.
    Must,
}

impl fmt::Display for Severity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Quality => "quality",
            Self::Should => "SHOULD",
            Self::Must => "MUST",
        })
    }
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be; the text is a figure, if there is one.
    Passed(String),
    /// Not as it should be, and how.
    Failed(String),
    /// Does not apply to this plugin, or cannot be tried here, and why.
    Skipped(String),
}

/// Why a case ends early.
#[derive(Debug)]
pub(crate) enum End {
    Failed(String),
    Skipped(String),
}

/// What a case's function returns.
pub(crate) type Tried = Result<(), End>;

/// Ends the case as failed unless the condition holds.
pub(crate) fn ensure(condition: bool, message: impl FnOnce() -> String) -> Tried {
    if condition { Ok(()) } else { Err(End::Failed(message())) }
}

/// Ends the case as not applicable unless the condition holds.
pub(crate) fn applies(condition: bool, reason: &str) -> Tried {
    if condition { Ok(()) } else { Err(End::Skipped(reason.into())) }
}

/// One thing that is demanded of a plugin.
#[derive(Clone, Copy)]
pub struct Case {
    /// Group and name: `4.del-twice`.
    pub id: &'static str,
    /// What is demanded, as a sentence.
    pub title: &'static str,
    /// Where the specification (1.1.0) says so.
    pub section: &'static str,
    /// How much it matters.
    pub severity: Severity,
    pub(crate) run: fn(&Stage<'_>) -> Tried,
}

impl fmt::Debug for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.id)
    }
}

/// A case that was run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// What came of it.
    pub verdict: Verdict,
    /// The calls that were made, each as a shell command; kept of failed cases only.
    pub replay: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Every case, in order of the groups.
pub fn cases() -> Vec<Case> {
    groups::all()
}

/// Which cases, and how many at a time.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Beginnings of ids (`4.`, `7.tampered`); empty means all.
    pub only: Vec<String>,
    /// How many cases run at once. Each has a host of its own; most of the time is spent waiting for the kernel.
    pub jobs: usize,
}

impl Default for Choice {
    fn default() -> Self {
        Self { only: Vec::new(), jobs: 4 }
    }
}

impl Choice {
    fn wants(&self, case: &Case) -> bool {
        self.only.is_empty() || self.only.iter().any(|begin| case.id.starts_with(begin.as_str()))
    }

    /// Refuses a word that chooses nothing: a plugin would pass for having been tested.
    fn check(&self, cases: &[Case]) -> Result<(), Error> {
        let chooses = |begin: &&String| cases.iter().any(|case| case.id.starts_with(begin.as_str()));
        self.only
            .iter()
            .find(|begin| !chooses(begin))
            .map_or(Ok(()), |begin| Err(Error::NoCase(begin.clone())))
    }
}

/// Runs the cases and tells each outcome, in their order, as soon as it is known.
pub fn run(subject: &Subject, choice: &Choice, mut tell: impl FnMut(&Outcome)) -> Result<Report, Error> {
    let all = cases();
    choice.check(&all)?;
    subject.refuse_unusable()?;
    let versions = spoken(subject)?;
    // Figures are taken on a quiet machine: last, and alone.
    let (timed, rest): (Vec<Case>, Vec<Case>) = all
        .into_iter()
        .filter(|case| choice.wants(case))
        .partition(|case| groups::group(case.id) == groups::TITLES.len());
    let mut outcomes = Vec::new();
    for (cases, jobs) in [(rest, choice.jobs.max(1)), (timed, 1)] {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (send, receive) = std::sync::mpsc::channel();
            for _ in 0..jobs.min(cases.len()) {
                let (send, next, cases, versions) = (send.clone(), &next, &cases, &versions);
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(case) = cases.get(at) else { return };
                        // Nobody listens any more after the first error.
                        if send.send((at, run_one(subject, versions, *case))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            in_order(receive, |outcome| {
                tell(&outcome);
                outcomes.push(outcome);
            })
        })?;
    }
    Ok(Report::new(subject, &versions, outcomes))
}

/// Hands on what arrives in any order by its number.
fn in_order<T, E>(
    receive: std::sync::mpsc::Receiver<(usize, Result<T, E>)>,
    mut hand_on: impl FnMut(T),
) -> Result<(), E> {
    let mut early = std::collections::BTreeMap::new();
    let mut wanted = 0;
    for (at, outcome) in receive {
        early.insert(at, outcome?);
        while let Some(outcome) = early.remove(&wanted) {
            hand_on(outcome);
            wanted += 1;
        }
    }
    Ok(())
}

/// The versions that the plugin claims and that exist; what else it claims is judged by a case.
fn spoken(subject: &Subject) -> Result<Vec<Version>, Error> {
    Stage::with(subject, &[Version::NEWEST], |stage| {
        if let Some(lines) = &subject.profile.probe {
            let kind = subject.profile.config["type"].as_str().unwrap_or_default().to_owned();
            stage.shell(lines, &[]).map_err(|said| Error::Kernel { kind, said })?;
        }
        let said = stage.version();
        let claimed = said.value()["supportedVersions"].clone();
        let texts = claimed.as_array().into_iter().flatten().filter_map(|text| text.as_str());
        let mut known: Vec<Version> = texts.filter_map(Version::parse).filter(|v| v.is_supported()).collect();
        known.sort_unstable();
        if known.is_empty() {
            let answer = said.text();
            return Err(Error::NoPlugin { program: subject.program.clone(), answer });
        }
        Ok(known)
    })?
}

fn run_one(subject: &Subject, versions: &[Version], case: Case) -> Result<Outcome, Error> {
    let started = Instant::now();
    let (verdict, replay) = Stage::with(subject, versions, |stage| {
        let excused = subject.profile.excused.iter().find(|(begin, _)| case.id.starts_with(begin.as_str()));
        let verdict = match excused {
            Some((_, reason)) => Verdict::Skipped(reason.clone()),
            None => match (case.run)(stage) {
                Ok(()) => Verdict::Passed(stage.figure()),
                Err(End::Failed(how)) => Verdict::Failed(how),
                Err(End::Skipped(why)) => Verdict::Skipped(why),
            },
        };
        let replay = if matches!(verdict, Verdict::Failed(_)) { stage.replay() } else { Vec::new() };
        (verdict, replay)
    })?;
    Ok(Outcome { case, verdict, replay, elapsed: started.elapsed() })
}
