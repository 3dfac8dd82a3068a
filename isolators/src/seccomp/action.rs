//! What a filter answers: the kernel's 32-bit return words, made from the runtime-spec's actions.

use oci_spec::runtime::LinuxSeccompAction;

use super::Error;

/// A filter's answer in the kernel's encoding: the action in the high half, its datum in the low half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Action(pub u32);

impl Action {
    /// End the whole process (`SECCOMP_RET_KILL_PROCESS`).
    pub const KILL_PROCESS: Self = Self(0x8000_0000);
    /// End the calling thread (`SECCOMP_RET_KILL_THREAD`).
    pub const KILL_THREAD: Self = Self(0);
    /// Send SIGSYS (`SECCOMP_RET_TRAP`).
    pub const TRAP: Self = Self(0x0003_0000);
    /// Ask the process that holds the listener (`SECCOMP_RET_USER_NOTIF`).
    pub const NOTIFY: Self = Self(0x7fc0_0000);
    /// Allow, and log (`SECCOMP_RET_LOG`).
    pub const LOG: Self = Self(0x7ffc_0000);
    /// Allow (`SECCOMP_RET_ALLOW`).
    pub const ALLOW: Self = Self(0x7fff_0000);
    /// Fail with ENOSYS: "this kernel does not have it", which makes libraries fall back.
    pub const ENOSYS: Self = Self::errno(38);

    /// Fail the call with this error number (`SECCOMP_RET_ERRNO`).
    #[must_use]
    pub const fn errno(number: u16) -> Self {
        Self(0x0005_0000 | number as u32)
    }

    /// Tell the tracer, with this message (`SECCOMP_RET_TRACE`).
    #[must_use]
    pub const fn trace(message: u16) -> Self {
        Self(0x7ff0_0000 | message as u32)
    }

    /// Whether calls that nobody thought of go through to the kernel, or to a tracer that answers for it.
    #[must_use]
    pub(super) const fn is_permissive(self) -> bool {
        matches!(self.0 & 0xffff_0000, 0x7ff0_0000 | 0x7ffc_0000 | 0x7fff_0000)
    }
}

/// The kernel's MAX_ERRNO: it would silently cut a larger number down to this.
const MAX_ERRNO: u32 = 4095;
const EPERM: u16 = 1;

/// The runtime-spec's actions in the order of their names, with what they are here and the largest datum that they take.
pub(super) const ACTIONS: [(LinuxSeccompAction, Action, u32); 9] = [
    (LinuxSeccompAction::ScmpActAllow, Action::ALLOW, 0),
    (LinuxSeccompAction::ScmpActErrno, Action::errno(0), MAX_ERRNO),
    (LinuxSeccompAction::ScmpActKill, Action::KILL_THREAD, 0),
    (LinuxSeccompAction::ScmpActKillProcess, Action::KILL_PROCESS, 0),
    (LinuxSeccompAction::ScmpActKillThread, Action::KILL_THREAD, 0),
    (LinuxSeccompAction::ScmpActLog, Action::LOG, 0),
    (LinuxSeccompAction::ScmpActNotify, Action::NOTIFY, 0),
    (LinuxSeccompAction::ScmpActTrace, Action::trace(0), 0xffff),
    (LinuxSeccompAction::ScmpActTrap, Action::TRAP, 0),
];

/// The action of the runtime-spec with its datum; an absent errnoRet means EPERM. `pointer` tells where the errnoRet stands.
pub(super) fn parse(
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    pointer: &dyn Fn() -> String,
) -> Result<Action, Error> {
    let known = ACTIONS.into_iter().find(|(known, ..)| *known == action);
    // What the table lacks must not let a call pass.
    let (_, base, limit) = known.unwrap_or((action, Action::KILL_PROCESS, 0));
    let datum = match errno_ret {
        _ if limit == 0 => 0,
        None => u32::from(EPERM),
        Some(number) if number <= limit => number,
        Some(value) => return Err(Error::ErrnoRange { pointer: pointer(), value, limit }),
    };
    Ok(Action(base.0 | datum))
}
