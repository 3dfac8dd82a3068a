//! The disk that is pulled to: in the same state for everybody.
//!
//! A file system without a journal, as ext4 can be made, gives the inode of a removed file to nobody for some minutes, in case
//! the machine stops before the removal is on the disk, and looks at each such inode again whenever a file is made: where ten
//! thousand files were just removed, making one takes ten times as long. Hence nothing is removed between two pulls, and
//! nothing is measured before the removals of an earlier run are forgotten.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::time::ClockId;

use crate::counters::processor_time;

/// The file systems that do this forget a removal after six minutes at most.
const SETTLE_LIMIT: Duration = Duration::from_secs(6 * 60 + 30);
const SETTLE_INTERVAL: Duration = Duration::from_secs(10);
/// A file takes twenty to thirty microseconds of processor time where nothing was removed.
const SETTLED_MICROS: f64 = 60.0;
/// Files made to see how long one takes: more than share a block of inodes.
const PROBES: usize = 500;

/// Waits until making files in `folder` costs what it does where none were removed.
pub(super) fn settle(folder: &Path) -> Result<()> {
    let started = Instant::now();
    for round in 0.. {
        let micros = probe(&folder.join(format!("probe-{round}")))?;
        if micros <= SETTLED_MICROS {
            break;
        }
        if started.elapsed() > SETTLE_LIMIT {
            println!("making a file takes {micros:.0} µs here, and not because of what was removed before");
            break;
        }
        if round == 0 {
            println!("waiting: files that were removed lately make new ones slow ({micros:.0} µs each)");
        }
        std::thread::sleep(SETTLE_INTERVAL);
    }
    Ok(())
}

/// Microseconds of this thread's processor time for a small file.
fn probe(folder: &Path) -> Result<f64> {
    std::fs::create_dir(folder)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let before = thread_cpu();
    for number in 0..PROBES {
        drop(rustix::fs::open(folder.join(number.to_string()), flags, Mode::RUSR | Mode::WUSR)?);
    }
    Ok((thread_cpu() - before).as_secs_f64() * 1e6 / PROBES as f64)
}

/// Processor time of the calling thread.
pub(super) fn thread_cpu() -> Duration {
    processor_time(ClockId::ThreadCPUTime)
}

/// Refuses to begin what would fill the disk: nothing is removed before the end.
pub(super) fn check_room(folder: &Path, needed_bytes: u64) -> Result<()> {
    let about = rustix::fs::statvfs(folder).with_context(|| format!("examining {}", folder.display()))?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free < needed_bytes {
        bail!(
            "{} has {} MB free, these rounds need {}: ask for fewer rounds or images",
            folder.display(),
            free >> 20,
            needed_bytes >> 20
        );
    }
    Ok(())
}
