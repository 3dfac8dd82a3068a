//! `cargo xtask vm`: the privileged suites on a host with cgroup v2 alone, whatever this host has.
//!
//! ```text
//! kernel.rs     Debian's cloud kernel, unpacked in the cache, never installed here
//! modules.rs    which of its modules, and in which order they load
//! disk.rs       root disk (ext4): busybox, modules, test executables, our programs, the tree's data files
//! initramfs.rs  a small archive whose only work is to reach that disk
//! boot.rs       qemu by software emulation: one machine a core, which take their tests from one queue
//! ```
//!
//! The root is a disk and not the initramfs because pivot_root cannot leave an initramfs. Emulation makes everything
//! about ten times slower, so only suites whose subject is the host's cgroups, mounts, namespaces and links run here: over
//! seven hundred tests in half an hour of processor time. `cofferdam_tests::pace` says how often a test repeats here.

mod boot;
mod disk;
mod initramfs;
mod kernel;
mod modules;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use self::boot::Work;
use crate::command::{command, exists, read};
use crate::tally::Tally;
use crate::workspace::{Executable, Kind, Workspace};

/// What to do in the machine once it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    /// Run the tests whose suite and name contain one of these words, or all; report and power off.
    Suites(Vec<String>),
    /// A shell on this terminal, with everything in place.
    Shell,
}

/// Crates whose tests run in the machine: those that touch cgroups, mounts, namespaces or links.
const CRATES: &[&str] = &[
    "cofferdam-tests",
    "cofferdam",
    "cofferdam-executor",
    "cofferdam-runtime",
    "cofferdam-shim",
    "cofferdam-cni-conformance",
    "cofferdam-cni-plugins",
    "cofferdam-cni",
    "cofferdam-image",
    "cofferdam-apply",
    "cofferdam-isolators",
    "cofferdam-linux",
];

/// A test that is left out, and why.
struct Exclusion {
    /// The package and the test executable in it.
    suite: (&'static str, &'static str),
    /// A part of the test's name; everything in the suite that contains it is left out.
    test: &'static str,
    reason: &'static str,
}

const fn without(suite: (&'static str, &'static str), test: &'static str, reason: &'static str) -> Exclusion {
    Exclusion { suite, test, reason }
}

const CALLERS: (&str, &str) = ("cofferdam-tests", "callers");
const CNI_CALLERS: (&str, &str) = ("cofferdam-tests", "cni_callers");
const CHECKPOINT: (&str, &str) = ("cofferdam-tests", "checkpoint");
const NO_ENGINES: &str = "the machine has no podman, containerd, Docker or Slurm";
const NO_CRIU: &str = "the machine has no CRIU, and no network to fetch it";

const TRANSFERS: &str = "a registry on the loopback interface is spoken to: no mount, no namespace";
const READING: &str = "how an archive is read is the same on every host";

const DETACHED: &str =
    "the machine's overlayfs stacks no mount that is attached nowhere; tasks run there on every backend";

const WORKBENCH: (&str, &str) = ("cofferdam-cni-conformance", "plugins");
const NETWORK: (&str, &str) = ("cofferdam-cni-plugins", "network");

const EXCLUDED: &[Exclusion] = &[
    without(
        NETWORK,
        "b13_both_interfaces",
        "an emulated processor is slower than the limits that are measured",
    ),
    without(
        NETWORK,
        "p4_add_check_and_del_cost",
        "a crowd takes minutes in emulation, and what is counted is asked of every kernel alike",
    ),
    without(("cofferdam", "tasks"), "a44_images", "twelve hundred layers take minutes in emulation"),
    without(
        WORKBENCH,
        "a4_a_chained",
        "three networks take minutes in emulation; their plugins run there alone",
    ),
    without(WORKBENCH, "a4_our_host_local", "leases are files, and the same on every host"),
    without(WORKBENCH, "a4_our_static", "it asks the kernel for nothing"),
    without(
        ("cofferdam-cni", "caller"),
        "x5_a_plugin_starts",
        "the machine's shell, which the plugin is written for, ignores a signal of its own accord",
    ),
    without(
        ("cofferdam-cni", "program"),
        "_",
        "its examples are not on the disk, and how a plugin reads a call is the same on every host",
    ),
    without(("cofferdam-image", "backends"), "_", DETACHED),
    without(("cofferdam-image", "verify"), "a63_a_layer_whose_entries_replace", DETACHED),
    without(("cofferdam-image", "hostile"), "a48_p_archives", "300,000 deletions take minutes in emulation"),
    // Every test's name has one.
    without(("cofferdam-image", "cofferdam_image"), "_", READING),
    without(("cofferdam-image", "import"), "_", READING),
    without(("cofferdam-image", "registries"), "_", TRANSFERS),
    without(("cofferdam-image", "budget"), "_", "what is counted is asked of every kernel alike"),
    without(("cofferdam-image", "peers"), "_", "the machine has no umoci, podman or buildah to compare with"),
    without(CALLERS, "_", NO_ENGINES),
    without(CNI_CALLERS, "_", NO_ENGINES),
    without(CHECKPOINT, "_", NO_CRIU),
];

