//! start, kill, delete, pause, resume: one call each.

use cofferdam_runtime::signals;

use super::{Call, seal};
use crate::failed::Failed;

pub(crate) fn start(call: &Call<'_>) -> Result<i32, Failed> {
    let (runtime, id) = (call.global.runtime()?, call.said.id()?);
    let spec = runtime.spec(&id)?;
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    if hooks.is_some_and(|hooks| !hooks.is_empty()) {
        // Such a hook is started from inside the container, where it may be a link to this very program.
        seal()?;
    }
    runtime.start(&id)?;
    Ok(0)
}

pub(crate) fn kill(call: &Call<'_>) -> Result<i32, Failed> {
    let (runtime, id) = (call.global.runtime()?, call.said.id()?);
    // Whether the container is there comes first, as callers expect.
    runtime.state(&id)?;
    let signal = call.said.words.get(1).map_or("TERM", String::as_str);
    let number = signals::parse(signal).ok_or_else(|| Failed::new(format!("unknown signal {signal:?}")))?;
    runtime.kill(&id, number, call.said.has("all"))?;
    Ok(0)
}

pub(crate) fn delete(call: &Call<'_>) -> Result<i32, Failed> {
    call.warn(&call.global.runtime()?.delete(&call.said.id()?, call.said.has("force"))?);
    Ok(0)
}

pub(crate) fn pause(call: &Call<'_>) -> Result<i32, Failed> {
    call.global.runtime()?.pause(&call.said.id()?)?;
    Ok(0)
}

pub(crate) fn resume(call: &Call<'_>) -> Result<i32, Failed> {
    call.global.runtime()?.resume(&call.said.id()?)?;
    Ok(0)
}
