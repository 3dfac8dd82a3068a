//! `cofferdam cni`: the workbench for networks and for those who write plugins.
//!
//! The verbs of the specification take what `cnitool` takes: NETCONFPATH, CNI_PATH, CNI_ARGS, CAP_ARGS and CNI_IFNAME, and end
//! with 0 or 1. Their attachments are their own: `gc` here never touches those of tasks.

mod explain;
mod request;
mod session;
mod supervised;
mod test;

use std::process::ExitCode;

use cofferdam_cni::{ContainerId, IfName, NetnsFate, NetworkName, Valid};

use self::request::{NetworkArgs, Request, failed, invalid, named};
use super::Outcome;
use crate::args::PlaceArgs;
use crate::failure::Failure;
use crate::table::Table;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Attach a network namespace to a network and print the result
    Add(AttachmentArgs),
    /// Compare an attachment with what add made
    Check(AttachmentArgs),
    /// Detach a network namespace from a network
    Del(DelArgs),
    /// Delete what belongs to no valid attachment of a network
    Gc(GcArgs),
    /// Ask the plugins of a network whether they could serve an add
    Status(NetworkArgs),
    /// Ask the plugins of a network which versions they speak
    Version(NetworkArgs),
    /// Print what each plugin of a network would be sent with add
    Explain(explain::Args),
    /// Make a network namespace, attach it, check it, run a command in it, detach and remove it, and tell every call
    Run(session::Args),
    /// Test a plugin for conformance with the specification
    Test(test::Args),
}

/// A network and a network namespace.
#[derive(Debug, clap::Args)]
pub(crate) struct AttachmentArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Network namespace: a path, or a name that `ip netns` knows
    #[arg(value_name = "NETNS")]
    netns: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DelArgs {
    #[command(flatten)]
    attachment: AttachmentArgs,
    /// Forget the attachment if its plugins cannot delete it
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// An attachment that is in use; may be given several times
    #[arg(long, value_name = "CONTAINER/INTERFACE", conflicts_with = "all")]
    valid: Vec<String>,
    /// None is in use: everything goes
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(verb: &Verb, places: &PlaceArgs) -> Outcome {
    match verb {
        Verb::Add(args) => add(args, places)?,
        Verb::Check(args) => {
            let request = Request::new(&args.network, places)?;
            let attachment = request.attachment(&args.netns)?;
            let checked =
                request.caller.check_with(&request.list, &attachment.container, &attachment.if_name);
            checked.map_err(failed)?;
        }
        Verb::Del(args) => del(args, places)?,
        Verb::Gc(args) => {
            let valid = valid(args)?;
            let request = Request::new(&args.network, places)?;
            request.caller.gc(&request.list, &valid).map_err(failed)?;
        }
        Verb::Status(args) => {
            let request = Request::new(args, places)?;
            request.caller.status(&request.list).map_err(failed)?;
        }
        Verb::Version(args) => version(args, places)?,
        Verb::Explain(args) => explain::run(args, places)?,
        Verb::Run(args) => return session::run(args, places),
        Verb::Test(args) => return test::run(args, places),
    }
    Ok(ExitCode::SUCCESS)
}

fn add(args: &AttachmentArgs, places: &PlaceArgs) -> Result<(), Failure> {
    let request = Request::new(&args.network, places)?;
    let attachment = request.attachment(&args.netns)?;
    let result = request.caller.attach(&request.list, &attachment).map_err(failed)?;
    let text = result.to_text(request.list.version).map_err(|error| invalid(error.to_string()))?;
    println!("{}", request::pretty(&text));
    Ok(())
}

fn del(args: &DelArgs, places: &PlaceArgs) -> Result<(), Failure> {
    let AttachmentArgs { network, netns } = &args.attachment;
    let (done, caller, attachment, name) = match Request::new(network, places) {
        Ok(request) => {
            let attachment = request.attachment(netns)?;
            let done = request.caller.detach_with(&request.list, &attachment, NetnsFate::Stays);
            (done, request.caller, attachment, request.list.name)
        }
        // A network whose configuration is gone is detached by what is on record.
        Err(unknown) => {
            let name = NetworkName::parse(network.name()).map_err(|_| unknown)?;
            let caller = request::caller(network, places)?;
            let attachment = network.attachment(netns)?;
            let done = caller.detach(&name, &attachment.container, &attachment.if_name, NetnsFate::Stays);
            (done, caller, attachment, name)
        }
    };
    match done {
        Err(error) if args.force => {
            failed(error).report();
            caller.forget(&name, &attachment.container, &attachment.if_name).map_err(failed)
        }
        done => done.map_err(failed),
    }
}

fn valid(args: &GcArgs) -> Result<Valid, Failure> {
    if args.all {
        return Ok(Valid::Nothing);
    }
    if args.valid.is_empty() {
        return Err(invalid("say which attachments are in use with --valid, or --all if none is".to_owned()));
    }
    let one = |text: &String| {
        let (container, if_name) = text.split_once('/').unwrap_or((text, "eth0"));
        Ok((named(ContainerId::parse(container))?, named(IfName::parse(if_name))?))
    };
    Ok(Valid::Only(args.valid.iter().map(one).collect::<Result<_, Failure>>()?))
}

fn version(args: &NetworkArgs, places: &PlaceArgs) -> Result<(), Failure> {
    let request = Request::new(args, places)?;
    let facts = request.caller.validate(&request.list).map_err(failed)?;
    let mut table = Table::new(&["PLUGIN", "DONE BY", "VERSIONS"]);
    for plugin in facts {
        let versions: Vec<_> = plugin.versions.iter().map(ToString::to_string).collect();
        table.row([plugin.kind, request::show(&plugin.implementation), versions.join(" ")]);
    }
    table.print(true);
    Ok(())
}
