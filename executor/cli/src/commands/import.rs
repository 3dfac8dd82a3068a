//! `cofferdam import` and `cofferdam load`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cofferdam_executor::{Executor, ImageRef, ImportOptions, Naming, Taken};

use super::Outcome;
use crate::escape::escape_line;
use crate::failure::Failure;
use crate::progress::Progress;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name for the image
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// Take the names in the archive, as load does: those that stand for other images stand for these from then on
    #[arg(long)]
    replace: bool,
    /// Where from, as docker has it
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Archive, or directory with an OCI layout; - for standard input, which is also read if nothing is said
    source: Option<PathBuf>,
}

/// Which names images get for which nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// None.
    OnlyGiven,
    /// Those in the archive.
    Archive,
}

pub(crate) fn run(args: &Args, names: Names, executor: &Executor) -> Outcome {
    let naming = match &args.name {
        Some(name) => Naming::As(ImageRef::parse(name).map_err(|error| Failure::plain(error.to_string()))?),
        None if names == Names::Archive || args.replace => Naming::FromArchive(Taken::Replaced),
        None => Naming::Unnamed,
    };
    let options = ImportOptions { naming, ..ImportOptions::default() };
    let store = executor.images()?;
    let progress = Progress::new(false);
    let tell = |event| progress.tell(&event);
    let source = args.input.as_deref().or(args.source.as_deref()).unwrap_or(Path::new("-"));
    let imported = if source == Path::new("-") {
        store.import(&mut std::io::stdin().lock(), &options, &tell)
    } else {
        store.import_path(source, &options, &tell)
    };
    for image in imported.map_err(|error| Failure::plain(error.to_string()))? {
        let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
        println!("{}", escape_line(format!("{} {}", image.id, names.join(" ")).trim_end()));
    }
    Ok(ExitCode::SUCCESS)
}
