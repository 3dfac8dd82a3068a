//! The machine in words, and `benches/BUDGETS.md`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Date, kernel, processors, load and cgroup world, in one line.
pub fn machine() -> String {
    let kernel = first_line("/proc/sys/kernel/osrelease");
    let load = first_line("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let count = information.lines().filter(|line| line.starts_with("processor")).count();
    let world = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1 (hybrid)" };
    format!("{}, Linux {kernel}, {count} × {model}, load {load}, cgroup {world}", today())
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// date(1) knows the calendar; the time zone is the world's.
fn today() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Adds a measurement to `benches/BUDGETS.md`.
pub fn append(table: &str) -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("BUDGETS.md");
    let mut file =
        OpenOptions::new().append(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
    write!(file, "\n### {}\n\n{table}", machine()).with_context(|| format!("writing {}", path.display()))
}
