//! The programs that call an OCI runtime by its command line, each in throw-away folders of one world.
//!
//! A caller's own state, sockets and namespaces lie in the world; its containers lie in cgroups below one parent that is
//! named for us. The runtime is given by path, so that the same steps run on a peer as the control.
//!
//! - [`Ground`]: the world, one image, one cgroup parent. Read this first.
//! - [`Script`]: steps with what is expected of each, as a table.
//! - [`daemon`], [`podman`], [`containerd`], [`cri`], [`docker`], [`slurm`]: how each program is told to keep to its own folders.

pub mod containerd;
pub mod cri;
pub mod daemon;
pub mod docker;
pub mod grpc;
pub mod podman;
pub mod slurm;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;

use crate::census::{self, Watch};
use crate::images::Images;
use crate::needs;
use crate::oci::{Outcome, outcome};
use crate::programs;
use crate::world::{World, run, succeed};

/// Folders in which these programs keep things whatever they are told; in the world they are empty and its own.
const THEIR_FOLDERS: &[&str] =
    &["/run", "/var/lib/containers", "/var/lib/cni", "/var/lib/containerd", "/var/lib/docker", "/opt"];

/// How long a step may take until what it waits for has come true.
const STEP_LIMIT: Duration = Duration::from_secs(30);

/// A world in which callers run containers.
#[derive(Debug)]
pub struct Ground {
    world: World,
    images: Images,
}

/// An OCI runtime as callers are told of it: a path, and a word to tell runs apart by.
#[derive(Clone, Debug)]
pub struct Called {
    /// The program.
    pub path: PathBuf,
    /// Its file name.
    pub name: &'static str,
}

impl Called {
    /// The product's runtime.
    pub fn ours() -> Called {
        Called { path: programs::path("cofferdam-oci"), name: "cofferdam-oci" }
    }

    /// The control, where it is installed: what it fails, we need not pass.
    pub fn control() -> Option<Called> {
        needs::find_program("runc").map(|path| Called { path, name: "runc" })
    }
}

impl Ground {
    /// Whether there is what every caller's test needs, and these programs; if not, says what is missing.
    pub fn is_there(programs: &[&str]) -> bool {
        needs::root()
            && needs::programs(&["busybox", "ip", "skopeo", "script"])
            && needs::programs(programs)
            && Images::are_available()
    }

