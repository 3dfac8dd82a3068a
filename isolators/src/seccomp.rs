//! Compiles the runtime-spec's seccomp profile into the program that the kernel loads.
//!
//! Not seccompiler: that crate carries one architecture and one match action a filter and cannot express Docker's profile.
//! Not libseccomp either: it is C, and it links dynamically. The semantics are libseccomp's all the same (see [`rules`]), held
//! by tests that run both programs over the same calls. Where we differ on purpose:
//!
//! | | libseccomp as runc uses it | here |
//! |---|---|---|
//! | ABI that the profile does not list | kill the thread | kill the process |
//! | call newer than all the profile names | default action, a stub of runc's in front | ENOSYS, in the same tree |
//! | architecture without a call table | filtered | not listed, therefore killed; reported in [`Skipped`] |
//!
//! Order to read: [`rules`] (what a profile means), [`program`] (how it becomes instructions), [`default`] (our profile).
//! Pure: no system call, no file. Loading is `cofferdam_linux::seccomp::load`.

mod action;
mod architecture;
pub mod default;
pub(crate) mod message;
mod multiplex;
mod program;
mod rules;
mod simulator;
pub mod syscalls;

use std::collections::BTreeSet;
use std::path::PathBuf;

use cofferdam_plan::Refusal;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

pub use action::Action;
pub use architecture::{Architecture, X32_SYSCALL_BIT};
pub use cofferdam_plan::op::Instruction;
pub use simulator::{Call, simulate};

/// A compiled profile, ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The program, at most 4,096 instructions.
    pub program: Vec<Instruction>,
    /// Flags for `seccomp(SECCOMP_SET_MODE_FILTER)`, `NEW_LISTENER` included where [`Filter::notify`] is set.
    pub flags: u32,
    /// Present if an action asks the supervising process.
    pub notify: Option<Notify>,
    /// What the profile says that cannot be put into this filter.
    pub skipped: Skipped,
}

impl Filter {
    /// Whether a call of this machine's own ABI is made, whatever else is done about it.
    #[must_use]
    pub fn permits(&self, name: &str, arguments: [u64; 6]) -> bool {
        let Some(native) = Architecture::native() else { return false };
        let Some(number) = syscalls::number(name, native) else { return false };
        let call = Call { number, architecture: native.audit_word(), arguments, ..Call::default() };
        let answer = simulate(&self.program, &call);
        answer.is_some_and(|(action, _)| matches!(action, Action::ALLOW | Action::LOG))
    }

    /// Whether a call of this machine's own ABI is made whatever its arguments, and nothing is said about it.
    #[must_use]
    pub fn ignores(&self, name: &str) -> bool {
        let Some(native) = Architecture::native() else { return false };
        let Some(number) = syscalls::number(name, native) else { return false };
        simulator::decided_by_number(&self.program, number, native.audit_word()) == Some(Action::ALLOW)
    }
}

/// Who receives the notification descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// The unix socket that takes the descriptor and the container's state.
    pub listener_path: PathBuf,
    /// Passed to the listener as it is.
    pub listener_metadata: String,
    /// Whether it is asked about close(2).
    pub asks_close: bool,
}

/// Names in a profile that no table knows. Not an error: profiles are written for many kernels and architectures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// System call names that no architecture has, sorted.
    pub syscalls: Vec<String>,
    /// Architectures without a call table; calls through them are killed like those of every unlisted one.
    pub architectures: Vec<Arch>,
}

