//! start: open the gate. runtime-spec runtime.md, "Start".

use cofferdam_apply::LateFailure;
use cofferdam_isolators::seccomp;
use cofferdam_plan::ContainerId;
use cofferdam_plan::op::HookPoint;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::{Error, system};
use crate::hooks;
use crate::runtime::Runtime;
use crate::state::{Locked, Record, Status, gate};

impl Runtime {
    /// Starts a created container: afterwards the program runs, or the container is stopped and the error says why.
    pub fn start(&self, id: &ContainerId) -> Result<(), Error> {
        let (locked, record) = self.lock(id)?;
        match record.status(&locked.directory, &self.cgroups) {
            Status::Created => {}
            Status::Creating => {
                return Err(Error::Conflict("cannot start a container that is being created".into()));
            }
            Status::Stopped => {
                return Err(Error::Conflict("cannot start a container that has stopped".into()));
            }
            Status::Running => {
                return Err(Error::Conflict("cannot start an already running container".into()));
            }
            Status::Paused => {
                return Err(Error::Conflict("cannot start a container in the paused state".into()));
            }
        }
        let result = self.start_locked(&locked, &record);
        if let Err(Error::Hook { .. }) = &result {
            // runtime-spec "Lifecycle" 7 and 9: a failing hook stops the container.
            let _ = crate::kill::kill_all(&record, &self.cgroups);
        }
        result
    }

    pub(crate) fn start_locked(&self, locked: &Locked, record: &Record) -> Result<(), Error> {
        let process = record
            .process()
            .ok_or_else(|| Error::Conflict("cannot start a container that has stopped".into()))?;
        hooks::run(record, HookPoint::StartContainer, Status::Created, Some(&process))?;
        let knock = knock(locked)?;
        let profile = record.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let outcome = if profile.is_some_and(seccomp::notifies) {
            LateFailure::hear_supervised(&knock)
        } else {
            LateFailure::hear(&knock)
        };
        let outcome = outcome.map_err(system("waiting for the program"))?;
        let _ = std::fs::remove_file(gate(&locked.directory));
        if let Some(failure) = outcome {
            return Err(late(record, failure));
        }
        hooks::run(record, HookPoint::Poststart, Status::Running, None)
    }
}

fn knock(locked: &Locked) -> Result<OwnedFd, Error> {
    let failed = || system("knocking at the container's gate");
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed())?;
    // Through the directory's descriptor: the state root may be deeper than a socket address is long.
    let directory = std::fs::File::open(&locked.directory)
        .map_err(|error| crate::state::file_error("opening", &locked.directory, &error))?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/start.sock", directory.as_raw_fd()))
        .map_err(failed())?;
    rustix::net::connect(&socket, &address).map_err(failed())?;
    rustix::net::send(&socket, b"s", rustix::net::SendFlags::NOSIGNAL).map_err(failed())?;
    Ok(socket)
}

fn late(record: &Record, failure: LateFailure) -> Error {
    let description = record.late_steps.iter().find(|(index, _)| *index == failure.step);
    let description = description.map_or_else(|| format!("step {}", failure.step), |(_, text)| text.clone());
    if description.starts_with("exec ") {
        return Error::program(record.program.clone(), failure.errno);
    }
    Error::Late { description: format!("step {}, `{description}`", failure.step), failure }
}
