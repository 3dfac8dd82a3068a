//! `cofferdam image prune`.

use std::process::ExitCode;

use cofferdam_executor::request::size::show_bytes;
use cofferdam_executor::request::span::parse_span;
use cofferdam_executor::{Executor, PruneOptions, Unused};

use super::settle;
use crate::args::Format;
use crate::commands::{Outcome, print_json};
use crate::escape::escape_line;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also images with names
    #[arg(short, long)]
    all: bool,
    /// Only images that were neither pulled nor used for so long, such as 36h
    #[arg(long, value_name = "SPAN")]
    idle: Option<String>,
    /// Remove nothing, only tell
    #[arg(long)]
    dry_run: bool,
    /// Taken for docker's sake: nothing is asked anyway
    #[arg(short, long)]
    force: bool,
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let idle = args.idle.as_deref().map(parse_span).transpose()?;
    let options = PruneOptions {
        which: if args.all { Unused::All } else { Unused::Unnamed },
        idle,
        dry_run: args.dry_run,
    };
    let store = executor.images()?;
    let pruned = store.prune(&options).map_err(|error| Failure::plain(error.to_string()))?;
    if args.format == Format::Json {
        print_json(&pruned)?;
    } else {
        for name in &pruned.untagged {
            println!("Untagged: {}", escape_line(&name.to_string()));
        }
        for image in &pruned.images {
            println!("Deleted: {image}");
        }
        println!("{} {}", if args.dry_run { "Would free" } else { "Freed" }, show_bytes(pruned.bytes));
    }
    settle::leave(&store)?;
    Ok(ExitCode::SUCCESS)
}
