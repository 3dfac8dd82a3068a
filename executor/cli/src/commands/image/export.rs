//! `cofferdam image export`, also `cofferdam image save`.

use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cofferdam_executor::{Executor, Export, ExportOptions, ImageLayout, ImageRef, Store};

use super::find;
use crate::commands::Outcome;
use crate::failure::Failure;

/// Into what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Into {
    /// An OCI image layout as one archive
    OciArchive,
    /// An OCI image layout in a directory
    OciDir,
    /// What docker save writes
    DockerArchive,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File or directory; - for standard output
    #[arg(short, long, value_name = "PATH", default_value = "-")]
    output: PathBuf,
    /// Into what
    #[arg(long, value_enum, default_value = "oci-archive")]
    format: Into,
    /// Images; those given by id go out without names
    #[arg(required = true)]
    images: Vec<String>,
}

pub(crate) fn run(args: &Args, executor: &Executor) -> Outcome {
    let store = executor.images()?;
    let exports = exports(&store, &args.images)?;
    let layout = match args.format {
        Into::OciArchive => ImageLayout::OciArchive,
        Into::OciDir => ImageLayout::OciDirectory,
        Into::DockerArchive => ImageLayout::DockerArchive,
    };
    let options = ExportOptions { layout, ..ExportOptions::default() };
    let done = if args.output != Path::new("-") {
        store.export_path(&exports, &options, &args.output)
    } else if stdout().is_terminal() {
        return Err(Failure::plain(
            "an archive is not for a terminal: redirect standard output or use --output",
        ));
    } else {
        store.export(&exports, &options, &mut stdout().lock())
    };
    done.map_err(|error| Failure::plain(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

/// An image that was given by several of its names goes out once, with all of them.
fn exports(store: &Store, images: &[String]) -> Result<Vec<Export>, Failure> {
    let mut exports: Vec<Export> = Vec::new();
    for text in images {
        let image = find(store, text)?;
        let name = ImageRef::parse(text).ok().filter(|name| image.names.contains(name));
        let known = exports.iter().position(|export| export.image == image.digest).unwrap_or_else(|| {
            exports.push(Export { image: image.digest.clone(), names: Vec::new() });
            exports.len() - 1
        });
        exports[known].names.extend(name);
    }
    Ok(exports)
}
