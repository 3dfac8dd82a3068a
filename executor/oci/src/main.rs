//! OCI runtime: a drop-in for runc. A thin main: arguments in, one call into `cofferdam-runtime`, exit code out.
//!
//! Read first: [`table`] (every command and option), [`commands`] (one file a family of commands).

// Started by the C library and not by std, see `cofferdam_linux::start`; a test is started by its harness.
#![cfg_attr(not(test), no_main)]

mod arguments;
mod commands;
mod failed;
mod foreground;
mod global;
mod help;
mod log;
mod pidfd_socket;
mod root;
mod table;

use failed::Failed;
use global::Global;
use log::Log;
use table::Command;

#[cfg(not(test))]
cofferdam_runtime::main!(run);

#[cfg(test)]
fn main() {
    run();
}

fn run() {
    cofferdam_runtime::foreground::end_on_broken_pipe();
    cofferdam_runtime::foreground::expect_children();
    let mut parser = lexopt::Parser::from_env();
    let (said, name) = match arguments::globals(&mut parser) {
        Ok(read) => read,
        Err(failed) => std::process::exit(report(&Log::default(), &failed, help::program)),
    };
    let result = Global::of(&said).and_then(|global| Log::open(&global).map(|log| (global, log)));
    std::process::exit(match result {
        Ok((global, log)) => enter(parser, &global, name.as_deref(), &log),
        Err(failed) => report(&Log::default(), &failed, help::program),
    });
}

/// Exit status of a command.
fn enter(mut parser: lexopt::Parser, global: &Global, name: Option<&str>, log: &Log) -> i32 {
    let command = match name {
        _ if global.version => {
            print!("{}", commands::version());
            return 0;
        }
        Some("help") | None => {
            let topic = parser.value().ok().and_then(|topic| Command::find(&topic.to_string_lossy()));
            print!("{}", topic.map_or_else(help::program, help::command));
            return 0;
        }
        _ if global.help => {
            print!("{}", help::program());
            return 0;
        }
        Some(name) => match Command::find(name) {
            Some(command) => command,
            None => return report(log, &Failed::no_such_command(name), help::program),
        },
    };
    let result = arguments::command(&mut parser, command).and_then(|said| {
        if said.has("help") {
            print!("{}", help::command(command));
            return Ok(0);
        }
        log.debug(&format!("{} {}", command.name, said.words.join(" ")));
        (command.run)(&commands::Call { global, said: &said, log })
    });
    result.unwrap_or_else(|failed| report(log, &failed, || help::command(command)))
}

/// Tells a failure, and returns its exit status.
fn report(log: &Log, failed: &Failed, usage: impl FnOnce() -> String) -> i32 {
    if failed.usage {
        println!("Incorrect Usage. {}\n\n{}", failed.words, usage());
    }
    log.error(&failed.words);
    failed.status
}
