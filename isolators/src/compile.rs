//! The compiler: walks the isolators in order; each adds its steps to whatever stages it needs.

use cofferdam_plan::{Barrier, Builder, HostFeatures, Namespace, Op, Plan, Refusal, Slot, Stage, Standing};
use oci_spec::runtime::{Linux, Process, Spec};

use crate::arrival::Arrival;
use crate::cgroups::Home;
use crate::container::{CgroupManager, Console, Container, Gate, Joining, Rootfs};
use crate::namespaces::{self, Membership};
use crate::{
    cgroups, devices, hooks, identity, intel_rdt, mounts, net_devices, process, rlimits, rootfs, sysctl,
};

/// Slots that the interpreter's caller fills, in this order.
pub const INPUTS: [&str; 5] = ["console", "stdin", "stdout", "stderr", "init"];
/// The socket that takes the terminal's master.
pub const CONSOLE: Slot = Slot(0);
/// Standard input, output and error.
pub const STDIO: [Slot; 3] = [Slot(1), Slot(2), Slot(3)];
/// The pidfd of the container's first process, for a joining one.
pub const INIT: Slot = Slot(4);

/// What every isolator sees.
pub struct Context<'a> {
    /// The container.
    pub container: &'a Container<'a>,
    /// The host.
    pub host: &'a HostFeatures,
    /// Which namespaces it makes and which it joins.
    pub membership: Membership,
    /// Where its cgroup is; `None` where there is none of its own.
    pub home: Option<Home>,
    /// The container's root directory.
    pub root: Slot,
    /// The instance of procfs that kernel parameters are written through.
    pub proc: Slot,
}

impl<'a> Context<'a> {
    /// The configuration.
    pub fn spec(&self) -> &'a Spec {
        self.container.spec
    }

    /// Its `linux` object.
    pub fn linux(&self) -> Option<&'a Linux> {
        self.container.spec.linux().as_ref()
    }

    /// Its `process` object.
    pub fn process(&self) -> Option<&'a Process> {
        self.container.spec.process().as_ref()
    }

    /// Whether the container has a mount tree of its own, in which things can be mounted and made.
    pub fn has_root(&self) -> bool {
        match self.container.rootfs {
            Rootfs::Host => false,
            Rootfs::Bundle => self.membership.has(Namespace::Mount),
            Rootfs::Overlay { .. } | Rootfs::Directory(_) => true,
        }
    }

    /// Whether the child can copy the host's mounts itself: it has them all, in a mount namespace of its own where no user
    /// namespace locks them.
    pub fn copies_mounts(&self) -> bool {
        self.membership.makes(Namespace::Mount) && !self.membership.has(Namespace::User)
    }

    /// Where the host's mounts are opened and copied: an ordinary user may do that only in a user namespace of his own.
    pub fn opening(&self) -> Stage {
        if self.host.standing == Standing::User { Stage::Reach } else { Stage::Host }
    }
}

/// An isolator: a name and what it adds to a plan.
pub type Isolator = (&'static str, fn(&Context<'_>, &mut Builder) -> Result<(), Refusal>);

/// Every isolator, in order. Within a stage, steps run in this order.
pub const ISOLATORS: &[Isolator] = &[
    ("version", version),
    ("namespaces", namespaces::plan),
    ("intel rdt", intel_rdt::plan),
    ("network devices", net_devices::plan),
    ("cgroups", cgroups::plan),
    ("identity", identity::plan),
    ("rootfs", rootfs::plan),
    ("mounts", mounts::plan),
    ("devices", devices::plan),
    ("sysctl", sysctl::plan),
    ("masks", mounts::plan_masks),
    ("cgroup mounts", mounts::plan_cgroups),
    ("read-only mounts", mounts::plan_read_only),
    ("working directory", process::plan_directory),
    ("cgroup namespace", cgroups::plan_namespace),
    ("noting", noting),
    ("hooks", hooks::plan),
    ("gate", gate),
    ("pivot", rootfs::plan_pivot),
    ("rlimits", rlimits::plan),
    ("process", process::plan),
];

