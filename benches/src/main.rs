//! `cofferdam-benches launch`, `cni` …: see the library's documentation.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use cofferdam_benches::{cni, contestant::Contestant, launch, pull, worker};
use lexopt::prelude::*;

const USAGE: &str = "\
usage: cofferdam-benches launch|lifecycle|exec [--rounds N] [--only NAME]… [--record]
       cofferdam-benches pull [--rounds N] [--only IMAGE|PULLER]… [--record]
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
        "pull" => pull::run(&pull_options(arguments)?),
        "cni" => cni::run(&cni_options(arguments)?),
        "cni-once" => {
            let who = arguments.value().context("nobody named")?.string()?;
            let path = arguments.value().ok().map(PathBuf::from);
            cni::once(&cni::host::Contestant::of(&who, path).context("nobody of that name")?)
        }
        other => match launch::Options::of(other) {
            Some(usual) => launch::run(&options(usual, arguments)?),
            None => bail!("unknown command {other:?}\n\n{USAGE}"),
        },
    }
}

fn options(mut options: launch::Options, mut arguments: lexopt::Parser) -> Result<launch::Options> {
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("rounds") => options.rounds = arguments.value()?.parse()?,
            Long("only") => options.only.push(arguments.value()?.string()?),
            Long("record") => options.record = launch::Record::Yes,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn pull_options(mut arguments: lexopt::Parser) -> Result<pull::Options> {
    let mut options = pull::Options::usual();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("rounds") => options.rounds = arguments.value()?.parse()?,
            Long("only") => options.only.push(arguments.value()?.string()?),
            Long("record") => options.record = launch::Record::Yes,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn cni_options(mut arguments: lexopt::Parser) -> Result<cni::Options> {
    let mut options = cni::Options::default();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("rounds") => options.rounds = arguments.value()?.parse()?,
            Long("record") => options.record = launch::Record::Yes,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn subject(mut arguments: lexopt::Parser) -> Result<(Contestant, PathBuf)> {
    let name = arguments.value().context("no contestant named")?.string()?;
    let bundle = PathBuf::from(arguments.value().context("no bundle given")?);
    let contestant = Contestant::find(&name).with_context(|| format!("no contestant {name:?}"))?;
    Ok((contestant, bundle))
}
