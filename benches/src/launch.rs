//! `launch`: the same bundle started by everybody, in turns, and what it took.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::bundle::Bundle;
use crate::contestant::{Contestant, GROUPS, Group};
use crate::counters::{self, Counters};
use crate::record;
use crate::statistics::{Samples, milliseconds};
use crate::worker::Worker;

/// Launches of each contestant, by default.
const ROUNDS: u32 = 100;

/// Launches of each contestant that are not counted: files come into the page cache, caches of the runtimes fill.
const WARM_UP: u32 = 3;

/// Whether the result is written into `benches/BUDGETS.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Record {
    /// Printed only.
    #[default]
    No,
    /// Printed and appended.
    Yes,
}

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    /// What is measured.
    pub group: Group,
    /// Launches of each contestant.
    pub rounds: u32,
    /// Names of contestants; empty for all.
    pub only: Vec<String>,
    /// Whether to keep the result.
    pub record: Record,
}

impl Options {
    /// As usual, for the group of this name.
    pub fn of(name: &str) -> Option<Options> {
        let group = *GROUPS.iter().find(|group| group.name == name)?;
        Some(Options { group, rounds: ROUNDS, only: Vec::new(), record: Record::No })
    }
}

/// One line of the table.
#[derive(Debug)]
pub struct Line {
    /// Who.
    pub contestant: Contestant,
    /// How long, each time.
    pub samples: Samples,
    /// How much of the kernel; nothing where strace is missing.
    pub counters: Option<Counters>,
}

/// Measures, prints, and records if asked to.
pub fn run(options: &Options) -> Result<()> {
    if !geteuid().is_root() {
        bail!("launching containers needs root");
    }
    let bundle = Bundle::create().context("making the bundle")?;
    let contestants = choose(options)?;
    let samples = measure(&contestants, &bundle, options.rounds)?;
    let mut lines = Vec::new();
    for (contestant, samples) in contestants.into_iter().zip(samples) {
        lines.push(Line { contestant, samples, counters: count(contestant, &bundle) });
    }
    let table = table(options.group.title, &lines);
    print!("{}\n{table}", record::machine());
    if options.record == Record::Yes {
        record::append(&table)?;
    }
    Ok(())
}

fn choose(options: &Options) -> Result<Vec<Contestant>> {
    let mut chosen = Vec::new();
    for contestant in options
        .group
        .contestants
        .iter()
        .filter(|one| options.only.is_empty() || options.only.iter().any(|name| name == one.name))
    {
        match contestant.available() {
            Ok(()) => chosen.push(*contestant),
            Err(reason) => eprintln!("skipped: {}: {reason:#}", contestant.name),
        }
    }
    if chosen.is_empty() {
        bail!(
            "nobody to measure; there are: {}",
            options.group.contestants.iter().map(|one| one.name).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(chosen)
}

/// In turns, so that whatever else happens on the machine happens to everybody.
fn measure(contestants: &[Contestant], bundle: &Bundle, rounds: u32) -> Result<Vec<Samples>> {
    let mut workers = Vec::new();
    for contestant in contestants {
        workers.push((contestant.name, Worker::start(*contestant, bundle.path())?, Vec::new()));
    }
    for round in 0..WARM_UP + rounds {
        for (name, worker, times) in &mut workers {
            let time: Duration = worker.launch().with_context(|| format!("launching {name}"))?;
            if round >= WARM_UP {
                times.push(time);
            }
        }
    }
    Ok(workers.into_iter().map(|(_, _, times)| Samples::new(times)).collect())
}

fn count(contestant: Contestant, bundle: &Bundle) -> Option<Counters> {
    let counted = std::env::current_exe()
        .map_err(anyhow::Error::from)
        .and_then(|driver| counters::count(&driver, contestant, bundle.path()));
    match counted {
        Ok(counters) => Some(counters),
        Err(reason) => {
            eprintln!("not counted: {}: {reason:#}", contestant.name);
            None
        }
    }
}

/// The table, in Markdown, with its notes.
pub fn table(title: &str, lines: &[Line]) -> String {
    let first = lines.first().map_or("–", |line| line.contestant.name);
    let floor = lines.first().map(|line| line.samples.percentile(50));
    let mut text = format!(
        "| {title} | runs | p50 ms | p99 ms | p50 ÷ {first} | system calls | processes | threads | execs | allocations | peak KiB |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for line in lines {
        let p50 = line.samples.percentile(50);
        let ratio = floor.map_or_else(
            || "–".to_owned(),
            |floor| format!("{:.2}", p50.as_secs_f64() / floor.as_secs_f64()),
        );
        let counts = line.counters.map_or_else(
            || "– | – | – | – | – | –".to_owned(),
            |c| {
                let [allocations, peak] = [c.allocations, c.peak_kib]
                    .map(|count| count.map_or_else(|| "–".to_owned(), |count| count.to_string()));
                format!(
                    "{} | {} | {} | {} | {allocations} | {peak}",
                    c.syscalls, c.processes, c.threads, c.execs
                )
            },
        );
        text += &format!(
            "| {} | {} | {} | {} | {ratio} | {counts} |\n",
            line.contestant.name,
            line.samples.count(),
            milliseconds(p50),
            milliseconds(line.samples.percentile(99)),
        );
    }
    text.push('\n');
    for line in lines {
        text += &format!("- {}: {}\n", line.contestant.name, line.contestant.note);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_the_ratio_to_the_floor() {
        let line = |name, milliseconds| Line {
            contestant: Contestant::find(name).expect("a contestant"),
            samples: Samples::new(vec![Duration::from_millis(milliseconds)]),
            counters: None,
        };
        let text = table("launch", &[line("floor", 4), line("runc", 30)]);
        assert!(text.contains("| floor | 1 | 4.00 | 4.00 | 1.00 |"), "{text}");
        assert!(text.contains("| runc | 1 | 30.00 | 30.00 | 7.50 |"), "{text}");
    }
}
