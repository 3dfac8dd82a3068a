//! Cache and memory bandwidth allocation. runtime-spec config-linux.md, "IntelRdt".
//!
//! Refused by name: a container that was to be kept out of somebody's cache must not run in it.

use cofferdam_plan::{Builder, Refusal};

use crate::compile::Context;

/// Refuses `linux.intelRdt`.
pub fn plan(context: &Context<'_>, _builder: &mut Builder) -> Result<(), Refusal> {
    match context.linux().and_then(|linux| linux.intel_rdt().as_ref()) {
        None => Ok(()),
        Some(_) => {
            Err(Refusal::unsupported("/linux/intelRdt", "cache and memory bandwidth allocation (resctrl)"))
        }
    }
}
