//! Who is measured, and how each is launched.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::{floor, library};

/// One that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Contestant {
    /// As shown in the table.
    pub name: &'static str,
    /// What a reader of the table must know.
    pub note: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Nothing at all: what a worker costs, subtracted from what is counted in one.
    Nothing,
    /// [`crate::floor`], in the worker's process.
    Floor,
    /// cofferdam-runtime, in the worker's process.
    Library,
    /// An OCI runtime's command line.
    Runtime { program: &'static str, view: View },
    /// podman, on the bundle's rootfs.
    Podman,
}

/// What a runtime sees in `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Host,
    /// A cgroup2 mount over it, in a mount namespace of the worker's own.
    PlainV2,
}

/// Everybody, in the order of the table.
pub const ALL: &[Contestant] = &[
    Contestant {
        name: "floor",
        note: "the same kernel work and nothing else, in process",
        kind: Kind::Floor,
    },
    Contestant {
        name: "cofferdam-runtime",
        note: "create with start, wait, delete: the library, in process",
        kind: Kind::Library,
    },
    Contestant {
        name: "cofferdam-oci",
        note: "run, a whole process",
        kind: Kind::Runtime { program: "cofferdam-oci", view: View::Host },
    },
    Contestant {
        name: "runc",
        note: "run, a whole process",
        kind: Kind::Runtime { program: "runc", view: View::Host },
    },
    Contestant {
        name: "crun",
        note: "run, a whole process; in a private mount namespace with a plain cgroup2 mount, since Debian's refuses hybrid \
               hosts, and without the device rules, since it wants to raise a limit for them: it has less to do",
        kind: Kind::Runtime { program: "crun", view: View::PlainV2 },
    },
    Contestant {
        name: "podman",
        note: "run --rm --network none --rootfs, with runc, since its default runtime is crun",
        kind: Kind::Podman,
    },
];

/// The worker that launches nothing.
pub const NOTHING: Contestant = Contestant { name: "nothing", note: "", kind: Kind::Nothing };

/// One launch from start to end, the container's clean-up included.
pub trait Launcher {
    /// Launches and waits.
    fn launch(&mut self) -> Result<()>;
}

impl Contestant {
    /// The one with this name.
    pub fn find(name: &str) -> Option<Contestant> {
        ALL.iter().chain([&NOTHING]).find(|contestant| contestant.name == name).copied()
    }

    /// Whether it can be measured on this machine; the reason if not.
    pub fn available(&self) -> Result<()> {
        match self.kind {
            Kind::Nothing | Kind::Floor | Kind::Library => Ok(()),
            Kind::Runtime { program, .. } => locate(program).map(drop),
            Kind::Podman => locate("podman").map(drop),
        }
    }

    /// Whether it is launched inside the worker's process, so that the worker's own costs must be subtracted from counts.
    pub fn is_in_process(&self) -> bool {
        matches!(self.kind, Kind::Floor | Kind::Library)
    }

    /// Everything that is not part of a launch.
    pub fn prepare(&self, bundle: &Path) -> Result<Box<dyn Launcher>> {
        Ok(match self.kind {
            Kind::Nothing => Box::new(Nothing),
            Kind::Floor => Box::new(floor::Floor::new(bundle)?),
            Kind::Library => Box::new(library::Library::new(bundle)?),
            Kind::Runtime { program, view } => {
                if view == View::PlainV2 {
                    see_plain_v2()?;
                }
                let state = bundle.join("state");
                Box::new(Program {
                    program: locate(program)?,
                    arguments: runtime_arguments(&state, bundle, view),
                    takes_id: true,
                })
            }
            Kind::Podman => Box::new(Podman(Program {
                program: locate("podman")?,
                arguments: podman_arguments(bundle),
                takes_id: false,
            })),
        })
    }
}

/// Ours is beside this program; the peers are where the distribution puts them.
fn locate(program: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name(program);
    let tests_put_us_deeper = beside.parent().and_then(Path::parent).map(|folder| folder.join(program));
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| Path::new(folder).join(program));
    [Some(beside), tests_put_us_deeper]
        .into_iter()
        .flatten()
        .chain(system)
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not installed"))
}

fn runtime_arguments(state: &Path, bundle: &Path, view: View) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["--root".into(), state.into(), "run".into(), "--bundle".into(), bundle.into()].into();
    if view == View::PlainV2 {
        arguments.extend(["--config".into(), bundle.join(crate::bundle::WITHOUT_DEVICE_RULES).into()]);
    }
    arguments
}

/// Not the overlay driver: it leaves a mount behind in its folder. Limits: without its own, podman asks for more than a caller
/// without CAP_SYS_RESOURCE can have.
fn podman_arguments(bundle: &Path) -> Vec<OsString> {
    let storage = bundle.join("podman");
    let mut arguments: Vec<OsString> = vec!["--root".into(), storage.join("root").into()];
    arguments.extend(["--runroot".into(), storage.join("run").into()]);
    let words = "--storage-driver vfs --runtime runc --cgroup-manager cgroupfs --events-backend none \
                 run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --cgroup-parent";
    arguments.extend(words.split_whitespace().map(OsString::from));
    arguments.extend([PODMAN_CGROUP.into(), "--rootfs".into(), bundle.join("rootfs").into(), "/true".into()]);
    arguments
}

/// A private view for the worker and what it starts. The host's own mounts are not touched: the copy is made private first.
fn see_plain_v2() -> Result<()> {
    const CLONE_NEWNS: u64 = 0x0002_0000;
    cofferdam_linux::process::unshare(CLONE_NEWNS).context("a mount namespace of its own")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("a private copy of the mounts")?;
    mount("none", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).context("a plain cgroup2 mount")
}

struct Nothing;

impl Launcher for Nothing {
    fn launch(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Program {
    program: PathBuf,
    arguments: Vec<OsString>,
    takes_id: bool,
}

impl Launcher for Program {
    fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        if self.takes_id {
            command.arg(next_id());
        }
        let status = command.status().with_context(|| format!("starting {}", self.program.display()))?;
        if !status.success() {
            bail!("{} ended with {status}", self.program.display());
        }
        Ok(())
    }
}

/// The cgroup beneath which podman puts its own, and which it leaves behind.
const PODMAN_CGROUP: &str = "/cofferdam-bench";

struct Podman(Program);

impl Launcher for Podman {
    fn launch(&mut self) -> Result<()> {
        self.0.launch()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        floor::cgroup::remove_everywhere(PODMAN_CGROUP.trim_start_matches('/'));
    }
}

/// A name that nobody else uses, for containers and for cgroups.
pub fn next_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("cofferdam-bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
