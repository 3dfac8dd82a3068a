//! One function a command.

use std::path::{Path, PathBuf};

use cofferdam_runtime::{
    CgroupManager, Console, ContainerId, Create, Error, Exec, Fault, Options, Runtime, Status, bundle,
    signals,
};

use crate::arguments::{Command, CreateArguments, ExecArguments, Global, Invocation};
use crate::log::Log;
use crate::update::UpdateArguments;
use crate::wait;

/// Exit status and message of a failure.
type Failed = (i32, String);

/// runc's exit status for a failed exec; 1 is for everything else.
const EXEC_FAILED: i32 = 255;

pub(crate) fn run(invocation: Invocation, log: &Log) -> Result<i32, Failed> {
    let runtime = || open(&invocation.global).map_err(failed);
    match invocation.command {
        Command::Help => {
            print!("{HELP}");
            Ok(0)
        }
        Command::Version => {
            println!("runc version {}", env!("CARGO_PKG_VERSION"));
            println!("commit: cofferdam-oci\nspec: {}", cofferdam_runtime::SPEC_VERSION);
            Ok(0)
        }
        Command::Spec { bundle } => spec(bundle),
        Command::Plan(arguments) => plan(&runtime()?, &arguments),
        Command::Create(arguments) => create(&runtime()?, arguments, log, false),
        Command::Run(arguments) => create(&runtime()?, arguments, log, true),
        Command::Start { id } => start(&runtime()?, &parse(&id)?),
        Command::State { id } => state(&runtime()?, &id),
        Command::Kill { id, signal, all } => {
            let number = signals::parse(&signal).ok_or_else(|| (1, format!("unknown signal {signal:?}")))?;
            runtime()?.kill(&parse(&id)?, number, all).map(|()| 0).map_err(failed)
        }
        Command::Delete { id, force } => {
            let warnings = runtime()?.delete(&parse(&id)?, force).map_err(failed)?;
            warnings.iter().for_each(|warning| log.warning(warning));
            Ok(0)
        }
        Command::Pause { id } => runtime()?.pause(&parse(&id)?).map(|()| 0).map_err(failed),
        Command::Resume { id } => runtime()?.resume(&parse(&id)?).map(|()| 0).map_err(failed),
        Command::Update(arguments) => update(&runtime()?, &arguments, log),
        Command::Ps { id, json } => ps(&runtime()?, &id, json),
        Command::List { json, quiet } => list(&runtime()?, json, quiet),
        Command::Exec(arguments) => exec(&runtime()?, arguments, log)
            .map_err(|(_, words)| (EXEC_FAILED, format!("exec failed: {words}"))),
    }
}

fn failed(error: Error) -> Failed {
    (1, error.to_string())
}

fn parse(id: &str) -> Result<ContainerId, Failed> {
    ContainerId::parse(id).map_err(|error| (1, error.to_string()))
}

fn open(global: &Global) -> Result<Runtime, Error> {
    let root = global.root.clone().unwrap_or_else(|| PathBuf::from("/run/cofferdam/runtime"));
    let cgroup_manager =
        if global.cgroups_disabled { CgroupManager::Disabled } else { CgroupManager::Cgroupfs };
    Runtime::open(&root, Options { cgroup_manager })
}

fn request(arguments: &CreateArguments) -> Result<Create, Failed> {
    let bundle = arguments.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    let spec = bundle::load(&bundle).map_err(failed)?;
    let mut create = Create::new(parse(&arguments.id)?, bundle, spec);
    if let Some(path) = &arguments.console_socket {
        create.console = Console::Socket(path.clone());
    }
    create.pid_file = arguments.pid_file.clone();
    create.preserve_fds = arguments.preserve_fds;
    create.no_pivot = arguments.no_pivot;
    create.no_new_keyring = arguments.no_new_keyring;
    create.fault = arguments.fail_step.map(|step| Fault { step, errno: rustix::io::Errno::IO });
    Ok(create)
}

fn plan(runtime: &Runtime, arguments: &CreateArguments) -> Result<i32, Failed> {
    print!("{}", runtime.plan(&request(arguments)?).map_err(failed)?);
    Ok(0)
}

fn create(runtime: &Runtime, arguments: CreateArguments, log: &Log, run: bool) -> Result<i32, Failed> {
    let mut create = request(&arguments)?;
    create.start = run;
    let id = create.id.clone();
    let created = runtime
        .create(create)
        .map_err(|error| (1, format!("runc {} failed: {error}", if run { "run" } else { "create" })))?;
    created.warnings.iter().for_each(|warning| log.warning(warning));
    if arguments.explain {
        eprint!("{}", cofferdam_runtime::explain(&created.plan, &created.timings));
    }
    if !run || arguments.detach {
        return Ok(0);
    }
    let status = wait::foreground(&created.pidfd).map_err(|words| (1, words));
    if !arguments.keep {
        runtime.delete(&id, true).map_err(failed)?;
    }
    status
}

fn start(runtime: &Runtime, id: &ContainerId) -> Result<i32, Failed> {
    let spec = runtime.spec(id).map_err(failed)?;
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    if hooks.is_some_and(|hooks| !hooks.is_empty()) {
        // Such a hook is started from inside the container, where it may be a link to this very program.
        cofferdam_runtime::become_sealed().map_err(|error| (1, error.to_string()))?;
    }
    runtime.start(id).map(|()| 0).map_err(failed)
}

