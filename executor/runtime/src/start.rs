//! start: open the gate. runtime-spec runtime.md, "Start".

use cofferdam_apply::{LEND, LateFailure, START};
use cofferdam_isolators::seccomp;
use cofferdam_linux::terminal::receive_descriptors;
use cofferdam_linux::wait::readable;
use cofferdam_plan::ContainerId;
use cofferdam_plan::op::HookPoint;
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, system};
use crate::hooks;
use crate::lock::Locked;
use crate::runtime::Runtime;
use crate::state::{Record, Status, gate};

impl Runtime {
    /// Starts a created container: afterwards the program runs, or the container is stopped and the error says why. After a failing hook it is gone.
    pub fn start(&self, id: &ContainerId) -> Result<(), Error> {
        self.start_sealed(id, || Ok(()))
    }

    /// As [`Runtime::start`], but `seal` is called first where a hook is going to be started from inside the container: there
    /// it may be a link to this very program.
    pub fn start_sealed(
        &self,
        id: &ContainerId,
        seal: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (locked, record) = self.lock(id)?;
        if record.hooked && hooks::any(record.spec.get()?, HookPoint::StartContainer) {
            seal()?;
        }
        let stopped = || Error::Conflict("cannot start a container that has stopped".into());
        let (status, process) = record.look(&locked.directory);
        match status {
            Status::Created => {}
            Status::Creating => {
                return Err(Error::Conflict("cannot start a container that is being created".into()));
            }
            Status::Stopped => return Err(stopped()),
            Status::Running => {
                return Err(Error::Conflict("cannot start an already running container".into()));
            }
            Status::Paused => {
                return Err(Error::Conflict("cannot start a container in the paused state".into()));
            }
        }
        let result = self.start_locked(&locked, &record, &process.ok_or_else(stopped)?);
        match &result {
            // runtime-spec "Lifecycle" 8 and 9: after a failing hook it goes on at step 12, the container is destroyed. What
            // cannot be removed stays for `delete`.
            Err(Error::Hook { .. }) => drop(self.delete_locked(id, &locked, true)),
            // A program that is not reached is ended.
            Err(Error::TimedOut { .. }) => drop(crate::kill::kill_all(self, &locked.directory, &record)),
            _ => {}
        }
        result
    }

    pub(crate) fn start_locked(
        &self,
        locked: &Locked,
        record: &Record,
        process: &OwnedFd,
    ) -> Result<(), Error> {
        hooks::run(self, record, HookPoint::StartContainer, Status::Created, Some(process))?;
        let limit = self.options.limits.child;
        let timed_out = || Error::TimedOut {
            waited_for: format!("waiting for the container's process to execute {:?}", record.program),
            seconds: limit.as_secs_f32(),
        };
        let supervised = record.supervised && supervised(record.spec.get()?);
        let hear = |knock: OwnedFd| match supervised {
            true => LateFailure::hear_supervised(&knock),
            false => LateFailure::hear(&knock, limit),
        };
        let outcome = match knock(&locked.directory, START, limit).and_then(hear) {
            Err(Errno::TIMEDOUT | Errno::AGAIN) => return Err(timed_out()),
            result => result.map_err(system("starting the container's process"))?,
        };
        let _ = std::fs::remove_file(gate(&locked.directory));
        if let Some(failure) = outcome {
            return Err(late(record, failure));
        }
        hooks::run(self, record, HookPoint::Poststart, Status::Running, None)
    }
}

/// Whether a profile asks somebody about some of the program's system calls.
pub(crate) fn supervised(spec: &Spec) -> bool {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    profile.is_some_and(seccomp::notifies)
}

/// The namespaces of a created container, which its first process opens to nobody but root and lends to its owner.
pub(crate) fn borrow(directory: &Path, limit: Duration) -> Result<Vec<OwnedFd>, Error> {
    let operation = "asking a created container for its namespaces";
    let knock = knock(directory, LEND, limit).map_err(system(operation))?;
    if !readable(&knock, limit).map_err(system(operation))? {
        return Err(Error::TimedOut { waited_for: operation.into(), seconds: limit.as_secs_f32() });
    }
    receive_descriptors(knock.as_fd()).map_err(system(operation))
}

fn knock(directory: &Path, word: u8, limit: Duration) -> Result<OwnedFd, Errno> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    // Through the directory's descriptor: the state root may be deeper than a socket address is long.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/start.sock", directory.as_raw_fd()))?;
    rustix::net::connect(&socket, &address)?;
    rustix::net::send(&socket, &[word], rustix::net::SendFlags::NOSIGNAL)?;
    Ok(socket)
}

fn late(record: &Record, failure: LateFailure) -> Error {
    let description = record.late_steps.iter().find(|(index, _)| *index == failure.step);
    let description = description.map_or_else(|| format!("step {}", failure.step), |(_, text)| text.clone());
    if description.starts_with("exec ") {
        return Error::not_executed(record.program.clone(), failure.errno);
    }
    Error::Late { description: format!("step {}, `{description}`", failure.step), failure }
}
