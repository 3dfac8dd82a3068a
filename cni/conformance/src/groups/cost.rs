//! 16: what it costs. Figures for the reader; slow is no failure.

use std::path::Path;
use std::time::Duration;

use cofferdam_cni::Verb;
use serde_json::Value;

use super::case;
use crate::case::Severity::Quality;
use crate::case::{Case, Tried, applies, ensure};
use crate::process::Prepared;
use crate::stage::{Attached, Changes, Stage};

pub(super) const CASES: &[Case] = &[
    case(Quality, "16.time", "3", "how long ADD, CHECK and DEL take, and how much memory", time),
    case(Quality, "16.programs", "3", "how many programs ADD, CHECK and DEL execute", programs),
];

const ROUNDS: usize = 10;

fn time(stage: &Stage<'_>) -> Tried {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut peak_kib = 0;
    for _ in 0..ROUNDS {
        let container = stage.container()?;
        let said = stage.call(Verb::Add, &container, Changes::default());
        ensure(said.succeeded(), || said.text())?;
        times[0].push(said.elapsed);
        let attached = Attached { result: said.value(), container };
        if stage.has_check() {
            times[1].push(stage.check(&attached).elapsed);
        }
        let watched = Prepared { is_watched: true, ..prepared(stage, Verb::Del, &attached) };
        let said = watched.run();
        times[2].push(said.elapsed);
        peak_kib = peak_kib.max(said.peak_kib);
        stage.end(attached.container);
    }
    let watched = Attached { container: stage.container()?, result: Value::Null };
    let said = Prepared { is_watched: true, ..prepared(stage, Verb::Add, &watched) }.run();
    peak_kib = peak_kib.max(said.peak_kib);
    let [add, check, del] = times.map(figure);
    stage.note(format!("ADD {add}, CHECK {check}, DEL {del} (median..longest of {ROUNDS}), {peak_kib} KiB"));
    Ok(())
}

fn prepared<'a>(stage: &'a Stage<'_>, verb: Verb, attached: &Attached) -> Prepared<'a> {
    let previous = Some(&attached.result).filter(|result| !result.is_null());
    stage.prepared(verb, &attached.container, Changes { previous, ..Changes::default() })
}

/// Counted by strace(1), where there is one.
fn programs(stage: &Stage<'_>) -> Tried {
    let strace = ["/usr/bin/strace", "/bin/strace"].into_iter().map(Path::new).find(|path| path.exists());
    applies(strace.is_some(), "there is no strace here to count them")?;
    let Some(strace) = strace else { return Ok(()) };
    let mut attached = Attached { container: stage.container()?, result: Value::Null };
    let mut counts = Vec::new();
    for verb in [Some(Verb::Add), Some(Verb::Check).filter(|_| stage.has_check()), Some(Verb::Del)] {
        let Some(verb) = verb else { continue };
        let trace = stage.data().join("trace");
        let plain = prepared(stage, verb, &attached);
        let program = plain.program.display().to_string();
        let options = ["-f", "-qq", "-e", "trace=execve,execveat", "-o"].map(str::to_owned);
        let arguments = options.into_iter().chain([trace.display().to_string(), program]).collect();
        let said = Prepared { program: strace, arguments, ..plain }.run();
        ensure(said.succeeded(), || format!("under strace, {}", said.text()))?;
        if verb == Verb::Add {
            attached.result = said.value();
        }
        let lines = std::fs::read_to_string(&trace).unwrap_or_default();
        let count = lines.lines().filter(|line| line.contains("exec") && line.ends_with("= 0")).count();
        counts.push(format!("{verb} {count}"));
        let _ = std::fs::remove_file(&trace);
    }
    stage.note(format!("{}, the plugin included", counts.join(", ")));
    Ok(())
}

fn figure(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| {
        time.map_or_else(|| "-".into(), |time| format!("{:.1}", time.as_secs_f64() * 1000.0))
    };
    format!("{}..{} ms", ms(times.get(times.len() / 2)), ms(times.last()))
}
