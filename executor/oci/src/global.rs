//! Options before the command, as values.

use std::path::PathBuf;

use cofferdam_runtime::{CgroupManager, Options, Runtime};

use crate::arguments::Said;
use crate::failed::Failed;

/// What holds for every command.
#[derive(Debug, Default, Clone)]
pub(crate) struct Global {
    pub root: Option<PathBuf>,
    pub log: Option<Destination>,
    pub format: Format,
    pub level: Level,
    pub cgroup_manager: CgroupManager,
    /// `--rootless`, unless it is left to us.
    pub rootless: Option<bool>,
    pub version: bool,
    pub help: bool,
}

/// Where messages are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    File(PathBuf),
    /// The journal of systemd, under this name.
    Journal(String),
    /// The system's log, under this name.
    Syslog(String),
}

/// How messages are written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// Which messages are written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Error,
    #[default]
    Warning,
    Debug,
}

impl Level {
    /// Its name in a log line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Debug => "debug",
        }
    }
}

impl Global {
    /// Reads the values of the options.
    pub(crate) fn of(said: &Said) -> Result<Self, Failed> {
        let format = match said.text("log-format").as_deref() {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => return Err(Failed::new(format!("invalid log-format: {other}"))),
        };
        let level = match said.text("log-level").as_deref() {
            _ if said.has("debug") => Level::Debug,
            None | Some("warning" | "warn" | "info") => Level::Warning,
            Some("error") => Level::Error,
            Some("debug" | "trace") => Level::Debug,
            Some(other) => return Err(Failed::new(format!("invalid log-level: {other}"))),
        };
        let rootless = match said.text("rootless").as_deref() {
            None | Some("auto") => None,
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(other) => return Err(Failed::new(format!("invalid value for --rootless: {other:?}"))),
        };
        let log = said.text("log").filter(|log| !log.is_empty()).map(|log| destination(&log));
        Ok(Self {
            root: said.path("root"),
            log,
            format,
            level,
            cgroup_manager: cgroup_manager(said)?,
            rootless,
            version: said.has("version"),
            help: said.has("help"),
        })
    }

    /// The runtime over these options.
    pub(crate) fn runtime(&self) -> Result<Runtime, Failed> {
        let root = self.root.clone().unwrap_or_else(crate::root::default_root);
        let options = Options {
            cgroup_manager: self.cgroup_manager,
            spare_cgroups: self.rootless,
            ends_soon: true,
            ..Options::default()
        };
        Ok(Runtime::open(&root, options)?)
    }
}

/// runc takes a path, crun also a path behind a word, and two services.
fn destination(log: &str) -> Destination {
    match log.split_once(':') {
        Some(("journald", name)) => Destination::Journal(name.to_owned()),
        Some(("syslog", name)) => Destination::Syslog(name.to_owned()),
        Some(("file", path)) => Destination::File(PathBuf::from(path)),
        _ => Destination::File(PathBuf::from(log)),
    }
}

fn cgroup_manager(said: &Said) -> Result<CgroupManager, Failed> {
    match said.text("cgroup-manager").as_deref() {
        None if said.has("systemd-cgroup") => Ok(CgroupManager::Systemd),
        Some("systemd") => Ok(CgroupManager::Systemd),
        None | Some("cgroupfs") => Ok(CgroupManager::Cgroupfs),
        Some("disabled") => Ok(CgroupManager::Disabled),
        Some(other) => Err(Failed::new(format!("invalid cgroup-manager: {other}"))),
    }
}
