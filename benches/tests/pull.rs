//! What a pull may take beside its peers: with `--full` only, since on every merge others share the machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::process::Command;

/// How often it is measured before it is too slow: the machine is slow to everybody in turn.
const ATTEMPTS: usize = 3;

#[test]
fn a79_a80_a82_a83_a84_pulls_take_what_they_may_beside_their_peers() {
    if std::env::var_os("COFFERDAM_FULL").is_none() {
        println!("skipped: times are not held on every merge, where others share the machine");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    // Release builds are meant, which only cargo makes.
    let measure = || {
        let mut bench = Command::new(env!("CARGO"));
        bench.args(["xtask", "bench", "pull", "--rounds", "5", "--check"]);
        bench.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap().success()
    };
    assert!((0..ATTEMPTS).any(|_| measure()), "something takes more than it may: see above");
}
