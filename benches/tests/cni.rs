//! What the network plugins may cost: beside the reference plugins in the same run, on a full host, and in programs started.
//!
//! Times are held with `--full` only: on every merge others share the machine. It is slow to everybody in turn, so what is
//! compared was measured in turns; and what is not within its budget is measured again, since only what is always too slow is
//! too slow. Programs started are counted on every merge.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam_benches::cni::host::{Contestant, Host, on_a_host};
use cofferdam_benches::cni::{self, AT_ONCE, CROWD, LEASES, scale};
use cofferdam_benches::statistics::Samples;

const DRIVER: &str = env!("CARGO_BIN_EXE_cofferdam-benches");
/// How often it is measured before it is too slow.
const ATTEMPTS: usize = 4;
/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn within(what: &str, mut measure: impl FnMut() -> Result<(), String>) {
    if std::env::var_os("COFFERDAM_FULL").is_none() {
        println!("skipped: times are not held on every merge, where others share the machine");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match measure() {
            Ok(()) => return,
            Err(said) => last = said,
        }
        println!("again: {last}");
    }
    panic!("{what}: {last}");
}

fn at_most(what: &str, time: Duration, limit: Duration) -> Result<(), String> {
    println!("{what}: {time:?}, at most {limit:?}");
    if time <= limit { Ok(()) } else { Err(format!("{what} took {time:?}, at most {limit:?} is allowed")) }
}

/// Of a time that is not compared with another's in the same moment, the best: the rest is the machine's.
fn best(samples: &Samples) -> Duration {
    samples.percentile(1)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn p1_p2_attaching_takes_a_tenth_of_the_reference_plugins_time_and_detaching_a_quarter() {
    let Some(reference) = cni::reference() else { return };
    within("ADD and DEL", || {
        let contestants = [Contestant::InProcess, reference.clone()];
        let cycles = cni::cycles(&contestants, 9).unwrap();
        let (ours, theirs) = (&cycles[0], &cycles[1]);
        at_most("ADD", cni::median(ours, |one| one.add), cni::median(theirs, |one| one.add) / 10)?;
        at_most("DEL", cni::median(ours, |one| one.del), cni::median(theirs, |one| one.del) / 4)
    });
}

#[test]
fn p3_twenty_at_once_take_a_tenth_of_the_reference_plugins_time() {
    let Some(reference) = cni::reference() else { return };
    within("twenty at once", || {
        let measure = |contestant: &Contestant| {
            on_a_host(|host| {
                host.cycle(contestant)?;
                host.at_once(contestant, AT_ONCE)
            })
            .unwrap()
        };
        let (ours, theirs) = (measure(&Contestant::InProcess), measure(&reference));
        // 110 of 1055 ms, 230 of 2270 ms.
        at_most("ADD of twenty", ours.add, theirs.add.mul_f64(110.0 / 1055.0))?;
        at_most("DEL of twenty", ours.del, theirs.del.mul_f64(230.0 / 2270.0))
    });
}

#[test]
fn p4_attaching_among_a_thousand_takes_no_more_than_half_as_long_again() {
    within("ADD among a thousand", || {
        let crowd = on_a_host(|host| scale::crowd(host, CROWD)).unwrap();
        println!("{:?} and {:?}", best(&crowd.empty.add), best(&crowd.full.add));
        // A crowd's links keep the kernel's one lock for links busy for a while; waiting for it is not the plugins' cost, which is
        // what could grow with the number of attachments. `cargo xtask bench cni` tells the time by the clock.
        let half = |samples: &Samples| samples.percentile(50);
        at_most("ADD", half(&crowd.full.add_cpu), half(&crowd.empty.add_cpu).mul_f64(1.5))
    });
}

#[test]
fn p5_sixty_thousand_leases_do_not_slow_an_address_down() {
    within("an address among sixty thousand", || {
        let leases = on_a_host(|host| scale::leases(host, LEASES)).unwrap();
        at_most("the first ADD", leases.first.add, ms(120))?;
        at_most("the first DEL", leases.first.del, ms(120))?;
        at_most("ADD", best(&leases.later.add), ms(8))?;
        at_most("DEL", best(&leases.later.del), ms(8))
    });
}

#[test]
fn p6_check_and_status_are_quick() {
    within("CHECK and STATUS", || {
        let looks = on_a_host(Host::check_and_status).unwrap();
        at_most("CHECK", looks.check, ms(4))?;
        at_most("STATUS", looks.status, ms(2))
    });
}

#[test]
fn p6_no_program_is_executed() {
    if Command::new("strace").arg("--version").output().is_err() {
        println!("skipped: needs strace");
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    assert_eq!(cni::traced_execs(Path::new(DRIVER), &Contestant::InProcess).unwrap(), 0);
}