/// Why a profile was refused; [`Error::pointer`] says where in the configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An errnoRet that the kernel would cut down.
    #[error("errnoRet {value} is above {limit}")]
    ErrnoRange {
        /// Where in the configuration.
        pointer: String,
        /// The value given.
        value: u32,
        /// The largest that fits the action.
        limit: u32,
    },
    /// An argument beyond the sixth.
    #[error("a system call has arguments 0 to 5, not {index}")]
    ArgumentIndex {
        /// Where in the configuration.
        pointer: String,
        /// The index given.
        index: usize,
    },
    /// Two rules with the same conditions and different actions.
    #[error("the same conditions on {syscall} already lead to another action")]
    Contradiction {
        /// Where the second rule stands.
        pointer: String,
        /// The call.
        syscall: String,
    },
    /// SCMP_ACT_NOTIFY as the default: nobody could answer the calls that set the listener up.
    #[error("SCMP_ACT_NOTIFY cannot be the default action")]
    NotifyByDefault,
    /// SCMP_ACT_NOTIFY on a call that hands the listener over.
    #[error("SCMP_ACT_NOTIFY cannot be used for the {syscall} syscall, which hands the listener over")]
    NotifyOnHandover {
        /// Where in the configuration.
        pointer: String,
        /// The call.
        syscall: &'static str,
    },
    /// SCMP_ACT_NOTIFY and nobody to notify.
    #[error("SCMP_ACT_NOTIFY is used and no listener is named")]
    NotifyWithoutListener,
    /// The kernel takes 4,096 instructions.
    #[error(
        "the filter needs {instructions} or more instructions, the kernel takes {}",
        program::MAX_INSTRUCTIONS
    )]
    TooLong {
        /// How long it had become.
        instructions: usize,
    },
    /// More rules than any filter could hold.
    #[error("{rules} rules, at most {MAX_RULES} are read")]
    TooManyRules {
        /// How many there are.
        rules: usize,
    },
    /// This program was built for an architecture without a call table.
    #[error("no system call table for this machine's architecture")]
    UnknownNative,
}

/// Above this a profile is refused unread; Docker's has some 60 rules, and each costs an instruction or more.
const MAX_RULES: usize = 100_000;

/// Flags of seccomp(2), as numbers.
mod flag {
    pub(super) const LOG: u32 = 1 << 1;
    pub(super) const SPEC_ALLOW: u32 = 1 << 2;
    pub(super) const NEW_LISTENER: u32 = 1 << 3;
    pub(super) const WAIT_KILLABLE_RECV: u32 = 1 << 5;
}

/// SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which newer kernels alone know.
pub const WAIT_KILLABLE_RECV: u32 = flag::WAIT_KILLABLE_RECV;

/// Compiles `profile` for the architecture this program runs on.
///
/// # Errors
/// Every refusal of [`Error`]; nothing was touched.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    compile_for(profile, Architecture::native().ok_or(Error::UnknownNative)?)
}

/// Compiles `profile` for a machine whose native architecture is `native`.
///
/// # Errors
/// As [`compile`].
pub fn compile_for(profile: &LinuxSeccomp, native: Architecture) -> Result<Filter, Error> {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    if rules.len() > MAX_RULES {
        return Err(Error::TooManyRules { rules: rules.len() });
    }
    let default_pointer = || "/linux/seccomp/defaultErrnoRet".to_owned();
    let default = action::parse(profile.default_action(), profile.default_errno_ret(), &default_pointer)?;
    let notify = notify(profile)?;

    let mut unknown = BTreeSet::new();
    let rules = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| rules::Rule::read(index, rule, &mut unknown))
        .collect::<Result<Vec<_>, _>>()?;
    let unknown = unknown.into_iter().map(str::to_owned).collect();
    let mut skipped = Skipped { syscalls: unknown, architectures: Vec::new() };
    let tables = architectures(profile, native, &mut skipped)
        .into_iter()
        .map(|architecture| rules::Table::build(architecture, &rules, default))
        .collect::<Result<Vec<_>, _>>()?;

    let enosys_for_newer = !default.is_permissive() && default != Action::ENOSYS;
    let program = program::assemble(&tables, default, enosys_for_newer)?;
    Ok(Filter { program, flags: flags(profile, notify.is_some()), notify, skipped })
}

/// The listed architectures with the native one first, each once, and x32 beside x86-64 because they share a tree.
fn architectures(profile: &LinuxSeccomp, native: Architecture, skipped: &mut Skipped) -> Vec<Architecture> {
    let mut known = vec![native];
    for arch in profile.architectures().as_deref().unwrap_or_default() {
        match Architecture::from_oci(*arch, native) {
            Some(architecture) => known.push(architecture),
            None => skipped.architectures.push(*arch),
        }
    }
    known.sort_by_key(|architecture| {
        (
            architecture.audit_word() != native.audit_word(),
            architecture.audit_word(),
            architecture.number_base(),
        )
    });
    known.dedup();
    known
}

