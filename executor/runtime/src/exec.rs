//! exec: one more process in a running container, confined as the container is.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_apply::{Inputs, apply};
use cofferdam_isolators::arrival::may_trace;
use cofferdam_isolators::compile::{INIT, lent};
use cofferdam_isolators::namespaces::Membership;
use cofferdam_isolators::{Joining, compile_joining};
use cofferdam_linux::process::Child;
use cofferdam_plan::{ContainerId, Namespace, Slot, Standing};
use oci_spec::runtime::Process;

use crate::create::{Console, Stdio, descriptors, receive, with_resctrl, write_pid};
use crate::error::Error;
use crate::lock::Locked;
use crate::runtime::Runtime;
use crate::state::{Record, Status};

/// How often it is looked whether a paused container goes on; cgroup v1 has nothing to wait on.
const PAUSED_LOOK: Duration = Duration::from_millis(20);

/// A process to start in a container.
#[derive(Debug)]
pub struct Exec {
    /// The process, as the specification writes it.
    pub process: Process,
    /// Standard input, output and error.
    pub stdio: Stdio,
    /// The terminal's master.
    pub console: Console,
    /// How many descriptors from 3 up the program keeps.
    pub preserve_fds: u32,
    /// Write the pid here before exec returns.
    pub pid_file: Option<PathBuf>,
    /// Wait for a paused container to go on, for as long as that takes.
    pub ignore_paused: bool,
    /// Cgroups below the container's that the process goes to: `PATH`, or `CONTROLLER:PATH` on cgroup v1.
    pub cgroups: Vec<String>,
}

impl Exec {
    /// A process with everything else as it comes.
    pub fn new(process: Process) -> Self {
        Self {
            process,
            stdio: Stdio::Inherit,
            console: Console::None,
            preserve_fds: 0,
            pid_file: None,
            ignore_paused: false,
            cgroups: Vec::new(),
        }
    }
}

/// A process that runs in a container.
#[derive(Debug)]
pub struct Executed {
    /// Its pid as the caller sees it.
    pub pid: i32,
    /// A descriptor of it. The caller is its parent.
    pub pidfd: OwnedFd,
    /// The terminal's master, when the caller asked for it.
    pub console: Option<OwnedFd>,
    /// What was asked for and could not be given.
    pub warnings: Vec<String>,
    /// See [`cofferdam_plan::Plan::remarks`].
    pub remarks: Vec<String>,
}

impl Runtime {
    /// Starts a process in a running container.
    pub fn exec(&self, id: &ContainerId, mut exec: Exec) -> Result<Executed, Error> {
        let (locked, mut record) = self.lock_running(id, exec.ignore_paused)?;
        let pid_file = exec.pid_file.take();
        if may_trace(&exec.process)
            && !record.tracers
            && !record.spec.get()?.process().as_ref().is_some_and(may_trace)
        {
            record.tracers = true;
            record.store(&locked.directory)?;
        }
        let joined = self.join(&record, exec, None)?;
        drop(locked);
        let finish = || -> Result<Option<OwnedFd>, Error> {
            if let Some(path) = &pid_file {
                write_pid(path, joined.child.pid)?;
            }
            joined.console.map(|socket| receive(&socket, self.options.limits.console)).transpose()
        };
        // Nobody would wait for a process whose start was reported as failed.
        let console = finish().inspect_err(|_| {
            let _ = cofferdam_apply::kill(&joined.child);
        })?;
        Ok(Executed {
            pid: joined.child.pid,
            pidfd: joined.child.pidfd,
            console,
            warnings: joined.warnings,
            remarks: joined.remarks,
        })
    }

