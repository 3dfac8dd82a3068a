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

/// The action of the runtime-spec with its datum; an absent errnoRet means EPERM. `pointer` tells where the errnoRet stands.
pub(super) fn parse(
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    pointer: &dyn Fn() -> String,
) -> Result<Action, Error> {
    let datum = |limit: u32| match errno_ret {
        None => Ok(EPERM),
        Some(number) => u16::try_from(number)
            .ok()
            .filter(|_| number <= limit)
            .ok_or_else(|| Error::ErrnoRange { pointer: pointer(), value: number, limit }),
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Action::KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => Action::KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => Action::TRAP,
        LinuxSeccompAction::ScmpActErrno => Action::errno(datum(MAX_ERRNO)?),
        LinuxSeccompAction::ScmpActNotify => Action::NOTIFY,
        LinuxSeccompAction::ScmpActTrace => Action::trace(datum(u32::from(u16::MAX))?),
        LinuxSeccompAction::ScmpActLog => Action::LOG,
        LinuxSeccompAction::ScmpActAllow => Action::ALLOW,
    })
}
