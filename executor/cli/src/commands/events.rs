//! `cofferdam events`.

use std::io::Write;
use std::process::ExitCode;

use cofferdam_executor::request::span::parse_moment;
use cofferdam_executor::{Executor, TaskEvent, Timestamp};

use super::Outcome;
use crate::args::Format;
use crate::escape::escape_line;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those from then on: a time, or a span that counts back
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Print what has happened and stop
    #[arg(long)]
    no_stream: bool,
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let mut since = args.since.as_deref().map(|text| parse_moment(text, Timestamp::now())).transpose()?;
    if args.no_stream {
        since = since.or(Some(Timestamp::from_unix_seconds(0)));
    }
    let mut events = executor.events(since)?;
    loop {
        let event = match events.try_next()? {
            Some(event) => event,
            None if args.no_stream => return Ok(ExitCode::SUCCESS),
            None => events.next().await?,
        };
        let line = match args.format {
            Format::Json => {
                serde_json::to_string(&event).map_err(|error| Failure::plain(error.to_string()))?
            }
            Format::Table => describe(&event),
        };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            // Whoever read it has enough.
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn describe(event: &TaskEvent) -> String {
    let image = event.image.as_deref().unwrap_or("(host)");
    let message = event.message.as_deref().unwrap_or("");
    let line =
        format!("{} {} {} {image} {} {message}", event.time, event.task.short(), event.state, event.name);
    escape_line(line.trim_end())
}
