//! What unpacking costs, in figures that do not depend on how busy the machine is.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use cofferdam_image::{ImageRef, Store};
use support::fake::FakeRegistry;
use support::*;

const STORE: &str = "COFFERDAM_TEST_STORE";
const IMAGE: &str = "COFFERDAM_TEST_IMAGE";
/// System calls for a small file. Five are needed: open, write, owner, time, close.
const CALLS_PER_FILE_LIMIT: usize = 6;
/// Resident memory of a pull, in kibibytes.
const MEMORY_LIMIT_KIB: u64 = 64 << 10;

/// Not a test of its own: what is counted.
#[test]
fn child_that_pulls() {
    let (Ok(store), Ok(image)) = (std::env::var(STORE), std::env::var(IMAGE)) else { return };
    let store = Store::open(&PathBuf::from(store)).unwrap();
    store.pull(&ImageRef::parse(&image).unwrap(), &options(), &|_| {}).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("\npeak {}", peak.trim().trim_end_matches(" kB"));
}

fn child(program: &mut Command, layers: &[Layer]) -> String {
    let registry = FakeRegistry::start();
    serve(&registry, "test/image", "latest", layers);
    let folder = temporary_folder();
    let output = program
        .args(["--exact", "child_that_pulls", "--nocapture"])
        .env(STORE, folder.path().join("store"))
        .env(IMAGE, registry.name("test/image"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Calls of the threads that unpack a layer of so many files, by name.
fn calls(files: u64) -> Vec<String> {
    let mut tar = Tar::new().dir("d", 0o755, 0, 0);
    for number in 0..files {
        let name = format!("d/{number}");
        // Another owner than the one who unpacks.
        tar = tar.add(Header { name: name.as_bytes(), uid: 7, gid: 7, ..Header::default() }, &[b'x'; 2000]);
    }
    let folder = temporary_folder();
    let trace = folder.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&trace).arg(std::env::current_exe().unwrap());
    child(&mut strace, &[Layer::gzip(tar.end())]);
    let trace = std::fs::read_to_string(trace).unwrap();
    let confined = trace.lines().find(|line| line.contains("landlock_restrict_self")).unwrap();
    let thread = confined.split(' ').next().unwrap();
    let calls_of = |thread: &str| -> Vec<&str> {
        trace.lines().filter_map(|line| line.strip_prefix(thread)?.strip_prefix(' ')).map(str::trim).collect()
    };
    let mut own = calls_of(thread);
    // The thread that fills the files is its child.
    let started = own.iter().filter(|call| call.contains("clone3") && !call.ends_with("<unfinished ...>"));
    let children: Vec<&str> = started.filter_map(|call| call.rsplit_once(" = ")).map(|(_, id)| id).collect();
    own.extend(children.into_iter().flat_map(calls_of));
    let calls = own.into_iter().filter(|call| !call.starts_with("<..."));
    calls.filter_map(|call| call.split_once('(').map(|(name, _)| name.to_owned())).collect()
}

/// How often each is called. Waits for the other thread depend on who is slower, and a development build alone asks about each
/// descriptor before it closes it.
fn count(calls: &[String]) -> BTreeMap<&str, usize> {
    let mut count = BTreeMap::new();
    for name in calls.iter().filter(|name| !matches!(name.as_str(), "futex" | "fcntl")) {
        *count.entry(name.as_str()).or_default() += 1;
    }
    count
}

#[test]
fn a85_a_small_file_costs_six_system_calls() {
    if !is_root() || !has_program("strace") {
        return;
    }
    let (few, many) = (calls(100), calls(600));
    let (few, many) = (count(&few), count(&many));
    let mut each = 0.0;
    for (name, calls) in &many {
        let more = (*calls as f64 - few.get(name).copied().unwrap_or(0) as f64) / 500.0;
        println!("{more:7.3} {name}");
        each += more;
    }
    println!("{each} calls a file");
    assert!(each <= CALLS_PER_FILE_LIMIT as f64 + 0.05, "{each} calls a file");
}

#[test]
fn a83_a_pull_of_many_large_layers_stays_within_its_memory() {
    if !is_root() {
        return;
    }
    let mut noise = 1u64;
    let layers: Vec<Layer> = (0..8u32)
        .map(|index| {
            // Half of it does not compress, so that the blobs are larger than what is read whole.
            let data: Vec<u8> = (0..10 << 20)
                .map(|at: u32| {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if at.is_multiple_of(2) { (noise >> 33) as u8 } else { b'x' }
                })
                .collect();
            let tar =
                Tar::new().add(Header { name: format!("f{index}").as_bytes(), ..Header::default() }, &data);
            if index.is_multiple_of(2) { Layer::gzip(tar.end()) } else { Layer::zstd(tar.end()) }
        })
        .collect();
    assert!(layers[0].blob.len() > 5 << 20);
    let text = child(&mut Command::new(std::env::current_exe().unwrap()), &layers);
    let peak: u64 = text.lines().find_map(|line| line.strip_prefix("peak ")).unwrap().trim().parse().unwrap();
    println!("{peak} KiB");
    assert!(peak <= MEMORY_LIMIT_KIB, "{peak} KiB");
}
