//! create: everything up to the gate. runtime-spec runtime.md, "Create".

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_apply::{Applied, Attendant, Fault, Inputs, Progress, StepTime, apply};
use cofferdam_isolators::compile::{CONSOLE, STDIO};
use cofferdam_isolators::{CgroupManager, Container, Gate, Rootfs, compile};
use cofferdam_linux::cgroup::{Cgroup, Error as CgroupError};
use cofferdam_linux::process::Child;
use cofferdam_linux::wait::readable;
use cofferdam_plan::op::{HookPoint, UnitProperty};
use cofferdam_plan::{ContainerId, HostFeatures, HostPath, Namespace, Op, Plan, Slot, Stage, Step, Undo};
use oci_spec::runtime::Spec;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, program_name, system};
use crate::hooks;
use crate::kill::kill_all;
use crate::lock::Locked;
use crate::readiness;
use crate::runtime::Runtime;
use crate::state::{Record, STATE_VERSION, Status, boot_id, file_error, gate, note_process, stat};
use crate::systemd::Systemd;

/// Where the process's standard input, output and error come from.
#[derive(Debug, Default)]
pub enum Stdio {
    /// The caller's own.
    #[default]
    Inherit,
    /// These descriptors.
    Fds {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
}

/// Who receives the master of the process's terminal.
#[derive(Debug, Default)]
pub enum Console {
    /// There is no terminal.
    #[default]
    None,
    /// Whoever listens on this unix socket, as runc's `--console-socket`.
    Socket(PathBuf),
    /// The caller, in the answer.
    Return,
    /// The caller, in the answer, who copies it to a terminal of his own, which ends lines by itself.
    Front,
}

impl Console {
    /// What the plan has to know of it.
    pub(crate) fn planned(&self) -> cofferdam_isolators::Console {
        match self {
            Self::None => cofferdam_isolators::Console::None,
            Self::Socket(_) | Self::Return => cofferdam_isolators::Console::Sent,
            Self::Front => cofferdam_isolators::Console::Fronted,
        }
    }
}

/// A container to create.
#[derive(Debug)]
pub struct Create {
    /// Its id.
    pub id: ContainerId,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// Its configuration.
    pub spec: Spec,
    /// Where its root comes from.
    pub rootfs: Rootfs,
    /// Standard input, output and error.
    pub stdio: Stdio,
    /// The terminal's master.
    pub console: Console,
    /// How many descriptors from 3 up the program keeps.
    pub preserve_fds: u32,
    /// Move the root instead of pivoting, for hosts that run from an initramfs.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Write the pid here, digits only, before create returns.
    pub pid_file: Option<PathBuf>,
    /// Do not wait for `start`: run the program at once.
    pub start: bool,
    /// Make one step fail (the fault sweep).
    pub fault: Option<Fault>,
}

impl Create {
    /// A container of a bundle, all else as it comes.
    pub fn new(id: ContainerId, bundle: PathBuf, spec: Spec) -> Self {
        Self {
            id,
            bundle,
            spec,
            rootfs: Rootfs::Bundle,
            stdio: Stdio::Inherit,
            console: Console::None,
            preserve_fds: 0,
            no_pivot: false,
            no_new_keyring: false,
            pid_file: None,
            start: false,
            fault: None,
        }
    }
}

/// A created container.
#[derive(Debug)]
pub struct Created {
    /// Its first process.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// The terminal's master, when the caller asked for it.
    pub console: Option<OwnedFd>,
    /// What was asked for and could not be given.
    pub warnings: Vec<String>,
    /// When each step of the plan was done.
    pub timings: Vec<StepTime>,
    /// The plan that was applied.
    pub plan: Plan,
}

impl Runtime {
    /// The plan of a container, touching nothing.
    pub fn plan(&self, create: &Create) -> Result<Plan, Error> {
        let (host, _) = self.with_systemd()?;
        self.plan_on(create, &with_resctrl(host, &create.spec))
    }

    /// The host, and the service manager where it is to make the cgroup.
    fn with_systemd(&self) -> Result<(Arc<HostFeatures>, Option<Systemd>), Error> {
        if self.options.cgroup_manager != CgroupManager::Systemd {
            return Ok((self.shared_host().clone(), None));
        }
        let mut systemd = Systemd::connect()?;
        let facts = Some(systemd.facts()?);
        Ok((Arc::new(HostFeatures { systemd: facts, ..HostFeatures::clone(self.host()) }), Some(systemd)))
    }

