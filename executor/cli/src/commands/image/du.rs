//! `cofferdam image du`.

use std::process::ExitCode;

use cofferdam_executor::request::size::show_bytes;
use cofferdam_executor::{Executor, Usage};

use crate::args::Format;
use crate::commands::{Outcome, print_json};
use crate::failure::Failure;
use crate::table::Table;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let usage = executor.images()?.usage().map_err(|error| Failure::plain(error.to_string()))?;
    match args.format {
        Format::Json => print_json(&usage)?,
        Format::Table => print(&usage),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(usage: &Usage) {
    let mut table = Table::new(&["IMAGE", "SIZE", "ITS OWN", "TASKS"]);
    for image in &usage.images {
        let name = image.names.first().map_or_else(|| image.digest.short().to_owned(), ToString::to_string);
        let cells = [name, show_bytes(image.bytes), show_bytes(image.own_bytes), image.snapshots.to_string()];
        table.row(cells);
    }
    table.print(true);
    let snapshots: u64 = usage.snapshots.values().sum();
    println!();
    let mut table = Table::new(&["TOTAL", "SIZE"]);
    for (what, bytes) in [
        ("images", usage.images_bytes),
        ("of them unused", usage.reclaimable_bytes),
        ("written by tasks", snapshots),
        ("left over", usage.loose_bytes),
    ] {
        table.row([what.to_owned(), show_bytes(bytes)]);
    }
    table.print(true);
}
