//! The most memory that an OCI runtime's `run` has while its container runs.
//!
//! Of its own memory alone (`VmHWM`): what wait4(2) tells counts that of whoever started it, too.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::bundle::HELD;
use crate::contestant::next_id;

/// How long a container may take to come to its program: only a hang takes so long.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a container that goes on until it is ended, and reads how much memory its runtime has had by then, in KiB.
pub(crate) fn kib(program: &Path, state: &Path, bundle: &Path) -> Result<u64> {
    let id = next_id();
    let mut process = Command::new(program)
        .arg("--root")
        .arg(state)
        .args(["run", "--bundle"])
        .arg(bundle.join(HELD))
        .arg(&id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let call = |words: &[&str]| Command::new(program).arg("--root").arg(state).args(words).arg(&id).output();
    let peak = settled(&mut process, || Ok(call(&["state"])?.stdout));
    // What cannot be ended so is ended with the runtime that waits for it.
    if !call(&["delete", "--force"])?.status.success() {
        process.kill()?;
    }
    process.wait()?;
    peak
}

/// Waits until the container's program runs and the runtime does nothing but wait for it.
fn settled(process: &mut Child, state: impl Fn() -> Result<Vec<u8>>) -> Result<u64> {
    let deadline = Instant::now() + LIMIT;
    let mut last = None;
    loop {
        ensure!(Instant::now() < deadline, "the container does not come to its program");
        if let Some(status) = process.try_wait()? {
            bail!("the runtime ended with {status}");
        }
        let now = match comes_to_its_program(&state()?) {
            true => waiting(process.id())?,
            false => None,
        };
        if now.is_some() && now == last {
            return now.context("no figure");
        }
        last = now;
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn comes_to_its_program(state: &[u8]) -> bool {
    let state: Value = serde_json::from_slice(state).unwrap_or_default();
    let name = std::fs::read_to_string(format!("/proc/{}/comm", state["pid"])).unwrap_or_default();
    state["status"] == "running" && name.trim() == HELD
}

/// The figure of a process that waits; `None` while it does anything.
fn waiting(pid: u32) -> Result<Option<u64>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let peak = field("VmHWM:").and_then(|text| text.strip_suffix(" kB")).context("no VmHWM")?;
    let waits = field("State:").is_some_and(|state| state.starts_with('S'));
    Ok(if waits { Some(peak.trim().parse()?) } else { None })
}
