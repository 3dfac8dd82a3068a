//! Running hooks: as the specification says, with a clean environment, a deadline and an ear.
//!
//! A hook gets exactly the environment that its configuration gives it (a caller's environment may hold credentials),
//! the state on standard input, and nothing else. It is killed with its process group when its time is up.

mod spawn;

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use cofferdam_apply::in_words;
use cofferdam_linux::process::{Child, Vector};
use cofferdam_linux::wait::{either_readable, readable};
use cofferdam_plan::Namespace;
use cofferdam_plan::op::HookPoint;
use oci_spec::runtime::{Hook, Hooks};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::error::Error;
use crate::exec::Exec;
use crate::foreground::{Ended, reap};
use crate::runtime::Runtime;
use crate::state::{Record, Status};
use spawn::{Program, Streams, spawn};

/// A hook without a timeout of its own is given this long. A hook that hangs must not hang the node.
pub const HOOK_TIMEOUT_S: u64 = 120;

/// How much of a hook's standard error is kept for the message, in bytes.
const STDERR_MAX_BYTES: u64 = 32 << 10;

/// How long the pipes of a hook that has ended are waited for: whoever it left behind may hold them for ever.
const PIPES_MAX: Duration = Duration::from_millis(100);

/// Where a hook runs. runtime-spec config.md, "POSIX-platform Hooks".
enum Place<'a> {
    /// On the host.
    Host,
    /// From the host, in the namespaces of this process: nothing of the container runs yet.
    Namespaces(&'a OwnedFd),
    /// In the container, confined as the container's own process is: its program is the image's.
    Container,
}

/// Runs every hook of a point in order; the first failure ends it. A hook that runs on behalf of `process` is ended with it.
pub(crate) fn run(
    runtime: &Runtime,
    record: &Record,
    point: HookPoint,
    status: Status,
    process: Option<&OwnedFd>,
) -> Result<(), Error> {
    let hooks = hooks_of(record, point)?;
    each(runtime, record, point, hooks, status, process).collect()
}

/// Runs every hook of a point in order, whatever becomes of the others; what failed comes back.
pub(crate) fn run_all(runtime: &Runtime, record: &Record, point: HookPoint, status: Status) -> Vec<Error> {
    match hooks_of(record, point) {
        Ok(hooks) => each(runtime, record, point, hooks, status, None).filter_map(Result::err).collect(),
        Err(error) => vec![error],
    }
}

/// The hooks of a point.
fn hooks_of(record: &Record, point: HookPoint) -> Result<&[Hook], Error> {
    let hooks = if record.hooked { record.spec.get()?.hooks().as_ref() } else { None };
    Ok(hooks.and_then(|hooks| list(hooks, point)).map_or(&[], Vec::as_slice))
}

/// One hook at each step.
fn each<'a>(
    runtime: &'a Runtime,
    record: &'a Record,
    point: HookPoint,
    hooks: &'a [Hook],
    status: Status,
    process: Option<&'a OwnedFd>,
) -> impl Iterator<Item = Result<(), Error>> + 'a {
    hooks.iter().enumerate().map(move |(index, hook)| {
        let place = match (point, process) {
            (HookPoint::CreateContainer, Some(process)) => Place::Namespaces(process),
            (HookPoint::StartContainer, _) => Place::Container,
            _ => Place::Host,
        };
        let result = run_one(runtime, record, hook, status, &place, process);
        result.map_err(|problem| {
            let problem = format!("{}: {problem}", hook.path().display());
            Error::Hook { point, index, problem }
        })
    })
}

/// Whether there is a hook for a point.
pub(crate) fn any(spec: &oci_spec::runtime::Spec, point: HookPoint) -> bool {
    spec.hooks().as_ref().and_then(|hooks| list(hooks, point)).is_some_and(|hooks| !hooks.is_empty())
}

fn list(hooks: &Hooks, point: HookPoint) -> Option<&Vec<Hook>> {
    #[allow(deprecated)] // prestart: deprecated by the specification, used by everybody
    match point {
        HookPoint::Prestart => hooks.prestart(),
        HookPoint::CreateRuntime => hooks.create_runtime(),
        HookPoint::CreateContainer => hooks.create_container(),
        HookPoint::StartContainer => hooks.start_container(),
        HookPoint::Poststart => hooks.poststart(),
        HookPoint::Poststop => hooks.poststop(),
    }
    .as_ref()
}

