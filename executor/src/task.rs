//! A handle on one task.

use std::sync::Arc;
use std::time::Duration;

use cofferdam_shim::durable;
use cofferdam_shim::protocol::{AttachStreams, ExecRequest, KillScope, Reply, Request};
use oci_spec::runtime::Spec;

use crate::attach::Attachment;
use crate::containers::{self, Stats};
use crate::control::Connection;
use crate::error::Error;
use crate::event;
use crate::exec::{self, ExecSpec};
use crate::executor::{Inner, TaskInfo, blocking};
use crate::id::TaskId;
use crate::logs::{LogRequest, Logs};
use crate::networks;
use crate::recover;
use crate::release;
use crate::request::network::NetworkRequest;
use crate::signal::Signal;
use crate::spec::Source;
use crate::status::{Status, TaskState};

/// How often a task is looked at that has no supervisor to ask: it is being launched by another process, or its end is
/// being written down.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One task. Cheap to clone; the task does not care whether handles exist.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    inner: Arc<Inner>,
    id: TaskId,
}

impl TaskHandle {
    pub(crate) fn new(inner: Arc<Inner>, id: TaskId) -> TaskHandle {
        TaskHandle { inner, id }
    }

    /// Its id.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// What was asked for and how it stands.
    pub async fn info(&self) -> Result<TaskInfo, Error> {
        let (inner, id) = (self.inner.clone(), self.id.clone());
        blocking(move || inner.info(&id)).await
    }

    /// How it stands.
    pub async fn status(&self) -> Result<Status, Error> {
        Ok(self.info().await?.status)
    }

    /// Its container's configuration, while it lives.
    pub async fn configuration(&self) -> Result<Spec, Error> {
        let path = self.inner.disk.task_state(&self.id).join("bundle").join("config.json");
        blocking(move || Ok(durable::load(&path)?)).await
    }

