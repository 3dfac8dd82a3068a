//! Docker's daemon, with a containerd of its own below it, without bridge and firewall rules.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::daemon::Daemon;
use super::{Called, Caller, Ground, cgroup_parent, step};
use crate::oci::outcome;

/// Debian's programs by their paths: other packagings of Docker install into /usr/local.
pub const PROGRAMS: [&str; 2] = ["/usr/sbin/dockerd", "/usr/bin/docker"];

/// A private Docker that has the busybox image and one default runtime.
#[derive(Debug)]
pub struct Docker {
    folder: PathBuf,
    _daemon: Daemon,
}

impl Docker {
    /// Starts it and loads the image.
    pub fn start(ground: &Ground, runtime: &Called) -> Result<Docker> {
        let folder = ground.folder(&format!("docker-{}", runtime.name))?;
        std::fs::create_dir(folder.join("home"))?;
        let configuration = json!({
            "runtimes": { "called": { "path": runtime.path } },
            "default-runtime": "called",
            "data-root": folder.join("root"),
            "exec-root": folder.join("exec"),
            "pidfile": folder.join("pid"),
            "hosts": [format!("unix://{}", folder.join("socket").display())],
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "storage-driver": "overlay2",
            "cgroup-parent": format!("/{}", cgroup_parent()),
        });
        let file = folder.join("daemon.json");
        std::fs::write(&file, configuration.to_string()).context("Docker's configuration")?;
        let mut command = Command::new(PROGRAMS[0]);
        command.arg("--config-file").arg(file);
        let ask = || outcome(&mut client(&folder, &["version"])).is_ok_and(|said| said.status == Some(0));
        let daemon = Daemon::start(command, &folder.join("log"), ask)?;
        let docker = Docker { folder, _daemon: daemon };
        let archive = ground.archive()?;
        step(&["load", "--quiet", "--input", &archive.to_string_lossy()]).take(&docker)?;
        Ok(docker)
    }

    /// Where its files are.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }
}

fn client(folder: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAMS[1]);
    command.arg("--host").arg(format!("unix://{}", folder.join("socket").display()));
    command.args(arguments).env("HOME", folder.join("home")).env("DOCKER_BUILDKIT", "0");
    command
}

impl Caller for Docker {
    fn command(&self, arguments: &[&str]) -> Command {
        client(&self.folder, arguments)
    }
}
