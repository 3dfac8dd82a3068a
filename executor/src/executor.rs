//! The engine: what opens the directories, recovers what was lost, and launches and finds tasks.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_image::{
    Cancel, Digest, Image, ImageRef, PullConfig, PullEvent, PushEvent, Store, StoreOptions,
};
use cofferdam_shim::Timestamp;
use cofferdam_shim::protocol::{AttachStreams, Reply, Request, StepTime};

use crate::attach::Attachment;
use crate::control::Connection;
use crate::disk::{Disk, TaskRecord};
use crate::error::{Error, reason_of_failure};
use crate::event::Events;
use crate::host::HostLimits;
use crate::id::{TaskId, TaskName};
use crate::images::{self, ImageRequest, PushRequest};
use crate::launch::{Launcher, Staged};
use crate::networks;
use crate::recover::{self, Recovered};
use crate::release::Places;
use crate::spec::TaskSpec;
use crate::status::{Reason, Status};
use crate::task::TaskHandle;

/// Shortest beginning of an id that names a task.
const PREFIX_LEAST: usize = 3;

/// Which program becomes the parent of tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ShimBinary {
    /// This one, from a copy that nobody can write to. It must call [`crate::init`] first thing in its `main`.
    #[default]
    CurrentExe,
    /// Another one that does so, such as the `cofferdam` command.
    Path(PathBuf),
}

/// Where an executor keeps and finds things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The data directory: images, records, logs.
    pub root: PathBuf,
    /// The state directory; should be in memory.
    pub state: PathBuf,
    /// The program that becomes the parent of tasks.
    pub shim: ShimBinary,
    /// Directories with network configurations.
    pub cni_config: Vec<PathBuf>,
    /// Directories with network plugins.
    pub cni_plugins: Vec<PathBuf>,
    /// How the image store is operated.
    pub store: StoreOptions,
    /// How images are pulled, unless a request says otherwise.
    pub pull: PullConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            root: "/var/lib/cofferdam".into(),
            state: "/run/cofferdam".into(),
            shim: ShimBinary::CurrentExe,
            cni_config: vec!["/etc/cni/net.d".into()],
            cni_plugins: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            store: StoreOptions::default(),
            pull: PullConfig::default(),
        }
    }
}

impl Config {
    /// A configuration with everything below one directory, for tests and for throw-away use.
    pub fn below(directory: &Path) -> Config {
        Config { root: directory.join("root"), state: directory.join("state"), ..Config::default() }
    }
}

/// What is known of a task: what was asked for and how it stands.
#[derive(Clone, Debug)]
pub struct TaskInfo {
    /// What was asked for.
    pub record: TaskRecord,
    /// How it stands.
    pub status: Status,
}

/// The task engine. Cheap to clone; no state but what is on disk, so any number of them, in any number of processes, may
/// use the same directories.
#[derive(Clone, Debug)]
pub struct Executor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) places: Places,
    pub(crate) disk: Disk,
    host: HostLimits,
    shim: Shim,
    pull: PullConfig,
}

/// The program that becomes the parent of tasks, ready to be executed.
#[derive(Debug)]
struct Shim {
    path: PathBuf,
    /// Keeps `path` alive if it goes through a descriptor.
    _sealed: Option<OwnedFd>,
}

impl Shim {
    fn open(binary: &ShimBinary) -> Result<Shim, Error> {
        match binary {
            ShimBinary::Path(path) => {
                File::open(path).map_err(Error::io("open the supervisor's program", path))?;
                Ok(Shim { path: path.clone(), _sealed: None })
            }
            ShimBinary::CurrentExe => {
                let sealed = cofferdam_linux::sealed::open_self()
                    .map_err(|errno| Error::io("make a read-only copy of", "/proc/self/exe")(errno.into()))?;
                let path = Path::new("/proc/self/fd").join(sealed.as_raw_fd().to_string());
                Ok(Shim { path, _sealed: Some(sealed) })
            }
        }
    }
}

/// Runs work that blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::Worker(error.to_string())),
    }
}

/// A task that was launched.
#[derive(Debug)]
pub struct Launched {
    /// The task.
    pub task: TaskHandle,
    /// The caller's part in its streams, if it asked for one.
    pub attachment: Option<Attachment>,
    /// How long each step took.
    pub steps: Vec<StepTime>,
    /// What was clamped or left out, in words.
    pub notes: Vec<String>,
}

