//! checkpoint: the processes of a container as files, by CRIU.

use std::path::{Path, PathBuf};

use cofferdam_isolators::namespaces::{Membership, Source};
use cofferdam_linux::text::read_text;
use cofferdam_plan::{ContainerId, Namespace, Op, Plan};

use crate::create::Create;
use crate::criu::message::{Options, Request};
use crate::criu::{self, Session};
use crate::error::Error;
use crate::runtime::Runtime;
use crate::state::{Record, Status, file_error};

pub use crate::criu::message::{CgroupMode, NetworkLock, Shared};

/// In the images' directory: what descriptors 0, 1 and 2 were, as a list of three texts. runc writes it too.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";

/// How CRIU's name of a file that is outside begins: mount and inode in hexadecimal, in brackets.
pub(crate) const FILE: &str = "file[";

/// Follows such a name when the file is the null device: any other will do for it.
pub(crate) const NULL_MARK: &str = " null";

/// What files are masked with.
const NULL_DEVICE: &str = "/dev/null";

/// The null device's number, 1:3.
const NULL: u64 = 1 << 8 | 3;

/// The name under which a network namespace that was joined is handed from a checkpoint to a restore.
pub(crate) const NETWORK_KEY: &str = "extRootNetNS";

/// The same for a pid namespace.
pub(crate) const PID_KEY: &str = "extRootPidNS";

/// How a container is checkpointed.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// Where the images go; made if it is missing.
    pub images: PathBuf,
    /// Where CRIU's log and statistics go; where the images go if there is none.
    pub work: Option<PathBuf>,
    /// The images of an earlier one, relative to these, of which only what changed is written.
    pub parent: Option<PathBuf>,
    /// The container goes on.
    pub leave_running: bool,
    /// Only memory is written, and the container goes on: the parent of a later one.
    pub pre_dump: bool,
    /// Connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Files that were unlinked while open are linked again for the image.
    pub link_remap: bool,
    /// Memory goes to a page server here.
    pub page_server: Option<(String, u16)>,
    /// A descriptor on which CRIU says that it is ready to serve pages.
    pub status_fd: Option<i32>,
    /// What a restore has to be told too.
    pub shared: Shared,
}

impl Runtime {
    /// Writes the state of a running container's processes to files. They are gone afterwards, and so is the container,
    /// unless it was asked to go on. Needs CRIU.
    pub fn checkpoint(&self, id: &ContainerId, checkpoint: Checkpoint) -> Result<(), Error> {
        criu::find()?;
        let goes_on = checkpoint.leave_running || checkpoint.pre_dump;
        let (locked, record) = self.lock(id)?;
        match record.status(&locked.directory) {
            Status::Running | Status::Paused => {}
            status => return Err(Error::Conflict(format!("cannot checkpoint a container that is {status}"))),
        }
        let request = if checkpoint.pre_dump { Request::PreDump } else { Request::Dump };
        criu::make_directory(&checkpoint.images)?;
        let log = checkpoint.work.as_ref().unwrap_or(&checkpoint.images).join("dump.log");
        let files =
            if checkpoint.pre_dump { Vec::new() } else { note_descriptors(&record, &checkpoint.images)? };
        let plan = self.plan(&again(&record)?)?;
        // A directory is masked by an empty file system, which is the container's own.
        let is_outside = |(at, source): &(String, String)| {
            let inside = PathBuf::from(format!("/proc/{}/root{at}", record.pid));
            source != NULL_DEVICE || std::fs::metadata(inside).is_ok_and(|metadata| !metadata.is_dir())
        };
        let outside = mounts(&plan).into_iter().filter(is_outside);
        let mut external: Vec<String> = outside.map(|(at, _)| format!("mnt[{at}]:{at}")).collect();
        external.extend(namespaces(&record)?);
        external.extend(files.iter().map(|text| text.trim_end_matches(NULL_MARK).to_owned()));
        let options = Options {
            pid: record.pid,
            leave_running: goes_on,
            tcp_skip_in_flight: checkpoint.tcp_skip_in_flight,
            link_remap: checkpoint.link_remap,
            log_file: "dump.log",
            page_server: checkpoint.page_server,
            root: record.rootfs.display().to_string(),
            track_memory: checkpoint.parent.is_some() || checkpoint.pre_dump,
            parent_images: checkpoint.parent.map(|path| path.display().to_string()),
            external,
            freeze_cgroup: self.freezer(&record)?,
            config_file: config_file(&record),
            status_fd: checkpoint.status_fd,
            shared: checkpoint.shared,
            ..Options::default()
        };
        let (images, work) = (checkpoint.images.as_path(), checkpoint.work.as_deref());
        Session { request, options, images, work, log, root: None }.run(&mut |_, _| Ok(()))?;
        drop(locked);
        if goes_on { Ok(()) } else { self.delete(id, true).map(drop) }
    }

