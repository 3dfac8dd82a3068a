//! `cofferdam rm`.

use cofferdam_executor::{Executor, Force};

use super::{Outcome, for_each};
use crate::escape::escape_line;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kill it first if it lives
    #[arg(short, long)]
    force: bool,
    /// Tasks
    #[arg(required = true)]
    tasks: Vec<String>,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let force = if args.force { Force::Kill } else { Force::No };
    for_each(&args.tasks, async |name| {
        executor.task(name).await?.remove(force).await?;
        println!("{}", escape_line(name));
        Ok(())
    })
    .await
}