/// Whether a profile asks a supervising process about some calls.
#[must_use]
pub fn notifies(profile: &LinuxSeccomp) -> bool {
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    rules.iter().any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify)
}

/// TSYNC needs nothing: the filter is loaded by a process with one thread.
/// The runtime-spec's flags in the order of their names, with the kernel's; nobody needs to be synchronized in a process of one
/// thread.
const FLAGS: [(LinuxSeccompFilterFlag, u32); 4] = [
    (LinuxSeccompFilterFlag::SeccompFilterFlagLog, flag::LOG),
    (LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow, flag::SPEC_ALLOW),
    (LinuxSeccompFilterFlag::SeccompFilterFlagTsync, 0),
    (LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv, flag::WAIT_KILLABLE_RECV),
];

/// The flags that a profile may have, by name.
pub fn known_flags() -> impl Iterator<Item = LinuxSeccompFilterFlag> {
    FLAGS.into_iter().map(|(flag, _)| flag)
}

/// The actions that a rule may have, by name.
pub fn known_actions() -> impl Iterator<Item = LinuxSeccompAction> {
    action::ACTIONS.into_iter().map(|(action, ..)| action)
}

/// The operators that a condition may have, by name.
pub fn known_operators() -> impl Iterator<Item = LinuxSeccompOperator> {
    rules::OPERATORS.into_iter().map(|(operator, _)| operator)
}

fn flags(profile: &LinuxSeccomp, notifies: bool) -> u32 {
    let asked = profile.flags().as_deref().unwrap_or_default();
    let bits = FLAGS.iter().filter(|(flag, _)| asked.contains(flag)).fold(0, |bits, (_, bit)| bits | bit);
    // The kernel refuses to wait where there is no listener to wait for.
    if notifies { bits | flag::NEW_LISTENER } else { bits & !flag::WAIT_KILLABLE_RECV }
}

/// Calls that the child needs between loading the filter and being rid of its own copy of the listener, and to say why it
/// failed: stopped in one of them, nobody could go on.
const HANDOVER: [&str; 2] = ["write", "sendmsg"];

/// Two calls of which the child needs one, to be rid of its copy.
const CLOSE: [&str; 2] = ["close", "close_range"];

fn notify(profile: &LinuxSeccomp) -> Result<Option<Notify>, Error> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(Error::NotifyByDefault);
    }
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let asks = |rule: &LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActNotify;
    if !rules.iter().any(asks) {
        return Ok(None);
    }
    let place = |call: &str| {
        rules.iter().position(|rule| asks(rule) && rule.names().iter().any(|name| name.as_str() == call))
    };
    let closes = CLOSE.map(|call| place(call).is_some());
    let needed = HANDOVER.iter().chain(CLOSE.iter().take(usize::from(closes == [true; 2])));
    if let Some((syscall, index)) = needed.into_iter().find_map(|call| Some((*call, place(call)?))) {
        let pointer = format!("/linux/seccomp/syscalls/{index}");
        return Err(Error::NotifyOnHandover { pointer, syscall });
    }
    let listener_path = profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
    Ok(Some(Notify {
        listener_path: listener_path.ok_or(Error::NotifyWithoutListener)?,
        listener_metadata: profile.listener_metadata().clone().unwrap_or_default(),
        asks_close: closes[0],
    }))
}

impl Error {
    /// Where in the configuration the refused value stands.
    #[must_use]
    pub fn pointer(&self) -> String {
        match self {
            Self::ErrnoRange { pointer, .. }
            | Self::ArgumentIndex { pointer, .. }
            | Self::Contradiction { pointer, .. }
            | Self::NotifyOnHandover { pointer, .. } => pointer.clone(),
            Self::NotifyByDefault => "/linux/seccomp/defaultAction".to_owned(),
            Self::NotifyWithoutListener => "/linux/seccomp/listenerPath".to_owned(),
            Self::TooManyRules { .. } => "/linux/seccomp/syscalls".to_owned(),
            Self::TooLong { .. } | Self::UnknownNative => "/linux/seccomp".to_owned(),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (pointer, problem) = (error.pointer(), error.to_string());
        match error {
            Error::UnknownNative => Self::unsupported(pointer, problem),
            _ => Self::invalid(pointer, problem),
        }
    }
}

#[cfg(test)]
mod tests;
