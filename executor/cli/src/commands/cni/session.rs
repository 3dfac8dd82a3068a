//! `cofferdam cni run`: one attachment from its beginning to its end, with everything told.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use cofferdam_cni::{Attachment, NetnsFate};
use cofferdam_cni_plugins::bring_loopback_up;
use cofferdam_linux::namespace;

use super::request::{NetworkArgs, Request, failed, invalid, pretty};
use crate::args::PlaceArgs;
use crate::commands::Outcome;
use crate::failure::{self, Failure};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    network: NetworkArgs,
    /// Command to run in the namespace; its exit code is ours
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args, places: &PlaceArgs) -> Outcome {
    let request = Request::telling(&args.network, places)?;
    let netns = Netns::make(&places.state.join("cni/netns"))?;
    let attachment = request.attachment(&netns.path.display().to_string())?;
    let result = request.caller.attach(&request.list, &attachment).map_err(failed)?;
    let used = result
        .to_text(request.list.version)
        .map_err(|error| invalid(error.to_string()))
        .inspect(|text| println!("{}", pretty(text)))
        .and_then(|_| use_it(&request, &attachment, &netns, &args.command));
    let (network, fate) = (&request.list.name, NetnsFate::Stays);
    let gone = request.caller.detach(network, &attachment.container, &attachment.if_name, fate);
    let status = used?;
    gone.map_err(failed)?;
    Ok(failure::exit_code(status.code().unwrap_or(128 + status.signal().unwrap_or(0))))
}

fn use_it(
    request: &Request<'_>,
    attachment: &Attachment,
    netns: &Netns,
    command: &[String],
) -> Result<ExitStatus, Failure> {
    let checked = request.caller.check_with(&request.list, &attachment.container, &attachment.if_name);
    match checked {
        // There is nothing to check in an old version.
        Err(cofferdam_cni::Error::VerbUnsupported { .. }) => {}
        checked => checked.map_err(failed)?,
    }
    let Some((program, arguments)) = command.split_first() else { return Ok(ExitStatus::default()) };
    let inside = || Command::new(program).args(arguments).status();
    namespace::with_netns(netns.fd.as_fd(), inside)
        .map_err(|errno| invalid(format!("cannot enter the network namespace: {errno}")))?
        .map_err(|error| invalid(format!("cannot run {program:?}: {error}")))
}

/// A network namespace that ends with this value.
struct Netns {
    path: PathBuf,
    fd: std::os::fd::OwnedFd,
}

impl Netns {
    fn make(folder: &Path) -> Result<Netns, Failure> {
        let path = folder.join(std::process::id().to_string());
        let wrong = |what: &str, why: &dyn std::fmt::Display| {
            invalid(format!("cannot {what} {}: {why}", path.display()))
        };
        std::fs::create_dir_all(folder).map_err(|error| wrong("make the folder of", &error))?;
        namespace::create_pinned_netns(&path).map_err(|errno| wrong("make the network namespace", &errno))?;
        let opened = namespace::open_netns(&path).inspect_err(|_| {
            let _ = namespace::remove_pinned_netns(&path);
        });
        let fd = opened.map_err(|errno| wrong("open the network namespace", &errno))?;
        let netns = Netns { path: path.clone(), fd };
        bring_loopback_up(netns.fd.as_fd()).map_err(|error| wrong("bring up the loopback of", &error))?;
        Ok(netns)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A pin that stays is found by whoever looks for it; the failure that led here is the one to tell.
        let _ = namespace::remove_pinned_netns(&self.path);
    }
}
