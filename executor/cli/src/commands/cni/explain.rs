//! `cofferdam cni explain`: what each plugin would be sent, byte for byte, and why in that version.

use serde_json::value::RawValue;

use super::request::{NetworkArgs, Request, failed, invalid, show};
use crate::args::{Format, PlaceArgs};
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Take this for the result of the next plugin; may be given several times, in their order
    #[arg(long, value_name = "JSON")]
    result: Vec<String>,
    /// How to print: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(crate) fn run(args: &Args, places: &PlaceArgs) -> Result<(), Failure> {
    let request = Request::new(&args.network, places)?;
    let attachment = request.attachment("/run/netns/(any)")?;
    let raw = |text: &String| RawValue::from_string(text.clone());
    let results: Result<Vec<_>, _> = args.result.iter().map(raw).collect();
    let results = results.map_err(|error| invalid(format!("a result is not JSON: {error}")))?;
    let explained = request.caller.explain(&request.list, &attachment, &results).map_err(failed)?;
    if args.format == Format::Table {
        let (name, version) = (&request.list.name, explained.version);
        let allowed: Vec<_> = request.list.versions.iter().map(ToString::to_string).collect();
        println!("# network {name}: version {version}; the configuration allows {}", allowed.join(", "));
        request.list.warnings.iter().for_each(|odd| println!("# {odd}"));
    }
    for (number, plugin) in explained.plugins.iter().enumerate() {
        if args.format == Format::Table {
            println!("# {}: {} by {}", number + 1, plugin.kind, show(&plugin.implementation));
        }
        println!("{}", plugin.input);
    }
    Ok(())
}
