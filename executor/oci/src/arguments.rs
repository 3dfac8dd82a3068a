//! What the user said. Options may stand before and after the container id, `--x y` and `--x=y` alike.

use std::path::PathBuf;

use lexopt::prelude::*;

use crate::update::UpdateArguments;

/// Options before the command.
#[derive(Debug, Default, Clone)]
pub(crate) struct Global {
    pub root: Option<PathBuf>,
    pub log: Option<PathBuf>,
    pub log_json: bool,
    pub debug: bool,
    pub cgroups_disabled: bool,
}

/// Options of create and run.
#[derive(Debug, Default, Clone)]
pub(crate) struct CreateArguments {
    pub id: String,
    pub bundle: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub preserve_fds: u32,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub detach: bool,
    pub keep: bool,
    pub explain: bool,
    pub fail_step: Option<usize>,
}

/// Options of exec.
#[derive(Debug, Default, Clone)]
pub(crate) struct ExecArguments {
    pub id: String,
    pub command: Vec<String>,
    pub process: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub cwd: Option<PathBuf>,
    pub env: Vec<String>,
    pub user: Option<String>,
    pub tty: bool,
    pub detach: bool,
    pub preserve_fds: u32,
    pub ignore_paused: bool,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Create(CreateArguments),
    Run(CreateArguments),
    Plan(CreateArguments),
    Exec(ExecArguments),
    Start { id: String },
    State { id: String },
    Kill { id: String, signal: String, all: bool },
    Delete { id: String, force: bool },
    Pause { id: String },
    Resume { id: String },
    Update(UpdateArguments),
    Ps { id: String, json: bool },
    List { json: bool, quiet: bool },
    Spec { bundle: Option<PathBuf> },
    Version,
    Help,
}

/// A whole command line.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    pub global: Global,
    pub command: Command,
}

/// Everything that any command takes; each command picks its own.
#[derive(Default)]
struct Said {
    create: CreateArguments,
    exec: ExecArguments,
    update: UpdateArguments,
    all: bool,
    force: bool,
    quiet: bool,
    json: bool,
    words: Vec<String>,
}

/// Parses a command line.
pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Invocation, lexopt::Error> {
    let mut global = Global::default();
    let mut name = None;
    let mut said = Said::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(word) if name.is_none() => name = Some(word.string()?),
            Value(word) => {
                said.words.push(word.string()?);
                if name.as_deref() == Some("exec") && (said.words.len() > 1 || said.exec.process.is_some()) {
                    // From the program's name on, everything is the program's.
                    let rest = parser.raw_args()?.map(|word| word.string()).collect::<Result<Vec<_>, _>>()?;
                    said.words.extend(rest);
                }
            }
            Short('v') | Long("version") if name.is_none() => name = Some("version".into()),
            Short('h') | Long("help") => name = Some("help".into()),
            Long(option) if name.is_none() => {
                let option = option.to_owned();
                global_option(&mut global, &option, &mut parser)?;
            }
            Short(letter) => {
                let option = long_name(letter, name.as_deref()).ok_or_else(|| Short(letter).unexpected())?;
                command_option(&mut said, option, &mut parser)?;
            }
            Long(option) => {
                let option = option.to_owned();
                command_option(&mut said, &option, &mut parser)?;
            }
        }
    }
    let command = command(name.as_deref().unwrap_or("help"), said)?;
    Ok(Invocation { global, command })
}

fn global_option(
    global: &mut Global,
    option: &str,
    parser: &mut lexopt::Parser,
) -> Result<(), lexopt::Error> {
    match option {
        "root" => global.root = Some(parser.value()?.into()),
        "log" => global.log = Some(parser.value()?.into()),
        "log-format" => global.log_json = parser.value()? == "json",
        "log-level" => global.debug = parser.value()? == "debug",
        "debug" => global.debug = true,
        "cgroup-manager" => global.cgroups_disabled = parser.value()? == "disabled",
        "rootless" => drop(parser.value()?),
        other => return Err(Long(other).unexpected()),
    }
    Ok(())
}

