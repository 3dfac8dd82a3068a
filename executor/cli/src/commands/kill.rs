//! `cofferdam kill`.

use cofferdam_executor::{Executor, Signal};

use super::{Outcome, for_each};
use crate::escape::escape_line;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which signal
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    /// Tasks
    #[arg(required = true)]
    tasks: Vec<String>,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let signal = Signal::parse(&args.signal).map_err(|error| Failure::plain(error.to_string()))?;
    for_each(&args.tasks, async |name| {
        executor.task(name).await?.kill(signal).await?;
        println!("{}", escape_line(name));
        Ok(())
    })
    .await
}
