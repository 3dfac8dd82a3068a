//! `cofferdam image …`: the image store. What is printed as JSON is described in docs/images.md.

pub(crate) mod diff;
pub(crate) mod du;
pub(crate) mod exists;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod inspect;
pub(crate) mod prune;
pub(crate) mod settle;
pub(crate) mod tag;
pub(crate) mod verify;

use cofferdam_executor::{Executor, Image, Store};

use super::{Outcome, images, import, pull, push, rmi};
use crate::failure::Failure;

/// The verbs of `cofferdam image`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List images
    #[command(visible_alias = "list")]
    Ls(images::Args),
    /// Fetch an image
    Pull(pull::Args),
    /// Send an image to a registry
    Push(push::Args),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(rmi::Args),
    /// Give an image further names
    Tag(tag::Args),
    /// Print everything that is known of images
    Inspect(inspect::Args),
    /// Show how an image was built, the newest step first
    History(history::Args),
    /// Show what a layer, or an image over another, adds (A), changes (C) and deletes (D)
    Diff(diff::Args),
    /// Show what images take on disk
    #[command(visible_alias = "df")]
    Du(du::Args),
    /// Take images from an OCI layout or a docker archive, without the names in it
    Import(import::Args),
    /// Take images from an OCI layout or a docker archive, with the names in it
    Load(import::Args),
    /// Write images as an OCI layout or a docker archive
    #[command(visible_alias = "save")]
    Export(export::Args),
    /// Remove images that nobody uses
    Prune(prune::Args),
    /// End with 0 if there is such an image and with 1 if there is none
    Exists(exists::Args),
    /// Delete what was removed and tell the disk, now and not in the background
    Settle,
    /// Look whether what is stored is still what was pulled; discard what is not
    Verify(verify::Args),
}

/// Does what was asked.
pub(crate) async fn run(verb: Verb, executor: &Executor) -> Outcome {
    match verb {
        Verb::Ls(args) => images::run(&args, executor),
        Verb::Pull(args) => pull::run(args, executor).await,
        Verb::Push(args) => push::run(args, executor).await,
        Verb::Exists(args) => exists::run(&args, executor),
        Verb::Settle => settle::run(&executor.images()?),
        Verb::Rm(args) => rmi::run(&args, executor),
        Verb::Tag(args) => tag::run(&args, executor),
        Verb::Inspect(args) => inspect::run(&args, executor),
        Verb::History(args) => history::run(&args, executor),
        Verb::Diff(args) => diff::run(&args, executor),
        Verb::Du(args) => du::run(&args, executor),
        Verb::Import(args) => import::run(&args, import::Names::OnlyGiven, executor),
        Verb::Load(args) => import::run(&args, import::Names::Archive, executor),
        Verb::Export(args) => export::run(&args, executor),
        Verb::Prune(args) => prune::run(&args, executor),
        Verb::Verify(args) => verify::run(&args, executor),
    }
}

/// The image that is meant, which must have a root file system.
pub(crate) fn find_runnable(store: &Store, name: &str) -> Result<Image, Failure> {
    let image = find(store, name)?;
    image.require_runnable().map_err(|error| Failure::plain(error.to_string()))?;
    Ok(image)
}

/// The image that is meant.
pub(crate) fn find(store: &Store, name: &str) -> Result<Image, Failure> {
    Ok(cofferdam_executor::find_stored(store, name)?)
}
