//! `cofferdam doctor`.

use std::process::ExitCode;

use cofferdam_executor::doctor::{self, State};

use super::{Outcome, print_json};
use crate::args::{Format, PlaceArgs};
use crate::escape::escape;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(crate) fn run(args: &Args, places: &PlaceArgs) -> Outcome {
    let checks = doctor::examine(&places.root, &places.state);
    let mut area = "";
    for check in &checks {
        if args.format == Format::Json {
            print_json(check)?;
            continue;
        }
        if check.area != area {
            area = check.area;
            println!("\n{area}");
        }
        let mark = match check.state {
            State::Works => "ok      ",
            State::Degraded => "limited ",
            State::Missing => "missing ",
        };
        println!("  {mark}{}", escape(&check.to_string()).replace('\n', "\n          "));
    }
    Ok(if doctor::is_usable(&checks) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
