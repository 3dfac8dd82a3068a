//! From a request to a shim that has created the container.
//!
//! ```text
//!   image ─▶ admission ─▶ snapshot ─▶ network ─▶ /etc files ─▶ volumes ─▶ config.json ─▶ shim ─▶ created
//!             (STAGING)                                                  (STARTING)
//! ```
//!
//! Ids of its own, if the task asks for them, are chosen with the admission; the user namespace is made with the network's.
//!
//! Until the shim has the task, a [`Staged`] owns it: dropping that gives everything back, so that a cancelled launch leaves
//! nothing. A killed one is found by recovery through the task's state directory.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_image::{Image, Lower, PullConfig, Snapshot};
use cofferdam_shim::durable::{self, Durability};
use cofferdam_shim::{Launch, Layer, PROTOCOL_VERSION, RootfsSource, Timestamp, detach};

use crate::bundle::{self, Built, EtcFiles, Ingredients, UserNamespace};
use crate::containers;
use crate::demo;
use crate::disk::{Claim, Disk, RECORD_VERSION, TaskRecord, boot_id};
use crate::error::Error;
use crate::etc::{self, Resolver};
use crate::host::HostLimits;
use crate::id::{TaskId, TaskName};
use crate::images::{self, ImageRequest};
use crate::networks::{self, Attached};
use crate::passwd::Accounts;
use crate::release::{self, Places};
use crate::request::userns::UserNamespaceChoice;
use crate::rootfs_file::read_accounts;
use crate::spec::{NetworkChoice, Source, TaskSpec};
use crate::status::{Reason, Status};
use crate::subordinate;
use crate::supervisor::{Handover, publish};
use crate::transition::{Event, transition};
use crate::volumes;

/// How long a shim may take to give a task back whose launch was taken back, and how often we look.
const SHIM_LIMIT: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What a launch needs of its executor.
#[derive(Debug)]
pub(crate) struct Launcher<'a> {
    pub(crate) places: &'a Places,
    pub(crate) disk: &'a Disk,
    pub(crate) host: &'a HostLimits,
    pub(crate) shim: &'a Path,
    pub(crate) pull: &'a PullConfig,
}

/// A task that is being made ready and that no shim has yet.
#[derive(Debug)]
pub(crate) struct Staged {
    places: Places,
    disk: Disk,
    pub(crate) record: TaskRecord,
    status: Status,
    claim: Option<Claim>,
    /// A shim has the task too: it gives everything back when its connection closes.
    has_shim: bool,
    /// What was clamped, in words.
    pub(crate) notes: Vec<String>,
}

impl Staged {
    /// Says what happened to the task, and writes it down.
    fn apply(&mut self, event: Event) -> Result<(), Error> {
        let (status, _) = transition(self.status.clone(), event, Timestamp::now());
        self.status = status;
        publish(&self.disk, &self.record, &self.status)
    }

    /// The shim has the task now.
    pub(crate) fn hand_over(mut self) {
        self.claim = None;
    }

    /// Ends the task as failed and gives everything back.
    pub(crate) fn fail(mut self, reason: Reason, message: &str) {
        self.undo(reason, message);
    }

