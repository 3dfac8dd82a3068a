//! What a launch asks of the kernel is counted and held against `budgets.json`: the counts do not depend on how busy the machine
//! is, so a launch that grows fails here, at the commit that made it grow.

use std::path::Path;
use std::process::Command;

use cofferdam_benches::bundle::Bundle;
use cofferdam_benches::contestant::Contestant;
use cofferdam_benches::{budget, counters};

const DRIVER: &str = env!("CARGO_BIN_EXE_cofferdam-benches");

#[test]
fn a_launch_stays_within_its_budget() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    if Command::new("strace").arg("--version").output().is_err() {
        println!("skipped: needs strace");
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