/// From power on to the last test. A run that is still going then has failed.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run(workspace: &Workspace, session: &Session) -> Result<ExitCode> {
    let only = match session {
        Session::Suites(only) => only,
        Session::Shell => {
            boot::interact(&prepare(workspace, &executables(workspace)?, session)?)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let tally = suites(workspace, only)?;
    println!("\n{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every suite in machines and counts what they report.
pub(crate) fn check(workspace: &Workspace) -> Result<Tally> {
    suites(workspace, &[])
}

fn suites(workspace: &Workspace, only: &[String]) -> Result<Tally> {
    if !exists("qemu-system-x86_64") {
        println!(
            "skipped: NO VIRTUAL MACHINE: qemu-system-x86_64 is not installed; cgroup v2 was NOT tested"
        );
        return Ok(Tally::SKIPPED);
    }
    let executables = executables(workspace)?;
    let mut work = Vec::new();
    // The queue's order is that of the crates: those whose tests take longest come first.
    for package in CRATES {
        for suite in executables.iter().filter(|built| is_suite(built) && built.package == *package) {
            work.extend(tests(suite)?.into_iter().filter(|work| is_wanted(work, only)));
        }
    }
    let machine = prepare(workspace, &executables, &Session::Suites(only.to_vec()))?;
    boot::run_suites(&machine, work, DEADLINE)
}

/// Everything that qemu is given.
struct Machine {
    kernel: PathBuf,
    initramfs: PathBuf,
    disk: PathBuf,
    /// Where what the kernels write is kept, for when a boot fails.
    cache: PathBuf,
}

fn executables(workspace: &Workspace) -> Result<Vec<Executable>> {
    for exclusion in EXCLUDED {
        println!("  not in the machine: {} of {}: {}", exclusion.test, exclusion.suite.0, exclusion.reason);
    }
    workspace.executables()
}

fn prepare(workspace: &Workspace, executables: &[Executable], session: &Session) -> Result<Machine> {
    let cache = workspace.target().join("vm");
    std::fs::create_dir_all(&cache)?;
    let kernel = kernel::fetch(&cache)?;
    let tests: Vec<&Executable> = executables.iter().filter(|built| is_suite(built)).collect();
    let programs: Vec<&Executable> = executables.iter().filter(|built| built.kind == Kind::Program).collect();
    let contents = disk::Contents { workspace, kernel: &kernel, tests: &tests, programs: &programs, session };
    Ok(Machine {
        disk: disk::build(&contents, &cache)?,
        initramfs: initramfs::build(&kernel, &cache)?,
        kernel: kernel.image,
        cache,
    })
}

fn is_suite(built: &Executable) -> bool {
    built.kind == Kind::Test && CRATES.contains(&built.package.as_str())
}

/// The name of a suite in the machine.
fn name(suite: &Executable) -> String {
    format!("{}-{}", suite.package, suite.name)
}

/// The tests of a suite, as its executable lists them, without those that are left out.
fn tests(suite: &Executable) -> Result<Vec<Work>> {
    let mut list = command(&suite.path.to_string_lossy(), "--list --format terse");
    for exclusion in EXCLUDED.iter().filter(|exclusion| exclusion.suite == (&suite.package, &suite.name)) {
        list.args(["--skip", exclusion.test]);
    }
    let listed = read(list.current_dir(&suite.folder))?;
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(|test| Work { suite: name(suite), test: test.to_owned(), is_second_try: false }).collect())
}

fn is_wanted(work: &Work, only: &[String]) -> bool {
    let whole = format!("{} {}", work.suite, work.test);
    only.is_empty() || only.iter().any(|word| whole.contains(word.as_str()))
}
