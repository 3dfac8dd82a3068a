//! `cofferdam images`, also `cofferdam image ls`.

use std::process::ExitCode;

use cofferdam_executor::request::size::show_bytes;
use cofferdam_executor::request::span::show_span;
use cofferdam_executor::{Executor, Image, Timestamp};

use super::image::inspect::summary;
use super::{Outcome, print_json};
use crate::args::Format;
use crate::failure::Failure;
use crate::table::Table;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let images = executor.images()?.images().map_err(|error| Failure::plain(error.to_string()))?;
    let mut table = Table::new(&["NAME", "IMAGE ID", "PLATFORM", "STORED", "SIZE"]);
    for image in &images {
        match args.format {
            _ if args.quiet => println!("{}", image.id.short()),
            Format::Json => print_json(&summary(image))?,
            Format::Table => rows(image, &mut table),
        }
    }
    if args.format == Format::Table && !args.quiet {
        table.print();
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(image: &Image, table: &mut Table) {
    let mut names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        names.push("<none>".to_owned());
    }
    let stored = Timestamp::from_unix_seconds(i64::try_from(image.stored_at).unwrap_or_default());
    for name in names {
        table.row([
            name,
            image.id.short().to_owned(),
            image.platform.to_string(),
            format!("{} ago", show_span(Timestamp::now().since(stored))),
            show_bytes(image.size_bytes),
        ]);
    }
}
