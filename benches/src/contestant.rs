//! Who is measured, and how each is launched.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::{floor, library, peak};

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
    Runtime { program: &'static str, view: View, work: Work },
    /// podman, on the bundle's rootfs.
    Podman,
}

/// What an OCI runtime is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// One command from start to end.
    Run,
    /// create, start and delete, a process each.
    Lifecycle,
    /// One more process of a container that runs.
    Exec,
}

/// What a runtime sees in `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Host,
    /// A cgroup2 mount over it, in a mount namespace of the worker's own.
    PlainV2,
}

/// Contestants whose figures stand in one table; the first is what the others are divided by.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The command that measures it.
    pub name: &'static str,
    /// What is measured.
    pub title: &'static str,
    /// Who, in the order of the table.
    pub contestants: &'static [Contestant],
}

/// Debian's crun refuses hybrid hosts.
const CRUN: &str = "in a private mount namespace with a plain cgroup2 mount, since Debian's refuses hybrid hosts, and without the \
                    device rules, since it wants to raise a limit for them: it has less to do";

const FLOOR: Contestant = Contestant {
    name: "floor",
    note: "the same kernel work and nothing else, in process",
    kind: Kind::Floor,
};

const fn runtime(name: &'static str, program: &'static str, work: Work, note: &'static str) -> Contestant {
    Contestant { name, note, kind: Kind::Runtime { program, view: View::Host, work } }
}

const fn crun(name: &'static str, work: Work) -> Contestant {
    Contestant { name, note: CRUN, kind: Kind::Runtime { program: "crun", view: View::PlainV2, work } }
}

/// No distribution's: where it is, the environment says.
const fn youki(name: &'static str, work: Work) -> Contestant {
    runtime(
        name,
        "youki",
        work,
        "a release build with its v1 feature, from PATH or where the variable YOUKI says; no exec: it joins no container that waits for start",
    )
}

