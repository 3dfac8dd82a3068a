//! containerd with its own configuration, root and socket, driven by `ctr`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::Daemon;
use super::{Called, Caller, Ground, cgroup_parent, step};
use crate::oci::outcome;

/// A private containerd that has the busybox image.
#[derive(Debug)]
pub struct Containerd {
    socket: PathBuf,
    runtime: PathBuf,
    _daemon: Daemon,
}

/// The image's name there.
pub const IMAGE: &str = "docker.io/library/busybox:latest";

impl Containerd {
    /// Starts it and imports the image.
    pub fn start(ground: &Ground, runtime: &Called) -> Result<Containerd> {
        let folder = ground.folder(&format!("containerd-{}", runtime.name))?;
        let (socket, file) = (folder.join("socket"), folder.join("config.toml"));
        std::fs::write(&file, configuration(&folder, &socket)).context("containerd's configuration")?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(file);
        let is_ready = || {
            let mut ask = Command::new("ctr");
            outcome(ask.arg("--address").arg(&socket).arg("version")).is_ok_and(|said| said.status == Some(0))
        };
        let daemon = Daemon::start(command, &folder.join("log"), is_ready)?;
        let containerd = Containerd { socket, runtime: runtime.path.clone(), _daemon: daemon };
        let archive = ground.archive()?;
        step(&["images", "import", &archive.to_string_lossy()]).take(&containerd)?;
        Ok(containerd)
    }

    /// The words before an image's name that every container here needs.
    pub fn options(&self) -> Vec<String> {
        let runtime = self.runtime.display().to_string();
        ["--runc-binary", &runtime, "--runtime", "io.containerd.runc.v2", "--cgroup"]
            .into_iter()
            .chain([cgroup_parent().as_str()])
            .map(str::to_owned)
            .collect()
    }
}

fn configuration(folder: &Path, socket: &Path) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {:?}\n",
        at("root"),
        at("state"),
        at("ttrpc")
    )
}

impl Caller for Containerd {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(arguments);
        command
    }
}
