//! What every test here stands on: a throw-away state directory, scripted plugins, and a caller that uses them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam_cni::{
    Attachment, Caller, Capabilities, ContainerId, Deadlines, Error, IfName, NetnsFate, NetworkList,
    Observer, Options,
};
use cofferdam_tests::pace;

use crate::scripted::Scripted;

/// Any namespace file serves as the container's.
pub(crate) const NETNS: &str = "/proc/self/ns/net";
/// Tells a copy of this program what to do instead of testing.
pub(crate) const JOB: &str = "COFFERDAM_CNI_JOB";
/// Tells it in which folder.
pub(crate) const FOLDER: &str = "COFFERDAM_CNI_FOLDER";

/// What a caller told while it worked.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn warning(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

impl Told {
    pub(crate) fn all(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

pub(crate) struct Bed {
    _throw_away: Option<tempfile::TempDir>,
    pub(crate) folder: PathBuf,
    pub(crate) plugins: Scripted,
    pub(crate) caller: Caller,
    pub(crate) told: Arc<Told>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = throw_away();
        let bed = Self::at(dir.path(), change);
        Self { _throw_away: Some(dir), ..bed }
    }

    /// In a folder that exists and stays.
    pub(crate) fn at(folder: &Path, change: impl FnOnce(&mut Options)) -> Self {
        let plugins = Scripted::new(folder);
        let told = Arc::new(Told::default());
        let mut options = Options::new(folder.join("state"));
        options.plugin_path = vec![plugins.bin()];
        options.observer = Some(told.clone());
        options.deadlines = Deadlines { add: pace::limit(Duration::from_secs(2)), ..Deadlines::default() };
        change(&mut options);
        let caller = Caller::open(options).unwrap();
        Self { _throw_away: None, folder: folder.into(), plugins, caller, told }
    }

    pub(crate) fn plugin(&self, name: &str, extra: &str) {
        self.plugins.plugin(name, extra);
    }

    pub(crate) fn three_plugins(&self) {
        ["a", "b", "c"].iter().for_each(|name| self.plugin(name, ""));
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.plugins.log()
    }

    pub(crate) fn input(&self, plugin: &str, verb: &str) -> String {
        self.plugins.input(plugin, verb)
    }

    pub(crate) fn has_records(&self) -> bool {
        let (records, problems) = self.caller.records().unwrap();
        !records.is_empty() || !problems.is_empty()
    }

    /// The file of the record of [`attachment`].
    pub(crate) fn record(&self) -> PathBuf {
        self.folder.join("state/results/net-one-eth0")
    }

    pub(crate) fn detach(&self) -> Result<(), Error> {
        let attachment = attachment();
        self.caller.detach(&three().name, &attachment.container, &attachment.if_name, NetnsFate::Stays)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.caller.check(&three().name, &attachment().container, &attachment().if_name)
    }

    /// A copy of this program that does a job in this bed's folder.
    pub(crate) fn job(&self, job: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "jobs::the_other_process", "--nocapture", "--test-threads=1"]);
        command.env(JOB, job).env(FOLDER, &self.folder).stdin(Stdio::null());
        command
    }

    pub(crate) fn start(&self, job: &str) -> Child {
        self.job(job).stdout(Stdio::null()).spawn().unwrap()
    }
}

/// A folder in memory where there is such: what is proven here does not depend on how long a disk takes to make sure.
pub(crate) fn throw_away() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(crate) fn list(text: &str) -> NetworkList {
    NetworkList::parse(text, None).unwrap()
}

pub(crate) fn network(plugins: &str) -> NetworkList {
    list(&format!(r#"{{"name":"net","cniVersion":"1.1.0","plugins":[{plugins}]}}"#))
}

pub(crate) fn three() -> NetworkList {
    network(
        r#"{"type":"a"},{"type":"b","capabilities":{"mac":true},"big":12345678901234567890},{"type":"c"}"#,
    )
}

pub(crate) fn attachment() -> Attachment {
    let mut attachment = plain("one");
    attachment.args = vec![("K8S_POD_NAME".into(), "p".into())];
    attachment.capabilities =
        Capabilities { mac: Some("02:00:00:00:00:01".into()), ..Capabilities::default() };
    attachment
}

/// An attachment that asks for nothing.
pub(crate) fn plain(container: &str) -> Attachment {
    Attachment::new(id(container), NETNS, eth0())
}

pub(crate) fn id(container: &str) -> ContainerId {
    ContainerId::parse(container).unwrap()
}

pub(crate) fn eth0() -> IfName {
    IfName::parse("eth0").unwrap()
}

/// Waits for something that is about to be.
pub(crate) fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + pace::limit(Duration::from_secs(10));
    while !there() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a process lives; a zombie does not.
pub(crate) fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| !text.contains(") Z"))
}
