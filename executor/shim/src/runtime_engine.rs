//! The engine of production: one container of the runtime.

use cofferdam_runtime::{
    Console, ContainerId, Create, Error, Exec, Kind, Options, Process as OciProcess, Rootfs, Runtime, Spec,
    Stdio,
};
use rustix::process::{Pid, WaitOptions};

use crate::durable;
use crate::engine::{Engine, Process, ProcessStdio};
use crate::launch::{Launch, Layer, RootfsSource};
use crate::protocol::{Failure, FailureKind, KillScope, StepTime};

/// One container of the runtime.
#[derive(Debug)]
pub struct RuntimeEngine {
    runtime: Runtime,
    id: ContainerId,
    launch: Launch,
    spec: Spec,
    /// Times of the last create, told with the start that ends the launch.
    steps: Vec<StepTime>,
    pid: Option<i32>,
}

impl RuntimeEngine {
    /// Opens the runtime and reads the container's configuration.
    pub fn open(launch: &Launch) -> Result<RuntimeEngine, Failure> {
        let runtime = Runtime::open(&launch.runtime_root, Options::default()).map_err(failure)?;
        let id = ContainerId::parse(&launch.container).map_err(|error| failure(error.into()))?;
        let spec = durable::load(&launch.bundle.join("config.json"))
            .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        Ok(RuntimeEngine { runtime, id, launch: launch.clone(), spec, steps: Vec::new(), pid: None })
    }

    fn rootfs(&self) -> Rootfs {
        match &self.launch.rootfs {
            RootfsSource::Host => Rootfs::Host,
            RootfsSource::Overlay { lower, upper, work, onto, disk } => Rootfs::Overlay {
                lower: lower.iter().map(layer).collect(),
                upper: upper.clone(),
                work: work.clone(),
                onto: onto.clone(),
                disk: disk.clone(),
            },
            RootfsSource::Directory(path) => Rootfs::Directory(path.clone()),
        }
    }
}

impl Engine for RuntimeEngine {
    fn create(&mut self, stdio: ProcessStdio) -> Result<Process, Failure> {
        let (stdio, console) = runtime_stdio(stdio);
        let mut create = Create::new(self.id.clone(), self.launch.bundle.clone(), self.spec.clone());
        create.rootfs = self.rootfs();
        create.stdio = stdio;
        create.console = console;
        let created = self.runtime.create(create).map_err(failure)?;
        let times = created.plan.steps.iter().zip(&created.timings).filter(|(_, time)| time.at_ns != 0);
        let words = |(step, time): (&_, &cofferdam_runtime::StepTime)| -> StepTime {
            let step: &cofferdam_plan::Step = step;
            StepTime {
                step: format!("{} {}", step.stage.name(), created.plan.describe(&step.op)),
                nanos: time.at_ns,
            }
        };
        self.steps = times.map(words).collect();
        self.pid = Some(created.pid);
        Ok(Process { pid: created.pid, pidfd: created.pidfd, console: created.console })
    }

    fn start(&mut self) -> Result<Vec<StepTime>, Failure> {
        self.runtime.start(&self.id).map_err(failure)?;
        Ok(std::mem::take(&mut self.steps))
    }

    fn exec(&mut self, process: &OciProcess, stdio: ProcessStdio) -> Result<Process, Failure> {
        let (stdio, console) = runtime_stdio(stdio);
        let mut exec = Exec::new(process.clone());
        exec.stdio = stdio;
        exec.console = console;
        let executed = self.runtime.exec(&self.id, exec).map_err(failure)?;
        Ok(Process { pid: executed.pid, pidfd: executed.pidfd, console: executed.console })
    }

    fn kill(&mut self, signal: i32, scope: KillScope) -> Result<(), Failure> {
        match self.runtime.kill(&self.id, signal, scope == KillScope::All) {
            // It has ended: its exit is on its way to us.
            Err(Error::Conflict(_) | Error::NotFound { .. }) => Ok(()),
            sent => sent.map_err(failure),
        }
    }

    fn oom_killed(&mut self) -> bool {
        let Ok(cgroup) = self.runtime.cgroup(&self.id) else { return false };
        cgroup.statistics().memory.and_then(|memory| memory.oom_kills).is_some_and(|kills| kills > 0)
    }

    fn delete(&mut self) -> Result<(), Failure> {
        self.runtime.delete(&self.id, true).map_err(failure)?;
        if let Some(pid) = self.pid.take().and_then(Pid::from_raw) {
            // Reaped already, usually; a container that never started is reaped here.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
        Ok(())
    }
}

fn layer(layer: &Layer) -> cofferdam_runtime::Layer {
    match layer {
        Layer::Directory(path) => cofferdam_runtime::Layer::Directory(path.clone()),
        Layer::Image { erofs } => cofferdam_runtime::Layer::Erofs(erofs.clone()),
    }
}

fn runtime_stdio(stdio: ProcessStdio) -> (Stdio, Console) {
    match stdio {
        ProcessStdio::Pipes { stdin, stdout, stderr } => {
            (Stdio::Fds { stdin, stdout, stderr }, Console::None)
        }
        ProcessStdio::Terminal => (Stdio::Inherit, Console::Return),
    }
}

fn failure(error: Error) -> Failure {
    let kind = match (&error, error.kind()) {
        (Error::Program { denied: true, .. }, _) => FailureKind::CommandNotExecutable,
        (Error::Program { .. }, _) => FailureKind::CommandNotFound,
        (_, Kind::NotFound) => FailureKind::NotFound,
        (_, Kind::InvalidInput) => FailureKind::InvalidInput,
        (_, Kind::Unsupported) => FailureKind::Unsupported,
        (_, Kind::Conflict | Kind::AlreadyExists) => FailureKind::Conflict,
        (_, Kind::Denied) => FailureKind::Denied,
        (_, Kind::Exhausted) => FailureKind::Exhausted,
        (_, Kind::Interrupted | Kind::Internal) => FailureKind::Internal,
    };
    Failure::new(kind, error.to_string())
}
