//! Who pulls, and how. Each starts with nothing and ends when the image's files are on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::time::ClockId;

use super::images::Coder;
use crate::contestant::locate;
use crate::counters::processor_time;

/// One that pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Puller {
    /// Our own program.
    Cofferdam,
    /// The same, where a layer becomes one EROFS file instead of a directory.
    CofferdamErofs,
    /// podman, with a storage of its own.
    Podman,
    /// ctr, with a daemon of its own.
    Containerd,
    /// skopeo to a layout on disk, umoci from there.
    SkopeoUmoci,
}

/// What one pull took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// From the start of the program to its end.
    pub(super) wall: Duration,
    /// Of all processors, by everybody who took part but the registry.
    pub(super) cpu: Duration,
    /// By the registry, which shares the processors: it is in this process.
    pub(super) registry_cpu: Duration,
    /// The program's largest resident memory, in kibibytes; 0 where several programs take part.
    pub(super) peak_kib: u64,
}

impl Puller {
    /// All of them, ours first.
    pub(super) const ALL: [Puller; 5] =
        [Puller::Cofferdam, Puller::CofferdamErofs, Puller::Podman, Puller::Containerd, Puller::SkopeoUmoci];

    /// For a program of ours, how it keeps layers.
    pub(super) fn backend(self) -> Option<&'static str> {
        match self {
            Puller::Cofferdam => Some("overlay-dir"),
            Puller::CofferdamErofs => Some("erofs"),
            _ => None,
        }
    }

    /// As shown in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Puller::Cofferdam => "cofferdam",
            Puller::CofferdamErofs => "cofferdam-erofs",
            Puller::Podman => "podman",
            Puller::Containerd => "containerd",
            Puller::SkopeoUmoci => "skopeo+umoci",
        }
    }

    /// Whether it is installed, and can pull what has this form.
    pub(super) fn available(self, coder: Coder) -> Result<()> {
        if self == Puller::SkopeoUmoci && coder == Coder::Zstd {
            bail!("umoci 0.4 knows no zstd");
        }
        let programs: &[&str] = match self {
            Puller::Cofferdam | Puller::CofferdamErofs => &["cofferdam"],
            Puller::Podman => &["podman"],
            Puller::Containerd => &["containerd", "ctr"],
            Puller::SkopeoUmoci => &["skopeo", "umoci"],
        };
        programs.iter().try_for_each(|program| locate(program).map(drop))
    }

    /// Pulls once into `folder`, which is empty. For ours, a second pull into the same folder is a warm one.
    pub(super) fn pull(self, image: &str, folder: &Path) -> Result<Cost> {
        match self {
            Puller::Cofferdam | Puller::CofferdamErofs => {
                measure(&mut [&mut self.own(Command::new(locate("cofferdam")?), image, folder)])
            }
            Puller::Podman => {
                let mut command = Command::new("podman");
                command.arg("--root").arg(folder.join("root")).arg("--runroot").arg(folder.join("run"));
                let words = "--storage-driver overlay pull --quiet --tls-verify=false";
                measure(&mut [command.args(words.split(' ')).arg(image)])
            }
            Puller::Containerd => {
                let daemon = Daemon::start(folder)?;
                let before = daemon.cpu();
                let mut command = Command::new("ctr");
                command.arg("--address").arg(&daemon.socket);
                let cost = measure(&mut [command.args(["images", "pull", "--plain-http"]).arg(image)])?;
                Ok(Cost { cpu: cost.cpu + (daemon.cpu() - before), peak_kib: 0, ..cost })
            }
            Puller::SkopeoUmoci => {
                let layout = folder.join("layout").display().to_string();
                let mut copy = Command::new("skopeo");
                copy.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
                copy.arg(format!("docker://{image}")).arg(format!("oci:{layout}:latest"));
                let mut unpack = Command::new("umoci");
                unpack.args(["unpack", "--image", &format!("{layout}:latest")]).arg(folder.join("bundle"));
                let cost = measure(&mut [&mut copy, &mut unpack])?;
                Ok(Cost { peak_kib: 0, ..cost })
            }
        }
    }

    /// The words of a pull by our own program, which `command` starts.
    fn own(self, mut command: Command, image: &str, folder: &Path) -> Command {
        command.arg("--root").arg(folder.join("root")).arg("--state").arg(folder.join("state"));
        command.arg("--layers").arg(self.backend().unwrap_or_default());
        command.arg("pull").arg(image);
        command
    }

    /// System calls of a pull by our own program, as strace counts them; all threads together.
    pub(super) fn count_calls(self, image: &str, folder: &Path) -> Result<u64> {
        let report = folder.join("calls");
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&report).arg(locate("cofferdam")?);
        measure(&mut [&mut self.own(command, image, folder)])?;
        let text = fs::read_to_string(&report).with_context(|| format!("reading {}", report.display()))?;
        let total =
            text.lines().rev().find_map(|line| line.trim().strip_suffix("total")?.trim().parse().ok());
        total.context("strace gave no total")
    }
}

/// Runs programs one after another.
fn measure(commands: &mut [&mut Command]) -> Result<Cost> {
    let (started, before, registry) =
        (Instant::now(), children_cpu(), processor_time(ClockId::ProcessCPUTime));
    let mut peak_kib = 0;
    for command in commands {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let status = loop {
            peak_kib = peak_kib.max(peak(child.id()));
            match child.try_wait()? {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        if !status.success() {
            let mut text = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                std::io::Read::read_to_string(&mut stderr, &mut text)?;
            }
            bail!("{command:?} ended with {status}: {}", text.trim());
        }
    }
    let wall = started.elapsed();
    Ok(Cost {
        wall,
        cpu: children_cpu() - before,
        registry_cpu: processor_time(ClockId::ProcessCPUTime) - registry,
        peak_kib,
    })
}

/// `VmHWM` of a process that still runs, in kibibytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Processor time of the children that were waited for.
fn children_cpu() -> Duration {
    ticks("/proc/self/stat", &[13, 14])
}

/// Fields of proc_pid_stat(5) behind the name, in hundredths of a second.
fn ticks(path: &str, fields: &[usize]) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    let rest: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let sum: u64 = fields.iter().filter_map(|field| rest.get(*field)?.parse::<u64>().ok()).sum();
    Duration::from_millis(sum * 10)
}

/// A containerd of our own.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(folder: &Path) -> Result<Daemon> {
        let at = |name: &str| folder.join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("sock"),
            at("sock.ttrpc")
        );
        fs::write(at("config.toml"), config)?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting containerd")?;
        let daemon = Daemon { child, socket: at("sock") };
        let deadline = Instant::now() + Duration::from_secs(30);
        let is_ready = || {
            let mut command = Command::new("ctr");
            command.arg("--address").arg(&daemon.socket).arg("version");
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        while !is_ready() {
            if Instant::now() > deadline {
                bail!("containerd does not answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// Its own, and that of children that it has waited for.
    fn cpu(&self) -> Duration {
        ticks(&format!("/proc/{}/stat", self.child.id()), &[11, 12, 13, 14])
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its own child, by its own pid; both fail only if it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
