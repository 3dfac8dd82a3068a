//! Programs: started clean, fed and drained, ended with everything that they started.

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_cni::{Deadlines, Kind};
use cofferdam_tests::{needs, pace};

use crate::bed::{Bed, lives, network, plain};

fn with_deadline(limit: Duration) -> Bed {
    Bed::with(|options| options.deadlines = Deadlines { add: limit, ..Deadlines::default() })
}

/// Sooner than any of the children here ends by itself; a hang, on the busiest machine.
const SOON: Duration = Duration::from_secs(100);

/// The process ids that the plugin wrote into files.
fn pids(bed: &Bed, names: &[&str]) -> Vec<i32> {
    names.iter().map(|name| bed.plugins.read(name).trim().parse().unwrap()).collect()
}

/// A child that holds the output, and one that has left the session and the process group, and has lost its parent.
fn two_children(bed: &Bed) -> String {
    let d = bed.folder.display();
    format!(
        "sleep 300 & echo $! > {d}/near; \
         setsid sh -c 'sh -c \"echo \\$\\$ > {d}/far; exec sleep 300\" & exit' ; \
         while [ ! -s {d}/far ]; do sleep 0.01; done"
    )
}

#[test]
fn x1_a_plugin_that_hangs_ends_at_its_deadline_with_everything_that_it_started() {
    if !needs::root() || !needs::programs(&["setsid"]) {
        return;
    }
    let bed = with_deadline(pace::limit(Duration::from_secs(1)));
    let children = two_children(&bed);
    bed.plugin("a", &format!("[ $CNI_COMMAND = ADD ] && {{ {children}; echo stuck >&2; wait; }}"));
    let begun = Instant::now();
    let error = bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap_err();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(error.kind(), Kind::Interrupted);
    let text = error.to_string();
    assert!(text.contains("did not finish within") && text.contains("stuck"), "{text}");
    assert!(!text.contains("undoing"), "{text}");
    for pid in pids(&bed, &["near", "far"]) {
        assert!(!lives(pid), "{pid}");
    }
    assert_eq!(bed.log(), ["a ADD", "a DEL"]);
    assert!(!bed.has_records());
}

#[test]
fn x1_a_child_that_outlives_its_plugin_and_holds_the_output_does_not_hold_us() {
    if !needs::root() || !needs::programs(&["setsid"]) {
        return;
    }
    let bed = with_deadline(2 * SOON);
    let children = two_children(&bed);
    bed.plugin("a", &format!("[ $CNI_COMMAND = ADD ] && {{ {children}; }}"));
    let begun = Instant::now();
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    for pid in pids(&bed, &["near", "far"]) {
        assert!(!lives(pid), "{pid}");
    }
    bed.detach().unwrap();
}

#[test]
fn a_daemon_that_lets_go_of_its_plugins_output_stays() {
    let bed = Bed::new();
    let d = bed.folder.display();
    bed.plugin(
        "a",
        &format!(
            "[ $CNI_COMMAND = ADD ] && {{ sleep 30 < /dev/null > /dev/null 2>&1 & echo $! > {d}/daemon; }}"
        ),
    );
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    let [daemon] = pids(&bed, &["daemon"])[..] else { panic!() };
    assert!(lives(daemon));
    let cgroup = std::fs::read_to_string(format!("/proc/{daemon}/cgroup")).unwrap();
    assert!(!cgroup.contains("cofferdam-cni"), "{cgroup}");
    bed.detach().unwrap();
    let pid = rustix::process::Pid::from_raw(daemon).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn x2_a_program_that_is_being_replaced_is_tried_again() {
    let bed = with_deadline(Duration::from_secs(30));
    bed.plugin("a", "");
    let held = std::fs::OpenOptions::new().append(true).open(bed.plugins.bin().join("a")).unwrap();
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        drop(held);
    });
    let begun = Instant::now();
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2));
    holder.join().unwrap();
    bed.detach().unwrap();
}

