//! `cofferdam wait`.

use cofferdam_executor::Executor;

use super::{Outcome, for_each};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Tasks
    #[arg(required = true)]
    tasks: Vec<String>,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    for_each(&args.tasks, async |name| {
        let status = executor.task(name).await?.wait().await?;
        println!("{}", status.shell_code());
        Ok(())
    })
    .await
}
