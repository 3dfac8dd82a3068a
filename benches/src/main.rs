//! `cofferdam-benches launch`, `cni` …: see the library's documentation.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cofferdam_benches::{cni, contestant::Contestant, launch, pull, worker};
use lexopt::prelude::*;

/// What a launch in this process allocates is counted.
#[global_allocator]
static ALLOCATOR: cofferdam_linux::allocations::Counted = cofferdam_linux::allocations::Counted;

const USAGE: &str = "\
usage: cofferdam-benches launch|lifecycle|exec [--rounds N] [--only NAME]… [--record]
       cofferdam-benches pull [--rounds N] [--only IMAGE|PULLER]… [--record] [--check]
       cofferdam-benches pull-once IMAGE STORE  (used by tests: one pull, to be traced)
       cofferdam-benches cni [--rounds N] [--record]
       cofferdam-benches cni-once WHO [PATH]    (used by cni: one attachment, to be traced)
       cofferdam-benches worker NAME BUNDLE     (used by launch: one launch for every line on standard input)
       cofferdam-benches once NAME BUNDLE       (used by launch: one launch, to be traced)
";

fn main() -> ExitCode {
    match dispatch(lexopt::Parser::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferdam-benches: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(mut arguments: lexopt::Parser) -> Result<()> {
    let Some(Value(verb)) = arguments.next()? else { bail!("no command given\n\n{USAGE}") };
    match verb.string()?.as_str() {
        "worker" => {
            let (contestant, bundle) = subject(arguments)?;
            worker::serve(contestant, &bundle)
        }
        "once" => {
            let (contestant, bundle) = subject(arguments)?;
            worker::once(contestant, &bundle)
        }
        "pull" => {
            let mut said = pull::Options::usual();
            let check = Some(&mut said.check);
            options(arguments, &mut said.rounds, Some(&mut said.only), &mut said.record, check)?;
            pull::run(&said)
        }
        "pull-once" => {
            let image = arguments.value().context("no image named")?.string()?;
            pull::once(&image, &PathBuf::from(arguments.value().context("no store given")?))
        }
        "cni" => {
            let mut said = cni::Options::default();
            options(arguments, &mut said.rounds, None, &mut said.record, None)?;
            cni::run(&said)
        }
        "cni-once" => {
            let who = arguments.value().context("nobody named")?.string()?;
            let path = arguments.value().ok().map(PathBuf::from);
            cni::once(&cni::host::Contestant::of(&who, path).context("nobody of that name")?)
        }
        other => match launch::Options::of(other) {
            Some(mut said) => {
                options(arguments, &mut said.rounds, Some(&mut said.only), &mut said.record, None)?;
                launch::run(&said)
            }
            None => bail!("unknown command {other:?}\n\n{USAGE}"),
        },
    }
}

/// What every group is told the same way; `only` is for those that can leave somebody out, `check` for those that judge.
fn options(
    mut arguments: lexopt::Parser,
    rounds: &mut u32,
    mut only: Option<&mut Vec<String>>,
    record: &mut launch::Record,
    mut check: Option<&mut bool>,
) -> Result<()> {
    while let Some(argument) = arguments.next()? {
        match (argument, &mut only, &mut check) {
            (Long("rounds"), ..) => *rounds = arguments.value()?.parse()?,
            (Long("only"), Some(only), _) => only.push(arguments.value()?.string()?),
            (Long("record"), ..) => *record = launch::Record::Yes,
            (Long("check"), _, Some(check)) => **check = true,
            (other, ..) => return Err(other.unexpected().into()),
        }
    }
    Ok(())
}

fn subject(mut arguments: lexopt::Parser) -> Result<(Contestant, PathBuf)> {
    let name = arguments.value().context("no contestant named")?.string()?;
    let bundle = PathBuf::from(arguments.value().context("no bundle given")?);
    let contestant = Contestant::find(&name).with_context(|| format!("no contestant {name:?}"))?;
    Ok((contestant, bundle))
}
