//! OCI runtime: a drop-in for runc. A thin main: arguments in, one call into `cofferdam-runtime`, exit code out.

mod arguments;
mod commands;
mod log;
mod update;
mod wait;

use arguments::{Command, Invocation};

fn main() {
    let invocation = match arguments::parse(lexopt::Parser::from_env()) {
        Ok(invocation) => invocation,
        Err(error) => {
            eprintln!("cofferdam-oci: {error}");
            std::process::exit(1);
        }
    };
    let log = log::Log::new(&invocation.global);
    std::process::exit(match enter(invocation, &log) {
        Ok(status) => status,
        Err((status, error)) => {
            log.error(&error);
            status
        }
    });
}

fn enter(invocation: Invocation, log: &log::Log) -> Result<i32, (i32, String)> {
    if matches!(invocation.command, Command::Create(_) | Command::Run(_) | Command::Exec(_)) {
        // What enters a container must not be a file that the container could overwrite (CVE-2019-5736).
        cofferdam_runtime::become_sealed().map_err(|error| (1, error.to_string()))?;
    }
    commands::run(invocation, log)
}
