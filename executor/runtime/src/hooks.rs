//! Running hooks: as the specification says, with a clean environment, a deadline and an ear.
//!
//! A hook gets exactly the environment that its configuration gives it (a caller's environment may hold credentials),
//! the state on standard input, and nothing else. It is killed with its process group when its time is up.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_plan::Namespace;
use cofferdam_plan::op::HookPoint;
use oci_spec::runtime::{Hook, Hooks};

use crate::error::Error;
use crate::state::{Record, Status};

/// A hook without a timeout of its own is given this long. A hook that hangs must not hang the node.
pub const HOOK_TIMEOUT_S: u64 = 120;

/// How much of a hook's standard error is kept for the message, in bytes.
const STDERR_MAX_BYTES: u64 = 64 << 10;

/// How long the pipes of a hook that has ended are waited for: whoever it left behind may hold them for ever.
const PIPES_MAX: Duration = Duration::from_millis(100);

/// Runs every hook of a point in order; the first failure ends it. `inside` is a process whose namespaces they join.
pub(crate) fn run(
    record: &Record,
    point: HookPoint,
    status: Status,
    inside: Option<&OwnedFd>,
) -> Result<(), Error> {
    let Some(hooks) = record.spec.hooks().as_ref().and_then(|hooks| list(hooks, point)) else {
        return Ok(());
    };
    let inside =
        matches!(point, HookPoint::CreateContainer | HookPoint::StartContainer).then_some(inside).flatten();
    for (index, hook) in hooks.iter().enumerate() {
        run_one(record, hook, status, inside).map_err(|problem| Error::Hook { point, index, problem })?;
    }
    Ok(())
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

fn run_one(record: &Record, hook: &Hook, status: Status, inside: Option<&OwnedFd>) -> Result<(), String> {
    let mut state = record.state(status);
    if status == Status::Stopped {
        state.pid = 0;
    }
    let state = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
    let mut command = Command::new(hook.path());
    let mut arguments = hook.args().iter().flatten();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let environment = hook.env().iter().flatten().filter_map(|pair| pair.split_once('='));
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let timeout = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(HOOK_TIMEOUT_S);
    let members = inside.map(|_| crate::hooks::namespaces(record)).transpose()?;
    let path = hook.path().display();
    let child = match (inside, members) {
        (Some(process), Some(flags)) => spawn_inside(command, process, flags),
        _ => command.spawn().map_err(|error| format!("{path}: {error}")),
    };
    attend(child?, state, Duration::from_secs(timeout)).map_err(|problem| format!("{path}: {problem}"))
}

fn namespaces(record: &Record) -> Result<u64, String> {
    let members =
        cofferdam_isolators::namespaces::Membership::of(&record.spec).map_err(|error| error.to_string())?;
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

/// A thread of its own enters the container's namespaces, spawns the hook from there, and ends.
fn spawn_inside(mut command: Command, process: &OwnedFd, flags: u64) -> Result<std::process::Child, String> {
    let process = process.try_clone().map_err(|error| error.to_string())?;
    let spawn = move || {
        // A thread shares root and working directory with its process until it says otherwise; setns(2) insists on it.
        cofferdam_linux::process::unshare_directory().map_err(|errno| errno.to_string())?;
        cofferdam_linux::process::set_namespace(process.as_fd(), flags)
            .map_err(|errno| format!("joining the container: {errno}"))?;
        command.spawn().map_err(|error| error.to_string())
    };
    std::thread::spawn(spawn).join().map_err(|_| "the thread that runs the hook failed".to_owned())?
}

fn attend(mut child: std::process::Child, state: Vec<u8>, timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    let stdin = child.stdin.take();
    let (told, telling) = std::sync::mpsc::channel::<()>();
    // A hook need not read its state; one that is larger than a pipe must not hold us up.
    std::thread::spawn(move || {
        drop(stdin.map(|mut stdin| stdin.write_all(&state)));
        drop(told);
    });
    let stderr = child.stderr.take();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(STDERR_MAX_BYTES).read_to_end(&mut text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        }
        let _ = sender.send(String::from_utf8_lossy(&text).trim().to_owned());
    });
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|errno| errno.to_string())?;
    let seconds = deadline.saturating_duration_since(Instant::now()).as_secs().max(1);
    let ended = crate::state::wait_ended(&pidfd, seconds);
    if !ended {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !ended {
        return Err(format!("did not end within {} s and was killed", timeout.as_secs()));
    }
    // Both pipes are closed now, unless somebody inherited the hook's ends: that is waited for, but not for long.
    let said = receiver.recv_timeout(PIPES_MAX).unwrap_or_default();
    let _ = telling.recv_timeout(PIPES_MAX);
    if status.success() {
        return Ok(());
    }
    let how = status.code().map_or_else(
        || format!("killed by signal {}", status.signal().unwrap_or(0)),
        |code| format!("exit status {code}"),
    );
    Err(if said.is_empty() { how } else { format!("{how}, stderr: {said}") })
}
