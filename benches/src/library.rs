//! A launch through cofferdam-runtime, as an embedder makes it: the host is probed and the configuration read once.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cofferdam_runtime::{ContainerId, Create, Options, Runtime, bundle};
use oci_spec::runtime::Spec;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::contestant::{Launcher, next_id};

/// What is prepared once.
pub struct Library {
    runtime: Runtime,
    bundle: PathBuf,
    spec: Spec,
}

impl Library {
    /// Opens a state root in the bundle's folder and reads the bundle.
    pub fn new(bundle: &Path) -> Result<Library> {
        let runtime =
            Runtime::open(&bundle.join("library"), Options::default()).context("opening the runtime")?;
        let spec = bundle::load(bundle).context("reading the bundle")?;
        Ok(Library { runtime, bundle: bundle.to_owned(), spec })
    }
}

impl Launcher for Library {
    fn launch(&mut self) -> Result<()> {
        let id = ContainerId::parse(&next_id())?;
        let mut create = Create::new(id.clone(), self.bundle.clone(), self.spec.clone());
        create.start = true;
        let created = self.runtime.create(create)?;
        let status = waitid(WaitId::PidFd(created.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        self.runtime.delete(&id, false)?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            other => bail!("the container ended with {other:?}"),
        }
    }
}
