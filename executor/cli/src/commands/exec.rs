//! `cofferdam exec`.

use std::process::ExitCode;

use cofferdam_executor::request::env;
use cofferdam_executor::{AttachStreams, ExecSpec, Executor};

use super::Outcome;
use crate::failure::{self, Failure};
use crate::streams::{self, End, Wiring};
use crate::terminal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Send it our standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User by name or number, and group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Task
    task: String,
    /// Command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn run(args: Args, executor: &Executor) -> Outcome {
    let task = executor.task(&args.task).await?;
    let mut variables = Vec::new();
    for text in &args.env {
        variables.extend(env::parse_variable(text, |name| std::env::var(name).ok())?);
    }
    let spec = ExecSpec {
        command: args.command,
        env: variables,
        workdir: args.workdir,
        user: args.user,
        terminal: args.tty,
    };
    if args.detach {
        task.exec_detached(spec).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let size = if args.tty { terminal::size() } else { None };
    let attachment = task.exec(spec, AttachStreams { stdin: args.interactive, output: true, size }).await?;
    let wiring = Wiring { stdin: args.interactive, terminal: args.tty };
    match streams::connect(attachment, wiring, None).await? {
        End::Ended(exit) => Ok(failure::exit_code(exit.shell_code())),
        End::Detached => Ok(ExitCode::SUCCESS),
        // The task ended, and everything in it with it: as if killed.
        End::Over(_) => Ok(failure::exit_code(137)),
        End::Lost => Err(Failure::plain("the task's supervisor went away")),
    }
}
