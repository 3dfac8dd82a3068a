//! The process in which one contestant is launched, over and over.
//!
//! Each contestant has a process of its own so that nobody pays for another's heap or mounts, and so that the one which needs a
//! mount namespace of its own can have it.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use cofferdam_linux::allocations;

use crate::contestant::{Contestant, Launcher};

/// Launches once for every line on standard input and answers with the nanoseconds that it took.
pub fn serve(contestant: Contestant, bundle: &Path) -> Result<()> {
    let mut launcher = contestant.prepare(bundle)?;
    for line in io::stdin().lock().lines() {
        line?;
        let time = timed(launcher.as_mut())?;
        writeln!(io::stdout(), "{}", time.as_nanos())?;
    }
    Ok(())
}

/// Launches once, and tells how often all that it took, the preparation included, has asked for memory in this process.
pub fn once(contestant: Contestant, bundle: &Path) -> Result<()> {
    let before = allocations::count();
    contestant.prepare(bundle)?.launch()?;
    println!("{}", allocations::count() - before);
    Ok(())
}

fn timed(launcher: &mut dyn Launcher) -> Result<Duration> {
    let start = Instant::now();
    launcher.launch()?;
    Ok(start.elapsed())
}

/// The other end: a running worker.
pub struct Worker {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts the worker of `contestant`.
    pub fn start(contestant: Contestant, bundle: &Path) -> Result<Worker> {
        let mut process = Command::new("/proc/self/exe")
            .args(["worker", contestant.name])
            .arg(bundle)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a worker")?;
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("a worker without standard output")?);
        Ok(Worker { process, orders, answers })
    }

    /// Has it launch once.
    pub fn launch(&mut self) -> Result<Duration> {
        let orders = self.orders.as_mut().context("the worker was dismissed")?;
        writeln!(orders, "go").context("the worker ended")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim().parse() {
            Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds)),
            Err(_) => bail!("the worker ended without an answer"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its standard input ends it; it has nothing running between orders.
        drop(self.orders.take());
        drop(self.process.wait());
    }
}
