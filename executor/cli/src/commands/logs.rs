//! `cofferdam logs`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use cofferdam_executor::request::span::parse_moment;
use cofferdam_executor::{Executor, LineEnd, LogRequest, Record, Stream, Timestamp};

use super::Outcome;
use crate::escape::escape_output;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Go on until the task is over
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines; "all" for all of them
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    tail: String,
    /// Only from then on: a time, or a span that counts back
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Task
    task: String,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let tail = match args.tail.as_str() {
        "all" => None,
        number => Some(
            number.parse().map_err(|_| Failure::plain(format!("--tail takes a number, not {number:?}")))?,
        ),
    };
    let since = args.since.as_deref().map(|text| parse_moment(text, Timestamp::now())).transpose()?;
    let request = LogRequest { tail, since, follow: args.follow };
    let mut logs = executor.task(&args.task).await?.logs(request)?;
    while let Some(record) = logs.next().await? {
        if print(args, &record).is_err() {
            // Whoever read it has enough.
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The task's bytes as they are, or on a terminal what cannot steer it.
fn print(args: &Args, record: &Record) -> io::Result<()> {
    let mut line = Vec::new();
    if args.timestamps {
        line.extend_from_slice(format!("{} ", record.time).as_bytes());
    }
    let to_terminal = match record.stream {
        Stream::Stdout => io::stdout().is_terminal(),
        Stream::Stderr => io::stderr().is_terminal(),
    };
    if to_terminal {
        // Programs end lines with a carriage return when they have a terminal.
        let payload = record.payload.strip_suffix(b"\r").unwrap_or(&record.payload);
        line.extend_from_slice(escape_output(payload).as_bytes());
    } else {
        line.extend_from_slice(&record.payload);
    }
    if record.end == LineEnd::Full {
        line.push(b'\n');
    }
    match record.stream {
        Stream::Stdout => io::stdout().write_all(&line).and_then(|()| io::stdout().flush()),
        Stream::Stderr => io::stderr().write_all(&line),
    }
}
