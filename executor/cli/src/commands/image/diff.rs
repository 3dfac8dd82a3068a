//! `cofferdam image diff`.

use std::process::ExitCode;

use cofferdam_executor::{Change, ChangeKind, Executor};

use super::find_runnable;
use crate::args::Format;
use crate::commands::{Outcome, print_json};
use crate::escape::escape_line;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Image
    image: String,
    /// Image that it is compared with; without it, itself without its last layer
    from: Option<String>,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let store = executor.images()?;
    let image = find_runnable(&store, &args.image)?;
    let below = match &args.from {
        Some(from) => find_runnable(&store, from)?.layers,
        None => image.layers[..image.layers.len().saturating_sub(1)].to_vec(),
    };
    let changes = store.diff(&below, &image.layers).map_err(|error| Failure::plain(error.to_string()))?;
    for change in changes {
        match args.format {
            Format::Json => print_json(&change)?,
            Format::Table => println!("{} {}", letter(&change), escape_line(&change.path)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn letter(change: &Change) -> char {
    match change.change {
        ChangeKind::Added => 'A',
        ChangeKind::Changed => 'C',
        ChangeKind::Deleted => 'D',
    }
}
