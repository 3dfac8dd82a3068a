//! The sixteen groups of cases.

mod chained;
mod check;
mod collect;
mod cost;
mod crowd;
mod delete;
mod hygiene;
mod leaks;
mod malformed;
mod results;
mod versions;

use crate::case::{Case, Severity, Tried};
use crate::stage::Stage;

/// Every case, by number of its group.
pub(crate) fn all() -> Vec<Case> {
    let groups: [&[Case]; 11] = [
        versions::CASES,
        results::CASES,
        delete::CASES,
        leaks::CASES,
        check::CASES,
        crowd::CASES,
        collect::CASES,
        malformed::CASES,
        hygiene::CASES,
        chained::CASES,
        cost::CASES,
    ];
    groups.concat()
}

/// What the groups are about, for reports.
pub(crate) const TITLES: [&str; 16] = [
    "VERSION",
    "results in every version",
    "ADD twice",
    "DEL",
    "what is left after DEL",
    "ADD that fails",
    "CHECK",
    "many at once",
    "an address that is used again",
    "two networks",
    "GC",
    "STATUS",
    "malformed calls",
    "protocol hygiene",
    "chaining",
    "cost",
];

const fn case(
    severity: Severity,
    id: &'static str,
    section: &'static str,
    title: &'static str,
    run: fn(&Stage<'_>) -> Tried,
) -> Case {
    Case { id, title, section, severity, run }
}

/// The number of a case's group.
pub(crate) fn group(id: &str) -> usize {
    id.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_ordered_by_group_and_every_group_has_cases() {
        let cases = all();
        let ids: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.id).collect();
        assert_eq!(ids.len(), cases.len());
        let numbers: Vec<usize> = cases.iter().map(|case| group(case.id)).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert_eq!((1..=16).filter(|number| numbers.contains(number)).count(), TITLES.len());
    }
}