fn exec(runtime: &Runtime, arguments: ExecArguments, log: &Log) -> Result<i32, Failed> {
    let id = parse(&arguments.id)?;
    let process = match &arguments.process {
        Some(path) => bundle::read_json(path).map_err(failed)?,
        None => process(&runtime.spec(&id).map_err(failed)?, &arguments)?,
    };
    let mut exec = Exec::new(process);
    if let Some(path) = &arguments.console_socket {
        exec.console = Console::Socket(path.clone());
    }
    exec.pid_file = arguments.pid_file;
    exec.preserve_fds = arguments.preserve_fds;
    exec.ignore_paused = arguments.ignore_paused;
    let executed = runtime.exec(&id, exec).map_err(failed)?;
    executed.warnings.iter().for_each(|warning| log.warning(warning));
    if arguments.detach { Ok(0) } else { wait::foreground(&executed.pidfd).map_err(|words| (1, words)) }
}

/// The container's own process with what the command line changes.
fn process(
    spec: &cofferdam_runtime::Spec,
    arguments: &ExecArguments,
) -> Result<cofferdam_runtime::Process, Failed> {
    let mut process = spec.process().clone().ok_or_else(|| (1, "the container has no process".to_owned()))?;
    process.set_args(Some(arguments.command.clone()));
    process.set_terminal(Some(arguments.tty));
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(arguments.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(cwd) = &arguments.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(user) = &arguments.user {
        let wrong = || (1, format!("{user:?} is not UID[:GID]"));
        // Digits only: `parse` would take a plus sign.
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| digits).ok_or_else(wrong)
        };
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        let mut changed = process.user().clone();
        changed.set_uid(number(uid)?);
        if let Some(gid) = gid {
            changed.set_gid(number(gid)?);
        }
        process.set_user(changed);
    }
    Ok(process)
}

fn update(runtime: &Runtime, arguments: &UpdateArguments, log: &Log) -> Result<i32, Failed> {
    let (resources, ignored) = arguments.change().map_err(|words| (1, words))?;
    let warnings = runtime.update(&parse(&arguments.id)?, &resources).map_err(failed)?;
    ignored.iter().chain(&warnings).for_each(|warning| log.warning(warning));
    Ok(0)
}

fn state(runtime: &Runtime, id: &str) -> Result<i32, Failed> {
    let state = runtime.state(&parse(id)?).map_err(failed)?;
    println!("{}", serde_json::to_string_pretty(&state).map_err(|error| (1, error.to_string()))?);
    Ok(0)
}

fn ps(runtime: &Runtime, id: &str, json: bool) -> Result<i32, Failed> {
    let pids = runtime.pids(&parse(id)?).map_err(failed)?;
    if json {
        println!("{}", serde_json::to_string(&pids).map_err(|error| (1, error.to_string()))?);
    } else {
        println!("PID");
        pids.iter().for_each(|pid| println!("{pid}"));
    }
    Ok(0)
}

fn list(runtime: &Runtime, json: bool, quiet: bool) -> Result<i32, Failed> {
    let states = runtime.list().map_err(failed)?;
    if quiet {
        states.iter().for_each(|state| println!("{}", state.id));
    } else if json {
        println!("{}", serde_json::to_string(&states).map_err(|error| (1, error.to_string()))?);
    } else {
        let line = |cells: [&str; 6]| {
            println!(
                "{:<24} {:<8} {:<8} {:<40} {:<32} {}",
                cells[0], cells[1], cells[2], cells[3], cells[4], cells[5]
            )
        };
        line(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
        for state in &states {
            let status: Status = state.status;
            let (pid, status, bundle) =
                (state.pid.to_string(), status.to_string(), state.bundle.display().to_string());
            line([&state.id, &pid, &status, &bundle, &state.created, &state.owner]);
        }
    }
    Ok(0)
}

fn spec(bundle: Option<PathBuf>) -> Result<i32, Failed> {
    let path = bundle.as_deref().unwrap_or(Path::new(".")).join("config.json");
    if path.exists() {
        return Err((1, format!("file {} exists. Remove it first", path.display())));
    }
    std::fs::write(&path, cofferdam_runtime::example::CONFIG)
        .map_err(|error| (1, format!("{}: {error}", path.display())))?;
    Ok(0)
}

const HELP: &str = "\
cofferdam-oci: OCI runtime, a drop-in for runc

Usage: cofferdam-oci [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND

Commands:
  create  [-b BUNDLE] [--console-socket S] [--pid-file F] [--preserve-fds N] [--no-pivot] [--no-new-keyring] ID
  start   ID
  run     [create's options] [--detach] [--keep] [--explain] ID
  state   ID
  kill    [--all] ID [SIGNAL]
  delete  [--force] ID
  exec    [--process F] [--tty] [--cwd DIR] [--env K=V] [--user UID[:GID]] [--detach] [--pid-file F] ID COMMAND...
  list    [--format table|json] [--quiet]
  ps      [--format table|json] ID
  pause   ID
  resume  ID
  update  [--resources FILE|-] [--memory BYTES] [--cpu-quota US] [--pids-limit N] ... ID
  spec    [-b BUNDLE]
  plan    [-b BUNDLE] [ID]    print the steps that create would take
";
