//! The floor: what the kernel must do for this launch, and nothing else.
//!
//! Same namespaces, mounts, masks, capabilities, filter and cgroups as the bundle's `config.json` asks for, written out by
//! hand: no configuration is read, no state is kept, no error is undone, nothing is checked. Everything that can be prepared
//! once is prepared in [`Floor::new`] and not measured. A runtime that comes near it wastes nothing.

pub(crate) mod cgroup;
mod child;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use cofferdam_linux::process::{Child, clone_child};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::contestant::{Launcher, next_id};
use cgroup::World;

const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWUTS: u64 = 0x0400_0000;
const CLONE_NEWIPC: u64 = 0x0800_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_NEWNET: u64 = 0x4000_0000;

/// All but the cgroup namespace, whose root is the cgroup that the process is in when it is made.
const NAMESPACES: u64 = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET;

/// What is prepared once.
pub struct Floor {
    world: World,
    child: child::Prepared,
}

impl Floor {
    /// Looks at the host and lays out what the child needs.
    pub fn new(bundle: &Path) -> Result<Floor> {
        let rootfs = CString::new(bundle.join("rootfs").into_os_string().into_encoded_bytes())?;
        let world = World::probe()?;
        let child = child::Prepared::new(rootfs, &world)?;
        Ok(Floor { world, child })
    }
}

impl Launcher for Floor {
    fn launch(&mut self) -> Result<()> {
        let cgroup = self.world.create(&next_id())?;
        let prepared = &self.child;
        let child = clone_child(NAMESPACES, cgroup.directory(), || prepared.run(cgroup.doors()))
            .context("cloning the child")?;
        let status = wait(&child)?;
        cgroup.remove()?;
        if status != 0 {
            bail!("the child ended with {status}");
        }
        Ok(())
    }
}

fn wait(child: &Child) -> Result<i32> {
    let status =
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?.context("no child to wait for")?;
    Ok(status.exit_status().unwrap_or(-1))
}

/// A descriptor on `path` that names it and nothing more.
fn handle(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", path.display()))
}
