//! What can be written on the command line: the verbs and the options that all of them share.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cofferdam_executor::request::size::parse_bytes;
use cofferdam_executor::{Backend, Durability, KeepBlobs, Limits, StoreOptions};

use crate::commands::{
    attach, cni, events, exec, image, images, import, inspect, kill, logs, network, plan, ps, pull, push, rm,
    rmi, run, stats, stop, wait,
};

/// Run container images as isolated tasks, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, about, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) places: PlaceArgs,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// The heading of what all verbs share: among a verb's own options nobody would find either.
const SHARED: &str = "Options of every command";

/// Where things are.
#[derive(Debug, Args)]
#[command(next_help_heading = SHARED)]
pub(crate) struct PlaceArgs {
    /// Data directory: images, records, logs
    #[arg(
        long,
        global = true,
        env = "COFFERDAM_ROOT",
        value_name = "DIR",
        default_value = "/var/lib/cofferdam"
    )]
    pub(crate) root: PathBuf,
    /// State directory; should be in memory
    #[arg(
        long,
        global = true,
        env = "COFFERDAM_STATE",
        value_name = "DIR",
        default_value = "/run/cofferdam"
    )]
    pub(crate) state: PathBuf,
    /// Directory with network configurations; may be given several times
    #[arg(
        long,
        global = true,
        env = "COFFERDAM_CNI_CONFIG",
        value_name = "DIR",
        default_value = "/etc/cni/net.d"
    )]
    pub(crate) cni_config: Vec<PathBuf>,
    /// Directory with network plugins; may be given several times
    #[arg(
        long,
        global = true,
        env = "COFFERDAM_CNI_PLUGINS",
        value_name = "DIR",
        default_values = ["/opt/cni/bin", "/usr/lib/cni"]
    )]
    pub(crate) cni_plugins: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Configuration file; by default /etc/cofferdam/config.toml, which need not exist
    #[arg(long, global = true, env = "COFFERDAM_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// How the image store is operated; what is not given is the configuration file's.
#[derive(Debug, Args)]
#[command(next_help_heading = SHARED)]
pub(crate) struct StoreArgs {
    /// When stored images survive a loss of power: soon (the default), when the command returns, or not for certain
    #[arg(
        long,
        global = true,
        env = "COFFERDAM_DURABILITY",
        value_name = "WHEN",
        value_parser = ["deferred", "sync", "none"]
    )]
    durability: Option<String>,
    /// Keep layers also as they were fetched; until they are unpacked, by default
    #[arg(
        long,
        global = true,
        env = "COFFERDAM_KEEP_BLOBS",
        value_name = "WHEN",
        value_parser = ["never", "until-unpacked", "always"]
    )]
    keep_blobs: Option<String>,
    /// How layers that come in are kept: overlay-dir (directories), erofs (one image file each) or copy (directories, and a
    /// whole copy for every task)
    #[arg(long, global = true, env = "COFFERDAM_LAYERS", value_name = "BACKEND")]
    layers: Option<Backend>,
    /// How much a layer may ask of this host: uncompressed-bytes, ratio, ratio-free-bytes, entries, sparse-bytes, members or
    /// xattr-bytes; may be given several times
    #[arg(long, global = true, value_name = "NAME=NUMBER", value_parser = limit)]
    limit: Vec<(String, u64)>,
}

fn limit(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=NUMBER")?;
    Limits::default().set(name, 0).map_err(|error| error.to_string())?;
    let value = value.parse().or_else(|_| parse_bytes(value)).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value))
}

impl StoreArgs {
    /// What is given here, over what the configuration file says.
    pub(crate) fn over(&self, mut options: StoreOptions) -> StoreOptions {
        options.layers = self.layers.unwrap_or(options.layers);
        for (name, value) in &self.limit {
            // Its name was looked at when it was read.
            drop(options.limits.set(name, *value));
        }
        match self.durability.as_deref() {
            Some("sync") => options.durability = Durability::Sync,
            Some("none") => options.durability = Durability::None,
            Some(_) => options.durability = Durability::Deferred,
            None => {}
        }
        match self.keep_blobs.as_deref() {
            Some("never") => options.keep_blobs = KeepBlobs::Never,
            Some("always") => options.keep_blobs = KeepBlobs::Always,
            Some(_) => options.keep_blobs = KeepBlobs::UntilUnpacked,
            None => {}
        }
        options
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // No documentation of either: it would make every help text with this option one of the long form.
    #[default]
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a command in a new task
    Run(Box<run::Args>),
    /// List tasks
    Ps(ps::Args),
    /// Print a task's output
    Logs(logs::Args),
    /// Run a command in a running task
    Exec(exec::Args),
    /// Take part in a running task's streams
    Attach(attach::Args),
    /// Wait until tasks are over and print their exit codes
    Wait(wait::Args),
    /// End tasks: their stop signal, then SIGKILL
    Stop(stop::Args),
    /// Send a signal to tasks
    Kill(kill::Args),
    /// Remove what is left of tasks
    Rm(rm::Args),
    /// Print everything that is known of tasks
    Inspect(inspect::Args),
    /// Show what tasks use
    Stats(stats::Args),
    /// Fetch an image
    Pull(pull::Args),
    /// Send an image to a registry
    Push(push::Args),
    /// List images
    Images(images::Args),
    /// Remove images
    Rmi(rmi::Args),
    /// Take images from an OCI layout or a docker archive, without the names in it
    Import(import::Args),
    /// Take images from an OCI layout or a docker archive, with the names in it
    Load(import::Args),
    /// Write images as an OCI layout or a docker archive
    Save(image::export::Args),
    /// Give an image further names
    Tag(image::tag::Args),
    /// Images: list, pull, tag, export, prune, verify and more
    #[command(subcommand)]
    Image(image::Verb),
    /// Print what happens to tasks
    Events(events::Args),
    /// Check what this host can do
    Doctor(crate::commands::doctor::Args),
    /// Print the plan for an OCI bundle without touching anything
    Plan(plan::Args),
    /// Networks that tasks can be connected to
    #[command(subcommand)]
    Network(network::Verb),
    /// Tools for networks and for writing their plugins
    #[command(subcommand)]
    Cni(cni::Verb),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// clap takes two options of one name for one, and its own check does not see it where one of them is everybody's.
    /// The verbs of `cni` may have `--config`: they read a network's configuration and no configuration of ours.
    #[test]
    fn no_verb_has_an_option_by_the_name_of_one_that_all_have() {
        fn look(command: &clap::Command, shared: &[&str], found: &mut Vec<String>) {
            for verb in command.get_subcommands() {
                let taken = |argument: &&clap::Arg| {
                    shared.contains(&argument.get_id().as_str())
                        || argument
                            .get_long()
                            .is_some_and(|long| shared.contains(&long.replace('-', "_").as_str()))
                };
                found.extend(
                    verb.get_arguments()
                        .filter(taken)
                        .map(|one| format!("{} {}", verb.get_name(), one.get_id())),
                );
                look(verb, shared, found);
            }
        }
        let program = Cli::command();
        let shared: Vec<&str> = program
            .get_arguments()
            .filter(|one| one.is_global_set())
            .map(|one| one.get_id().as_str())
            .collect();
        let mut found = Vec::new();
        look(&program, &shared, &mut found);
        found.retain(|one| !one.ends_with(" config"));
        assert!(found.is_empty(), "{found:?} of {shared:?}");
    }
}
