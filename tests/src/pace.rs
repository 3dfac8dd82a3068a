//! How fast this machine is: in the virtual machine everything takes ten to twenty times as long.
//!
//! A test whose subject is a number of repetitions does fewer of them there, and says so; a test that must not wait
//! for ever waits longer. Nothing else about a test depends on where it runs.

use std::time::Duration;

use crate::needs;

/// Set in the virtual machine, whose processor is emulated.
pub const EMULATED_VARIABLE: &str = "COFFERDAM_EMULATED";

/// How much longer things take there, at most.
const EMULATED_TIMES: u32 = 10;

/// How often to repeat: the first number, or in an emulated machine the second.
pub fn rounds(native: u32, emulated: u32) -> u32 {
    if !is_emulated() {
        return native;
    }
    println!("emulated: {emulated} rounds of {native}");
    emulated
}

/// How long something may take that takes at most `native` on hardware.
pub fn limit(native: Duration) -> Duration {
    if is_emulated() { native * EMULATED_TIMES } else { native }
}

/// Says what something took. That it took no longer than `most` is a test only where the slow tests run too: there the
/// machine has nothing else to do, while on every merge others share its processors. What such a test is about has a count
/// beside it that holds everywhere.
pub fn held(what: &str, took: Duration, most: Duration) {
    println!("{what}: {took:?}, at most {most:?}");
    assert!(!needs::is_full() || took <= limit(most), "{what}: {took:?}, at most {most:?}");
}

fn is_emulated() -> bool {
    std::env::var_os(EMULATED_VARIABLE).is_some()
}
