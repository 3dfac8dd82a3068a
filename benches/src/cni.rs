//! `cni`: attaching and detaching beside the reference plugins and netavark, by the same caller in the same run.
//!
//! ```text
//! a network namespace plays the host (host.rs)
//!   round 1   ours in process · ours as programs · reference · netavark     attach, detach
//!   round 2   …
//!   then      twenty at once · with a thousand others · with sixty thousand leases
//! ```
//!
//! The chain is bridge with host-local and masquerade, and portmap with one port. Nothing leaves the namespace.

pub mod host;
pub mod scale;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::launch::Record;
use crate::record;
use crate::statistics::{Samples, milliseconds};

use self::host::{Contestant, Cycle, Host};

/// Attachments of each contestant, by default; the first is not counted.
const ROUNDS: u32 = 21;
/// Containers that come and go at once.
pub const AT_ONCE: usize = 20;
/// Other attachments that are there.
pub const CROWD: usize = 1000;
/// Leases of a network, all but its last.
pub const LEASES: usize = 60_000;

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    /// Attachments of each contestant.
    pub rounds: u32,
    /// Whether to keep the result.
    pub record: Record,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: ROUNDS, record: Record::No }
    }
}

/// Measures, prints, and records if asked to.
pub fn run(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("attaching networks needs root");
    }
    let contestants = contestants()?;
    let mut text = cycles_table(&contestants, options.rounds)?;
    text.push_str(&at_once_table(&contestants)?);
    text.push_str(&scale_table()?);
    print!("{}\n{text}", record::machine());
    if options.record == Record::Yes {
        record::append(&text)?;
    }
    Ok(())
}

/// Who is there to be measured.
fn contestants() -> Result<Vec<Contestant>> {
    let own = std::env::current_exe().context("finding this program")?;
    let programs = own.with_file_name("cofferdam-cni");
    let all = [
        Some(Contestant::InProcess),
        programs.exists().then_some(Contestant::Programs(programs)),
        reference(),
        netavark().map(Contestant::Netavark),
    ];
    Ok(all.into_iter().flatten().collect())
}

/// The reference plugins of Debian's package, if they can be run.
pub fn reference() -> Option<Contestant> {
    let folder = PathBuf::from("/usr/lib/cni");
    let usable = folder.join("bridge").exists() && Path::new("/usr/sbin/iptables").exists();
    if !usable {
        println!("skipped: needs containernetworking-plugins and iptables");
    }
    usable.then_some(Contestant::Reference(folder))
}

/// netavark, where Debian has it or where `NETAVARK` says.
fn netavark() -> Option<PathBuf> {
    let said = std::env::var_os("NETAVARK").map(PathBuf::from);
    let found = said.into_iter().chain(["/usr/lib/podman/netavark".into()]).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: netavark is not installed");
    }
    found
}

/// One attachment after the other, in turns.
pub fn cycles(contestants: &[Contestant], rounds: u32) -> Result<Vec<Vec<Cycle>>> {
    host::on_a_host(|host| {
        let mut all: Vec<Vec<Cycle>> = contestants.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            for (contestant, cycles) in contestants.iter().zip(&mut all) {
                let cycle = host.cycle(contestant).with_context(|| format!("{contestant}"))?;
                // The first makes what stays: bridge, table, chains.
                cycles.extend((round > 0).then_some(cycle));
            }
        }
        Ok(all)
    })
}

/// The median of what `of` takes from each.
pub fn median(cycles: &[Cycle], of: fn(&Cycle) -> Duration) -> Duration {
    Samples::new(cycles.iter().map(of).collect()).percentile(50)
}

