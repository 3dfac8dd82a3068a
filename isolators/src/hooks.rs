//! Hooks: when the parent runs them. runtime-spec config.md, "POSIX-platform Hooks".
//!
//! The parent runs every hook, joining the container's namespaces where the specification says so: it can keep deadlines
//! and hear what a hook says, which the child must not.

use cofferdam_plan::op::HookPoint;
use cofferdam_plan::{Barrier, Builder, Op, Refusal, Stage};

use crate::compile::Context;

/// The hooks that run between the mounts and the pivot.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let Some(hooks) = context.spec().hooks() else { return Ok(()) };
    #[allow(deprecated)] // prestart is deprecated by the specification and used by everybody
    let lists = [
        (HookPoint::Prestart, hooks.prestart()),
        (HookPoint::CreateRuntime, hooks.create_runtime()),
        (HookPoint::CreateContainer, hooks.create_container()),
        (HookPoint::StartContainer, hooks.start_container()),
        (HookPoint::Poststart, hooks.poststart()),
        (HookPoint::Poststop, hooks.poststop()),
    ];
    let mut waiting = false;
    for (point, list) in lists {
        let list = list.as_deref().unwrap_or_default();
        for (index, hook) in list.iter().enumerate() {
            let pointer = format!("/hooks/{}/{index}", point.key());
            if !hook.path().is_absolute() {
                return Err(Refusal::invalid(format!("{pointer}/path"), "a hook needs an absolute path"));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(Refusal::invalid(format!("{pointer}/timeout"), "must be greater than zero"));
            }
        }
        let during_create =
            matches!(point, HookPoint::Prestart | HookPoint::CreateRuntime | HookPoint::CreateContainer);
        if list.is_empty() || !during_create {
            continue;
        }
        let why = format!("/hooks/{}", point.key());
        if !std::mem::replace(&mut waiting, true) {
            builder.step(Stage::Attach, why.as_str(), Op::Await(Barrier::Mounted));
            builder.step(Stage::Enter, why.as_str(), Op::Announce(Barrier::Mounted));
        }
        builder.step(Stage::Attach, why, Op::RunHooks { point });
    }
    if waiting {
        crate::compile::pass(builder, "/hooks", Barrier::Hooked);
    }
    Ok(())
}