    /// Moves the calling thread into a world, with everything of the callers' own covered.
    pub fn enter() -> Result<Ground> {
        let images = Images::get()?;
        let _ = programs::path("cofferdam-oci");
        let world = World::enter()?;
        for folder in THEIR_FOLDERS.iter().filter(|folder| Path::new(folder).is_dir()) {
            let mode = Some("mode=755");
            nix::mount::mount(Some("tmpfs"), *folder, Some("tmpfs"), MsFlags::empty(), mode)
                .with_context(|| format!("a tmpfs over {folder}"))?;
        }
        // Where the runtime keeps its state for whoever does not say where: podman.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create("/run/cofferdam/runtime")?;
        Ok(Ground { world, images })
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A new folder of the world for one caller.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.world.files().join(name);
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    /// The busybox image as the archive that every caller can load, named `busybox:latest`.
    pub fn archive(&self) -> Result<PathBuf> {
        let archive = self.world.files().join("busybox.tar");
        if !archive.exists() {
            let from = format!("oci:{}:busybox", self.images.layout().display());
            let to = format!("docker-archive:{}:busybox:latest", archive.display());
            succeed(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy", &from, &to]))?;
        }
        Ok(archive)
    }

    /// Takes the census before a caller acts.
    pub fn watch(&self) -> Watch {
        self.world.watch()
    }

    /// Takes down what callers themselves leave: mounts below their folders, Swarm's bridge, and empty cgroups.
    pub fn sweep(&self) {
        let folders = [self.world.files(), "/run/podman".into()];
        let is_theirs = |point: &&PathBuf| folders.iter().any(|folder| point.starts_with(folder));
        for mount in census::mount_points().iter().rev().filter(is_theirs) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = run(Command::new("ip").args(["link", "delete", "docker_gwbridge"]));
        // A monitor lives a moment longer than its container; its cgroup refuses until then.
        let deadline = Instant::now() + STEP_LIMIT;
        loop {
            let folders = census::cgroup_folders();
            let left = folders.iter().filter(|path| path.to_string_lossy().contains(&cgroup_parent()));
            let refused = left.filter(|path| std::fs::remove_dir(path).is_err()).count();
            // Whoever is left then is named by the census.
            if refused == 0 || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The cgroup below which this process's callers put their containers. No slash: each caller wants its own form.
pub fn cgroup_parent() -> String {
    format!("cofferdam-callers-{}", std::process::id())
}

/// Something that makes commands out of arguments: a caller that is ready.
pub trait Caller {
    /// A command of this caller.
    fn command(&self, arguments: &[&str]) -> Command;

    /// Runs one and tells how it ended.
    fn call(&self, arguments: &[&str]) -> Result<Outcome> {
        outcome(self.command(arguments).stdin(std::process::Stdio::null()))
    }

    /// Runs one on a terminal of 33 rows and 77 columns, as a person would.
    fn call_on_terminal(&self, arguments: &[&str]) -> Result<Outcome> {
        let command = self.command(arguments);
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")))
            .collect();
        let line = format!("stty rows 33 cols 77; exec {}", words.join(" "));
        let mut script = Command::new("script");
        script
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .stdin(std::process::Stdio::null());
        for (name, value) in command.get_envs() {
            script.env(name, value.unwrap_or_default());
        }
        outcome(&mut script)
    }
}

/// What is expected of one call.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    arguments: Vec<&'a str>,
    status: i32,
    said: Vec<&'a str>,
    terminal: bool,
    repeat: bool,
    ours_alone: bool,
}

/// A call that ends with 0.
pub fn step<'a>(arguments: &[&'a str]) -> Step<'a> {
    Step {
        arguments: arguments.to_vec(),
        status: 0,
        said: Vec::new(),
        terminal: false,
        repeat: false,
        ours_alone: false,
    }
}

impl<'a> Step<'a> {
    /// It ends with this instead.
    pub fn ends(mut self, status: i32) -> Self {
        self.status = status;
        self
    }

    /// What it writes, to either stream, contains this.
    pub fn says(mut self, words: &'a str) -> Self {
        self.said.push(words);
        self
    }

    /// It is called on a terminal.
    pub fn on_terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    /// It is repeated until it is as expected: what it asks for takes a moment.
    pub fn eventually(mut self) -> Self {
        self.repeat = true;
        self
    }

    /// The control is not asked: on a host like the test host it cannot do this.
    pub fn ours_alone(mut self) -> Self {
        self.ours_alone = true;
        self
    }

    fn is_met(&self, outcome: &Outcome) -> bool {
        let both = format!("{}\n{}", outcome.stdout, outcome.stderr);
        outcome.status == Some(self.status) && self.said.iter().all(|words| both.contains(words))
    }

    /// Takes the step.
    pub fn take(&self, caller: &dyn Caller) -> Result<()> {
        let deadline = Instant::now() + STEP_LIMIT;
        loop {
            let outcome = match self.terminal {
                true => caller.call_on_terminal(&self.arguments)?,
                false => caller.call(&self.arguments)?,
            };
            if self.is_met(&outcome) {
                return Ok(());
            }
            if !self.repeat || Instant::now() >= deadline {
                bail!("{self:?}\ncame to {outcome:#?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Takes every step in order.
pub fn take(caller: &dyn Caller, runtime: &Called, steps: &[Step]) -> Result<()> {
    let is_control = runtime.name == "runc";
    for (number, step) in steps.iter().enumerate().filter(|(_, step)| !(is_control && step.ours_alone)) {
        step.take(caller).with_context(|| format!("on {}, step {number}", runtime.name))?;
    }
    Ok(())
}
