//! A private world for one test: mount and network namespaces of its own, a loopback link, throw-away folders.
//!
//! The test's thread plays the host. Everything that it starts sees the world's links and mounts, and the machine's
//! own stay as they are. Cgroups are shared with the machine: they have no namespace that would hide them usefully.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use tempfile::TempDir;

use crate::census::{self, Watch};
use crate::{process, programs};

/// The world of the calling thread, until it ends.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    cgroups_before: Vec<PathBuf>,
}

impl World {
    /// Moves the calling thread into namespaces of its own, with the loopback link up.
    ///
    /// Needs root. No network reaches in: what has to be fetched ([`crate::images`]) is fetched before. There is no way back: the thread has to end with the test.
    pub fn enter() -> Result<World> {
        process::adopt_orphans()?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare")?;
        nix::mount::mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .context("making mounts private")?;
        for shared in ["/tmp"].iter().chain(census::SHARED_ROOTS).filter(|folder| Path::new(folder).is_dir())
        {
            // Other tenants of the machine come and go there.
            let mode = Some("mode=1777");
            nix::mount::mount(Some("tmpfs"), *shared, Some("tmpfs"), MsFlags::empty(), mode)
                .with_context(|| format!("a tmpfs over {shared}"))?;
        }
        succeed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        // Not in /tmp: layers and overlays go to a disk, as they do in earnest.
        let folder = tempfile::Builder::new().prefix("cofferdam-world-").tempdir_in("/var/tmp")?;
        for name in ["state", "root", "files"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        Ok(World { folder, cgroups_before: census::cgroup_folders() })
    }

    /// Where the programs keep their state in this world.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Where the programs keep their data in this world.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// A folder for the test's own files.
    pub fn files(&self) -> PathBuf {
        self.folder.path().join("files")
    }

    /// The `cofferdam` program with this world's folders; no standard input.
    pub fn cofferdam(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs::path("cofferdam"));
        command.arg("--state").arg(self.state()).arg("--root").arg(self.root());
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Begins a census of this world; what was pulled or started before belongs to it.
    pub fn watch(&self) -> Watch {
        Watch::begin(&[&self.state(), &self.root()])
    }

    /// Where everything of this world is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for World {
    /// Ends what a failed test left running, and removes its cgroups; the kernel takes the namespaces.
    fn drop(&mut self) {
        process::end_descendants();
        for mount in census::mount_points().iter().rev().filter(|point| point.starts_with(self.folder.path()))
        {
            // Until the thread ends they would keep the folder from being removed.
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
        for folder in census::cgroup_folders() {
            if !self.cgroups_before.contains(&folder) {
                // Another tenant's cgroup has processes and refuses; an empty one is nobody's loss.
                let _ = std::fs::remove_dir(folder);
            }
        }
    }
}

/// Runs a command that has to exit with 0 and returns its standard output.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = run(command)?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, without standard input.
pub fn run(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))
}