fn run_one(
    runtime: &Runtime,
    record: &Record,
    hook: &Hook,
    status: Status,
    place: &Place<'_>,
    process: Option<&OwnedFd>,
) -> Result<(), String> {
    let state = record.state(status).map_err(|error| error.to_string())?;
    let state = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
    let timeout = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(HOOK_TIMEOUT_S);
    let timeout = Duration::from_secs(timeout);
    let (mut streams, input, complaints) = Streams::make().map_err(in_words)?;
    redirect(&mut streams, record.spec.get().map_err(|error| error.to_string())?)?;
    let inside = match place {
        Place::Container => {
            let child = join(runtime, record, hook, streams)?;
            return attend(&child, state, (input, complaints), timeout, process);
        }
        Place::Namespaces(process) => Some((process.as_fd(), namespaces(record)?)),
        Place::Host => None,
    };
    let program = program(hook)?;
    let child = spawn(&program, &streams, inside, timeout).map_err(|errno| match errno {
        Errno::TIMEDOUT => format!("was not executed within {} s", timeout.as_secs()),
        errno => in_words(errno),
    })?;
    drop(streams);
    attend(&child, state, (input, complaints), timeout, process)
}

/// Where the configuration wants what hooks print, by crun's annotations: appended to these files of the host.
fn redirect(streams: &mut Streams, spec: &oci_spec::runtime::Spec) -> Result<(), String> {
    let annotations = spec.annotations().as_ref();
    let named =
        [("run.oci.hooks.stdout", &mut streams.stdout), ("run.oci.hooks.stderr", &mut streams.stderr)];
    for (key, stream) in named {
        let Some(path) = annotations.and_then(|annotations| annotations.get(key)) else { continue };
        // A FIFO that nobody reads must not hold us up; to the hook it is as any other.
        let no_wait = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = std::fs::OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).custom_flags(no_wait).open(path);
        let file = file.map_err(|error| format!("annotation {key}: {path}: {error}"))?;
        let blocking = fcntl_getfl(&file).and_then(|flags| fcntl_setfl(&file, flags - OFlags::NONBLOCK));
        blocking.map_err(|errno| format!("annotation {key}: {path}: {}", in_words(errno)))?;
        *stream = file.into();
    }
    Ok(())
}

/// The program's own name, arguments and environment as the hook gives them, and nothing of ours.
fn program(hook: &Hook) -> Result<Program, String> {
    let text = |text: &str| CString::new(text).map_err(|_| "holds a NUL byte".to_owned());
    let texts = |list: &[&str]| list.iter().map(|one| text(one)).collect::<Result<Vec<_>, _>>();
    let path = CString::new(hook.path().as_os_str().as_bytes()).map_err(|_| "holds a NUL byte")?;
    let arguments: Vec<&str> = hook.args().iter().flatten().map(String::as_str).collect();
    let arguments = if arguments.is_empty() { vec![path.clone()] } else { texts(&arguments)? };
    let environment = texts(&environment(hook))?;
    let vector = |texts: &[CString]| Vector::new(texts.iter().map(CString::as_c_str));
    Ok(Program { path, arguments: vector(&arguments), environment: vector(&environment) })
}

fn environment(hook: &Hook) -> Vec<&str> {
    hook.env().iter().flatten().map(String::as_str).filter(|pair| pair.contains('=')).collect()
}

/// Starts a hook as one more process of the container, held to all that its first process is held to, with its environment
/// where the hook has none of its own.
fn join(runtime: &Runtime, record: &Record, hook: &Hook, streams: Streams) -> Result<Child, String> {
    let path = hook.path().to_str().ok_or("its path is not UTF-8")?;
    let spec = record.spec.get().map_err(|error| error.to_string())?;
    let mut process = spec.process().clone().unwrap_or_default();
    let arguments = hook.args().clone().filter(|arguments| !arguments.is_empty());
    process.set_args(Some(arguments.unwrap_or_else(|| vec![path.to_owned()])));
    if hook.env().is_some() {
        process.set_env(Some(environment(hook).into_iter().map(str::to_owned).collect()));
    }
    process.set_cwd("/".into()).set_terminal(Some(false));
    let mut exec = Exec::new(process);
    let Streams { stdin, stdout, stderr } = streams;
    exec.stdio = crate::create::Stdio::Fds { stdin, stdout, stderr };
    runtime.join(record, exec, Some(path)).map(|joined| joined.child).map_err(|error| error.to_string())
}