    fn plan_on(&self, create: &Create, host: &HostFeatures) -> Result<Plan, Error> {
        let bundle = absolute(&create.bundle)?;
        let gate = if create.start && !hooks::any(&create.spec, HookPoint::StartContainer) {
            Gate::Open
        } else {
            Gate::Socket(HostPath::new(gate(&self.directory(&create.id)), "the state root")?)
        };
        let container = Container {
            id: &create.id,
            bundle: &bundle,
            spec: &create.spec,
            rootfs: &create.rootfs,
            gate,
            console: create.console.planned(),
            stdio: matches!(create.stdio, Stdio::Fds { .. }),
            preserve_fds: create.preserve_fds,
            no_pivot: create.no_pivot,
            no_new_keyring: create.no_new_keyring,
            cgroup_manager: self.options.cgroup_manager,
        };
        Ok(compile(&container, host)?)
    }

    /// Creates a container: afterwards its process waits at the gate (or runs, when `start` was asked for), or nothing is
    /// there and the error says why.
    pub fn create(&self, create: Create) -> Result<Created, Error> {
        let (host, systemd) = self.with_systemd()?;
        let plan = self.plan_on(&create, &with_resctrl(host, &create.spec))?;
        let directory = self.directory(&create.id);
        let locked = Locked::make(&directory, &create.id, self.options.limits.lock)?;
        match self.create_in(&locked, &plan, create, systemd) {
            Ok(made) => Ok(Created {
                pid: made.applied.child.pid,
                pidfd: made.applied.child.pidfd,
                console: made.console,
                warnings: plan.warnings.clone(),
                timings: made.applied.times,
                plan,
            }),
            Err(error) => {
                // What could not be undone is still there for `delete`: the state is all that is known of it.
                let kept = matches!(&error, Error::Step(failure) if !failure.left_behind.is_empty());
                if !kept {
                    let _ = locked.remove();
                }
                Err(error)
            }
        }
    }

    fn create_in(
        &self,
        locked: &Locked,
        plan: &Plan,
        create: Create,
        systemd: Option<Systemd>,
    ) -> Result<Made, Error> {
        let directory = &locked.directory;
        readiness::make_folder(directory, &create.spec)?;
        let Create { id, bundle, spec, rootfs, stdio, console, pid_file, fault, start, .. } = create;
        let mut record = self.record(plan, &id, &bundle, &rootfs, spec)?;
        record.store(directory)?;
        if let Some(cgroup) = &record.cgroup {
            crate::state::note_cgroup(directory, cgroup)?;
        }
        let limits = self.options.limits;
        let (descriptors, returned) = descriptors(stdio, console, limits.console)?;
        let made = plan.find(|op| match op {
            Op::Clone { namespaces, .. } => Some(namespaces.as_slice()),
            _ => None,
        });
        let made = made.unwrap_or_default();
        let mut attendant =
            Hooks { runtime: self, record: &mut record, directory, made, failed: None, systemd };
        let inputs = Inputs {
            descriptors,
            attendant: &mut attendant,
            cgroups: self.cgroups()?,
            fault,
            patience: limits.child,
            ends_soon: self.options.ends_soon,
        };
        let applied = apply(plan, inputs);
        let failed = attendant.failed.take();
        let applied =
            applied.map_err(|failure| match (failed, plan.steps.get(failure.step).map(|step| &step.op)) {
                (Some(hook), Some(Op::RunHooks { .. })) => hook,
                _ => Error::from_failure(plan, failure),
            });
        let applied = applied.inspect_err(|error| self.after_hook(&record, error))?;
        let finish = || -> Result<Option<OwnedFd>, Error> {
            if let Some(path) = &pid_file {
                write_pid(path, record.pid)?;
            }
            match applied.progress {
                Progress::Created if start => self.start_locked(locked, &record, &applied.child.pidfd)?,
                Progress::Executed => hooks::run(self, &record, HookPoint::Poststart, Status::Running, None)?,
                Progress::Created => {}
            }
            returned.map(|socket| receive(&socket, limits.console)).transpose()
        };
        let console = finish().inspect_err(|error| {
            self.abandon(directory, &record, &applied.child);
            self.after_hook(&record, error);
        })?;
        if self.options.ends_soon {
            std::mem::forget(record);
        }
        Ok(Made { applied, console })
    }