impl Executor {
    /// Opens the directories, making them if they are missing, and recovers tasks that lost their owner.
    ///
    /// Needs root, and a tokio runtime with I/O and time for everything that is async.
    pub async fn open(config: Config) -> Result<Executor, Error> {
        let executor = blocking(move || Executor::open_now(&config)).await?;
        executor.recover().await?;
        Ok(executor)
    }

    fn open_now(config: &Config) -> Result<Executor, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("find", path));
        let places = Places {
            root: absolute(&config.root)?,
            state: absolute(&config.state)?,
            cni_config: config.cni_config.clone(),
            cni_plugins: config.cni_plugins.clone(),
            store: config.store.clone(),
        };
        let disk = Disk::open(&places.root, &places.state)?;
        let host = HostLimits::probe().map_err(Error::io("ask the host for its limits through", "/proc"))?;
        let shim = Shim::open(&config.shim)?;
        Ok(Executor { inner: Arc::new(Inner { places, disk, host, shim, pull: config.pull.clone() }) })
    }

    /// Brings the host back to what it should be after somebody was killed: tasks without an owner are ended and
    /// everything they held is given back. Living tasks are not touched. [`Executor::open`] has done it already.
    pub async fn recover(&self) -> Result<Vec<Recovered>, Error> {
        let inner = self.inner.clone();
        blocking(move || recover::recover(&inner.places, &inner.disk)).await
    }

    /// Launches a task. It runs when this returns.
    ///
    /// If the returned future is dropped, what was made so far is given back.
    pub async fn launch(&self, spec: TaskSpec) -> Result<TaskHandle, Error> {
        Ok(self.launch_with(spec, None).await?.task)
    }

    /// Launches a task and takes part in its streams from the first byte on.
    pub async fn launch_with(
        &self,
        spec: TaskSpec,
        attach: Option<AttachStreams>,
    ) -> Result<Launched, Error> {
        let inner = self.inner.clone();
        let (stream, staged) = blocking(move || inner.launcher().launch(spec)).await?;
        let notes = staged.notes.clone();
        let id = staged.record.id.clone();
        let mut connection =
            Connection::new(id.clone(), stream).map_err(Error::io("use the connection of", "a task"))?;
        let steps = match start(&mut connection, attach).await {
            Ok(steps) => steps,
            Err(error) => return Err(self.give_up(staged, connection, error).await),
        };
        staged.hand_over();
        let attachment = attach.map(|_| Attachment::new(connection));
        Ok(Launched { task: TaskHandle::new(self.inner.clone(), id), attachment, steps, notes })
    }

    /// Waits until the shim has let go of the task, and gives back what it could not.
    async fn give_up(&self, staged: Staged, mut connection: Connection, error: Error) -> Error {
        connection.closed().await;
        let reason = if let Error::Supervisor(failure) = &error {
            reason_of_failure(failure.kind)
        } else {
            Reason::SupervisorLost
        };
        let message = error.to_string();
        // A worker that panicked leaves the task to the next recovery.
        let _ = tokio::task::spawn_blocking({
            let message = message.clone();
            move || staged.fail(reason, &message)
        })
        .await;
        match error {
            Error::Supervisor(_) => Error::NotStarted { reason, message },
            error => error,
        }
    }

    /// Every task: those that live and those that were not removed yet, the newest last.
    pub async fn tasks(&self) -> Result<Vec<TaskInfo>, Error> {
        let inner = self.inner.clone();
        blocking(move || {
            let ids = inner.disk.tasks()?;
            // A task may go away between the listing and the look: then it is not there.
            let mut tasks: Vec<_> = ids.iter().filter_map(|id| inner.info(id).ok()).collect();
            tasks.sort_by_key(|task| task.record.created);
            Ok(tasks)
        })
        .await
    }

    /// The task of this id, of this name, or whose id alone begins so.
    pub async fn task(&self, text: &str) -> Result<TaskHandle, Error> {
        let (inner, text) = (self.inner.clone(), text.to_owned());
        let id = blocking({
            let inner = inner.clone();
            move || inner.find(&text)
        })
        .await?;
        Ok(TaskHandle::new(inner, id))
    }

    /// The statuses of all tasks as they come: those since a moment and then what happens, or only what happens.
    pub fn events(&self, since: Option<Timestamp>) -> Result<Events, Error> {
        Events::open(&self.inner.disk.events(), since)
    }

    /// Has an image in the store, fetching it if that is wanted. `progress` is called from other threads.
    pub async fn image(
        &self,
        request: ImageRequest,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, Error> {
        let inner = self.inner.clone();
        blocking(move || images::ensure(&images::open(&inner.places)?, &request, &inner.pull, &progress))
            .await
    }

    /// Every tag of a repository, as references. `pull` says how to talk to the registry, in place of the configuration.
    pub async fn tags(
        &self,
        name: String,
        pull: Option<PullConfig>,
        cancel: Cancel,
    ) -> Result<Vec<ImageRef>, Error> {
        let inner = self.inner.clone();
        blocking(move || {
            let pull = pull.as_ref().unwrap_or(&inner.pull);
            images::tags(&images::open(&inner.places)?, &name, pull, cancel)
        })
        .await
    }

    /// Pushes an image to a registry and returns its digest. `progress` is called from other threads.
    pub async fn push(
        &self,
        request: PushRequest,
        progress: impl Fn(PushEvent) + Send + Sync + 'static,
    ) -> Result<Digest, Error> {
        let inner = self.inner.clone();
        blocking(move || images::push(&images::open(&inner.places)?, &request, &inner.pull, &progress)).await
    }

    /// How images are pulled, unless a request says otherwise.
    pub fn pull_config(&self) -> &PullConfig {
        &self.inner.pull
    }

    /// The image store, whose operations block.
    pub fn images(&self) -> Result<Store, Error> {
        images::open(&self.inner.places)
    }

    /// The networks that tasks can be connected to.
    pub async fn networks(&self) -> Result<Vec<networks::NetworkInfo>, Error> {
        let inner = self.inner.clone();
        blocking(move || networks::list(&inner.places)).await
    }

    /// Everything that is known of a network.
    pub async fn network(&self, name: &str) -> Result<networks::NetworkDetails, Error> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || networks::inspect(&inner.places, &inner.disk, &name)).await
    }

    /// Reads the network configurations anew, as every launch does: what there is, and what is wrong with files.
    pub async fn reload_networks(&self) -> Result<networks::Reloaded, Error> {
        let inner = self.inner.clone();
        blocking(move || networks::reload(&inner.places)).await
    }

    /// Makes a network: a file in the first directory with network configurations. Returns where it is.
    pub async fn create_network(&self, spec: networks::NetworkSpec) -> Result<PathBuf, Error> {
        let inner = self.inner.clone();
        blocking(move || networks::create(&inner.places, &spec)).await
    }

    /// Removes a network that [`Executor::create_network`] has made. One that is in use is refused, or with `force` taken away
    /// from those who use it.
    pub async fn remove_network(&self, name: &str, force: bool) -> Result<(), Error> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking(move || networks::remove(&inner.places, &name, force)).await
    }

    /// Removes every network that [`Executor::create_network`] has made and that nobody uses; returns their names.
    pub async fn prune_networks(&self) -> Result<Vec<String>, Error> {
        let inner = self.inner.clone();
        blocking(move || networks::prune(&inner.places)).await
    }
}

