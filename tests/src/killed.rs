//! kill -9 of a program at many moments of what it does.
//!
//! What must hold afterwards differs from program to program and stays with the tests; what they share is when to kill.

use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Kills come up to this much later than the end of what was measured: some programs come through.
const BEYOND: f64 = 1.4;

/// Moments at which to kill a program.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    span: Duration,
    rounds: u32,
}

impl Moments {
    /// So many moments, spread over the time that `whole` takes on this machine and a little beyond.
    pub fn measure<T>(rounds: u32, whole: impl FnOnce() -> T) -> Moments {
        let begun = Instant::now();
        whole();
        Moments { span: begun.elapsed().mul_f64(BEYOND), rounds }
    }

    /// Each moment with its number, in an order that jumps between early and late: multiples of the golden section.
    pub fn iter(self) -> impl Iterator<Item = (u32, Duration)> {
        let fraction = |round: u32| (f64::from(round) * 0.618_033_988_75).fract();
        (0..self.rounds).map(move |round| (round, self.span.mul_f64(fraction(round))))
    }
}

/// Starts a program and kills it at a moment, however far it is. Its standard output is lost.
///
/// It may have ended before, well or badly: what the last one held may still be on its way back.
pub fn kill_after(command: &mut Command, moment: Duration) -> Result<ExitStatus> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    // The moment is the point: there is nothing to wait for.
    std::thread::sleep(moment.saturating_sub(begun.elapsed()));
    child.kill()?;
    Ok(child.wait()?)
}
