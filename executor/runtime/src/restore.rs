//! restore: a container whose processes come from a checkpoint, by CRIU.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_isolators::namespaces::{Membership, Source};
use cofferdam_linux::cgroup::Cgroup;
use cofferdam_plan::op::HookPoint;
use cofferdam_plan::{Namespace, Op, Plan};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::checkpoint::{DESCRIPTORS, FILE, NETWORK_KEY, NULL_MARK, PID_KEY, Shared, config_file, mounts};
use crate::create::{Console, Create, write_pid};
use crate::criu::message::{Options, Request};
use crate::criu::{self, Session};
use crate::error::{Error, system};
use crate::hooks;
use crate::lock::Locked;
use crate::runtime::Runtime;
use crate::state::{Record, Status, file_error, note_cgroup, note_process, stat};

/// How a container is restored.
#[derive(Debug)]
pub struct Restore {
    /// Its id, bundle, configuration, terminal and pid file.
    pub create: Create,
    /// Where the images are.
    pub images: PathBuf,
    /// Where CRIU's log goes; where the images are if there is none.
    pub work: Option<PathBuf>,
    /// Established connections are closed.
    pub tcp_close: bool,
    /// The profile or label that takes the place of the checkpoint's.
    pub lsm_profile: Option<String>,
    /// The same for mounts.
    pub lsm_mount_context: Option<String>,
    /// What the checkpoint was told too.
    pub shared: Shared,
}

/// A restored container.
#[derive(Debug)]
pub struct Restored {
    /// Its first process; the caller is its parent.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// What was asked for and could not be given.
    pub warnings: Vec<String>,
}

impl Runtime {
    /// Makes a container anew and lets its processes go on where a checkpoint stopped them. Needs CRIU.
    pub fn restore(&self, mut restore: Restore) -> Result<Restored, Error> {
        criu::find()?;
        restore.create.start = true;
        let plan = self.plan(&restore.create)?;
        if plan.find(|op| matches!(op, Op::StartUnit { .. }).then_some(())).is_some() {
            let words = "cannot restore into a scope of systemd: CRIU makes the processes, in a cgroup that is there before";
            return Err(Error::Conflict(words.into()));
        }
        if plan.find(|op| matches!(op, Op::AttachClass { .. }).then_some(())).is_some() {
            let words = "cannot restore into a class of service (linux.intelRdt): CRIU makes the processes, outside it";
            return Err(Error::Conflict(words.into()));
        }
        let directory = self.directory(&restore.create.id);
        let locked = Locked::make(&directory, &restore.create.id, self.options.limits.lock)?;
        let result = self.restore_in(&locked, &plan, restore);
        if result.is_err() {
            let _ = locked.remove();
        }
        result
    }