#[test]
fn x2_a_program_that_stays_open_for_writing_is_an_error_and_never_a_success() {
    let bed = with_deadline(Duration::from_secs(30));
    bed.plugin("a", "");
    let network = network(r#"{"type":"a"}"#);
    bed.caller.attach(&network, &plain("one")).unwrap();
    bed.log();
    let held = std::fs::OpenOptions::new().append(true).open(bed.plugins.bin().join("a")).unwrap();
    let begun = Instant::now();
    // DEL, where a false success would be a leak that nobody learns of.
    let error = bed.detach().unwrap_err();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(error.to_string().contains("cannot start"), "{error}");
    assert!(bed.log().is_empty() && bed.has_records());
    drop(held);
    bed.detach().unwrap();
    assert!(!bed.has_records());
}

#[test]
fn x3_floods_in_both_directions_do_not_deadlock_and_input_may_be_ignored() {
    let bed = with_deadline(pace::limit(Duration::from_secs(20)));
    let large = "x".repeat(300_000);
    let network = network(&format!(r#"{{"type":"a","large":"{large}"}}"#));
    let flood = "head -c 1048576 /dev/zero | tr '\\0' ' '; head -c 1048576 /dev/zero >&2";
    let d = bed.folder.display();
    bed.plugins.program(
        &bed.plugins.bin().join("a"),
        &format!("[ $CNI_COMMAND = ADD ] || exit 0; {flood}; wc -c > {d}/count; echo '{{}}'"),
    );
    bed.caller.attach(&network, &plain("one")).unwrap();
    assert!(bed.plugins.read("count").trim().parse::<usize>().unwrap() > large.len());
    bed.detach().unwrap();
    bed.plugins.program(&bed.plugins.bin().join("a"), "exec 0<&-; echo '{}'");
    bed.caller.attach(&network, &plain("one")).unwrap();
    bed.detach().unwrap();
}

#[test]
fn x4_a_file_that_cannot_be_executed_is_passed_over_and_a_missing_plugin_says_where_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().to_owned();
    let bed = Bed::with(|options| options.plugin_path.insert(0, first.clone()));
    std::fs::write(first.join("a"), "not executable").unwrap();
    std::fs::create_dir(first.join("b")).unwrap();
    bed.three_plugins();
    bed.caller.attach(&network(r#"{"type":"a"},{"type":"b"}"#), &plain("one")).unwrap();
    let told = bed.told.all();
    for name in ["a", "b"] {
        assert!(
            told.contains(&format!("{} is there but is not an executable file", first.join(name).display()))
        );
    }
    bed.detach().unwrap();
    let error = bed.caller.attach(&network(r#"{"type":"nowhere"}"#), &plain("one")).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::NotFound);
    let searched = format!("{}:{}", first.display(), bed.plugins.bin().display());
    assert!(text.contains("\"nowhere\"") && text.contains(&searched), "{text}");
    assert!(!bed.has_records());
}

#[test]
fn x5_a_plugin_starts_with_default_signals_three_descriptors_and_the_hosts_namespace() {
    let bed = Bed::new();
    let d = bed.folder.display();
    // A descriptor that a careless program would pass on.
    let careless = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    assert!(careless.as_raw_fd() > 2);
    bed.plugin(
        "a",
        // Read by the shell itself: while it waits for a child it blocks signals.
        &format!(
            "[ $CNI_COMMAND = ADD ] && {{ while read -r key value; do case $key in SigBlk:|SigIgn:) echo $key $value; esac; done \
             </proc/$$/status; pwd; ls /proc/$$/fd | grep -v '^10$'; readlink /proc/$$/ns/net; }} > {d}/seen"
        ),
    );
    bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap();
    let seen = bed.plugins.read("seen");
    let words: Vec<_> = seen.split_whitespace().collect();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    // The shell itself keeps a copy of what it redirects, at 10 and above.
    let own: Vec<_> = words
        .iter()
        .filter(|word| word.len() < 2 || !word.chars().all(|c| c.is_ascii_digit()) || word.len() > 2)
        .collect();
    let expected = [
        "SigBlk:",
        "0000000000000000",
        "SigIgn:",
        "0000000000000000",
        "/",
        "0",
        "1",
        "2",
        host.to_str().unwrap(),
    ];
    assert_eq!(own.iter().map(|word| **word).collect::<Vec<_>>(), expected);
    bed.detach().unwrap();
}

/// One ADD through us, and the plugin alone. In memory, where the executor keeps its records too: how long a disk takes to
/// make sure of one is not the question.
#[test]
fn p7_running_a_plugin_costs_little_more_than_the_plugin() {
    const MOST: Duration = Duration::from_millis(2);
    let bed = Bed::new();
    let plugin = bed.plugins.bin().join("a");
    bed.plugins.program(&plugin, "cat > /dev/null; echo '{}'");
    let network = network(r#"{"type":"a"}"#);
    let alone = || {
        let begun = Instant::now();
        let mut child = Command::new(&plugin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("CNI_COMMAND", "ADD")
            .spawn()
            .unwrap();
        drop(child.stdin.take());
        child.wait_with_output().unwrap();
        begun.elapsed()
    };
    let median = |mut all: Vec<Duration>| {
        all.sort();
        all[all.len() / 2]
    };
    // Whoever else is at work on this machine disturbs some of the rounds, not all of them.
    let mut least = Duration::MAX;
    for _ in 0..5 {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            without.push(alone());
            let begun = Instant::now();
            bed.caller.attach(&network, &plain("one")).unwrap();
            with.push(begun.elapsed());
            bed.detach().unwrap();
        }
        let (with, without) = (median(with), median(without));
        println!("ADD {with:?}, the plugin alone {without:?}");
        least = least.min(with.saturating_sub(without));
        if least <= MOST || !needs::is_full() {
            break;
        }
    }
    pace::held("more than the plugin", least, MOST);
}
