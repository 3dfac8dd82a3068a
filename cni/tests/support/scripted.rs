//! Plugins that do what a test says: shell scripts that write down what they were asked and answer from a few lines of script.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A directory of scripted plugins and of what they wrote down.
#[derive(Debug, Clone)]
pub(crate) struct Scripted {
    folder: PathBuf,
}

impl Scripted {
    /// In a directory that exists.
    pub(crate) fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("bin")).unwrap();
        Self { folder: folder.into() }
    }

    /// Where the plugins are.
    pub(crate) fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// A plugin that notes its verb in the log, and its last input and environment for each verb. `extra` is run then; unless
    /// it exits, an ADD is answered with a result that names the plugin.
    pub(crate) fn plugin(&self, name: &str, extra: &str) {
        let d = self.folder.display();
        self.program(
            &self.bin().join(name),
            &format!(
                "cat > {d}/stdin.{name}.$CNI_COMMAND; env > {d}/env.{name}.$CNI_COMMAND\n\
                 echo {name} $CNI_COMMAND >> {d}/log\n{extra}\n\
                 [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"1.1.0\",\"by\":\"{name}\",\"n\":12345678901234567890}}'\n\
                 exit 0"
            ),
        );
    }

    /// A script of one's own. Renamed into place, so that nobody who is starting a process holds it open for writing.
    pub(crate) fn program(&self, path: &Path, script: &str) {
        let draft = path.with_extension("draft");
        std::fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&draft, path).unwrap();
    }

    /// A file of the folder, empty if it is not there.
    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.join(file)).unwrap_or_default()
    }

    /// What a plugin was sent with a verb.
    pub(crate) fn input(&self, plugin: &str, verb: &str) -> String {
        self.read(&format!("stdin.{plugin}.{verb}"))
    }

    /// A variable that a plugin saw with a verb.
    pub(crate) fn variable(&self, plugin: &str, verb: &str, name: &str) -> Option<String> {
        let all = self.read(&format!("env.{plugin}.{verb}"));
        all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    }

    /// Who was asked what since the last time, in order.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = self.read("log").lines().map(str::to_owned).collect();
        let _ = std::fs::remove_file(self.folder.join("log"));
        log
    }
}
