//! `cofferdam pull`.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use cofferdam_executor::{Artifacts, Cancel, Executor, Image, ImageRequest, PullEvent, PullWhen};
use tokio::signal::unix::{SignalKind, signal};

use super::registry::{FetchArgs, TellArgs};
use super::{Outcome, print_json};
use crate::args::Format;
use crate::failure::Failure;
use crate::progress::Progress;

/// How long a pull that is interrupted may take to put things in order. What is left is left to the next command.
const INTERRUPT_LIMIT: Duration = Duration::from_millis(150);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    #[command(flatten)]
    tell: TellArgs,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Every tag of the repository, one after another; the name is then without one
    #[arg(short, long)]
    all_tags: bool,
    /// The image
    image: String,
}

pub(crate) async fn run(args: Args, executor: &Executor) -> Outcome {
    if !args.all_tags {
        pull(&args, args.image.clone(), executor).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = Cancel::new();
    let config = args.fetch.over(executor.pull_config());
    let tags = tokio::select! {
        tags = executor.tags(args.image.clone(), Some(config), cancel.clone()) => tags?,
        () = interrupted() => {
            cancel.cancel();
            return Err(Failure::interrupted());
        }
    };
    let mut code = ExitCode::SUCCESS;
    for tag in tags {
        match pull(&args, tag.to_string(), executor).await {
            Ok(()) => {}
            Err(failure) if failure.is_interrupted() => return Err(failure),
            // The others are pulled all the same.
            Err(failure) => code = failure.while_doing(&tag.to_string()).report(),
        }
    }
    Ok(code)
}

/// Pulls one image and prints its digest.
async fn pull(args: &Args, image: String, executor: &Executor) -> Result<(), Failure> {
    let request = ImageRequest {
        when: PullWhen::Always,
        platform: args.platform.clone(),
        artifacts: Artifacts::Taken,
        pull: Some(args.fetch.over(executor.pull_config())),
        ..ImageRequest::new(image)
    };
    if args.tell.format == Format::Json {
        // An event that cannot be printed was for a reader who is gone.
        fetch(executor, request, |event| drop(print_json(&event))).await?;
        return Ok(());
    }
    let progress = Progress::new(args.tell.quiet);
    let image = fetch(executor, request, move |event| progress.tell(&event)).await?;
    println!("{}", image.digest);
    Ok(())
}

/// Has an image, unless somebody interrupts: then what has arrived of it stays, and the next pull goes on from there.
pub(crate) async fn fetch(
    executor: &Executor,
    request: ImageRequest,
    progress: impl Fn(PullEvent) + Send + Sync + 'static,
) -> Result<Image, Failure> {
    let cancel = request.cancel.clone();
    let mut pulling = pin!(executor.image(request, progress));
    tokio::select! {
        image = &mut pulling => Ok(image?),
        () = interrupted() => {
            cancel.cancel();
            // Whether it ended in time or not, this command ends now.
            drop(tokio::time::timeout(INTERRUPT_LIMIT, pulling).await);
            Err(Failure::interrupted())
        }
    }
}

/// Waits for Ctrl-C or a request to end.
pub(crate) async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end this program by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
