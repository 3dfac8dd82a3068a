//! A daemon for as long as a test needs it: its log in a file, ended by its pid.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a daemon may take until it answers, and until it has ended when asked.
const LIMIT: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running daemon; it ends when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until `is_ready` says so.
    pub fn start(mut command: Command, log: &Path, mut is_ready: impl FnMut() -> bool) -> Result<Daemon> {
        let file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut daemon = Daemon { process, log: log.to_owned() };
        let deadline = Instant::now() + LIMIT;
        while !is_ready() {
            if let Some(status) = daemon.process.try_wait()? {
                bail!("{command:?} ended with {status}:\n{}", daemon.log());
            }
            if Instant::now() >= deadline {
                bail!("{command:?} does not answer:\n{}", daemon.log());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(daemon)
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    /// Asks it to end; whoever does not in time is killed.
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if self.process.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