    /// Waits until it is over and everything it held was given back; returns its final status.
    ///
    /// A task that is removed while it is waited for, as with `--rm`, still answers.
    pub async fn wait(&self) -> Result<Status, Error> {
        loop {
            if let Some(status) = self.wait_with_supervisor().await? {
                return Ok(status);
            }
            if let Some(status) = self.final_status().await? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Its final status from its supervisor, after that has given everything back. `None` if there is none to ask.
    async fn wait_with_supervisor(&self) -> Result<Option<Status>, Error> {
        let Some(mut connection) = self.connect()? else { return Ok(None) };
        // A supervisor that goes away here is met again as a task without one.
        if connection.send(&Request::Wait).await.is_err() {
            return Ok(None);
        }
        let Ok(Reply::Status(status)) = connection.reply().await else { return Ok(None) };
        connection.closed().await;
        Ok(serde_json::from_value(status).ok())
    }

    /// Its final status from disk, recovering the task first if it lost its owner. `None` while it lives.
    async fn final_status(&self) -> Result<Option<Status>, Error> {
        let (inner, id) = (self.inner.clone(), self.id.clone());
        blocking(move || {
            let info = match inner.info(&id) {
                // It was quick, and is not kept: its last event tells.
                Err(Error::NoSuchTask(text)) => {
                    let event =
                        event::last_of(&inner.disk.events(), &id).filter(|event| event.state.is_final());
                    return event.map(|event| Some(Status::of_event(&event))).ok_or(Error::NoSuchTask(text));
                }
                info => info?,
            };
            if info.status.state.is_final() {
                return Ok(Some(info.status));
            }
            Ok(recover::recover_one(&inner.places, &inner.disk, &id)?.and_then(|recovered| recovered.status))
        })
        .await
    }

    /// Sends a signal to its first process; SIGKILL goes to all of them.
    pub async fn kill(&self, signal: Signal) -> Result<(), Error> {
        let scope = if signal == Signal::KILL { KillScope::All } else { KillScope::Init };
        self.require("signal").await?.ask(&Request::Kill { signal: signal.number(), scope }).await.map(drop)
    }

    /// Ends it: its stop signal, and SIGKILL to everything after the grace. Returns its final status.
    ///
    /// `grace` replaces the one it was launched with. A task that is over is no error.
    pub async fn stop(&self, grace: Option<Duration>) -> Result<Status, Error> {
        let info = self.info().await?;
        if info.status.state.is_final() {
            return Ok(info.status);
        }
        let signal = self.stop_signal(&info).number();
        let grace_ms = grace.unwrap_or(info.record.spec.stop_grace).as_millis() as u64;
        if let Some(mut connection) = self.connect()? {
            connection.ask(&Request::Stop { signal, grace_ms }).await?;
        }
        self.wait().await
    }

    fn stop_signal(&self, info: &TaskInfo) -> Signal {
        let of_image = || {
            let Source::Image(_) = &info.record.spec.source else { return None };
            let digest = cofferdam_image::Digest::parse(info.record.image.as_deref()?).ok()?;
            let image = crate::images::open(&self.inner.places).ok()?.image(&digest).ok()??;
            Signal::parse(image.config.config().as_ref()?.stop_signal().as_deref()?).ok()
        };
        info.record.spec.stop_signal.or_else(of_image).unwrap_or(Signal::TERM)
    }

    /// Takes part in its streams from now on.
    pub async fn attach(&self, streams: AttachStreams) -> Result<Attachment, Error> {
        let mut connection = self.require("attach to").await?;
        connection.ask(&Request::Attach(streams)).await?;
        Ok(Attachment::new(connection))
    }

    /// Runs another process in it, confined as its first one is, and takes part in that one's streams.
    pub async fn exec(&self, spec: ExecSpec, streams: AttachStreams) -> Result<Attachment, Error> {
        let request = self.exec_request(spec, Some(streams)).await?;
        let mut connection = self.require("run a process in").await?;
        connection.ask(&Request::Exec(Box::new(request))).await.map_err(not_started)?;
        Ok(Attachment::new(connection))
    }

    /// Runs another process in it without taking part in its streams; returns its process id.
    pub async fn exec_detached(&self, spec: ExecSpec) -> Result<i32, Error> {
        let request = self.exec_request(spec, None).await?;
        let mut connection = self.require("run a process in").await?;
        match connection.ask(&Request::Exec(Box::new(request))).await.map_err(not_started)? {
            Reply::Attached { pid } => Ok(pid),
            other => Err(Error::Worker(format!("the supervisor answered an exec with {other:?}"))),
        }
    }

    async fn exec_request(
        &self,
        spec: ExecSpec,
        attach: Option<AttachStreams>,
    ) -> Result<ExecRequest, Error> {
        let configuration = self.configuration().await.map_err(|_| self.wrong_state("run a process in"))?;
        let inner = self.inner.clone();
        let id = self.id.clone();
        let process = blocking(move || exec::process(&inner.places, &id, &configuration, &spec)).await?;
        Ok(ExecRequest { process, attach })
    }

    /// Reads its log.
    pub fn logs(&self, request: LogRequest) -> Result<Logs, Error> {
        Logs::open(&self.inner.disk, &self.id, request)
    }

    /// What it uses.
    pub async fn stats(&self) -> Result<Stats, Error> {
        let (inner, id) = (self.inner.clone(), self.id.clone());
        blocking(move || {
            let mut stats = containers::stats(&inner.places, &id)?;
            stats.networks = networks::statistics(&inner.disk, &id);
            Ok(stats)
        })
        .await
    }

    /// Connects it to one more network while it runs. Its `/etc/hosts` and `/etc/resolv.conf` follow.
    pub async fn connect_network(&self, request: NetworkRequest) -> Result<(), Error> {
        let (inner, id) = (self.inner.clone(), self.id.clone());
        blocking(move || networks::connect(&inner.places, &inner.disk, &inner.info(&id)?, request)).await
    }

    /// Disconnects it from a network while it runs.
    pub async fn disconnect_network(&self, network: &str) -> Result<(), Error> {
        let (inner, id, network) = (self.inner.clone(), self.id.clone(), network.to_owned());
        blocking(move || networks::disconnect(&inner.places, &inner.disk, &inner.info(&id)?, &network)).await
    }

    /// Removes what stays of it: its result, its log, its changes to the image. A task that lives is refused unless
    /// `force` is given, which kills it first.
    pub async fn remove(&self, force: Force) -> Result<(), Error> {
        let mut info = self.info().await?;
        if !info.status.state.is_final() {
            if force == Force::No {
                return Err(Error::WrongState {
                    operation: "remove",
                    task: self.id.short().to_owned(),
                    state: info.status.state,
                });
            }
            if let Some(mut connection) = self.connect()? {
                // It may end by itself at this moment.
                let _ = connection.ask(&Request::Stop { signal: Signal::KILL.number(), grace_ms: 0 }).await;
            }
            info.status = self.wait().await?;
        }
        let (inner, id) = (self.inner.clone(), self.id.clone());
        blocking(move || {
            // Its supervisor may still be giving things back, or have been killed while it did.
            recover::recover_one(&inner.places, &inner.disk, &id)?;
            let first = |failures: Vec<Error>| failures.into_iter().next();
            match release::forget(&inner.places, &inner.disk, &info.record).map_err(first) {
                Err(Some(error)) => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }

    fn connect(&self) -> Result<Option<Connection>, Error> {
        Connection::open(&self.id, &self.inner.disk.socket(&self.id))
    }

    /// A connection, or why there is none.
    async fn require(&self, operation: &'static str) -> Result<Connection, Error> {
        match self.connect()? {
            Some(connection) => Ok(connection),
            None => {
                let state = self.status().await?.state;
                Err(Error::WrongState { operation, task: self.id.short().to_owned(), state })
            }
        }
    }

    fn wrong_state(&self, operation: &'static str) -> Error {
        let state = self.inner.info(&self.id).map_or(TaskState::Failed, |info| info.status.state);
        Error::WrongState { operation, task: self.id.short().to_owned(), state }
    }
}

/// Whether a task may be killed to remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It may not.
    No,
    /// It may.
    Kill,
}

fn not_started(error: Error) -> Error {
    match error {
        Error::Supervisor(failure) => {
            let reason = crate::error::reason_of_failure(failure.kind);
            match failure.kind {
                cofferdam_shim::protocol::FailureKind::Conflict => Error::Supervisor(failure),
                _ => Error::NotStarted { reason, message: failure.message },
            }
        }
        error => error,
    }
}
