//! podman and buildah, rootful, with storage, events and conmon's files in one folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Called, Caller, Ground, cgroup_parent, step};

/// podman with one runtime.
#[derive(Debug)]
pub struct Podman {
    folder: PathBuf,
    /// podman takes no path of more than 50 characters here.
    running: PathBuf,
    runtime: PathBuf,
    path: String,
}

/// What podman asks for by default is more than a root without CAP_SYS_RESOURCE may give.
const CONFIGURATION: &str = "\
[containers]
default_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]
";

impl Podman {
    /// An empty podman that has the busybox image.
    pub fn start(ground: &Ground, runtime: &Called) -> Result<Podman> {
        let folder = ground.folder(&format!("podman-{}", runtime.name))?;
        let running = Path::new("/run/podman").join(runtime.name);
        let podman = Podman { folder, running, runtime: runtime.path.clone(), path: std::env::var("PATH")? };
        std::fs::write(podman.folder.join("containers.conf"), CONFIGURATION)?;
        let archive = ground.archive()?;
        step(&["load", "--quiet", "--input", &archive.to_string_lossy()]).take(&podman)?;
        Ok(podman)
    }

    /// A buildah command on the same storage.
    pub fn buildah(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("buildah");
        command.args(self.storage()).args(arguments);
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command
    }

    /// The same with another search path, on which podman and its runtime find more programs.
    pub fn with_path(mut self, path: &str) -> Podman {
        self.path = path.to_owned();
        self
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The words before an image's name that every container here needs.
    pub fn options() -> Vec<String> {
        let parent = format!("/{}", cgroup_parent());
        ["--network".to_owned(), "none".to_owned(), "--cgroup-parent".to_owned(), parent].to_vec()
    }

    fn storage(&self) -> Vec<String> {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let running = self.running.display().to_string();
        let words = ["--root", &at("root"), "--runroot", &running, "--storage-driver", "overlay"];
        words.map(str::to_owned).to_vec()
    }
}

impl Caller for Podman {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--runtime")
            .arg(&self.runtime)
            .args(self.storage())
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--tmpdir"])
            .arg(self.folder.join("tmp"))
            .args(arguments)
            .env("PATH", &self.path)
            .env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.call(&["pod", "rm", "--all", "--force", "--time", "0"]);
        let _ = self.call(&["rm", "--all", "--force", "--time", "0"]);
    }
}
