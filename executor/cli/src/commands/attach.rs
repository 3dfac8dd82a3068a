//! `cofferdam attach`.

use std::process::ExitCode;

use cofferdam_executor::{AttachStreams, Executor};

use super::Outcome;
use crate::failure::{self, Failure};
use crate::streams::{self, End, Wiring};
use crate::terminal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Watch only
    #[arg(long)]
    no_stdin: bool,
    /// Task
    task: String,
}

pub(crate) async fn run(args: &Args, executor: &Executor) -> Outcome {
    let task = executor.task(&args.task).await?;
    let spec = task.info().await?.record.spec;
    let stdin = spec.stdin && !args.no_stdin;
    let size = if spec.terminal { terminal::size() } else { None };
    let attachment = task.attach(AttachStreams { stdin, output: true, size }).await?;
    let wiring = Wiring { stdin, terminal: spec.terminal && terminal::is_interactive() };
    match streams::connect(attachment, wiring, Some(&task)).await? {
        End::Over(status) => Ok(failure::exit_code(status.shell_code())),
        End::Detached | End::Ended(_) => Ok(ExitCode::SUCCESS),
        End::Lost => Err(Failure::plain("the task's supervisor went away")),
    }
}
