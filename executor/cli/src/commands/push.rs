//! `cofferdam push`.

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use cofferdam_executor::{Cancel, Executor, PushEvent, PushRequest, PushSource, Pushed};

use super::pull::interrupted;
use super::registry::{RegistryArgs, TellArgs};
use super::{Outcome, print_json};
use crate::args::Format;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory in the OCI image layout to push from, instead of the store; the image is then its name there
    #[arg(long, value_name = "DIR")]
    layout: Option<PathBuf>,
    #[command(flatten)]
    tell: TellArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The image
    image: String,
    /// Where to; by default the image's own name
    destination: Option<String>,
}

pub(crate) async fn run(args: Args, executor: &Executor) -> Outcome {
    let target = match (&args.destination, &args.layout) {
        (Some(destination), _) => destination.clone(),
        (None, None) => args.image.clone(),
        (None, Some(_)) => return Err(Failure::plain("say where to push the layout's image")),
    };
    let cancel = Cancel::new();
    let request = PushRequest {
        source: match args.layout {
            Some(path) => PushSource::Layout { path, name: Some(args.image.clone()) },
            None => PushSource::Store(args.image.clone()),
        },
        target,
        pull: Some(args.registry.over(executor.pull_config())),
        cancel: cancel.clone(),
    };
    let (format, quiet) = (args.tell.format, args.tell.quiet);
    let mut pushing = pin!(executor.push(request, move |event| tell(&event, format, quiet)));
    let digest = tokio::select! {
        digest = &mut pushing => digest?,
        () = interrupted() => {
            cancel.cancel();
            return Err(Failure::interrupted());
        }
    };
    if format == Format::Table {
        println!("{digest}");
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(event: &PushEvent, format: Format, quiet: bool) {
    match event {
        // An event that cannot be printed was for a reader who is gone.
        event if format == Format::Json => drop(print_json(event)),
        PushEvent::Blob { digest, how, .. } if !quiet => {
            let what = match how {
                Pushed::Existed => "already there",
                Pushed::Mounted => "mounted from another repository",
                Pushed::Sent => "sent",
            };
            eprintln!("{}: {what}", digest.short());
        }
        _ => {}
    }
}
