//! Undoing: the child first, since it holds what others would let go of, then in reverse. Every undo is attempted; what
//! fails is named.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::applied::Attendant;
use cofferdam_linux::cgroup::Cgroup;
use cofferdam_linux::process::Child;
use cofferdam_linux::wait::readable;
use cofferdam_plan::{Plan, Undo};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// Undoes steps `done` (indices of steps that ran, or began to run) in reverse order.
pub(crate) fn undo(
    plan: &Plan,
    done: &[usize],
    child: Option<&Child>,
    lent_to: Option<&OwnedFd>,
    cgroup: Option<&Cgroup>,
    attendant: &mut dyn Attendant,
) -> Vec<String> {
    let killed = child.map_or(Ok(()), kill).map_err(|error| format!("the child process: {error}"));
    let mut left = Vec::from_iter(killed.err());
    for step in done.iter().rev().filter_map(|index| plan.steps.get(*index)) {
        let result = match step.op.undo() {
            // What changes limits in use is undone where what they were was read, in `change`; the child is gone.
            Undo::Nothing(_)
            | Undo::KillChild
            | Undo::RestoreCgroupFile
            | Undo::RestoreSchemata(_)
            | Undo::ReplaceDevices(_) => Ok(()),
            Undo::ReturnNetDevice { device, name } => lent_to
                .map_or(Ok(()), |namespace| crate::device::fetch(namespace, &device, &name))
                .map_err(|error| format!("the network device {device}: {error}")),
            Undo::StopUnit(unit) => attendant.stop_unit(&unit).map_err(|error| format!("{unit}: {error}")),
            Undo::RemoveCgroup => {
                cgroup.map_or(Ok(()), Cgroup::remove).map_err(|error| format!("the cgroup: {error}"))
            }
            Undo::RemoveDirectory(path) => match rustix::fs::rmdir(path.as_c_str()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(format!("{path}: {error}")),
            },
            Undo::RemoveFile(path) => match rustix::fs::unlink(path.as_c_str()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(error) => Err(format!("{path}: {error}")),
            },
        };
        left.extend(result.err());
    }
    left
}

/// How long a killed child is waited for. One that hangs in the kernel (a dead network file system) outlives this, and is
/// named as left behind.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Kills the child, waits for its end and reaps it.
pub fn kill(child: &Child) -> Result<(), Errno> {
    match pidfd_send_signal(&child.pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => return Err(errno),
    }
    if !readable(&child.pidfd, KILL_LIMIT)? {
        return Err(Errno::TIMEDOUT);
    }
    loop {
        match waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            // ECHILD: somebody who reaps every child of this process was faster.
            Ok(_) | Err(Errno::CHILD) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}
