//! Run container images as isolated tasks, without a daemon.
//!
//! `main` reads arguments, calls the executor, prints, and turns the outcome into an exit code. One verb a file in
//! `commands`; what they share in printing is in `table`, `template`, `escape` and `progress`, in streaming in `streams` and `terminal`.

mod args;
mod commands;
mod config;
mod escape;
mod failure;
mod progress;
mod streams;
mod table;
mod template;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::Failure;

fn main() -> ExitCode {
    // This program is also the parent of every task that it launches: then this does not return.
    cofferdam_executor::init();
    cofferdam_runtime::foreground::end_on_broken_pipe();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::plain(format!("cannot start: {error}")).report(),
    };
    let outcome = runtime.block_on(commands::run(cli));
    // A thread may still sit in a read of standard input, which nothing can interrupt.
    runtime.shutdown_background();
    cofferdam_cni_plugins::finish_announcements();
    match outcome {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Help and version are answers; everything else is our failure, with the exit code that Docker gives it.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody to tell if even this cannot be printed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(failure::OURS) } else { ExitCode::SUCCESS }
}
