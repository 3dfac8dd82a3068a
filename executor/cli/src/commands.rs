//! One verb a file: its arguments and what it does.

pub(crate) mod attach;
pub(crate) mod cni;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod plan;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod registry;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod wait;

use std::process::ExitCode;

use cofferdam_executor::{Config, Executor, ShimBinary, open_store};

use crate::args::{Cli, PlaceArgs, Verb};
use crate::config::ConfigFile;
use crate::failure::Failure;

/// How a command ends.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Does what was asked.
pub(crate) async fn run(cli: Cli) -> Outcome {
    let places = cli.places;
    match cli.verb {
        // These need no engine, and work on hosts where there can be none.
        Verb::Doctor(args) => doctor::run(&args, &places),
        Verb::Plan(args) => plan::run(&args, &places),
        Verb::Cni(verb) => cni::run(&verb, &places),
        Verb::Image(image::Verb::Settle) => image::settle::run(&open_store(&places.root)?),
        verb => dispatch(verb, &open(&places).await?).await,
    }
}

async fn dispatch(verb: Verb, executor: &Executor) -> Outcome {
    match verb {
        Verb::Run(args) => run::run(*args, executor).await,
        Verb::Ps(args) => ps::run(&args, executor).await,
        Verb::Logs(args) => logs::run(&args, executor).await,
        Verb::Exec(args) => exec::run(args, executor).await,
        Verb::Attach(args) => attach::run(&args, executor).await,
        Verb::Wait(args) => wait::run(&args, executor).await,
        Verb::Stop(args) => stop::run(&args, executor).await,
        Verb::Kill(args) => kill::run(&args, executor).await,
        Verb::Rm(args) => rm::run(&args, executor).await,
        Verb::Inspect(args) => inspect::run(&args, executor).await,
        Verb::Stats(args) => stats::run(&args, executor).await,
        Verb::Pull(args) => pull::run(args, executor).await,
        Verb::Push(args) => push::run(args, executor).await,
        Verb::Images(args) => images::run(&args, executor),
        Verb::Rmi(args) => rmi::run(&args, executor),
        Verb::Import(args) => import::run(&args, import::Names::OnlyGiven, executor),
        Verb::Load(args) => import::run(&args, import::Names::Archive, executor),
        Verb::Save(args) => image::export::run(&args, executor),
        Verb::Tag(args) => image::tag::run(&args, executor),
        Verb::Image(verb) => image::run(verb, executor).await,
        Verb::Events(args) => events::run(&args, executor).await,
        Verb::Network(verb) => network::run(&verb, executor).await,
        Verb::Cni(_) | Verb::Doctor(_) | Verb::Plan(_) => Ok(ExitCode::SUCCESS),
    }
}

async fn open(places: &PlaceArgs) -> Result<Executor, Failure> {
    let file = ConfigFile::load(places.config.as_deref())?;
    let executor = Executor::open(Config {
        root: places.root.clone(),
        state: places.state.clone(),
        shim: ShimBinary::CurrentExe,
        cni_config: places.cni_config.clone(),
        cni_plugins: places.cni_plugins.clone(),
        store: places.store.over(file.store),
        pull: file.pull,
    });
    Ok(executor.await?)
}

/// Does the same to each of several things: every failure is told, and makes the whole a failure.
pub(crate) async fn for_each<F>(names: &[String], mut act: F) -> Outcome
where
    F: AsyncFnMut(&str) -> Result<(), Failure>,
{
    let mut code = ExitCode::SUCCESS;
    for name in names {
        if let Err(failure) = act(name).await {
            code = failure.while_doing(name).report();
        }
    }
    Ok(code)
}

/// Prints a value as JSON on one line.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::plain(error.to_string()))?;
    println!("{text}");
    Ok(())
}
