//! 16: what it costs. Figures for the reader; slow is no failure.

use std::time::{Duration, Instant};

use super::case;
use crate::case::Severity::Quality;
use crate::case::{Case, Tried};
use crate::stage::Stage;

pub(super) const CASES: &[Case] = &[case(Quality, "16.time", "3", "how long ADD, CHECK and DEL take", time)];

const ROUNDS: usize = 10;

fn time(stage: &Stage<'_>) -> Tried {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let container = stage.container()?;
        let started = Instant::now();
        let attached = stage.add(container)?;
        times[0].push(started.elapsed());
        if stage.has_check() {
            times[1].push(stage.check(&attached).elapsed);
        }
        times[2].push(stage.del(&attached).elapsed);
        stage.end(attached.container);
    }
    let [add, check, del] = times.map(figure);
    stage.note(format!("ADD {add}, CHECK {check}, DEL {del} (median..longest of {ROUNDS})"));
    Ok(())
}

fn figure(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| {
        time.map_or_else(|| "-".into(), |time| format!("{:.1}", time.as_secs_f64() * 1000.0))
    };
    format!("{}..{} ms", ms(times.get(times.len() / 2)), ms(times.last()))
}
