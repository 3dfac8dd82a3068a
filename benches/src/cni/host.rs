//! A network namespace that plays the host, and who attaches containers to it.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cofferdam_cni::{
    Attachment, Caller, ContainerId, IfName, NetnsFate, NetworkList, Options, PortMapping, Prefer, Protocol,
};
use cofferdam_cni_plugins::{BUILTINS, bring_loopback_up};
use cofferdam_linux::namespace::{
    create_pinned_netns, current_netns, open_netns, remove_pinned_netns, with_new_netns,
};
use rustix::time::ClockId;
use serde_json::json;
use std::os::fd::AsFd;

use crate::counters::processor_time;

/// How often CHECK and STATUS are asked.
const LOOKS: usize = 20;

/// Who attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contestant {
    /// Our plugins, in this process.
    InProcess,
    /// Our plugins as programs: the path of the program that is all of them.
    Programs(PathBuf),
    /// The reference plugins: their folder.
    Reference(PathBuf),
    /// netavark: its path. It is no set of plugins: one program does all of it.
    Netavark(PathBuf),
}

impl fmt::Display for Contestant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::InProcess => "cofferdam, in process",
            Self::Programs(_) => "cofferdam, as programs",
            Self::Reference(_) => "reference plugins",
            Self::Netavark(_) => "netavark",
        })
    }
}

impl Contestant {
    /// How the command line says it.
    pub fn words(&self) -> Vec<PathBuf> {
        match self {
            Self::InProcess => vec!["in-process".into()],
            Self::Programs(path) => vec!["programs".into(), path.clone()],
            Self::Reference(path) => vec!["reference".into(), path.clone()],
            Self::Netavark(path) => vec!["netavark".into(), path.clone()],
        }
    }

    /// Reads what `words` says.
    pub fn of(word: &str, path: Option<PathBuf>) -> Option<Self> {
        match (word, path) {
            ("in-process", _) => Some(Self::InProcess),
            ("programs", Some(path)) => Some(Self::Programs(path)),
            ("reference", Some(path)) => Some(Self::Reference(path)),
            ("netavark", Some(path)) => Some(Self::Netavark(path)),
            _ => None,
        }
    }
}

/// How long one attachment and its end took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cycle {
    /// ADD of the whole chain.
    pub add: Duration,
    /// DEL of the whole chain.
    pub del: Duration,
    /// The processors' time of this process for the ADD: what it is not waiting for others.
    pub add_cpu: Duration,
}

/// How long looking takes, the best of many.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    /// CHECK of the whole chain.
    pub check: Duration,
    /// STATUS of the whole chain.
    pub status: Duration,
}

/// The calling thread's namespace as a host, with a folder for its state.
pub struct Host {
    directory: tempfile::TempDir,
}

/// A container: a namespace pinned in the host's folder.
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    path: PathBuf,
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = remove_pinned_netns(&self.path);
    }
}

/// Runs `work` in a namespace that plays the host and ends with it.
pub fn on_a_host<T: Send>(work: impl FnOnce(&Host) -> Result<T> + Send) -> Result<T> {
    with_new_netns(|| {
        bring_loopback_up(current_netns()?.as_fd())?;
        // State is on a tmpfs in earnest, too; a busy disk would speak in the timings.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        work(&Host { directory })
    })
    .context("making a network namespace")?
}

impl Host {
    /// The folder of the host's state.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A caller whose plugins are the contestant's.
    pub fn caller(&self, contestant: &Contestant) -> Result<Caller> {
        let mut options = Options::new(self.directory().join("state"));
        match contestant {
            Contestant::InProcess => (options.builtins, options.prefer) = (BUILTINS, Prefer::Builtin),
            Contestant::Programs(program) => {
                let folder = self.directory().join("bin");
                if !folder.exists() {
                    std::fs::create_dir(&folder)?;
                    for plugin in BUILTINS {
                        std::os::unix::fs::symlink(program, folder.join(plugin.kind()))?;
                    }
                }
                (options.plugin_path, options.prefer) = (vec![folder], Prefer::External);
            }
            Contestant::Reference(folder) => {
                (options.plugin_path, options.prefer) = (vec![folder.clone()], Prefer::External);
            }
            Contestant::Netavark(_) => bail!("netavark is no set of plugins"),
        }
        Ok(Caller::open(options)?)
    }

