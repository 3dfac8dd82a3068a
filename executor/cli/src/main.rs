//! Run container images as isolated tasks, without a daemon.
//!
//! `main` reads arguments, calls the executor, prints, and turns the outcome into an exit code. One verb a file in
//! `commands`; what they share in printing is in `table`, `escape` and `progress`, in streaming in `streams` and `terminal`.

mod args;
mod commands;
mod escape;
mod failure;
mod progress;
mod streams;
mod table;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::Failure;

fn main() -> ExitCode {
    // This program is also the parent of every task that it launches: then this does not return.
    cofferdam_executor::init();
    end_on_broken_pipe();
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
    match outcome {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// A reader that has seen enough (`cofferdam ps | head`) ends this program quietly. The signal that does this for others
/// stays ignored here, because attached streams have sockets too; std's printing panics instead.
fn end_on_broken_pipe() {
    const BY_SIGPIPE: i32 = 128 + 13;
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to std") && text.contains("Broken pipe") {
            std::process::exit(BY_SIGPIPE);
        }
        usual(panic);
    }));
}

/// Help and version are answers; everything else is our failure, with the exit code that Docker gives it.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody to tell if even this cannot be printed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(failure::OURS) } else { ExitCode::SUCCESS }
}
