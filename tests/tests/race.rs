//! A hundred callers at once, on few containers: create, start, kill and delete in any order, and some of them are killed
//! with -9 themselves. Nobody hangs, nothing leaks, and in the end every container can be deleted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::oci::Runtime;
use cofferdam_tests::world::World;
use cofferdam_tests::{needs, pace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How many names the callers fight over.
const NAMES: u64 = 12;

/// How many calls each makes.
const CALLS: u32 = 6;

/// One in so many calls is killed.
const KILLED_ONE_IN: u64 = 4;

/// A call that takes longer than this, with a hundred others beside it, hangs.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Longest time after which a call that is to be killed is killed; a create alone takes some ten milliseconds.
const KILL_SPAN_MICROS: u64 = 60_000;

/// Numbers that are the same on every run: only the kernel's scheduling is left to chance.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A container's name and its bundle.
struct Place {
    id: String,
    bundle: Bundle,
}

/// Waits for a process to end; whether it did in time.
fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let descriptor = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&limit)).unwrap() == 1
}

/// One caller: calls in a row, each on any of the places. Returns what went wrong.
fn caller(runtime: &Runtime, places: &[Place], seed: u64) -> Vec<String> {
    let mut numbers = Numbers(seed);
    let mut wrong = Vec::new();
    for _ in 0..CALLS {
        let place = &places[usize::try_from(numbers.below(NAMES)).unwrap()];
        let (id, bundle) = (place.id.as_str(), place.bundle.path().to_str().unwrap());
        let arguments: &[&str] = match numbers.below(8) {
            0..=2 => &["create", "--bundle", bundle, id],
            3 | 4 => &["start", id],
            5 => &["kill", id, "KILL"],
            6 => &["delete", id],
            _ => &["delete", "--force", id],
        };
        let mut call: Command = runtime.command(arguments);
        // What a container's program keeps open must not be waited for; refusals are as many as successes here.
        let mut child = call.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let is_victim = numbers.below(KILLED_ONE_IN) == 0;
        if is_victim && !ends_within(&mut child, Duration::from_micros(numbers.below(KILL_SPAN_MICROS))) {
            child.kill().unwrap();
        }
        if !ends_within(&mut child, pace::limit(CALL_LIMIT)) {
            wrong.push(format!("hangs: {arguments:?}"));
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        // 101 is a panic; a signal that is not ours is a crash.
        if !is_victim && !matches!(status.code(), Some(code) if code != 101) {
            wrong.push(format!("{arguments:?}: {status}"));
        }
    }
    wrong
}

#[test]
fn a_hundred_callers_some_of_them_killed_leave_nothing_and_every_container_can_be_deleted() {
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    let runtime = Runtime::ours(&world.state());
    let places: Vec<Place> = (0..NAMES)
        .map(|number| {
            let id = format!("race{number}");
            let bundle = Bundle::make(&world.files().join(&id), &["sleep", "1000"], |_| {}).unwrap();
            Place { id, bundle }
        })
        .collect();
    // Folders that the first container makes and all share are made before the census.
    runtime.create("first", places[0].bundle.path()).unwrap();
    runtime.succeed(&["delete", "--force", "first"]).unwrap();
    let watch = world.watch();
    let callers = pace::rounds(100, 20);
    let mut wrong: Vec<String> = std::thread::scope(|scope| {
        let run = |seed: u32| {
            let (runtime, places) = (&runtime, &places);
            scope.spawn(move || caller(runtime, places, u64::from(seed)))
        };
        let running: Vec<_> = (1..=callers).map(run).collect();
        running.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    for place in &places {
        let deleted = runtime.call(&["delete", "--force", &place.id]).unwrap();
        if deleted.status != Some(0) && !deleted.stderr.contains("does not exist") {
            wrong.push(format!("{} cannot be deleted: {deleted:?}", place.id));
        }
    }
    let listed = runtime.succeed(&["list", "--quiet"]).unwrap().stdout;
    assert!(wrong.is_empty() && listed.trim().is_empty(), "{}\nlisted: {listed}", wrong.join("\n"));
    watch.end();
}