    /// The connection is closed; the shim removes the task's state directory last.
    fn wait_for_shim(&self) {
        let deadline = Instant::now() + SHIM_LIMIT;
        while self.disk.task_state(&self.record.id).exists() && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Gives everything back. The connection to the shim, if there is one, must be closed.
    fn undo(&mut self, reason: Reason, message: &str) {
        let Some(_claim) = self.claim.take() else { return };
        if self.has_shim {
            self.wait_for_shim();
        }
        if !self.disk.task_state(&self.record.id).exists() {
            return;
        }
        // A shim that came so far has told the world itself.
        if let Ok(status) = self.disk.load_status(&self.record.id) {
            self.status = status;
        }
        if !self.status.state.is_final() {
            // What cannot be written down is still given back.
            let _ = self.apply(Event::PrepareFailed { reason, message: message.to_owned() });
        }
        if containers::delete(&self.places, &self.record.id).is_ok() {
            // What resists stays named by the state directory; the next recovery finds it.
            let _ = release::release(&self.places, &self.disk, &self.record, &self.status);
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.undo(Reason::LaunchCancelled, "the launch was taken back");
    }
}

impl Launcher<'_> {
    /// Makes a task ready and starts its shim. Blocks.
    ///
    /// The connection comes first, so that it is closed first when the pair is dropped.
    pub(crate) fn launch(&self, spec: TaskSpec) -> Result<(UnixStream, Staged), Error> {
        let image = self.image(&spec)?;
        let mut staged = self.admit(spec, image.as_ref())?;
        match self.stage(&mut staged, image.as_ref()) {
            Ok(stream) => {
                staged.has_shim = true;
                Ok((stream, staged))
            }
            Err((reason, error)) => {
                staged.fail(reason, &error.to_string());
                Err(error)
            }
        }
    }

    fn image(&self, spec: &TaskSpec) -> Result<Option<Image>, Error> {
        let Source::Image(reference) = &spec.source else { return Ok(None) };
        let store = images::open(self.places)?;
        let request = ImageRequest {
            when: spec.pull,
            platform: spec.platform.clone(),
            ..ImageRequest::new(reference.clone())
        };
        images::ensure(&store, &request, self.pull, &|_| {}).map(Some)
    }

    fn admit(&self, spec: TaskSpec, image: Option<&Image>) -> Result<Staged, Error> {
        let id = TaskId::random().map_err(Error::io("draw an id from", "getrandom"))?;
        let name = spec.name.clone().unwrap_or_else(|| TaskName::from_id(&id));
        let created = Timestamp::now();
        let status = Status::new(id.clone(), created, spec.restart, spec.resources.memory_bytes);
        // Until the record is written, so that nobody chooses the same.
        let choosing = matches!(spec.user_namespace, UserNamespaceChoice::Auto(_));
        let _turn = choosing.then(|| self.disk.lock_ids()).transpose()?;
        let ids = subordinate::choose(self.disk, &spec.user_namespace)?;
        let record = TaskRecord {
            version: RECORD_VERSION,
            id,
            name,
            boot: boot_id().map_err(Error::io("read", "/proc/sys/kernel/random/boot_id"))?,
            created,
            spec,
            image: image.map(|image| image.digest.to_string()),
            command: Vec::new(),
            ids,
        };
        let claim = Some(self.disk.admit(&record, &status)?);
        let (places, disk) = (self.places.clone(), self.disk.clone());
        let staged = Staged { places, disk, record, status, claim, has_shim: false, notes: Vec::new() };
        crate::event::append(
            &self.disk.events(),
            &crate::event::TaskEvent::of(&staged.record, &staged.status),
        )?;
        Ok(staged)
    }

    fn stage(&self, staged: &mut Staged, image: Option<&Image>) -> Result<UnixStream, (Reason, Error)> {
        let snapshot =
            self.snapshot(&staged.record, image).map_err(|error| (Reason::ImageUnavailable, error))?;
        self.make_user_namespace(&staged.record, snapshot.as_ref())
            .map_err(|error| (Reason::IsolationFailed, error))?;
        let attached = networks::attach(self.places, self.disk, &staged.record)
            .map_err(|error| (Reason::NetworkUnavailable, error))?;
        let built = self
            .build(staged, image, snapshot.as_ref(), &attached)
            .map_err(|error| (Reason::InvalidRequest, error))?;
        // It has its files by now, and is told with all others.
        networks::names::tell(self.places, self.disk, &staged.record.id, &staged.record.spec.network)
            .map_err(|error| (Reason::NetworkUnavailable, error))?;
        self.start_shim(staged, snapshot.as_ref(), &built).map_err(|error| (Reason::IsolationFailed, error))
    }

    fn snapshot(&self, record: &TaskRecord, image: Option<&Image>) -> Result<Option<Snapshot>, Error> {
        let Some(image) = image else { return Ok(None) };
        let store = images::open(self.places)?;
        images::prepare(&store, &record.id, image, record.spec.writable_bytes).map(Some)
    }

    /// Makes the task's user namespace, and its network namespace, which has to belong to it. Undo: [`networks::detach`].
    fn make_user_namespace(&self, record: &TaskRecord, snapshot: Option<&Snapshot>) -> Result<(), Error> {
        let Some(ids) = &record.ids else { return Ok(()) };
        if snapshot.is_some_and(|snapshot| !snapshot.lower.is_empty())
            && !containers::maps_layers(self.places)?
        {
            let problem = "a user namespace over layers needs Linux 6.13 or newer; with --layers copy every task has a \
                           copy of its image, which older kernels can map";
            return Err(Error::Unsupported(problem.into()));
        }
        networks::make_user_namespace(self.disk, &record.id, ids, &record.spec)
    }

    fn build(
        &self,
        staged: &mut Staged,
        image: Option<&Image>,
        snapshot: Option<&Snapshot>,
        attached: &Attached,
    ) -> Result<Built, Error> {
        let record = &staged.record;
        let accounts = match snapshot {
            Some(snapshot) => read_accounts(snapshot.layers()),
            None => read_accounts([Lower::Directory(PathBuf::from("/"))]),
        };
        let built = self.build_with(record, image, &accounts, attached)?;
        staged.notes = built.notes.clone();
        let process = built.spec.process().as_ref();
        staged.record.command = process.and_then(|process| process.args().clone()).unwrap_or_default();
        let config = self.disk.task_state(&staged.record.id).join("bundle").join("config.json");
        durable::store(&config, &built.spec, Durability::Process)?;
        Ok(built)
    }

    fn build_with(
        &self,
        record: &TaskRecord,
        image: Option<&Image>,
        accounts: &Accounts,
        attached: &Attached,
    ) -> Result<Built, Error> {
        let (spec, id) = (&record.spec, &record.id);
        let netns = (spec.network != NetworkChoice::Host).then(|| self.disk.netns(id));
        let init = spec.init.then(|| demo::guest_program(self.places)).transpose()?;
        let extra_env = demo::environment(&spec.source);
        let is_tmpfs = |target: &Path| spec.tmpfs.iter().any(|tmpfs| tmpfs.target == target);
        let of_image = image.and_then(|image| image.config.config().as_ref()?.volumes().clone());
        let of_image = of_image.unwrap_or_default();
        let volumes = volumes::bind(self.disk, record, &of_image, is_tmpfs)?;
        let userns = self.disk.userns(id);
        let mut from = Ingredients {
            id,
            spec,
            image: image.map(|image| &image.config),
            accounts,
            host: self.host,
            netns: netns.as_deref(),
            user: record.ids.as_ref().map(|maps| UserNamespace { path: &userns, maps }),
            etc: None,
            volumes: &volumes,
            init: init.as_deref(),
            extra_env: &extra_env,
        };
        let hostname = bundle::hostname(id, spec)?;
        let etc = image.map(|_| self.write_etc(id, &hostname, attached, spec)).transpose()?;
        from.etc = etc.as_ref();
        Ok(bundle::build(&from)?)
    }

    fn write_etc(
        &self,
        id: &TaskId,
        hostname: &str,
        attached: &Attached,
        spec: &TaskSpec,
    ) -> Result<EtcFiles, Error> {
        let resolver = Resolver::choose(attached.resolver.clone(), &spec.network);
        etc::write(&self.disk.task_state(id).join("etc"), hostname, &attached.addresses, &resolver)
    }

    fn start_shim(
        &self,
        staged: &mut Staged,
        snapshot: Option<&Snapshot>,
        built: &Built,
    ) -> Result<UnixStream, Error> {
        let id = staged.record.id.clone();
        let state = self.disk.task_state(&id);
        let handover = Handover { places: self.places.clone(), task: id.clone() };
        let launch = Launch {
            version: PROTOCOL_VERSION,
            container: containers::container_id(&id),
            runtime_root: self.disk.runtime(),
            bundle: state.join("bundle"),
            rootfs: snapshot.map_or(RootfsSource::Host, |snapshot| rootfs(snapshot, &state)),
            terminal: staged.record.spec.terminal,
            stdin: staged.record.spec.stdin,
            log_directory: self.disk.log(&id),
            log_limits: staged.record.spec.log,
            stdio_owner: stdio_owner(&staged.record, built),
            policy: serde_json::to_value(&handover).map_err(|error| Error::Worker(error.to_string()))?,
        };
        launch.store(&state)?;
        self.disk.store_record(&staged.record, Durability::Power)?;
        staged.apply(Event::Prepared)?;
        let claim = staged.claim.as_ref().ok_or_else(|| Error::Worker("the task has no owner".to_owned()))?;
        let lock = claim.share().map_err(Error::io("share the lock of", &state))?;
        detach::spawn(self.shim, &state, lock).map_err(Error::io("start a supervisor with", self.shim))
    }
}

/// Who the task's user is on the host. One that is not mapped is refused by the runtime, in its words.
fn stdio_owner(record: &TaskRecord, built: &Built) -> (u32, u32) {
    let inside = (built.identity.uid, built.identity.gid);
    record.ids.as_ref().and_then(|maps| maps.outside(inside.0, inside.1)).unwrap_or(inside)
}

fn rootfs(snapshot: &Snapshot, state: &Path) -> RootfsSource {
    if snapshot.lower.is_empty() {
        return RootfsSource::Directory(snapshot.upper.clone());
    }
    let layer = |lower: &Lower| match lower {
        Lower::Directory(path) => Layer::Directory(path.clone()),
        Lower::Erofs(path) => Layer::Image { erofs: path.clone() },
    };
    RootfsSource::Overlay {
        lower: snapshot.lower.iter().map(layer).collect(),
        upper: snapshot.upper.clone(),
        work: snapshot.work.clone(),
        onto: state.join("bundle").join("rootfs"),
        disk: snapshot.disk.clone(),
    }
}