/// Every table.
pub const GROUPS: &[Group] = &[
    Group {
        name: "launch",
        title: "launch of `/true`",
        contestants: &[
            FLOOR,
            Contestant {
                name: "cofferdam-runtime",
                note: "create with start, wait, delete: the library, in process",
                kind: Kind::Library,
            },
            runtime("cofferdam-oci", "cofferdam-oci", Work::Run, "run, a whole process"),
            runtime("runc", "runc", Work::Run, "run, a whole process"),
            crun("crun", Work::Run),
            youki("youki", Work::Run),
            Contestant {
                name: "podman",
                note: "run --rm --network none --rootfs, with runc, since its default runtime is crun",
                kind: Kind::Podman,
            },
        ],
    },
    Group {
        name: "lifecycle",
        title: "create, start, delete of `/true`",
        contestants: &[
            FLOOR,
            runtime("cofferdam-oci lifecycle", "cofferdam-oci", Work::Lifecycle, "three processes"),
            runtime("runc lifecycle", "runc", Work::Lifecycle, "three processes"),
            crun("crun lifecycle", Work::Lifecycle),
            youki("youki lifecycle", Work::Lifecycle),
        ],
    },
    Group {
        name: "exec",
        title: "exec of `/true` in a container",
        contestants: &[
            runtime("cofferdam-oci exec", "cofferdam-oci", Work::Exec, "a whole process"),
            runtime("runc exec", "runc", Work::Exec, "a whole process"),
            crun("crun exec", Work::Exec),
        ],
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
        let all = GROUPS.iter().flat_map(|group| group.contestants);
        all.chain([&NOTHING]).find(|contestant| contestant.name == name).copied()
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

    /// The most memory that it has while its container runs, in KiB, where it is one process that waits for it.
    pub fn peak_kib(&self, bundle: &Path) -> Result<Option<u64>> {
        match self.kind {
            Kind::Runtime { program, view: View::Host, work: Work::Run } => {
                peak::kib(&locate(program)?, &bundle.join("state").join(program), bundle).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Everything that is not part of a launch.
    pub fn prepare(&self, bundle: &Path) -> Result<Box<dyn Launcher>> {
        Ok(match self.kind {
            Kind::Nothing => Box::new(Nothing),
            Kind::Floor => Box::new(floor::Floor::new(bundle)?),
            Kind::Library => Box::new(library::Library::new(bundle)?),
            Kind::Runtime { program, view, work } => {
                if view == View::PlainV2 {
                    see_plain_v2()?;
                }
                let runtime =
                    Program { path: installed(program, bundle)?, state: bundle.join("state").join(program) };
                let configuration = (view == View::PlainV2).then_some(crate::bundle::WITHOUT_DEVICE_RULES);
                let bundle = bundle_arguments(bundle, configuration);
                match work {
                    Work::Run => Box::new(Run { runtime, bundle }),
                    Work::Lifecycle => Box::new(Lifecycle { runtime, bundle }),
                    Work::Exec => Box::new(Exec::in_a_new_container(runtime, bundle)?),
                }
            }
            Kind::Podman => Box::new(Podman { path: locate("podman")?, arguments: podman_arguments(bundle) }),
        })
    }
}

/// Ours is beside this program; the peers are where the distribution puts them, or in the search path, or where the variable
/// with their name in capitals says (`YOUKI=/where/youki`).
pub(crate) fn locate(program: &str) -> Result<PathBuf> {
    if let Some(said) = std::env::var_os(program.to_uppercase()) {
        return Ok(said.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = std::env::current_exe()?.with_file_name(program);
    let tests_put_us_deeper = beside.parent().and_then(Path::parent).map(|folder| folder.join(program));
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| Path::new(folder).join(program));
    [Some(beside), tests_put_us_deeper]
        .into_iter()
        .flatten()
        .chain(system)
        .chain(std::env::split_paths(&path).map(|folder| folder.join(program)))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not installed"))
}

/// A copy of the program in the bundle's folder, written as a package manager writes it. What a linker wrote through a memory map
/// lies in the page cache in single pages, and mapping those takes 0.08 ms more at each start of a program as large as ours.
fn installed(program: &str, bundle: &Path) -> Result<PathBuf> {
    let copy = bundle.join("programs").join(program);
    if !copy.exists() {
        let original = locate(program)?;
        std::fs::create_dir_all(bundle.join("programs"))?;
        std::fs::write(&copy, std::fs::read(&original)?).with_context(|| format!("copying {program}"))?;
        std::fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
    }
    Ok(copy)
}

fn bundle_arguments(bundle: &Path, configuration: Option<&str>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["--bundle".into(), bundle.into()].into();
    if let Some(file) = configuration {
        arguments.extend(["--config".into(), bundle.join(file).into()]);
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

/// An OCI runtime with a state root of its own.
struct Program {
    path: PathBuf,
    state: PathBuf,
}

impl Program {
    fn call(&self, verb: &str, arguments: &[OsString]) -> Result<()> {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(&self.state).arg(verb).args(arguments);
        succeed(command.stdin(Stdio::null()).stdout(Stdio::null()))
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

struct Run {
    runtime: Program,
    bundle: Vec<OsString>,
}

impl Launcher for Run {
    fn launch(&mut self) -> Result<()> {
        self.runtime.call("run", &with_id(&self.bundle, &next_id()))
    }
}

fn with_id(arguments: &[OsString], id: &str) -> Vec<OsString> {
    arguments.iter().cloned().chain([id.into()]).collect()
}

struct Lifecycle {
    runtime: Program,
    bundle: Vec<OsString>,
}

impl Launcher for Lifecycle {
    fn launch(&mut self) -> Result<()> {
        let id = next_id();
        self.runtime.call("create", &with_id(&self.bundle, &id))?;
        self.runtime.call("start", &[id.clone().into()])?;
        self.runtime.call("delete", &["--force".into(), id.into()])
    }
}

/// A container that waits to be started runs nothing, and another process can join it.
struct Exec {
    runtime: Program,
    id: String,
}

impl Exec {
    fn in_a_new_container(runtime: Program, bundle: Vec<OsString>) -> Result<Exec> {
        let id = next_id();
        runtime.call("create", &with_id(&bundle, &id))?;
        Ok(Exec { runtime, id })
    }
}

impl Launcher for Exec {
    fn launch(&mut self) -> Result<()> {
        self.runtime.call("exec", &[self.id.clone().into(), "/true".into()])
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        drop(self.runtime.call("delete", &["--force".into(), self.id.clone().into()]));
    }
}

/// The cgroup beneath which podman puts its own, and which it leaves behind.
const PODMAN_CGROUP: &str = "/cofferdam-bench";

struct Podman {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Launcher for Podman {
    fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(&self.path);
        succeed(command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()))
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