    /// The directory by which CRIU freezes the container.
    fn freezer(&self, record: &Record) -> Result<Option<String>, Error> {
        let Some(path) = &record.cgroup else { return Ok(None) };
        let layout = record.layout();
        let Some(cgroup) = crate::resources::existing(&layout, path)? else { return Ok(None) };
        let found = cgroup.paths().find(|(controller, _)| *controller == "freezer" || layout.is_v2());
        Ok(found.map(|(_, path)| path.display().to_string()))
    }
}

/// A request that compiles to the plan that the container was made by.
pub(crate) fn again(record: &Record) -> Result<Create, Error> {
    Ok(Create::new(ContainerId::parse(&record.id)?, record.bundle.clone(), record.spec.get()?.clone()))
}

/// Every mount of a container whose source is outside: where it is in the container, and the host's path. CRIU does not
/// look into them.
pub(crate) fn mounts(plan: &Plan) -> Vec<(String, String)> {
    let trees = plan.steps.iter().filter_map(|step| match &step.op {
        Op::CloneTree { source, into, .. } => Some((*into, source.to_string())),
        Op::OpenDevice { path, into, .. } => Some((*into, path.to_string())),
        _ => None,
    });
    let trees: Vec<_> = trees.collect();
    let source = |slot| trees.iter().find(|(into, _)| *into == slot).map(|(_, source)| source.clone());
    let placed = plan.steps.iter().filter_map(|step| match &step.op {
        Op::Place { tree, at, .. } => Some((at.to_string(), source(*tree)?)),
        Op::BindDevice { device, at, .. } => Some((at.to_string(), source(*device)?)),
        Op::Mask { at, file, .. } => Some((at.to_string(), source(*file)?)),
        _ => None,
    });
    placed.collect()
}

/// Namespaces that the container joined by path: CRIU leaves them to whoever restores.
fn namespaces(record: &Record) -> Result<Vec<String>, Error> {
    let members = Membership::of(record.spec.get()?)?;
    let mut external = Vec::new();
    for (kind, key) in [(Namespace::Network, NETWORK_KEY), (Namespace::Pid, PID_KEY)] {
        if let Some(Source::Path(path)) = members.source(kind) {
            use std::os::unix::fs::MetadataExt;
            let path = PathBuf::from(path.to_string());
            let inode = std::fs::metadata(&path).map_err(|error| file_error("reading", &path, &error))?.ino();
            external.push(format!("{}[{inode}]:{key}", kind.file()));
        }
    }
    Ok(external)
}

/// The annotation names a configuration of CRIU's; an empty one means none at all.
pub(crate) fn config_file(record: &Record) -> Option<String> {
    let annotations = record.spec.get().ok()?.annotations().as_ref();
    annotations.and_then(|all| all.get("org.criu.config")).filter(|path| !path.is_empty()).cloned()
}

/// Notes what the standard descriptors are. Pipes and files of the host, which are on no mount of the container, are
/// outside for CRIU; of the latter it has to be told.
fn note_descriptors(record: &Record, images: &Path) -> Result<Vec<String>, Error> {
    let texts: Vec<String> =
        (0..3).map(|number| descriptor(record.pid, number).unwrap_or_default()).collect();
    let path = images.join(DESCRIPTORS);
    let text = serde_json::to_vec(&texts).map_err(|error| file_error("writing", &path, &error.into()))?;
    std::fs::write(&path, text).map_err(|error| file_error("writing", &path, &error))?;
    Ok(texts.into_iter().filter(|text| text.starts_with(FILE)).collect())
}

/// One descriptor: `pipe:[INODE]`, `file[MOUNT:INODE]` for a file of the host, or its path.
fn descriptor(pid: i32, number: i32) -> Option<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let link = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
    let text = std::fs::read_link(&link).ok()?.display().to_string();
    let metadata = std::fs::metadata(&link).ok()?;
    let kind = metadata.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Some(text);
    }
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = read_text(&format!("/proc/{pid}/mountinfo")).ok()?;
    if mounts.lines().any(|line| line.split(' ').next() == Some(mount)) {
        return Some(text);
    }
    let null = kind.is_char_device() && metadata.rdev() == NULL;
    Some(format!(
        "{FILE}{:x}:{:x}]{}",
        mount.parse::<u32>().ok()?,
        metadata.ino(),
        if null { NULL_MARK } else { "" }
    ))
}
