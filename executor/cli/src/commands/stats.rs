//! `cofferdam stats`.

use std::process::ExitCode;
use std::time::Duration;

use cofferdam_executor::request::size::show_bytes;
use cofferdam_executor::{Executor, InterfaceStats, Stats, TaskInfo};
use serde_json::json;

use super::{Outcome, print_json};
use crate::args::Format;
use crate::failure::Failure;
use crate::table::Table;

/// Between two looks; CPU usage is the difference.
const PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Look once instead of again and again
    #[arg(long)]
    no_stream: bool,
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Tasks; all running ones if none is given
    tasks: Vec<String>,
}

struct Sample {
    info: TaskInfo,
    stats: Stats,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let mut before = sample(args, executor).await?;
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = sample(args, executor).await?;
        print(args, &before, &now)?;
        if args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

async fn sample(args: &Args, executor: &Executor) -> Result<Vec<Sample>, Failure> {
    let mut names = args.tasks.clone();
    if names.is_empty() {
        let running = executor.tasks().await?.into_iter().filter(|task| task.status.pid.is_some());
        names = running.map(|task| task.record.id.to_string()).collect();
    }
    let mut samples = Vec::new();
    for name in names {
        let task = executor.task(&name).await?;
        match task.stats().await {
            Ok(stats) => samples.push(Sample { info: task.info().await?, stats }),
            // Named explicitly, it should be there; otherwise it has just ended.
            Err(error) if !args.tasks.is_empty() => return Err(error.into()),
            Err(_) => {}
        }
    }
    Ok(samples)
}

fn print(args: &Args, before: &[Sample], now: &[Sample]) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "TASK ID",
        "NAME",
        "CPU %",
        "MEMORY",
        "LIMIT",
        "PIDS",
        "RECEIVED / SENT",
        "READ / WRITTEN",
    ]);
    for sample in now {
        let same = |other: &&Sample| other.info.record.id == sample.info.record.id;
        let earlier = before.iter().find(same).map_or(sample.stats.cpu_nanos, |other| other.stats.cpu_nanos);
        let percent =
            sample.stats.cpu_nanos.saturating_sub(earlier) as f64 / PERIOD.as_nanos() as f64 * 100.0;
        if args.format == Format::Json {
            let record = &sample.info.record;
            print_json(
                &json!({ "id": record.id, "name": record.name, "cpu_percent": percent, "stats": sample.stats }),
            )?;
        } else {
            table.row(cells(sample, percent));
        }
    }
    if args.format == Format::Table {
        table.print(true);
    }
    Ok(())
}

fn cells(sample: &Sample, percent: f64) -> [String; 8] {
    let stats = &sample.stats;
    let sum = |of: fn(&InterfaceStats) -> u64| stats.networks.iter().map(of).sum();
    [
        sample.info.record.id.short().to_owned(),
        sample.info.record.name.to_string(),
        format!("{percent:.1}"),
        show_bytes(stats.memory_bytes),
        stats.memory_limit_bytes.map_or_else(|| "-".to_owned(), show_bytes),
        stats.pids.to_string(),
        format!("{} / {}", show_bytes(sum(|it| it.rx_bytes)), show_bytes(sum(|it| it.tx_bytes))),
        format!("{} / {}", show_bytes(stats.read_bytes), show_bytes(stats.written_bytes)),
    ]
}
