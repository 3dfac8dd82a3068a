//! What a launch or a pull asks of the kernel is counted and held against `budgets.json`: the counts do not depend on how busy the machine
//! is, so one that grows fails here, at the commit that made it grow.

use std::path::Path;
use std::process::Command;

use cofferdam_benches::bundle::Bundle;
use cofferdam_benches::contestant::Contestant;
use cofferdam_benches::{budget, counters, pull};

const DRIVER: &str = env!("CARGO_BIN_EXE_cofferdam-benches");

fn can_trace() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    if Command::new("strace").arg("--version").output().is_err() {
        println!("skipped: needs strace");
        return false;
    }
    true
}

#[test]
fn a_launch_stays_within_its_budget() {
    if !can_trace() {
        return;
    }
    let bundle = Bundle::create().expect("a bundle");
    let mut excess = Vec::new();
    for (name, budget) in budget::launch().expect("budgets") {
        let contestant = Contestant::find(&name).expect("budgets.json names contestants");
        if let Err(reason) = contestant.available() {
            println!("skipped: {name}: {reason:#}");
            continue;
        }
        let counted = counters::count(Path::new(DRIVER), contestant, bundle.path()).expect("a traced launch");
        println!("{name}: {counted:?}, budget {budget:?}");
        excess.extend(budget::excess(&name, counted, budget));
    }
    assert!(excess.is_empty(), "{}", excess.join("\n"));
}

/// The budgets are what was counted when they were recorded, and a twentieth.
#[test]
fn a87_a_pull_stays_within_its_recorded_budget() {
    if !can_trace() {
        return;
    }
    let budgets = budget::pull().expect("budgets");
    let mut excess = Vec::new();
    for (name, counted) in pull::count(Path::new(DRIVER)).expect("traced pulls") {
        let budget = budgets[name];
        println!("{name}: {counted:?}, budget {budget:?}");
        excess.extend(budget::excess(name, counted, budget));
    }
    assert!(excess.is_empty(), "{}", excess.join("\n"));
}
