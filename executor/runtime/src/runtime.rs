//! The handle: a state root and what was learnt of the host.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cofferdam_isolators::CgroupManager;
use cofferdam_linux::cgroup::Layout;
use cofferdam_plan::{ContainerId, HostFeatures};

use crate::error::Error;
use crate::limits::Limits;
use crate::lock::Locked;
use crate::state::{Record, file_error};

/// How a runtime behaves.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Who manages cgroups.
    pub cgroup_manager: CgroupManager,
    /// Whether to do without the cgroups that cannot be made, where the configuration names none; otherwise everybody but root
    /// does.
    pub spare_cgroups: Option<bool>,
    /// How long it waits.
    pub limits: Limits,
    /// Whether this process ends soon after an operation, as a command does: then what would be freed at the end of `create`,
    /// page by page while the container has the same memory, is left to the end of the process.
    pub ends_soon: bool,
}

/// An OCI runtime over one state root. Cheap to clone; many processes may use one root at a time.
#[derive(Debug, Clone)]
pub struct Runtime {
    root: PathBuf,
    pub(crate) options: Options,
    /// Learnt when it is asked for: most operations do not need it.
    host: Arc<OnceLock<Arc<HostFeatures>>>,
    /// Learnt when it is asked for: a container's record says where its cgroup lies.
    cgroups: Arc<OnceLock<Layout>>,
}

impl Runtime {
    /// Opens a state root, made 0700 if it is missing. A root that others can write to, or that is a symbolic link, is
    /// refused.
    pub fn open(root: &Path, options: Options) -> Result<Self, Error> {
        Self::on(root, options, OnceLock::new(), OnceLock::new())
    }

    /// As [`Runtime::open`], with a host that was probed before.
    pub fn with_host(
        root: &Path,
        options: Options,
        host: HostFeatures,
        cgroups: Layout,
    ) -> Result<Self, Error> {
        Self::on(root, options, Arc::new(host).into(), cgroups.into())
    }

    fn on(
        root: &Path,
        options: Options,
        host: OnceLock<Arc<HostFeatures>>,
        cgroups: OnceLock<Layout>,
    ) -> Result<Self, Error> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|error| file_error("making the state root", root, &error))?;
        let metadata = std::fs::symlink_metadata(root)
            .map_err(|error| file_error("opening the state root", root, &error))?;
        let unsafe_root = |problem: &str| Error::StateFile {
            operation: "opening the state root",
            path: root.to_owned(),
            problem: problem.to_owned(),
        };
        if !metadata.is_dir() {
            return Err(unsafe_root("not a directory"));
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(unsafe_root("owned by somebody else"));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(unsafe_root("writable by others"));
        }
        let root =
            std::path::absolute(root).map_err(|error| file_error("opening the state root", root, &error))?;
        Ok(Self { root, options, host: Arc::new(host), cgroups: Arc::new(cgroups) })
    }

    /// What was learnt of the host.
    pub fn host(&self) -> &HostFeatures {
        self.shared_host()
    }

    pub(crate) fn shared_host(&self) -> &Arc<HostFeatures> {
        self.host.get_or_init(|| {
            // Who needs cgroups asks for them, and is told why they are not known.
            let none = Layout::default();
            let cgroups = self.cgroups().unwrap_or(&none);
            Arc::new(cofferdam_apply::probe::host_that_spares(cgroups, self.options.spare_cgroups))
        })
    }

    /// Where this host keeps its control groups.
    pub(crate) fn cgroups(&self) -> Result<&Layout, Error> {
        if let Some(known) = self.cgroups.get() {
            return Ok(known);
        }
        let probed = Layout::probe().map_err(Error::Cgroup)?;
        Ok(self.cgroups.get_or_init(|| probed))
    }

    /// Whether stacked layers can be shown through id maps here (overlayfs by descriptor, Linux 6.13).
    pub fn maps_layers(&self) -> bool {
        self.host().overlay == cofferdam_plan::OverlayApi::Descriptors
    }

    /// The state root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn directory(&self, id: &ContainerId) -> PathBuf {
        self.root.join(id.as_str())
    }

    pub(crate) fn lock(&self, id: &ContainerId) -> Result<(Locked, Record), Error> {
        let locked = Locked::open(&self.directory(id), id.as_str(), self.options.limits.lock)?;
        let record = Record::load(&locked.directory, id.as_str())?;
        Ok((locked, record))
    }
}
