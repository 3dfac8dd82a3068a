//! start, kill, delete, pause, resume: one call each.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use cofferdam_runtime::readiness::{self, Readiness};
use cofferdam_runtime::{ContainerId, Runtime, signals};

use super::Call;
use crate::failed::Failed;

pub(crate) fn start(call: &Call<'_>) -> Result<i32, Failed> {
    let (runtime, id) = (call.global.runtime()?, call.said.id()?);
    let Some(manager) = readiness::manager() else {
        runtime.start_sealed(&id, cofferdam_runtime::become_sealed)?;
        return Ok(0);
    };
    let process = runtime.first_process(&id)?;
    let listening = open(&runtime, &id, manager)?;
    if let Some((pid, process)) = process {
        pass_on(call, listening, &process, pid);
    }
    Ok(0)
}

/// Opens the gate, listening first for the program to say that it is ready.
pub(super) fn open(
    runtime: &Runtime,
    id: &ContainerId,
    manager: PathBuf,
) -> Result<Option<Readiness>, Failed> {
    let listening = runtime.listen_for_readiness(id, manager)?;
    runtime.start_sealed(id, cofferdam_runtime::become_sealed)?;
    Ok(listening)
}

/// Waits for that word, and passes it on. A manager that cannot be told is no reason to fail what runs.
pub(super) fn pass_on(call: &Call<'_>, listening: Option<Readiness>, process: &OwnedFd, pid: i32) {
    if let Some(Err(errno)) = listening.map(|listening| listening.pass_on(process, Some(pid))) {
        call.log.warning(&format!("telling the service manager: {errno}"));
    }
}

pub(crate) fn kill(call: &Call<'_>) -> Result<i32, Failed> {
    let runtime = call.global.runtime()?;
    for_each_named(call, &runtime, |id| {
        // Whether the container is there comes first, as callers expect.
        runtime.state(id)?;
        let signal = call.said.words.get(1).map_or("TERM", String::as_str);
        let unknown = || Failed::new(format!("unknown signal {signal:?}"));
        let number = signals::parse(signal).ok_or_else(unknown)?;
        Ok(runtime.kill(id, number, call.said.has("all"))?)
    })
}

pub(crate) fn delete(call: &Call<'_>) -> Result<i32, Failed> {
    let runtime = call.global.runtime()?;
    for_each_named(call, &runtime, |id| {
        call.warn(&runtime.delete(id, call.said.has("force"))?);
        Ok(())
    })
}

/// Does it to the container that is named, or with `--regex` to each whose id matches: all of them, whatever fails.
fn for_each_named(
    call: &Call<'_>,
    runtime: &Runtime,
    act: impl Fn(&ContainerId) -> Result<(), Failed>,
) -> Result<i32, Failed> {
    if !call.said.has("regex") {
        return act(&call.said.id()?).map(|()| 0);
    }
    let text = call.said.words.first().map_or("", String::as_str);
    let expression = regex_lite::Regex::new(text)
        .map_err(|error| Failed::new(format!("invalid regular expression {text:?}: {error}")))?;
    let mut failures = Vec::new();
    // Also those whose state cannot be read: a forced delete removes them all the same.
    for id in runtime.ids()?.iter().filter(|id| expression.is_match(id.as_str())) {
        failures.extend(act(id).err().map(|failed| format!("{id}: {}", failed.words)));
    }
    if failures.is_empty() { Ok(0) } else { Err(Failed::new(failures.join("\n"))) }
}

pub(crate) fn pause(call: &Call<'_>) -> Result<i32, Failed> {
    call.global.runtime()?.pause(&call.said.id()?)?;
    Ok(0)
}

pub(crate) fn resume(call: &Call<'_>) -> Result<i32, Failed> {
    call.global.runtime()?.resume(&call.said.id()?)?;
    Ok(0)
}
