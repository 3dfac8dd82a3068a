//! `cofferdam network`.

use std::process::ExitCode;

use cofferdam_executor::Executor;

use super::{Outcome, print_json};
use crate::args::Format;
use crate::table::Table;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List them
    Ls {
        /// How to print
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
}

pub(crate) async fn run(verb: &Verb, executor: &Executor) -> Outcome {
    let Verb::Ls { format } = verb;
    let mut table = Table::new(&["NAME", "PLUGINS", "FILE"]);
    for network in executor.networks().await? {
        if *format == Format::Json {
            print_json(&network)?;
            continue;
        }
        let file = network.file.map_or_else(|| "(built in)".to_owned(), |file| file.display().to_string());
        table.row([network.name, network.plugins.join(" "), file]);
    }
    if *format == Format::Table {
        table.print();
    }
    Ok(ExitCode::SUCCESS)
}
