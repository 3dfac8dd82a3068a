//! `cofferdam image history`.

use std::process::ExitCode;

use cofferdam_executor::request::size::show_bytes;
use cofferdam_executor::{Executor, Image};
use serde::Serialize;

use super::find_runnable;
use crate::args::Format;
use crate::commands::{Outcome, print_json};
use crate::table::Table;

/// How much of a command a table shows, in characters.
const COMMAND_WIDTH: usize = 60;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print commands as they are
    #[arg(long)]
    no_trunc: bool,
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image
    image: String,
}

/// One step of a build.
#[derive(Debug, Serialize)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    /// The layer that it made, if it made one.
    diff_id: Option<String>,
    size_bytes: u64,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let image = find_runnable(&executor.images()?, &args.image)?;
    let mut table = Table::new(&["CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for step in steps(&image).into_iter().rev() {
        if args.format == Format::Json {
            print_json(&step)?;
            continue;
        }
        let mut command = step.created_by.unwrap_or_default();
        if !args.no_trunc && command.chars().count() > COMMAND_WIDTH {
            command = command.chars().take(COMMAND_WIDTH - 1).chain(['…']).collect();
        }
        let (created, comment) = (step.created.unwrap_or_default(), step.comment.unwrap_or_default());
        table.row([created, command, show_bytes(step.size_bytes), comment]);
    }
    if args.format == Format::Table {
        table.print(true);
    }
    Ok(ExitCode::SUCCESS)
}

/// The steps that the configuration tells, each with its layer; layers that no step is told of are steps of their own.
fn steps(image: &Image) -> Vec<Step> {
    let mut layers = image.layers.iter();
    let mut steps = Vec::new();
    for told in image.config.history().iter().flatten() {
        let layer = if told.empty_layer() == Some(true) { None } else { layers.next() };
        steps.push(Step {
            created: told.created().clone(),
            created_by: told.created_by().clone(),
            comment: told.comment().clone(),
            diff_id: layer.map(|layer| layer.diff_id.to_string()),
            size_bytes: layer.map_or(0, |layer| layer.unpacked_bytes),
        });
    }
    steps.extend(layers.map(|layer| Step {
        created: None,
        created_by: None,
        comment: None,
        diff_id: Some(layer.diff_id.to_string()),
        size_bytes: layer.unpacked_bytes,
    }));
    steps
}
