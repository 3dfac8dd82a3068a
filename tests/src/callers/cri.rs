//! containerd's Kubernetes interface (CRI): pods and containers, with the runtime named in containerd's own configuration.
//! The client is ours: Debian packages none.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::Daemon;
use super::grpc::{Message, call};
use super::{Called, Ground, cgroup_parent};
use crate::oci::outcome;
use crate::world::succeed;

/// The image of a pod's own container, which has to live as long as the pod; and that of the others.
const PAUSE: &str = "docker.io/library/pause:latest";
const IMAGE: &str = "docker.io/library/busybox:latest";

/// Host namespaces, by the interface's number.
const NODE: u64 = 2;

/// A private containerd that serves the interface.
#[derive(Debug)]
pub struct Cri {
    socket: PathBuf,
    folder: PathBuf,
    _daemon: Daemon,
}

/// How a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Created, running or exited: 0, 1, 2.
    pub state: u64,
    /// With what it has exited.
    pub exit_code: u64,
}

impl Cri {
    /// Starts it with both images.
    pub fn start(ground: &Ground, runtime: &Called) -> Result<Cri> {
        let folder = ground.folder(&format!("cri-{}", runtime.name))?;
        let (socket, file) = (folder.join("socket"), folder.join("config.toml"));
        std::fs::write(&file, configuration(&folder, &socket, runtime))
            .context("containerd's configuration")?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(file);
        let is_ready = || call(&socket, "/runtime.v1.RuntimeService/Version", &Message::new()).is_ok();
        let daemon = Daemon::start(command, &folder.join("log"), is_ready)?;
        for archive in [ground.archive()?, pause(ground, &folder)?] {
            let mut import = Command::new("ctr");
            import.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "import"]);
            let said = outcome(import.arg(archive))?;
            anyhow::ensure!(said.status == Some(0), "{said:?}");
        }
        Ok(Cri { socket, folder, _daemon: daemon })
    }

    fn call(&self, method: &str, message: &Message) -> Result<Message> {
        let answer = call(&self.socket, &format!("/runtime.v1.RuntimeService/{method}"), message);
        answer.with_context(|| std::fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }

    /// Runs a pod in the host's network.
    pub fn run_pod(&self) -> Result<String> {
        let request = Message::new().message(1, &self.pod());
        Ok(self.call("RunPodSandbox", &request)?.get_text(1))
    }

    fn pod(&self) -> Message {
        let metadata = Message::new().text(1, "pod").text(2, "uid").text(3, "default");
        let security = Message::new().message(1, &Message::new().number(1, NODE));
        let linux = Message::new().text(1, &format!("/{}", cgroup_parent())).message(2, &security);
        let logs = self.folder.display().to_string();
        Message::new().message(1, &metadata).text(3, &logs).message(8, &linux)
    }

    /// Makes a container that runs a shell's line in a pod.
    pub fn create(&self, pod: &str, name: &str, line: &str) -> Result<String> {
        let config = Message::new()
            .message(1, &Message::new().text(1, name))
            .message(2, &Message::new().text(1, IMAGE))
            .texts(3, &["sh", "-c", line])
            .text(11, &format!("{name}.log"));
        let request = Message::new().text(1, pod).message(2, &config).message(3, &self.pod());
        Ok(self.call("CreateContainer", &request)?.get_text(1))
    }

    /// Starts, stops (at once), or removes a container, or stops or removes a pod.
    pub fn act(&self, method: &str, id: &str) -> Result<()> {
        self.call(method, &Message::new().text(1, id)).map(drop)
    }

    /// How a container is.
    pub fn status(&self, id: &str) -> Result<Status> {
        let status = self.call("ContainerStatus", &Message::new().text(1, id))?.get_message(1);
        Ok(Status { state: status.get_number(3), exit_code: status.get_number(7) })
    }

    /// Runs a command in a container: what it writes, and its exit code.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<(String, u64)> {
        let answer = self.call("ExecSync", &Message::new().text(1, id).texts(2, command).number(3, 10))?;
        Ok((answer.get_text(1), answer.get_number(3)))
    }

    /// What a container has written, as the interface's log has it.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default()
    }
}

/// The busybox image with a command that does not end.
fn pause(ground: &Ground, folder: &Path) -> Result<PathBuf> {
    let (layout, archive) = (folder.join("pause"), folder.join("pause.tar"));
    let from = format!("docker-archive:{}", ground.archive()?.display());
    let image = format!("{}:pause", layout.display());
    let copy = |from: &str, to: &str| {
        succeed(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", from, to]))
    };
    copy(&from, &format!("oci:{image}"))?;
    let command = ["config", "--config.cmd", "sleep", "--config.cmd", "1000000", "--image", &image];
    succeed(Command::new("umoci").args(command))?;
    copy(&format!("oci:{image}"), &format!("docker-archive:{}:pause:latest", archive.display()))?;
    Ok(archive)
}

fn configuration(folder: &Path, socket: &Path, runtime: &Called) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {PAUSE:?}\nrestrict_oom_score_adj = true\n\
         disable_apparmor = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = {:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"called\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.called]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.called.options]\nBinaryName = {:?}\n",
        at("root"),
        at("state"),
        at("ttrpc"),
        at("cni"),
        runtime.path.display().to_string(),
    )
}
