//! OCI runtimes as their command line shows them: ours and its peers, driven alike.
//!
//! A conformance test runs on a peer as well where one can run: a test that runc fails is suspect.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::needs;
use crate::programs;
use crate::world::World;

/// Runs a test's body for each runtime here that is wanted, with a folder for its bundles, and checks that each leaves the host as
/// it was. Says what is missing where nothing can run.
pub fn on_each(wanted: impl Fn(&Runtime) -> bool, body: impl Fn(&Runtime, &Path)) -> Result<()> {
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return Ok(());
    }
    let world = World::enter()?;
    for runtime in Runtime::all(&world.state()).iter().filter(|runtime| wanted(runtime)) {
        println!("on {}", runtime.name());
        // Made before the census, so that its own folder is no difference.
        runtime.make_root()?;
        let bundles = world.files().join(runtime.name());
        std::fs::create_dir(&bundles)?;
        let watch = world.watch();
        body(runtime, &bundles);
        watch.end();
    }
    Ok(())
}

/// How long a container may take to reach a state that it was told to reach.
const STATE_LIMIT: Duration = Duration::from_secs(30);

/// One OCI runtime with a state folder of its own.
#[derive(Clone, Debug)]
pub struct Runtime {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
}

/// What a call of the runtime came to.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// What it and the container's process wrote to standard output.
    pub stdout: String,
    /// And to standard error.
    pub stderr: String,
}

impl Runtime {
    /// The product's runtime.
    pub fn ours(root: &Path) -> Runtime {
        Runtime {
            name: "cofferdam-oci",
            program: programs::path("cofferdam-oci"),
            root: root.join("cofferdam-oci"),
        }
    }

    /// The peer that can run here: runc, or crun where there is cgroup v2 alone, which runc would take too long in.
    pub fn peer(root: &Path) -> Option<Runtime> {
        let is_unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let name = if is_unified { "crun" } else { "runc" };
        Some(Runtime { name, program: needs::find_program(name)?, root: root.join(name) })
    }

    /// The peer that can run here, and ours.
    pub fn all(root: &Path) -> Vec<Runtime> {
        Runtime::peer(root).into_iter().chain([Runtime::ours(root)]).collect()
    }

    /// The program's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where the program is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Makes the folder that it keeps its state in, before a census is taken: it stays when the containers are gone.
    pub fn make_root(&self) -> Result<()> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.with_context(|| format!("making {}", self.root.display()))
    }

    /// Where it keeps the state of its containers.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this is the product's runtime.
    pub fn is_ours(&self) -> bool {
        self.name == "cofferdam-oci"
    }

    /// A call that is not started yet, for tests that need its descriptors or environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(arguments).stdin(Stdio::null());
        command
    }

    /// Calls the runtime and waits for it.
    pub fn call(&self, arguments: &[&str]) -> Result<Outcome> {
        outcome(&mut self.command(arguments))
    }

    /// Calls the runtime, which has to exit with 0.
    pub fn succeed(&self, arguments: &[&str]) -> Result<Outcome> {
        let outcome = self.call(arguments)?;
        if outcome.status != Some(0) {
            bail!("{} {}: {outcome:?}", self.name, arguments.join(" "));
        }
        Ok(outcome)
    }

    /// Creates a container from a bundle.
    pub fn create(&self, id: &str, bundle: &Path) -> Result<Outcome> {
        self.succeed(&["create", "--bundle", &bundle.to_string_lossy(), id])
    }

    /// Runs a container in the foreground.
    pub fn run(&self, id: &str, bundle: &Path) -> Result<Outcome> {
        self.call(&["run", "--bundle", &bundle.to_string_lossy(), id])
    }

    /// The container's OCI state.
    pub fn state(&self, id: &str) -> Result<Value> {
        let outcome = self.succeed(&["state", id])?;
        serde_json::from_str(&outcome.stdout).with_context(|| format!("state of {id}: {}", outcome.stdout))
    }

    /// Waits until the container's status is the one given.
    pub fn wait(&self, id: &str, status: &str) -> Result<()> {
        let deadline = Instant::now() + STATE_LIMIT;
        loop {
            let state = self.state(id)?;
            if state["status"] == status {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{}: {id} is not {status} but {state}", self.name);
            }
            // The command line offers nothing to wait on.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs a command whose descendants may keep its output open, which a pipe would wait for and a file does not.
pub fn outcome(command: &mut Command) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let status = command
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .status()
        .with_context(|| format!("starting {command:?}"))?;
    Ok(Outcome { status: status.code(), stdout: text(&out)?, stderr: text(&err)? })
}

fn text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