    /// bridge with host-local and masquerade, portmap: a network of its own for each contestant.
    pub fn network(&self, contestant: &Contestant) -> Result<NetworkList> {
        let (name, subnet) = match contestant {
            Contestant::InProcess => ("ours", "10.81.0.0/16"),
            Contestant::Programs(_) => ("programs", "10.82.0.0/16"),
            Contestant::Reference(_) => ("reference", "10.83.0.0/16"),
            Contestant::Netavark(_) => ("netavark", "10.84.0.0/16"),
        };
        // The newest version that Debian's reference plugins speak; ours have STATUS in the next.
        let version = if *contestant == Contestant::InProcess { "1.1.0" } else { "1.0.0" };
        let list = json!({ "cniVersion": version, "name": name, "plugins": [
            { "type": "bridge", "bridge": format!("{name}0"), "isGateway": true, "ipMasq": true,
              "ipam": { "type": "host-local", "dataDir": self.directory().join("leases"),
                        "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ] });
        Ok(NetworkList::parse(&list.to_string(), None)?)
    }

    /// A container without a network.
    pub fn container(&self, id: &str) -> Result<Container> {
        let path = self.directory().join(format!("netns-{id}"));
        create_pinned_netns(&path)?;
        bring_loopback_up(open_netns(&path)?.as_fd())?;
        Ok(Container { id: ContainerId::parse(id)?, path })
    }

    /// One container comes and goes.
    pub fn cycle(&self, contestant: &Contestant) -> Result<Cycle> {
        let container = self.container("one")?;
        if let Contestant::Netavark(program) = contestant {
            return self.netavark_cycle(program, &container);
        }
        let (caller, network) = (self.caller(contestant)?, self.network(contestant)?);
        let attachment = container.attachment("eth0", Some(8080))?;
        let (begun, cpu) = (Instant::now(), processor_time(ClockId::ProcessCPUTime));
        caller.attach(&network, &attachment)?;
        let (add, add_cpu) = (begun.elapsed(), processor_time(ClockId::ProcessCPUTime) - cpu);
        let begun = Instant::now();
        caller.detach(&network.name, &container.id, &attachment.if_name, NetnsFate::Stays)?;
        Ok(Cycle { add, del: begun.elapsed(), add_cpu })
    }

    /// Many containers come at once, and go at once.
    pub fn at_once(&self, contestant: &Contestant, count: usize) -> Result<Cycle> {
        let (caller, network) = (self.caller(contestant)?, self.network(contestant)?);
        let containers: Vec<Container> =
            (0..count).map(|at| self.container(&format!("c{at}"))).collect::<Result<_>>()?;
        let attachments: Vec<Attachment> = (20_000..)
            .zip(&containers)
            .map(|(port, container)| container.attachment("eth0", Some(port)))
            .collect::<Result<_>>()?;
        let add = all_at_once(&attachments, |one| Ok(caller.attach(&network, one).map(drop)?))?;
        let del = all_at_once(&attachments, |one| {
            Ok(caller.detach(&network.name, &one.container, &one.if_name, NetnsFate::Stays)?)
        })?;
        Ok(Cycle { add, del, ..Cycle::default() })
    }

    /// CHECK and STATUS of an attachment of ours.
    pub fn check_and_status(&self) -> Result<Looks> {
        let contestant = Contestant::InProcess;
        let (caller, network) = (self.caller(&contestant)?, self.network(&contestant)?);
        let container = self.container("one")?;
        let attachment = container.attachment("eth0", Some(8080))?;
        caller.attach(&network, &attachment)?;
        let check =
            best_of(LOOKS, || Ok(caller.check(&network.name, &container.id, &attachment.if_name)?))?;
        let status = best_of(LOOKS, || Ok(caller.status(&network)?))?;
        caller.detach(&network.name, &container.id, &attachment.if_name, NetnsFate::Stays)?;
        Ok(Looks { check, status })
    }

    fn netavark_cycle(&self, program: &Path, container: &Container) -> Result<Cycle> {
        let id = "84".repeat(32);
        let input = json!({
            "container_id": "0".repeat(64), "container_name": "one",
            "networks": { "ours": { "static_ips": ["10.84.0.2"], "interface_name": "eth0" } },
            "network_info": { "ours": {
                "name": "ours", "id": id, "driver": "bridge", "network_interface": "netavark0",
                "subnets": [{ "subnet": "10.84.0.0/16", "gateway": "10.84.0.1" }],
                "ipv6_enabled": false, "internal": false, "dns_enabled": false,
                "ipam_options": { "driver": "host-local" } } },
            "port_mappings": [{ "host_ip": "", "container_port": 80, "host_port": 8080, "range": 1, "protocol": "tcp" }],
        });
        let call = |verb: &str| -> Result<Duration> {
            let begun = Instant::now();
            let mut child = Command::new(program)
                .arg("--config")
                .arg(self.directory())
                .arg(verb)
                .arg(&container.path)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            child.stdin.take().context("netavark's input")?.write_all(input.to_string().as_bytes())?;
            let status = child.wait()?;
            if !status.success() {
                bail!("netavark {verb} ended with {status}");
            }
            Ok(begun.elapsed())
        };
        Ok(Cycle { add: call("setup")?, del: call("teardown")?, ..Cycle::default() })
    }
}

impl Container {
    /// An interface, with a port of the host that leads to it.
    pub fn attachment(&self, name: &str, port: Option<u16>) -> Result<Attachment> {
        let mut attachment = Attachment::new(self.id.clone(), &self.path, IfName::parse(name)?);
        attachment.capabilities.port_mappings.extend(port.map(|host_port| PortMapping {
            host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        }));
        Ok(attachment)
    }
}

/// The shortest of several runs: what it takes when nothing else is in the way.
pub fn best_of(runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..runs {
        let begun = Instant::now();
        work()?;
        best = best.min(begun.elapsed());
    }
    Ok(best)
}

/// Does it for all on a thread each, and says how long until the last was done.
fn all_at_once<T: Sync>(all: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<Duration> {
    let begun = Instant::now();
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(move || work(one))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let took = begun.elapsed();
    results.into_iter().collect::<Result<()>>()?;
    Ok(took)
}
