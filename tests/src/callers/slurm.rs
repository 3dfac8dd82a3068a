//! Slurm's controller and one node's daemon on loopback, without credentials.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::Daemon;
use super::{Called, Caller, Ground};
use crate::oci::outcome;
use crate::registry::free_port;
use crate::world::succeed;

/// A one-node Slurm whose containers one runtime runs. Its commands are named by the first argument.
#[derive(Debug)]
pub struct Slurm {
    folder: PathBuf,
    // The node before the controller: the order in which they are dropped.
    _node: Daemon,
    _controller: Daemon,
}

impl Slurm {
    /// Starts both daemons and waits until the node is idle.
    pub fn start(ground: &Ground, runtime: &Called) -> Result<Slurm> {
        let folder = ground.folder(&format!("slurm-{}", runtime.name))?;
        // Names are looked up only for families of which some link but loopback has an address.
        let _ = succeed(Command::new("ip").args(["addr", "add", "10.88.0.1/32", "dev", "lo"]));
        for name in ["etc", "state", "spool"] {
            std::fs::create_dir(folder.join(name))?;
        }
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
        std::fs::write(folder.join("etc/slurm.conf"), configuration(&folder)?)?;
        std::fs::write(folder.join("etc/oci.conf"), containers(&folder, runtime)).context("oci.conf")?;
        let command = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(name);
            command.args(arguments).env("SLURM_CONF", folder.join("etc/slurm.conf"));
            command
        };
        let says = |name: &str, words: &str| {
            outcome(&mut command(name, &["-h"])).is_ok_and(|said| said.stdout.contains(words))
        };
        let is_up = || says("sinfo", "p*");
        let controller =
            Daemon::start(command("slurmctld", &["-D", "-i"]), &folder.join("controller"), is_up)?;
        let is_idle = || says("sinfo", "idle");
        let node = Daemon::start(command("slurmd", &["-D"]), &folder.join("node"), is_idle)?;
        Ok(Slurm { folder, _node: node, _controller: controller })
    }

    /// The runtime's own state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.join("oci")
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Caller for Slurm {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(arguments.first().copied().unwrap_or("sinfo"));
        command.args(arguments.iter().skip(1)).env("SLURM_CONF", self.folder.join("etc/slurm.conf"));
        command
    }
}

fn configuration(folder: &Path) -> Result<String> {
    let at = |name: &str| folder.join(name).display().to_string();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = host.split('.').next().unwrap_or("localhost").to_owned();
    let lines = [
        "ClusterName=c".to_owned(),
        format!("SlurmctldHost={host}(127.0.0.1)"),
        "AuthType=auth/none".to_owned(),
        "CredType=cred/none".to_owned(),
        "SlurmUser=root".to_owned(),
        format!("SlurmctldPort={}", free_port()?),
        format!("SlurmdPort={}", free_port()?),
        format!("StateSaveLocation={}", at("state")),
        format!("SlurmdSpoolDir={}", at("spool")),
        format!("SlurmctldPidFile={}", at("controller.pid")),
        format!("SlurmdPidFile={}", at("node.pid")),
        "ProctrackType=proctrack/linuxproc".to_owned(),
        "TaskPlugin=task/none".to_owned(),
        "MpiDefault=none".to_owned(),
        "JobAcctGatherType=jobacct_gather/none".to_owned(),
        "SchedulerType=sched/builtin".to_owned(),
        "KillWait=2".to_owned(),
        format!("NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN"),
        format!("PartitionName=p Nodes={host} Default=YES MaxTime=INFINITE State=UP"),
    ];
    Ok(lines.join("\n") + "\n")
}

/// Patterns of oci.conf(5): `%b` is the bundle, the others together name a task.
fn containers(folder: &Path, runtime: &Called) -> String {
    let program = format!("{} --root {}", runtime.path.display(), folder.join("oci").display());
    let id = "%n.%u.%j.%s.%t";
    format!(
        "RunTimeQuery=\"{program} state {id}\"\nRunTimeRun=\"{program} run {id} -b %b\"\n\
         RunTimeKill=\"{program} kill -a {id}\"\nRunTimeDelete=\"{program} delete --force {id}\"\n"
    )
}
