//! `cofferdam stop`.

use std::time::Duration;

use cofferdam_executor::Executor;

use super::{Outcome, for_each};
use crate::escape::escape_line;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds between the stop signal and SIGKILL
    #[arg(short, long = "time", visible_alias = "timeout", value_name = "SECONDS")]
    time: Option<u64>,
    /// Tasks
    #[arg(required = true)]
    tasks: Vec<String>,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    for_each(&args.tasks, async |name| {
        executor.task(name).await?.stop(args.time.map(Duration::from_secs)).await?;
        println!("{}", escape_line(name));
        Ok(())
    })
    .await
}
