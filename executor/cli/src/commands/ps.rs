//! `cofferdam ps`.

use std::process::ExitCode;

use cofferdam_executor::request::span::show_span;
use cofferdam_executor::{Executor, Exit, Source, Status, TaskInfo, TaskState, Timestamp};
use serde_json::json;

use super::{Outcome, print_json};
use crate::args::Format;
use crate::failure::Failure;
use crate::table::Table;

/// Characters of a command that a table shows.
const COMMAND_WIDTH: usize = 24;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those that are over
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Only those with name=TEXT, state=STATE, label=NAME[=VALUE], image=TEXT
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let filters: Vec<Filter> =
        args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<_, _>>()?;
    let wants_state = filters.iter().any(|filter| matches!(filter, Filter::State(_)));
    let mut tasks = executor.tasks().await?;
    tasks.retain(|task| args.all || wants_state || !task.status.state.is_final());
    tasks.retain(|task| filters.iter().all(|filter| filter.fits(task)));
    tasks.reverse();
    match args.format {
        _ if args.quiet => tasks.iter().for_each(|task| println!("{}", task.record.id)),
        Format::Json => tasks.iter().try_for_each(|task| print_json(&as_json(task)))?,
        Format::Table => print_table(args, &tasks),
    }
    Ok(ExitCode::SUCCESS)
}

enum Filter {
    Name(String),
    State(String),
    Label(String, Option<String>),
    Image(String),
}

impl Filter {
    fn parse(text: &str) -> Result<Filter, Failure> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Ok(match key {
            "name" => Filter::Name(value.to_owned()),
            "state" | "status" => Filter::State(value.to_ascii_uppercase()),
            "image" | "ancestor" => Filter::Image(value.to_owned()),
            "label" => match value.split_once('=') {
                Some((name, value)) => Filter::Label(name.to_owned(), Some(value.to_owned())),
                None => Filter::Label(value.to_owned(), None),
            },
            _ => {
                return Err(Failure::plain(format!(
                    "there is no filter {key:?}; there are name, state, label, image"
                )));
            }
        })
    }

    fn fits(&self, task: &TaskInfo) -> bool {
        match self {
            Filter::Name(text) => task.record.name.as_str().contains(text),
            Filter::State(state) => task.status.state.to_string() == *state,
            Filter::Image(text) => image_of(task).contains(text),
            Filter::Label(name, value) => task
                .record
                .spec
                .labels
                .get(name)
                .is_some_and(|is| value.as_ref().is_none_or(|value| is == value)),
        }
    }
}

/// The image as it was asked for.
pub(crate) fn image_of(task: &TaskInfo) -> String {
    match &task.record.spec.source {
        Source::Image(image) => image.clone(),
        Source::HostRootfs => "(host)".to_owned(),
    }
}

fn as_json(task: &TaskInfo) -> serde_json::Value {
    json!({
        "id": task.record.id, "name": task.record.name, "image": image_of(task),
        "command": task.record.command, "created": task.record.created, "state": task.status.state,
        "status": describe(&task.status), "pid": task.status.pid, "exit": task.status.exit,
        "ports": task.record.spec.ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "labels": task.record.spec.labels,
    })
}

fn print_table(args: &Args, tasks: &[TaskInfo]) {
    let mut table = Table::new(&["TASK ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME"]);
    for task in tasks {
        let id = if args.no_trunc { task.record.id.as_str() } else { task.record.id.short() };
        let command = task.record.command.join(" ");
        let ports: Vec<_> = task.record.spec.ports.iter().map(ToString::to_string).collect();
        table.row([
            id.to_owned(),
            image_of(task),
            if args.no_trunc { command } else { shorten(&command) },
            format!("{} ago", show_span(Timestamp::now().since(task.record.created))),
            describe(&task.status),
            ports.join(", "),
            task.record.name.to_string(),
        ]);
    }
    table.print(true);
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= COMMAND_WIDTH {
        return text.to_owned();
    }
    text.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect()
}

/// `Up 5 minutes`, `Exited (3) 2 hours ago` and their kin.
fn describe(status: &Status) -> String {
    let ago = show_span(Timestamp::now().since(status.since));
    match (status.state, status.exit) {
        (TaskState::Running, _) => format!("Up {ago}"),
        (TaskState::Staging, _) => "Staging".to_owned(),
        (TaskState::Starting, Some(_)) => "Restarting".to_owned(),
        (TaskState::Starting, None) => "Starting".to_owned(),
        (state, Some(Exit::Code(code))) => format!("{} ({code}) {ago} ago", word(state)),
        (state, Some(Exit::Signal(signal))) => format!("{} (signal {signal}) {ago} ago", word(state)),
        (state, None) => format!("{} {ago} ago", word(state)),
    }
}

fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Finished => "Finished",
        TaskState::Killed => "Killed",
        _ => "Failed",
    }
}
