//! `cargo xtask vm`: the privileged suites on a host with cgroup v2 alone, whatever this host has.
//!
//! ```text
//! kernel.rs     Debian's cloud kernel, unpacked in the cache, never installed here
//! modules.rs    which of its modules, and in which order they load
//! disk.rs       root disk (ext4): busybox, modules, test executables, our programs, the tree's data files
//! initramfs.rs  a small archive whose only work is to reach that disk
//! boot.rs       qemu by software emulation; suite output on the second serial line, with a deadline
//! ```
//!
//! The root is a disk and not the initramfs because pivot_root cannot leave an initramfs. Emulation makes everything
//! ten to twenty times slower, so only suites whose subject is the host's cgroups, mounts and namespaces run here.

mod boot;
mod disk;
mod initramfs;
mod kernel;
mod modules;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::command::exists;
use crate::tally::Tally;
use crate::workspace::{Executable, Kind, Workspace};

/// What to do in the machine once it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    /// Run the suites, report and power off.
    Suites,
    /// A shell on this terminal, with everything in place.
    Shell,
}

/// Crates whose tests run in the machine: those that touch cgroups, mounts, namespaces or links.
const CRATES: &[&str] = &[
    "cofferdam-linux",
    "cofferdam-apply",
    "cofferdam-isolators",
    "cofferdam-runtime",
    "cofferdam-shim",
    "cofferdam-executor",
    "cofferdam-cni-plugins",
    "cofferdam-tests",
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

const LAUNCH: (&str, &str) = ("cofferdam-runtime", "launch");
const LIBRARY: (&str, &str) = ("cofferdam-executor", "library");
const TASKS: (&str, &str) = ("cofferdam-tests", "tasks");
const CALLERS: (&str, &str) = ("cofferdam-tests", "callers");
const FAULTS: (&str, &str) = ("cofferdam-tests", "faults");
const TOO_MANY: &str = "so many launches take minutes in emulation";
const TOO_LARGE: &str = "unpacking Debian takes minutes in emulation";
const NO_ENGINES: &str = "the machine has no podman, containerd, Docker or Slurm";
const SWEPT: &str = "its steps are also in the sweeps of limits and user_namespace, which run here";

const EXCLUDED: &[Exclusion] = &[
    without(LAUNCH, "a_thousand_launches", TOO_MANY),
    without(LAUNCH, "every_step_failed_once", SWEPT),
    without(LIBRARY, "a_hundred_launches", TOO_MANY),
    without(TASKS, "images_of_other_programs_are_pulled_and_run", TOO_LARGE),
    without(TASKS, "curl_reaches_nginx_through_a_published_port", TOO_LARGE),
    without(TASKS, "a_run_killed_at_any_moment", TOO_MANY),
    // Every test's name has one.
    without(CALLERS, "_", NO_ENGINES),
    without(FAULTS, "default", SWEPT),
    without(FAULTS, "hooks_and_bind", SWEPT),
    without(FAULTS, "joined_network", SWEPT),
    without(FAULTS, "terminal", SWEPT),
];

/// From power on to the last test. A run that is still going then has failed.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run(workspace: &Workspace, session: Session) -> Result<ExitCode> {
    if session == Session::Shell {
        let machine = prepare(workspace, session)?;
        boot::interact(&machine)?;
        return Ok(ExitCode::SUCCESS);
    }
    let tally = check(workspace)?;
    println!("\n{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Boots the machine, runs the suites in it and counts what it reports.
pub(crate) fn check(workspace: &Workspace) -> Result<Tally> {
    if !exists("qemu-system-x86_64") {
        println!(
            "skipped: NO VIRTUAL MACHINE: qemu-system-x86_64 is not installed; cgroup v2 was NOT tested"
        );
        return Ok(Tally::SKIPPED);
    }
    let machine = prepare(workspace, Session::Suites)?;
    boot::run_suites(&machine, DEADLINE)
}

/// Everything that qemu is given.
struct Machine {
    kernel: PathBuf,
    initramfs: PathBuf,
    disk: PathBuf,
    /// What the kernel writes, for when a boot fails.
    console: PathBuf,
}

fn prepare(workspace: &Workspace, session: Session) -> Result<Machine> {
    let cache = workspace.target().join("vm");
    std::fs::create_dir_all(&cache)?;
    let kernel = kernel::fetch(&cache)?;
    let executables = workspace.executables()?;
    let tests: Vec<&Executable> = executables.iter().filter(|built| is_suite(built)).collect();
    let programs: Vec<&Executable> = executables.iter().filter(|built| built.kind == Kind::Program).collect();
    for exclusion in EXCLUDED {
        println!("  not in the machine: {} of {}: {}", exclusion.test, exclusion.suite.0, exclusion.reason);
    }
    let contents = disk::Contents { workspace, kernel: &kernel, tests: &tests, programs: &programs, session };
    Ok(Machine {
        disk: disk::build(&contents, &cache)?,
        initramfs: initramfs::build(&kernel, &cache)?,
        console: cache.join("console.log"),
        kernel: kernel.image,
    })
}

fn is_suite(built: &Executable) -> bool {
    built.kind == Kind::Test && CRATES.contains(&built.package.as_str())
}