    /// runtime-spec "Lifecycle" 4 to 9: after a failing hook it goes on at steps 12 and 13. The container is destroyed, and
    /// its poststop hooks are told.
    fn after_hook(&self, record: &Record, error: &Error) {
        if matches!(error, Error::Hook { .. }) {
            hooks::run_all(self, record, HookPoint::Poststop, Status::Stopped);
        }
    }

    /// The process is there, but what belongs to it could not be finished: it goes again, with all that it has started.
    fn abandon(&self, directory: &Path, record: &Record, child: &Child) {
        let cgroup = kill_all(self, directory, record);
        let _ = cofferdam_apply::kill(child);
        let _ = crate::delete::remove_folders(record);
        let _ = crate::systemd::end(record);
        let _ = cgroup.map(|cgroup| cgroup.map(|cgroup| cgroup.remove()));
    }

    /// The record with everything that `delete` will need, made before anything is touched.
    pub(crate) fn record(
        &self,
        plan: &Plan,
        id: &ContainerId,
        bundle: &Path,
        rootfs: &Rootfs,
        spec: Spec,
    ) -> Result<Record, Error> {
        let bundle = absolute(bundle)?;
        let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
        let cgroup = plan.find(|op| match op {
            Op::CreateCgroup { path, .. } => Some(path.clone()),
            _ => None,
        });
        let unit = plan.find(|op| match op {
            Op::StartUnit { unit, .. } => Some(unit.clone()),
            _ => None,
        });
        let late = plan.steps.iter().enumerate().filter(|(_, step)| step.stage > Stage::Gate);
        let cgroups = self.cgroups()?;
        Ok(Record {
            version: STATE_VERSION,
            id: id.to_string(),
            rootfs: match rootfs {
                Rootfs::Bundle => bundle.join(root),
                Rootfs::Overlay { onto, .. } | Rootfs::Directory(onto) => onto.clone(),
                Rootfs::Host => PathBuf::from("/"),
            },
            bundle,
            created: crate::state::now_rfc3339(),
            owner: crate::state::user_name(rustix::process::getuid().as_raw()),
            pid: 0,
            start_time: 0,
            boot_id: boot_id().to_owned(),
            namespaces: Vec::new(),
            cgroup_paths: cgroup.iter().flat_map(|path| cgroups.directories(path)).collect(),
            cgroup,
            unit,
            folders: plan.steps.iter().filter_map(folder).collect(),
            tracers: false,
            late_steps: late.map(|(index, step)| (index, plan.describe(&step.op))).collect(),
            program: program_name(plan).unwrap_or_default(),
            hooked: spec.hooks().is_some(),
            supervised: crate::start::supervised(&spec),
            spec: spec.into(),
        })
    }
}

/// A container that was made, and the terminal's master when the caller asked for it.
struct Made {
    applied: Applied,
    console: Option<OwnedFd>,
}

/// The directory that a step makes and `delete` must remove.
fn folder(step: &Step) -> Option<PathBuf> {
    match step.op.undo() {
        Undo::RemoveDirectory(path) => Some(path.as_path().to_owned()),
        _ => None,
    }
}

/// The host with what is known of resctrl, where the configuration asks for it.
pub(crate) fn with_resctrl(host: Arc<HostFeatures>, spec: &Spec) -> Arc<HostFeatures> {
    let asked = spec.linux().as_ref().is_some_and(|linux| linux.intel_rdt().is_some());
    if !asked || host.resctrl.is_some() {
        return host;
    }
    Arc::new(HostFeatures { resctrl: cofferdam_apply::probe::resctrl(), ..HostFeatures::clone(&host) })
}

fn absolute(bundle: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(bundle)
        .map_err(|error| Error::Bundle { path: bundle.to_owned(), problem: error.to_string() })
}

/// Runs the hooks of the create operation on behalf of the interpreter.
struct Hooks<'a> {
    runtime: &'a Runtime,
    record: &'a mut Record,
    directory: &'a Path,
    /// The namespaces that the clone makes.
    made: &'a [Namespace],
    failed: Option<Error>,
    systemd: Option<Systemd>,
}