/// Plans a container. Pure: the same container and host give the same plan.
pub fn compile(container: &Container<'_>, host: &HostFeatures) -> Result<Plan, Refusal> {
    let mut builder = Builder::with_inputs(&INPUTS);
    let (root, proc) = (builder.slot("root"), builder.slot("proc"));
    let membership = Membership::of(container.spec)?;
    let home = match container.cgroup_manager {
        CgroupManager::Disabled => None,
        CgroupManager::Cgroupfs => cgroups::home(container.spec, container.id, host)?,
        CgroupManager::Systemd => cgroups::home_of_scope(container.spec, container.id, host)?,
    };
    let context = Context { container, host, membership, home, root, proc };
    for (_, isolator) in ISOLATORS {
        isolator(&context, &mut builder)?;
    }
    Ok(builder.finish())
}

/// Plans one more process of a running container: it joins by pidfd and is confined as the container's configuration
/// says, never looser.
pub fn compile_joining(joining: &Joining<'_>, host: &HostFeatures) -> Result<Plan, Refusal> {
    let mut builder = Builder::with_inputs(&INPUTS);
    if joining.lent {
        for (kind, _) in lent(&Membership::of(joining.spec)?) {
            builder.slot(format!("{}-namespace", kind.file()));
        }
    }
    let root = builder.slot("root");
    if (joining.console != Console::None) != joining.process.terminal().unwrap_or(false) {
        return Err(Refusal::invalid(
            "/process/terminal",
            "a terminal needs a console socket, and only a terminal does",
        ));
    }
    let filter = process::filter(joining.spec, host)?;
    let arrival = Arrival::of(joining, host, filter.as_ref(), &mut builder)?;
    cgroups::plan_joining(joining, host, &mut builder)?;
    namespaces::plan_joining(joining, host, arrival, &mut builder)?;
    process::plan_joining(joining, host, (root, filter, arrival), &mut builder)?;
    Ok(builder.finish())
}

/// runtime-spec config.md, "Specification version": SemVer, and ours is 1.x.
fn version(context: &Context<'_>, _builder: &mut Builder) -> Result<(), Refusal> {
    let version = context.spec().version();
    let numbers: Vec<&str> = version.split(['-', '+']).next().unwrap_or_default().split('.').collect();
    match numbers.as_slice() {
        ["1", minor, patch] if minor.parse::<u32>().is_ok() && patch.parse::<u32>().is_ok() => Ok(()),
        _ => Err(Refusal::invalid(
            "/ociVersion",
            format!("{version:?} is not a version this runtime knows (1.x.y)"),
        )),
    }
}

/// Waits for the parent before the child goes on.
pub(crate) fn pass(builder: &mut Builder, why: &str, barrier: Barrier) {
    builder.step(Stage::Attach, why, Op::Release(barrier));
    builder.step(Stage::Enter, why, Op::Pass(barrier));
}

/// The parent notes the child while the child mounts what is left to mount, and the child goes no further before that: until
/// then it ends with its parent. Hooks are told of a child that is noted.
fn noting(_context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    pass(builder, "every container", Barrier::Noted);
    Ok(())
}

/// The gate of a container that waits for `start`; while host paths still mean something.
fn gate(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let Gate::Socket(path) = &context.container.gate else { return Ok(()) };
    let gate = builder.slot("gate");
    builder.step(Stage::Host, "every container", Op::ListenGate { path: path.clone(), into: gate });
    let lends = namespaces::plan_lent(context, builder)?;
    builder.step(Stage::Gate, "every container", Op::WaitStart { gate, lends });
    Ok(())
}

/// The slots of a joining process that the container's namespaces fill, where its first process lends them.
pub fn lent(members: &Membership) -> impl Iterator<Item = (Namespace, Slot)> {
    (INPUTS.len() as u16..).map(Slot).zip(members.kinds()).map(|(slot, kind)| (kind, slot))
}