    /// A container that is locked and runs. A paused one is waited for where that is asked, and without its lock, which
    /// whoever resumes it needs: a process that entered it now would stop on its way, and nobody could end it.
    fn lock_running(&self, id: &ContainerId, ignore_paused: bool) -> Result<(Locked, Record), Error> {
        loop {
            let (locked, record) = self.lock(id)?;
            let problem = match record.status(&locked.directory) {
                Status::Running | Status::Created => return Ok((locked, record)),
                Status::Paused if ignore_paused => {
                    drop(locked);
                    std::thread::sleep(PAUSED_LOOK);
                    continue;
                }
                Status::Paused => "cannot exec in a paused container (use --ignore-paused to override)",
                Status::Stopped | Status::Creating => "cannot exec in a stopped container",
            };
            return Err(Error::Conflict(problem.into()));
        }
    }

    /// Starts a process in the container of `record`, which is locked and runs; `program` is what it executes where that is
    /// not its first argument.
    pub(crate) fn join(&self, record: &Record, exec: Exec, program: Option<&str>) -> Result<Joined, Error> {
        let init =
            record.process().ok_or_else(|| Error::Conflict("cannot exec in a stopped container".into()))?;
        let container = ContainerId::parse(&record.id)?;
        let spec = record.spec.get()?;
        let lent = self.borrow(record, &container)?;
        let joining = Joining {
            spec,
            id: &container,
            init_pid: record.pid,
            lent: lent.is_some(),
            bundle: &record.bundle,
            process: &exec.process,
            program,
            console: exec.console.planned(),
            stdio: matches!(exec.stdio, Stdio::Fds { .. }),
            preserve_fds: exec.preserve_fds,
            cgroup: record.cgroup.as_deref(),
            tracers: record.tracers,
            below: &exec.cgroups,
        };
        let host = with_resctrl(self.shared_host().clone(), spec);
        let plan = compile_joining(&joining, &host)?;
        record.in_its_namespaces(lent.as_deref())?;
        let limits = self.options.limits;
        let (mut filled, console) = descriptors(exec.stdio, exec.console, limits.console)?;
        filled.push((INIT, init));
        filled.extend(lent.into_iter().flatten().map(|(_, slot, namespace)| (slot, namespace)));
        let inputs = Inputs {
            descriptors: filled,
            attendant: &mut (),
            cgroups: &record.layout(),
            fault: None,
            patience: limits.child,
            ends_soon: self.options.ends_soon,
        };
        let applied = apply(&plan, inputs).map_err(|failure| Error::from_failure(&plan, failure))?;
        Ok(Joined { child: applied.child, console, warnings: plan.warnings, remarks: plan.remarks })
    }
}

/// A namespace of a container, and the slot that it fills in the plan of a joining process.
pub(crate) type Lent = (Namespace, Slot, OwnedFd);

impl Runtime {
    /// The namespaces of a container that an ordinary user has created and not started: its first process is this program
    /// still, and lets nobody but root look into it.
    fn borrow(&self, record: &Record, id: &ContainerId) -> Result<Option<Vec<Lent>>, Error> {
        let directory = self.directory(id);
        if self.host().standing != Standing::User || !crate::state::gate(&directory).exists() {
            return Ok(None);
        }
        let namespaces = crate::start::borrow(&directory, self.options.limits.child)?;
        let members = Membership::of(record.spec.get()?)?;
        let all = namespaces.len() == members.kinds().count();
        let slots = lent(&members).zip(namespaces);
        Ok(all.then(|| slots.map(|((kind, slot), namespace)| (kind, slot, namespace)).collect()))
    }
}

/// A process that has joined a container.
pub(crate) struct Joined {
    pub child: Child,
    /// Where its terminal's master arrives, when the caller asked for it.
    pub console: Option<OwnedFd>,
    pub warnings: Vec<String>,
    pub remarks: Vec<String>,
}

#[cfg(test)]
mod tests {
    /// The plan has to know whether a filter lets the call pass.
    #[test]
    fn the_clone_that_is_planned_is_the_one_that_is_made() {
        assert_eq!(cofferdam_isolators::arrival::CLONE_FLAGS, cofferdam_linux::sibling::FLAGS);
    }
}