fn long_name(letter: char, command: Option<&str>) -> Option<&'static str> {
    Some(match (letter, command) {
        ('b', _) => "bundle",
        ('d', _) => "detach",
        ('f', Some("delete")) => "force",
        ('f', _) => "format",
        ('q', _) => "quiet",
        ('a', _) => "all",
        ('t', _) => "tty",
        ('e', _) => "env",
        ('u', _) => "user",
        ('p', _) => "process",
        ('r', Some("update")) => "resources",
        _ => return None,
    })
}

fn command_option(said: &mut Said, option: &str, parser: &mut lexopt::Parser) -> Result<(), lexopt::Error> {
    let (create, exec) = (&mut said.create, &mut said.exec);
    match option {
        "bundle" => create.bundle = Some(parser.value()?.into()),
        "console-socket" => {
            let path: PathBuf = parser.value()?.into();
            create.console_socket = Some(path.clone());
            exec.console_socket = Some(path);
        }
        "pid-file" => {
            let path: PathBuf = parser.value()?.into();
            create.pid_file = Some(path.clone());
            exec.pid_file = Some(path);
        }
        "preserve-fds" => {
            create.preserve_fds = parser.value()?.parse()?;
            exec.preserve_fds = create.preserve_fds;
        }
        "no-pivot" => create.no_pivot = true,
        "no-new-keyring" => create.no_new_keyring = true,
        "no-subreaper" => {}
        "keep" => create.keep = true,
        "explain" => create.explain = true,
        "fail-step" => create.fail_step = Some(parser.value()?.parse()?),
        "detach" => (create.detach, exec.detach) = (true, true),
        "process" => exec.process = Some(parser.value()?.into()),
        "cwd" => exec.cwd = Some(parser.value()?.into()),
        "env" => exec.env.push(parser.value()?.string()?),
        "user" => exec.user = Some(parser.value()?.string()?),
        "tty" => exec.tty = true,
        "ignore-paused" => exec.ignore_paused = true,
        "all" => said.all = true,
        "force" => said.force = true,
        "quiet" => said.quiet = true,
        "format" => said.json = parser.value()? == "json",
        other if crate::update::takes(other) => said.update.set(other, parser.value()?.string()?),
        other => return Err(Long(other).unexpected()),
    }
    Ok(())
}

fn command(name: &str, mut said: Said) -> Result<Command, lexopt::Error> {
    let wrong = |wanted: &str| lexopt::Error::from(format!("{name:?} requires {wanted}"));
    let words = std::mem::take(&mut said.words);
    let id = || match words.as_slice() {
        [id] => Ok(id.clone()),
        _ => Err(wrong("exactly 1 argument(s)")),
    };
    Ok(match name {
        "create" => Command::Create(CreateArguments { id: id()?, ..said.create }),
        "run" => Command::Run(CreateArguments { id: id()?, ..said.create }),
        "plan" => Command::Plan(CreateArguments {
            id: words.first().cloned().unwrap_or_else(|| "plan".into()),
            ..said.create
        }),
        "start" => Command::Start { id: id()? },
        "state" => Command::State { id: id()? },
        "delete" => Command::Delete { id: id()?, force: said.force },
        "pause" => Command::Pause { id: id()? },
        "resume" => Command::Resume { id: id()? },
        "update" => Command::Update(UpdateArguments { id: id()?, ..said.update }),
        "ps" => Command::Ps {
            id: words.first().cloned().ok_or_else(|| wrong("a minimum of 1 argument"))?,
            json: said.json,
        },
        "list" => Command::List { json: said.json, quiet: said.quiet },
        "spec" => Command::Spec { bundle: said.create.bundle },
        "kill" => match words.as_slice() {
            [id] => Command::Kill { id: id.clone(), signal: "TERM".into(), all: said.all },
            [id, signal] => Command::Kill { id: id.clone(), signal: signal.clone(), all: said.all },
            _ => return Err(wrong("a container id and at most one signal")),
        },
        "exec" => {
            let mut words = words.into_iter();
            let id = words.next().ok_or_else(|| wrong("a container id"))?;
            Command::Exec(ExecArguments { id, command: words.collect(), ..said.exec })
        }
        "version" => Command::Version,
        "help" => Command::Help,
        other => return Err(lexopt::Error::from(format!("no such command: {other}"))),
    })
}
