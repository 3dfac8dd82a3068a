//! Namespaces, names, and what else belongs to the process while it is still privileged.

use cofferdam_linux::{keyring, process};
use cofferdam_plan::{HostPath, Namespace, Op, SecurityModule, Slot, Text};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::{Errno, write};
use std::ffi::CStr;
use std::os::fd::AsFd;

use super::Table;

/// Runs an operation of the enter stage; `None` when it is none of these.
pub(super) fn run(table: &mut Table, op: &Op) -> Option<Result<(), Errno>> {
    Some(match op {
        Op::Join { kind, from } => join(table, *kind, *from),
        Op::OpenNamespace { path, into, .. } => open_own(table, path, *into),
        Op::Unshare { kind } => process::unshare(kind.flag()),
        Op::EnterTime { offsets } => enter_time(offsets),
        Op::SetExecLabel { module, label } => set_exec_label(*module, label),
        Op::BecomeRoot => process::set_ids(0, 0, None),
        Op::NewSession => rustix::process::setsid().map(drop),
        Op::TakeTerminal => rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()),
        Op::NewKeyring { name } => new_keyring(name),
        Op::SetHostname { name } => rustix::system::sethostname(name.as_c_str().to_bytes()),
        Op::SetDomainname { name } => rustix::system::setdomainname(name.as_c_str().to_bytes()),
        Op::RaiseLoopback => cofferdam_linux::namespace::raise_loopback(),
        Op::WriteSysctl { proc, key, value } => write_sysctl(table, *proc, key, value),
        Op::SetStdio { stdin, stdout, stderr } => set_stdio(table, [*stdin, *stdout, *stderr]),
        _ => return None,
    })
}

fn join(table: &Table, kind: Namespace, from: Slot) -> Result<(), Errno> {
    process::set_namespace(table.get(from)?, kind.flag())
}

/// A namespace that this process is in, by its own entry in /proc: that opens to itself whoever may not look into it.
fn open_own(table: &mut Table, path: &HostPath, into: Slot) -> Result<(), Errno> {
    let namespace = open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    table.set(into, namespace);
    Ok(())
}

/// The offsets of a time namespace can be set only while nobody is in it, and its maker is not in it.
fn enter_time(offsets: &Text) -> Result<(), Errno> {
    process::unshare(Namespace::Time.flag())?;
    // Becoming root in a new user namespace made this process non-dumpable, and its /proc files somebody else's. Nobody
    // else is in its namespaces yet; the plan forbids dumps again before it joins any.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    let offsets = offsets.as_c_str().to_bytes();
    // The kernel takes lines; no line at all is an error to it.
    if !offsets.is_empty() {
        let file = open(c"/proc/self/timens_offsets", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write_whole(file.as_fd(), offsets)?;
    }
    let namespace =
        open(c"/proc/self/ns/time_for_children", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    process::set_namespace(namespace.as_fd(), Namespace::Time.flag())
}

/// Taken at exec, whatever happens before it. Several modules may be stacked: AppArmor has a folder of its own since
/// Linux 5.8.
fn set_exec_label(module: SecurityModule, label: &Text) -> Result<(), Errno> {
    let own = |path: &CStr| open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let shared = c"/proc/thread-self/attr/exec";
    let file = match module {
        SecurityModule::Selinux => own(shared)?,
        SecurityModule::AppArmor => own(c"/proc/thread-self/attr/apparmor/exec").or_else(|_| own(shared))?,
    };
    write_whole(file.as_fd(), label.as_c_str().to_bytes())
}

/// Kernels without keyrings, and quotas that are used up, must not keep a container from starting (runc does the same).
fn new_keyring(name: &Text) -> Result<(), Errno> {
    match keyring::join_new_session(name.as_c_str()) {
        Err(Errno::NOSYS | Errno::DQUOT) => Ok(()),
        result => result,
    }
}

/// Kernel files take a value in one write or not at all.
pub(super) fn write_whole(file: std::os::fd::BorrowedFd<'_>, text: &[u8]) -> Result<(), Errno> {
    match write(file, text)? {
        count if count == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Through the container's own procfs, before anything of the container runs: never through a path it could have moved.
fn write_sysctl(table: &Table, proc: Slot, key: &Text, value: &Text) -> Result<(), Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let directory = openat2(
        table.get(proc)?,
        c"sys",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?;
    let file = openat2(&directory, key.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    write_whole(file.as_fd(), value.as_c_str().to_bytes())
}

fn set_stdio(table: &mut Table, slots: [Slot; 3]) -> Result<(), Errno> {
    let [stdin, stdout, stderr] = slots;
    rustix::stdio::dup2_stdin(table.get(stdin)?)?;
    rustix::stdio::dup2_stdout(table.get(stdout)?)?;
    rustix::stdio::dup2_stderr(table.get(stderr)?)
}
