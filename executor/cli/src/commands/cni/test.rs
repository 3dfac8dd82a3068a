//! `cofferdam cni test`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cofferdam_cni_conformance::{Choice, Error, Format, Profile, Subject, cases};
use cofferdam_cni_plugins::BUILTINS;

use super::supervised;
use crate::args::PlaceArgs;
use crate::commands::Outcome;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plugin: a path, or a name in the directories with network plugins
    #[arg(required_unless_present = "list")]
    plugin: Option<PathBuf>,
    /// The plugin's configuration (one object with "type"); without it, the one that is shipped for the plugin's name
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// It comes after a plugin that makes an interface; the tests then make one
    #[arg(long, requires = "config")]
    chained: bool,
    /// It comes after the plugins of this network (a configuration list or a single configuration)
    #[arg(long, value_name = "FILE", conflicts_with = "chained")]
    chained_after: Option<PathBuf>,
    /// What a runtime would pass as runtimeConfig
    #[arg(long, value_name = "JSON")]
    cap: Option<String>,
    /// A whole profile: configuration, manipulations for CHECK, excused cases
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    profile: Option<PathBuf>,
    /// CNI_ARGS, as K=V;K=V
    #[arg(long, value_name = "ARGS", default_value = "")]
    args: String,
    /// Run only cases whose id begins so (4. or 7.tampered); may be given several times
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// How many cases run at once
    #[arg(long, value_name = "N", default_value_t = Choice::default().jobs)]
    jobs: usize,
    /// End a call that takes longer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// How to print: text, tap or junit
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// List the cases and run none
    #[arg(long)]
    list: bool,
}

/// Ends with 1 if the plugin fails what it must not.
pub(crate) fn run(args: &Args, places: &PlaceArgs) -> Outcome {
    let Some(plugin) = args.plugin.as_deref().filter(|_| !args.list) else {
        for case in cases() {
            println!("{:<20} {:<7} {} [{}]", case.id, case.severity.to_string(), case.title, case.section);
        }
        return Ok(ExitCode::SUCCESS);
    };
    // What a plugin leaves running must not stay, not even if we are killed.
    if let Some(code) = supervised::elsewhere() {
        return Ok(code);
    }
    let program = find(plugin, &places.cni_plugins)?;
    let mut subject = Subject::new(&program, profile(args, &program)?);
    subject.plugin_path.clone_from(&places.cni_plugins);
    subject.args.clone_from(&args.args);
    subject.builtins = BUILTINS;
    subject.limit = Duration::from_secs(args.timeout.max(1));
    if let Some(path) = &args.chained_after {
        subject = subject.after(&read(path)?, &path.display().to_string()).map_err(told)?;
    }
    if let Some(text) = &args.cap {
        let given = serde_json::from_str(text).map_err(|error| Failure::plain(format!("--cap: {error}")))?;
        subject.profile.runtime_config = Some(given);
    }
    let choice = Choice { only: args.only.clone(), jobs: args.jobs };
    let report = cofferdam_cni_conformance::run(&subject, &choice, |_| ()).map_err(told)?;
    print!("{}", report.print(args.format));
    Ok(if report.is_conformant() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(error: Error) -> Failure {
    Failure::plain(error.to_string())
}

fn find(plugin: &Path, folders: &[PathBuf]) -> Result<PathBuf, Failure> {
    if plugin.components().count() > 1 {
        return if plugin.is_file() {
            std::path::absolute(plugin).map_err(Failure::from)
        } else {
            Err(Failure::plain(format!("there is no plugin {}: no such file", plugin.display())))
        };
    }
    let found = folders.iter().map(|folder| folder.join(plugin)).find(|program| program.is_file());
    found.ok_or_else(|| {
        let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let (name, folders) = (plugin.display(), folders.join(", "));
        Failure::plain(format!("there is no plugin {name} in {folders}; one in this directory is ./{name}"))
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::plain(format!("{}: {error}", path.display())))
}

fn profile(args: &Args, program: &Path) -> Result<Profile, Failure> {
    let named = |path: &Path| path.display().to_string();
    match (&args.config, &args.profile) {
        (Some(path), _) => {
            let profile = Profile::of_config(&read(path)?, &named(path)).map_err(told)?;
            Ok(Profile { chained: args.chained, ..profile })
        }
        (None, Some(path)) => Profile::parse(&read(path)?, &named(path)).map_err(told),
        (None, None) => {
            let kind = program.file_name().unwrap_or_default().to_string_lossy();
            Profile::shipped(&kind).map_err(told)
        }
    }
}