fn namespaces(record: &Record) -> Result<u64, String> {
    let spec = record.spec.get().map_err(|error| error.to_string())?;
    let members = cofferdam_isolators::namespaces::Membership::of(spec).map_err(|error| error.to_string())?;
    let joined = [
        Namespace::User,
        Namespace::Network,
        Namespace::Ipc,
        Namespace::Uts,
        Namespace::Cgroup,
        Namespace::Pid,
    ];
    let flags =
        joined.into_iter().filter(|kind| members.has(*kind)).fold(0, |flags, kind| flags | kind.flag());
    Ok(flags | Namespace::Mount.flag())
}

/// What a signal is about, for those that a confined program runs into.
fn signal_words(signal: i32) -> &'static str {
    match Signal::from_named_raw(signal) {
        Some(Signal::SYS) => ": bad system call",
        Some(Signal::SEGV) => ": segmentation fault",
        Some(Signal::ABORT) => ": aborted",
        Some(Signal::KILL) => ": killed",
        _ => "",
    }
}

fn attend(
    child: &Child,
    state: Vec<u8>,
    (input, complaints): (OwnedFd, OwnedFd),
    timeout: Duration,
    process: Option<&OwnedFd>,
) -> Result<(), String> {
    let (told, telling) = std::sync::mpsc::channel::<()>();
    // A hook need not read its state; one that is larger than a pipe must not hold us up.
    let tell = move || {
        let _ = std::fs::File::from(input).write_all(&state);
        drop(told);
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    let listen = move || {
        let (mut text, mut complaints) = (Vec::new(), std::fs::File::from(complaints));
        let _ = Read::by_ref(&mut complaints).take(STDERR_MAX_BYTES).read_to_end(&mut text);
        let _ = std::io::copy(&mut complaints, &mut std::io::sink());
        drop(complaints); // who hears the answer may count descriptors
        let _ = sender.send(String::from_utf8_lossy(&text).trim().to_owned());
    };
    let thread = std::thread::Builder::new;
    let attended = thread().spawn(tell).and_then(|_| thread().spawn(listen));
    let ended = || match process {
        None => readable(&child.pidfd, timeout).map(|ended| ended.then_some(0)),
        Some(process) => either_readable(&child.pidfd, process, timeout),
    };
    let problem = match attended.map(|_| ended()) {
        Ok(Ok(Some(0))) => None,
        Ok(Ok(Some(_))) => Some("the container's process ended, so it was killed".to_owned()),
        Ok(Ok(None)) => Some(format!("did not end within {} s and was killed", timeout.as_secs())),
        Ok(Err(errno)) => Some(in_words(errno)),
        // The host, or our cgroup, has as many processes as it may have.
        Err(error) => Some(format!("no thread could be started to attend to it, so it was killed: {error}")),
    };
    if problem.is_some() {
        if let Some(group) = Pid::from_raw(child.pid) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        // One that hangs in the kernel is given up.
        let _ = cofferdam_apply::kill(child);
    }
    // Both pipes are closed now, unless somebody inherited the hook's ends: that is waited for, but not for long.
    let said = receiver.recv_timeout(PIPES_MAX).unwrap_or_default();
    let _ = telling.recv_timeout(PIPES_MAX);
    if let Some(problem) = problem {
        return Err(problem);
    }
    let how = match reap(child.pidfd.as_fd()).map_err(in_words)? {
        Ended::Exited(0) => return Ok(()),
        Ended::Exited(code) => format!("exit status {code}"),
        Ended::Signalled(signal) => format!("killed by signal {signal}{}", signal_words(signal)),
    };
    Err(if said.is_empty() { how } else { format!("{how}, stderr: {said}") })
}
