//! The budgets of what can be counted exactly, and how a count is held against them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::counters::Counters;
use crate::pull::Counts;

/// `benches/budgets.json`: contestant to the most that one launch may use.
const BUDGETS: &str = include_str!("../budgets.json");

#[derive(Debug, Deserialize)]
struct File {
    launch: BTreeMap<String, Counters>,
    pull: BTreeMap<String, Counts>,
}

/// The budgets of a launch, by contestant.
pub fn launch() -> Result<BTreeMap<String, Counters>> {
    let file: File = serde_json::from_str(BUDGETS).context("reading budgets.json")?;
    Ok(file.launch)
}

/// The budgets of a pull, by image.
pub fn pull() -> Result<BTreeMap<String, Counts>> {
    let file: File = serde_json::from_str(BUDGETS).context("reading budgets.json")?;
    Ok(file.pull)
}

/// What is counted and held to a budget of the same kind.
pub trait Counted {
    /// Every figure: what it counts, in words, and how many there were; `None` where it was not counted, or has no budget.
    fn figures(self) -> Vec<(&'static str, Option<u64>)>;
}

impl Counted for Counters {
    fn figures(self) -> Vec<(&'static str, Option<u64>)> {
        vec![
            ("system calls", Some(self.syscalls)),
            ("processes", Some(self.processes)),
            ("threads", Some(self.threads)),
            ("execs", Some(self.execs)),
            ("allocations", self.allocations),
            ("KiB at most", self.peak_kib),
        ]
    }
}

impl Counted for Counts {
    fn figures(self) -> Vec<(&'static str, Option<u64>)> {
        vec![
            ("system calls", Some(self.syscalls)),
            ("processes", Some(self.processes)),
            ("threads", Some(self.threads)),
            ("requests", Some(self.requests)),
        ]
    }
}

/// What exceeds its budget, in words.
pub fn excess<T: Counted>(name: &str, counted: T, budget: T) -> Vec<String> {
    counted
        .figures()
        .into_iter()
        .zip(budget.figures())
        .filter_map(|((what, counted), (_, budget))| Some((what, counted?, budget?)))
        .filter(|(_, counted, budget)| counted > budget)
        .map(|(what, counted, budget)| format!("{name}: {counted} {what}, the budget is {budget}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_exceeds_its_budget_is_named() {
        let budget =
            Counters { syscalls: 10, processes: 1, execs: 1, allocations: Some(5), ..Counters::default() };
        assert!(excess("x", budget, budget).is_empty());
        let more =
            Counters { syscalls: 11, threads: 2, allocations: Some(6), peak_kib: Some(1 << 20), ..budget };
        assert_eq!(
            excess("x", more, budget),
            [
                "x: 11 system calls, the budget is 10",
                "x: 2 threads, the budget is 0",
                "x: 6 allocations, the budget is 5"
            ]
        );
        let pulls = Counts { syscalls: 1, processes: 0, threads: 2, requests: 3 };
        assert!(excess("x", pulls, pulls).is_empty());
        assert_eq!(excess("x", Counts { requests: 4, ..pulls }, pulls), ["x: 4 requests, the budget is 3"]);
    }

    #[test]
    fn the_budget_file_is_readable() {
        assert!(launch().expect("readable").contains_key("floor"));
    }
}
