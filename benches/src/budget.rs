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

/// What exceeds its budget, in words.
pub fn excess(name: &str, counted: Counters, budget: Counters) -> Vec<String> {
    [
        ("system calls", counted.syscalls, budget.syscalls),
        ("processes", counted.processes, budget.processes),
        ("threads", counted.threads, budget.threads),
        ("execs", counted.execs, budget.execs),
        ("allocations", counted.allocations.unwrap_or(0), budget.allocations.unwrap_or(u64::MAX)),
    ]
    .into_iter()
    .filter(|(_, counted, budget)| counted > budget)
    .map(|(what, counted, budget)| format!("{name}: {counted} {what}, the budget is {budget}"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_exceeds_its_budget_is_named() {
        let budget = Counters { syscalls: 10, processes: 1, threads: 0, execs: 1, allocations: Some(5) };
        assert!(excess("x", budget, budget).is_empty());
        let more = Counters { syscalls: 11, threads: 2, allocations: Some(6), ..budget };
        assert_eq!(
            excess("x", more, budget),
            [
                "x: 11 system calls, the budget is 10",
                "x: 2 threads, the budget is 0",
                "x: 6 allocations, the budget is 5"
            ]
        );
    }

    #[test]
    fn the_budget_file_is_readable() {
        assert!(launch().expect("readable").contains_key("floor"));
    }
}