impl Attendant for Hooks<'_> {
    fn claim(&mut self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        self.runtime.claim(cgroup, self.directory, self.record)
    }

    fn cloned(&mut self, child: &Child) -> Result<(), String> {
        self.record.pid = child.pid;
        self.record.start_time = stat(child.pid).map_or(0, |(_, start)| start);
        self.record.note_namespaces(self.made.iter().copied());
        note_process(self.directory, self.record).map_err(|error| error.to_string())
    }

    fn about_to_wait(&mut self) -> Result<(), String> {
        self.record.store(self.directory).map_err(|error| error.to_string())
    }

    fn start_unit(&mut self, unit: &str, properties: &[UnitProperty], child: &Child) -> Result<(), String> {
        let systemd = self.systemd.as_mut().ok_or("nobody asked for systemd")?;
        let pid = u32::try_from(child.pid).unwrap_or(0);
        systemd.start(unit, properties, pid).map_err(|problem| problem.to_string())
    }

    fn stop_unit(&mut self, unit: &str) -> Result<(), String> {
        // Not over the connection at hand: it may be what failed.
        Systemd::connect().and_then(|mut systemd| systemd.stop(unit)).map_err(|problem| problem.to_string())
    }

    fn run_hooks(&mut self, point: HookPoint, child: &Child) -> Result<(), String> {
        // The status is "creating", but for prestart hooks everybody expects "created" (runtime-tools, hooks_stdin).
        let status = if point == HookPoint::Prestart { Status::Created } else { Status::Creating };
        hooks::run(self.runtime, self.record, point, status, Some(&child.pidfd)).map_err(|error| {
            let words = error.to_string();
            self.failed = Some(error);
            words
        })
    }
}

/// Descriptors by slot, and the socket on which a returned master will arrive.
type Descriptors = (Vec<(Slot, OwnedFd)>, Option<OwnedFd>);

/// The descriptors that fill the plan's input slots, and the socket on which a returned master will arrive.
pub(crate) fn descriptors(stdio: Stdio, console: Console, limit: Duration) -> Result<Descriptors, Error> {
    let mut filled = Vec::new();
    let mut returned = None;
    if let Stdio::Fds { stdin, stdout, stderr } = stdio {
        filled.extend(STDIO.into_iter().zip([stdin, stdout, stderr]));
    }
    match console {
        Console::None => {}
        Console::Socket(path) => filled.push((CONSOLE, connect(&path, limit)?)),
        Console::Return | Console::Front => {
            let (ours, theirs) =
                rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                    .map_err(system("making a console socket"))?;
            filled.push((CONSOLE, theirs));
            returned = Some(ours);
        }
    }
    Ok((filled, returned))
}

/// Connects to a console socket. Its other side gets the container's terminal: only our own user or root may serve it.
pub(crate) fn connect(path: &Path, limit: Duration) -> Result<OwnedFd, Error> {
    let failed = |errno| match errno {
        // What a connect says that ran into the socket's own limit: the queue of whoever listens is full.
        Errno::AGAIN => Error::TimedOut {
            waited_for: format!("connecting to console socket {}", path.display()),
            seconds: limit.as_secs_f32(),
        },
        errno => {
            Error::System { operation: format!("connecting to console socket {}", path.display()), errno }
        }
    };
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
    // Holds for the connect, and for the child's message.
    set_socket_timeout(&socket, Timeout::Send, Some(limit)).map_err(failed)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
    let server = socket_peercred(&socket).map_err(failed)?.uid;
    if server != rustix::process::geteuid() && !server.is_root() {
        return Err(failed(Errno::PERM));
    }
    Ok(socket)
}

pub(crate) fn receive(socket: &OwnedFd, limit: Duration) -> Result<OwnedFd, Error> {
    const WHAT: &str = "receiving the terminal";
    if !readable(socket, limit).map_err(system(WHAT))? {
        return Err(Error::TimedOut { waited_for: WHAT.into(), seconds: limit.as_secs_f32() });
    }
    let (_, master) =
        cofferdam_linux::terminal::receive_descriptor(socket.as_fd(), &mut [0; 64]).map_err(system(WHAT))?;
    master.ok_or(Error::System { operation: WHAT.into(), errno: Errno::BADMSG })
}

/// Digits only: callers parse it with Atoi. Whole or not at all, and never through a link that somebody left in a folder
/// that others can write to.
pub(crate) fn write_pid(path: &Path, pid: i32) -> Result<(), Error> {
    use std::io::Write;
    const OPERATION: &str = "writing the pid file";
    let failed = |error: &std::io::Error| file_error(OPERATION, path, error);
    // The new file takes the name of what is there: /dev/null and /dev/stdout would be gone from the host.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let problem = "something is there that is not a regular file".to_owned();
        return Err(Error::StateFile { operation: OPERATION, path: path.to_owned(), problem });
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{pid}"));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .map_err(|error| failed(&error))?;
    let written = file.write_all(pid.to_string().as_bytes()).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        failed(&error)
    })
}
