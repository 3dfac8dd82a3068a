//! Project automation: `cargo xtask ci | test | bench | vm | golden | tidy`.
//!
//! `ci` is the whole gate; everything else is one of its parts, or a shorter way to run one. Read [`ci`] first: it
//! is the ordered list of phases. `packages` holds what the gate installs and why, `suite` runs tests and counts
//! them, `leftovers` looks for temporary files that they forgot, `tidy` judges the source tree, `vm` runs the
//! privileged suites on a pure cgroup v2 host.

mod bench;
mod ci;
mod command;
mod golden;
mod leftovers;
mod packages;
mod suite;
mod tally;
mod tidy;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;

use crate::workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  ci [--only PHASE] [--skip PHASE]   the whole gate; exits non-zero on any failure
     [--full]                        and the tests that are too slow for every merge
  test [-p CRATE] [ARG…]             quick tests, no root needed; ARGs go to the test runner
  golden [--bless]                   compare (or rewrite) the golden plans
  tidy                               judge the tree: invariants (failures) and figures
  vm [--only WORD | --shell]         the privileged suites in a virtual machine with pure cgroup v2
  bench NAME [ARG…]                  one bench, release build
";

fn main() -> ExitCode {
    match dispatch(lexopt::Parser::from_env()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(mut arguments: lexopt::Parser) -> Result<ExitCode> {
    let command = match arguments.next()? {
        Some(Value(command)) => command.string()?,
        Some(Long("help") | Short('h')) => {
            print!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        _ => bail!("no command given\n\n{USAGE}"),
    };
    let workspace = Workspace::open().context("reading the workspace")?;
    match command.as_str() {
        "ci" => {
            let choice = ci_choice(arguments)?;
            ci::run(&workspace.with(choice.extent), &choice)
        }
        "test" => suite::quick(&workspace, &rest(arguments)?),
        "golden" => golden::run(&workspace, is_bless(arguments)?),
        "tidy" => tidy::run(&workspace),
        "vm" => vm::run(&workspace, &vm_session(arguments)?),
        "bench" => bench::run(&workspace, &rest(arguments)?),
        other => bail!("unknown command {other:?}\n\n{USAGE}"),
    }
}

fn ci_choice(mut arguments: lexopt::Parser) -> Result<ci::Choice> {
    let mut choice = ci::Choice::default();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("only") => choice.only.push(arguments.value()?.string()?),
            Long("skip") => choice.skip.push(arguments.value()?.string()?),
            Long("full") => choice.extent = ci::Extent::Full,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(choice)
}

fn is_bless(mut arguments: lexopt::Parser) -> Result<golden::Mode> {
    let mut mode = golden::Mode::Compare;
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("bless") => mode = golden::Mode::Bless,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(mode)
}

fn vm_session(mut arguments: lexopt::Parser) -> Result<vm::Session> {
    let mut only = Vec::new();
    let mut session = None;
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("only") => only.push(arguments.value()?.string()?),
            Long("shell") => session = Some(vm::Session::Shell),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(session.unwrap_or(vm::Session::Suites(only)))
}

fn rest(mut arguments: lexopt::Parser) -> Result<Vec<OsString>> {
    Ok(arguments.raw_args()?.collect())
}