fn cycles_table(contestants: &[Contestant], rounds: u32) -> Result<String> {
    let cycles = cycles(contestants, rounds)?;
    let mut text = String::from(
        "| bridge, host-local, masquerade, one port | runs | ADD ms (min..max) | DEL ms (min..max) | ADD + DEL ms | execs |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    for (contestant, cycles) in contestants.iter().zip(&cycles) {
        let range = |of: fn(&Cycle) -> Duration| {
            let samples = Samples::new(cycles.iter().map(of).collect());
            let at = |percent| milliseconds(samples.percentile(percent));
            format!("{} ({}..{})", at(50), at(1), at(100))
        };
        text += &format!(
            "| {contestant} | {} | {} | {} | {} | {} |\n",
            cycles.len(),
            range(|cycle| cycle.add),
            range(|cycle| cycle.del),
            milliseconds(median(cycles, |cycle| cycle.add + cycle.del)),
            execs(contestant).map_or_else(|_| "–".into(), |count| count.to_string()),
        );
    }
    Ok(text + "\n")
}

fn at_once_table(contestants: &[Contestant]) -> Result<String> {
    let mut text =
        format!("| {AT_ONCE} containers at once | ADD of all ms | DEL of all ms |\n|---|---:|---:|\n");
    for contestant in contestants.iter().filter(|one| !matches!(one, Contestant::Netavark(_))) {
        let cycle = host::on_a_host(|host| {
            host.cycle(contestant)?;
            host.at_once(contestant, AT_ONCE)
        })?;
        text += &format!("| {contestant} | {} | {} |\n", milliseconds(cycle.add), milliseconds(cycle.del));
    }
    Ok(text + "\n")
}

fn scale_table() -> Result<String> {
    let crowd = host::on_a_host(|host| scale::crowd(host, CROWD))?;
    let leases = host::on_a_host(|host| scale::leases(host, LEASES))?;
    let check = host::on_a_host(Host::check_and_status)?;
    let half = |samples: &Samples| samples.percentile(50);
    let rows = [
        ("ADD, nobody else there", half(&crowd.empty.add)),
        ("ADD, a thousand others there", half(&crowd.full.add)),
        ("DEL, nobody else there", half(&crowd.empty.del)),
        ("DEL, a thousand others there", half(&crowd.full.del)),
        ("host-local alone, 60 000 leases: the first ADD of a process", leases.first.add),
        ("host-local alone, 60 000 leases: ADD", half(&leases.later.add)),
        ("host-local alone, 60 000 leases: DEL", half(&leases.later.del)),
        ("CHECK, best of twenty", check.check),
        ("STATUS, best of twenty", check.status),
    ];
    let mut text = format!("| {} | ms |\n|---|---:|\n", Contestant::InProcess);
    for (what, time) in rows {
        text += &format!("| {what} | {} |\n", milliseconds(time));
    }
    Ok(text)
}

/// How many programs one attachment and its end execute, counted with strace by running this program again.
fn execs(contestant: &Contestant) -> Result<usize> {
    let own = std::env::current_exe().context("finding this program")?;
    traced_execs(&own, contestant)
}

/// As `execs`, with the program that has the command `cni-once`.
pub fn traced_execs(driver: &Path, contestant: &Contestant) -> Result<usize> {
    let report = tempfile::NamedTempFile::new()?;
    let status = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=execve,execveat", "-e", "status=successful", "-o"])
        .arg(report.path())
        .arg(driver)
        .arg("cni-once")
        .args(contestant.words())
        .stdout(std::process::Stdio::null())
        .status()
        .context("starting strace")?;
    if !status.success() {
        bail!("the traced attachment ended with {status}");
    }
    let trace = std::fs::read_to_string(report.path()).context("reading the trace")?;
    // The driver itself is one.
    Ok(trace.lines().filter(|line| line.contains("execve")).count().saturating_sub(1))
}

/// What is traced: one attachment, looked at and ended.
pub fn once(contestant: &Contestant) -> Result<()> {
    host::on_a_host(|host| {
        host.cycle(contestant)?;
        if matches!(contestant, Contestant::InProcess) {
            host.check_and_status()?;
        }
        Ok(())
    })
}