async fn start(connection: &mut Connection, attach: Option<AttachStreams>) -> Result<Vec<StepTime>, Error> {
    match connection.reply().await? {
        Reply::Failed(failure) => return Err(Error::Supervisor(failure)),
        Reply::Created { .. } => {}
        other => return Err(Error::Worker(format!("the supervisor began with {other:?}"))),
    }
    match connection.ask(&Request::Start { attach }).await? {
        Reply::Started { steps, .. } => Ok(steps),
        other => Err(Error::Worker(format!("the supervisor answered a start with {other:?}"))),
    }
}

impl Inner {
    fn launcher(&self) -> Launcher<'_> {
        Launcher {
            places: &self.places,
            disk: &self.disk,
            host: &self.host,
            shim: &self.shim.path,
            pull: &self.pull,
        }
    }

    pub(crate) fn info(&self, id: &TaskId) -> Result<TaskInfo, Error> {
        let gone = |error: Error| match error {
            Error::Record(record) if record.is_not_found() => Error::NoSuchTask(id.to_string()),
            error => error,
        };
        let record = self.disk.load_record(id).map_err(gone)?;
        let status = self.disk.load_status(id).map_err(gone)?;
        Ok(TaskInfo { record, status })
    }

    fn find(&self, text: &str) -> Result<TaskId, Error> {
        if let Some(id) = TaskName::parse(text).ok().and_then(|name| self.disk.id_of_name(&name)) {
            return Ok(id);
        }
        let is_prefix = text.len() >= PREFIX_LEAST && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut found = Vec::new();
        if is_prefix {
            found = self.disk.tasks()?;
            found.retain(|id| id.as_str().starts_with(text));
        }
        match found.as_slice() {
            [] => Err(Error::NoSuchTask(text.to_owned())),
            [one] => Ok(one.clone()),
            _ => Err(Error::Ambiguous(text.to_owned())),
        }
    }
}