    fn restore_in(&self, locked: &Locked, plan: &Plan, restore: Restore) -> Result<Restored, Error> {
        let directory = &locked.directory;
        let Create { id, bundle, rootfs, spec, .. } = &restore.create;
        let mut record = self.record(plan, id, bundle, rootfs, spec.clone())?;
        record.store(directory)?;
        if let Some(cgroup) = &record.cgroup {
            note_cgroup(directory, cgroup)?;
        }
        let restored = self
            .limit(plan, directory, &record)
            .and_then(|()| self.bring_back(locked, plan, &mut record, &restore));
        let finished = restored.and_then(|pidfd| {
            record.store(directory)?;
            restore.create.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, record.pid))?;
            hooks::run(self, &record, HookPoint::Poststart, Status::Running, None)?;
            Ok(pidfd)
        });
        let pidfd = finished.inspect_err(|_| {
            if let Ok(Some(cgroup)) = crate::kill::kill_all(self, directory, &record) {
                let _ = cgroup.remove();
            }
        })?;
        Ok(Restored { pid: record.pid, pidfd, warnings: plan.warnings.clone() })
    }

    /// The cgroup and its limits come from the configuration, as for any container; CRIU moves the processes there.
    fn limit(&self, plan: &Plan, directory: &Path, record: &Record) -> Result<(), Error> {
        let mut cgroup = None;
        for step in &plan.steps {
            match (&step.op, &cgroup) {
                (Op::CreateCgroup { path, delegated, within }, _) => {
                    let layout = if *delegated { &self.cgroups()?.delegated() } else { self.cgroups()? };
                    let claim = |made: &Cgroup| self.claim(made, directory, record);
                    cofferdam_apply::create_cgroup(
                        &mut cgroup,
                        &layout.of_kinds(within.kinds()),
                        path,
                        claim,
                    )?;
                }
                (Op::WriteCgroup(write), Some(cgroup)) => {
                    cgroup.write(&write.controller, &write.file, &write.value, write.optional)?;
                }
                (Op::FilterDevices { program }, Some(cgroup)) => cgroup.filter_devices(program)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn bring_back(
        &self,
        locked: &Locked,
        plan: &Plan,
        record: &mut Record,
        restore: &Restore,
    ) -> Result<OwnedFd, Error> {
        let log = restore.work.as_ref().unwrap_or(&restore.images).join("restore.log");
        let external = mounts(plan).into_iter().map(|(at, source)| format!("mnt[{at}]:{source}"));
        let mut options = Options {
            log_file: "restore.log",
            root: record.rootfs.display().to_string(),
            restore_as_sibling: true,
            external: external.collect(),
            cgroup_root: record.cgroup.clone(),
            config_file: config_file(record),
            tcp_close: restore.tcp_close,
            lsm_profile: restore.lsm_profile.clone(),
            lsm_mount_context: restore.lsm_mount_context.clone(),
            shared: restore.shared.clone(),
            ..Options::default()
        };
        descriptors(&restore.images, &mut options)?;
        join(record, &mut options)?;
        let root = record.rootfs.clone();
        let console = &restore.create.console;
        let session = Session {
            request: Request::Restore,
            options,
            images: &restore.images,
            work: restore.work.as_deref(),
            log,
            root: Some(&root),
        };
        let mut watched = None;
        let pid = session.run(&mut |notice, descriptor| match notice.script.as_str() {
            "setup-namespaces" => {
                watched = Some(self.is_there(locked, record, notice.pid)?);
                Ok(())
            }
            "orphan-pts-master" => self.hand_over(console, descriptor),
            _ => Ok(()),
        })?;
        let pidfd = match watched.filter(|_| record.pid == pid) {
            Some(pidfd) => pidfd,
            None => self.note(locked, record, pid)?,
        };
        // Only now is it in all of them.
        let made = plan.find(|op| match op {
            Op::Clone { namespaces, .. } => Some(namespaces.as_slice()),
            _ => None,
        });
        record.note_namespaces(made.unwrap_or_default().iter().copied());
        Ok(pidfd)
    }

    /// The first process is there, in its namespaces, and goes no further until the hooks have run.
    fn is_there(&self, locked: &Locked, record: &mut Record, pid: i32) -> Result<OwnedFd, Error> {
        let pidfd = self.note(locked, record, pid)?;
        hooks::run(self, record, HookPoint::Prestart, Status::Created, Some(&pidfd))?;
        hooks::run(self, record, HookPoint::CreateRuntime, Status::Creating, Some(&pidfd))?;
        Ok(pidfd)
    }

    /// What `delete` has to know of the process.
    fn note(&self, locked: &Locked, record: &mut Record, pid: i32) -> Result<OwnedFd, Error> {
        let pidfd = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd =
            pidfd.unwrap_or(Err(rustix::io::Errno::SRCH)).map_err(system("watching what was restored"))?;
        record.pid = pid;
        record.start_time = stat(pid).map_or(0, |(_, start)| start);
        note_process(&locked.directory, record)?;
        Ok(pidfd)
    }

    /// The master of a terminal goes to whoever wants it.
    fn hand_over(&self, console: &Console, master: Option<OwnedFd>) -> Result<(), Error> {
        match (console, master) {
            (Console::Socket(path), Some(master)) => {
                let socket = crate::create::connect(path, self.options.limits.console)?;
                cofferdam_linux::terminal::send_descriptor(socket.as_fd(), b"/dev/ptmx", master.as_fd())
                    .map_err(system(format!("sending the terminal to {}", path.display())))
            }
            _ => Err(Error::Conflict("the checkpoint has a terminal: it needs --console-socket".into())),
        }
    }
}

/// Pipes and files of the host that the process had as standard streams: ours take their place.
fn descriptors(images: &Path, options: &mut Options) -> Result<(), Error> {
    let path = images.join(DESCRIPTORS);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(|error| file_error("reading", &path, &error))?,
    };
    let texts: Vec<String> = serde_json::from_slice(&text).map_err(|error| Error::StateFile {
        operation: "reading",
        path,
        problem: error.to_string(),
    })?;
    // Of several that were the same file the last counts: standard output before standard input.
    for (text, number) in texts.into_iter().zip(0..3).rev() {
        let key = text.trim_end_matches(NULL_MARK);
        let known = options.inherited.iter().any(|(other, _)| other == key);
        if known || !(key.starts_with("pipe:") || key.starts_with(FILE)) {
            continue;
        }
        let number = if text.ends_with(NULL_MARK) { lend(options, Path::new("/dev/null"))? } else { number };
        options.inherited.push((key.to_owned(), number));
    }
    Ok(())
}

/// Opens a file that CRIU inherits.
fn lend(options: &mut Options, path: &Path) -> Result<i32, Error> {
    let opened = std::fs::OpenOptions::new().read(true).write(path == Path::new("/dev/null")).open(path);
    let opened = opened.map_err(|error| file_error("opening", path, &error))?;
    let number = opened.as_raw_fd();
    options.descriptors.push(opened.into());
    Ok(number)
}

/// Namespaces that the configuration joins by path.
fn join(record: &Record, options: &mut Options) -> Result<(), Error> {
    let members = Membership::of(record.spec.get()?)?;
    for kind in Namespace::ALL {
        let Some(Source::Path(path)) = members.source(kind) else { continue };
        let path = path.to_string();
        let key = match kind {
            Namespace::Network => NETWORK_KEY,
            Namespace::Pid => PID_KEY,
            _ => {
                options.joined.push((kind.file(), path));
                continue;
            }
        };
        let number = lend(options, Path::new(&path))?;
        options.inherited.push((key.to_owned(), number));
    }
    Ok(())
}
