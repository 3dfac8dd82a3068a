//! create, run, plan: from a bundle to a container.

use std::path::PathBuf;

use cofferdam_runtime::{Console, ContainerId, Create, Created, Fault, Runtime, bundle, listen, readiness};

use super::{Call, seal};
use crate::failed::Failed;
use crate::foreground::{Foreground, console, take_our_size};
use crate::pidfd_socket::PidfdSocket;

pub(crate) fn create(call: &Call<'_>) -> Result<i32, Failed> {
    seal()?;
    let made = make(call, Gate::Waits, Side::Background).map_err(|failed| failed.of("create"))?;
    // The container has the same memory until it starts; the end of this process frees our part of it at once.
    std::mem::forget(made);
    Ok(0)
}

pub(crate) fn run(call: &Call<'_>) -> Result<i32, Failed> {
    seal()?;
    let side = if call.said.has("detach") { Side::Background } else { Side::Foreground };
    let manager = readiness::manager();
    // Who waits to hear that the program is ready must listen before it runs.
    let gate = if manager.is_some() { Gate::Waits } else { Gate::Open };
    let (runtime, created) = make(call, gate, side).map_err(|failed| failed.of("run"))?;
    let listening = manager.map(|manager| super::manage::open(&runtime, &call.said.id()?, manager));
    let listening = listening.transpose()?.flatten();
    if side == Side::Background {
        super::manage::pass_on(call, listening, &created.pidfd, created.pid);
        return Ok(0);
    }
    if let Some(listening) = listening {
        let process = created.pidfd.try_clone().map_err(Failed::new)?;
        // Here the service is this very process, and the manager knows it.
        let thread = std::thread::Builder::new().spawn(move || listening.pass_on(&process, None));
        if let Err(error) = thread {
            call.warn(&[format!("nobody is told when the program is ready, for want of a thread: {error}")]);
        }
    }
    let status = Foreground { process: &created.pidfd, terminal: created.console }.wait();
    if !call.said.has("keep") {
        runtime.delete(&call.said.id()?, true)?;
    }
    status
}

/// The steps that create would take; nothing is touched.
pub(crate) fn plan(call: &Call<'_>) -> Result<i32, Failed> {
    let id = if call.said.words.is_empty() { ContainerId::parse("plan") } else { Ok(call.said.id()?) };
    let create = request(call, id.map_err(Failed::new)?)?;
    print!("{}", call.global.runtime()?.plan(&create)?);
    Ok(0)
}

/// Whether the program waits for start.
#[derive(PartialEq)]
enum Gate {
    Waits,
    Open,
}

/// Whether we stay with the process.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Foreground,
    Background,
}

fn make(call: &Call<'_>, gate: Gate, side: Side) -> Result<(Runtime, Created), Failed> {
    let runtime = call.global.runtime()?;
    let mut create = request(call, call.said.id()?)?;
    let terminal = create.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
    create.console = console(terminal, side == Side::Background, call.said.path("console-socket"))?;
    if let (Console::Front, Some(process)) = (&create.console, create.spec.process_mut()) {
        take_our_size(process);
    }
    if readiness::manager().is_some() {
        runtime.announce_readiness(&create.id, &mut create.spec);
    }
    create.start = gate == Gate::Open;
    let socket = call.said.path("pidfd-socket").map(|path| PidfdSocket::connect(&path)).transpose()?;
    let id = create.id.clone();
    let created = runtime.create(create)?;
    call.warn(&created.warnings);
    call.remark(&created.plan.remarks);
    if let Some(Err(failed)) = socket.map(|socket| socket.send(&created.pidfd, "standard")) {
        runtime.delete(&id, true)?;
        return Err(failed);
    }
    if call.said.has("explain") {
        eprint!("{}", cofferdam_runtime::explain(&created.plan, &created.timings));
    }
    Ok((runtime, created))
}

fn request(call: &Call<'_>, id: ContainerId) -> Result<Create, Failed> {
    let folder = call.said.path("bundle").unwrap_or_else(|| PathBuf::from("."));
    let config = call.said.path("config").unwrap_or_else(|| folder.join("config.json"));
    let (mut spec, warnings) = bundle::read_json_warned(&config)?;
    call.warn(&warnings);
    let inherited = listen::announce(&mut spec);
    let mut create = Create::new(id, folder, spec);
    if let Some(socket) = call.said.path("console-socket") {
        create.console = Console::Socket(socket);
    }
    create.pid_file = call.said.path("pid-file");
    create.preserve_fds = inherited + call.said.number::<u32>("preserve-fds")?.unwrap_or(0);
    create.no_pivot = call.said.has("no-pivot");
    create.no_new_keyring = call.said.has("no-new-keyring");
    create.fault = call.said.number("fail-step")?.map(|step| Fault { step, errno: rustix::io::Errno::IO });
    Ok(create)
}
