//! The process: what it may do, where it stands, what it becomes. runtime-spec config.md, "Process".
//!
//! The order of confinement is fixed, and each line has its reason:
//!
//! ```text
//! limits, scheduling     while the capabilities to raise them are still there
//! descriptors closed     before any path of the container is used
//! working directory      as root: a task's user may work where it could not go
//! bounding set, ids, capabilities, no-new-privileges
//! gate                   here a created container waits
//! filter                 as late as possible; with CAP_SYS_ADMIN still held where no-new-privileges is off
//! exec
//! ```
//!
//! A filter that says nothing about what is done at the gate is loaded there, while nobody waits for this process. One with a
//! supervisor comes before the gate: whoever creates a container may be waiting for the supervisor to have the
//! descriptor before it calls `start`. Unless the filter stops what is done at the gate: then it is loaded after it.

use cofferdam_plan::op::Handover;
use cofferdam_plan::{
    Builder, ContainerPath, HostFeatures, HostPath, Namespace, Op, Refusal, Slot, Stage, Text,
};
use oci_spec::runtime::{Process, Spec};

use crate::arrival::Arrival;
use crate::capabilities::{CapSet, CapabilitySets, NOT_INHERITABLE};
use crate::compile::{Context, STDIO};
use crate::container::{Console, Gate, Joining};
use crate::seccomp::message::Identity;
use crate::{namespaces, rlimits, seccomp};

/// Where a program is looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// First kernel with SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV.
const WAIT_KILLABLE_KERNEL: (u32, u32) = (5, 19);

/// First descriptor after standard input, output and error.
const FIRST_FREE: u32 = 3;

/// Most descriptors that a program keeps: each number below is looked at once.
const PRESERVED_MAX: u32 = 4096;

/// Makes the working directory, before the root may become read-only.
pub fn plan_directory(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let Some(process) = context.process().filter(|_| context.has_root()) else { return Ok(()) };
    let at = directory(process)?;
    if at.as_bytes() != b"/" {
        builder.step(Stage::Enter, "/process/cwd", Op::MakeDirectory { root: context.root, at });
    }
    Ok(())
}

fn directory(process: &Process) -> Result<ContainerPath, Refusal> {
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return Err(Refusal::invalid("/process/cwd", format!("{} is not absolute", cwd.display())));
    }
    ContainerPath::new(cwd, "/process/cwd")
}

/// Everything from the limits to exec.
pub fn plan(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    let Some(process) = context.process() else { return plan_nothing(context, builder) };
    let confinement = Confinement {
        spec: context.spec(),
        process,
        program: None,
        arrival: Arrival::First,
        host: context.host,
        own_user_namespace: context.membership.has(Namespace::User),
        preserve_fds: context.container.preserve_fds,
        identity: Identity {
            id: context.container.id,
            bundle: context.container.bundle,
            status: "creating",
            init_pid: None,
        },
    };
    crate::scheduling::reset_affinity(builder);
    confinement.plan(filter(context.spec(), context.host)?, builder)?;
    Ok(())
}

/// A container without a process: it waits for `start` like any other, and then ends with 0. The specification asks for a
/// process only when there is something to start (config.md, "Process").
fn plan_nothing(context: &Context<'_>, builder: &mut Builder) -> Result<(), Refusal> {
    if context.container.gate == Gate::Open {
        return Err(Refusal::invalid("/process", "missing: there is nothing to run"));
    }
    if !builder.contains(|op| *op == Op::ForbidDump) {
        builder.step(Stage::Confine, "every container", Op::ForbidDump);
    }
    builder.step(Stage::Confine, "every container", Op::CloseDescriptors { first: FIRST_FREE });
    builder.step(Stage::Confine, "/process", Op::BoundCapabilities { keep: 0 });
    Ok(())
}

/// A joining process, confined as its container is.
pub(crate) fn plan_joining(
    joining: &Joining<'_>,
    host: &HostFeatures,
    (root, filter, arrival): (Slot, Option<seccomp::Filter>, Arrival),
    builder: &mut Builder,
) -> Result<(), Refusal> {
    let process = joining.process;
    if arrival == Arrival::First {
        builder.step(Stage::Enter, "exec", Op::NewSession);
    }
    // The caller's session keyring stays outside, as for the first process.
    let name = Text::new(format!("_ses.{}", joining.id), "exec")?;
    builder.step(Stage::Enter, "exec", Op::NewKeyring { name });
    if joining.console != Console::None {
        let path = cofferdam_plan::HostPath::new("/", "exec")?;
        builder.step(Stage::Enter, "/process/terminal", Op::OpenDirectory { path, into: root });
        let terminal = crate::devices::make_terminal(process, root, joining.console, false)?;
        builder.step(Stage::Enter, "/process/terminal", terminal);
        if arrival == Arrival::First {
            builder.step(Stage::Enter, "/process/terminal", Op::TakeTerminal);
        }
    } else {
        stdio(joining.stdio, builder);
    }
    rlimits::add(process.rlimits().as_deref().unwrap_or_default(), host, builder)?;
    crate::scheduling::plan_affinity(process, builder)?;
    let user = crate::namespaces::Membership::of(joining.spec)?.has(Namespace::User);
    let confinement = Confinement {
        spec: joining.spec,
        process,
        program: joining.program,
        arrival,
        host,
        own_user_namespace: user,
        preserve_fds: joining.preserve_fds,
        identity: Identity {
            id: joining.id,
            bundle: joining.bundle,
            status: "running",
            init_pid: Some(joining.init_pid),
        },
    };
    confinement.plan(filter, builder)
}

/// The container's profile as the kernel takes it.
pub(crate) fn filter(spec: &Spec, host: &HostFeatures) -> Result<Option<seccomp::Filter>, Refusal> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let Some(profile) = profile else { return Ok(None) };
    let filter =
        seccomp::compile(profile).map_err(|error| Refusal::invalid(error.pointer(), error.to_string()))?;
    if filter.flags & seccomp::WAIT_KILLABLE_RECV != 0 && host.kernel < WAIT_KILLABLE_KERNEL {
        let problem = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs Linux 5.19";
        return Err(Refusal::unsupported("/linux/seccomp/flags", problem));
    }
    Ok(Some(filter))
}

/// The caller's descriptors as standard input, output and error.
pub(crate) fn stdio(given: bool, builder: &mut Builder) {
    if given {
        let [stdin, stdout, stderr] = STDIO;
        builder.step(Stage::Enter, "every container", Op::SetStdio { stdin, stdout, stderr });
    }
}

/// What a process does at the gate: it says that it is there, lends its namespaces, ends when it is told to, and puts that
/// back before it executes its program.
const GATE: [&str; 8] =
    ["sendto", "close", "rt_sigaction", "rt_sigprocmask", "accept4", "read", "sendmsg", "exit_group"];

/// How ids change where the filter holds already.
const IDS: [&str; 5] = ["prctl", "setgroups", "setresgid", "setresuid", "capset"];

/// When the filter is loaded: see the order above.
fn loading(filter: Option<&seccomp::Filter>, late_ids: bool, builder: &Builder) -> Stage {
    let calls = GATE.iter().chain(if late_ids { &IDS[..] } else { &[] });
    let early = |filter: &seccomp::Filter| {
        filter.notify.is_some() && calls.into_iter().all(|call| filter.permits(call, [0; 6]))
    };
    if waits(builder) && filter.is_some_and(early) { Stage::Confine } else { Stage::Exec }
}

/// Whether the filter may hold while the process waits: nobody has to be given anything, and what is done at the gate passes
/// it unseen.
fn holds_ahead(filter: &seccomp::Filter, builder: &Builder) -> bool {
    waits(builder) && filter.notify.is_none() && GATE.iter().all(|call| filter.ignores(call))
}

/// Whether the process waits for `start`.
fn waits(builder: &Builder) -> bool {
    builder.contains(|op| matches!(op, Op::WaitStart { .. }))
}

/// Whether the caller's groups are to stay: podman's `--group-add keep-groups`, which callers ask for by crun's annotation.
fn keeps_groups(spec: &Spec) -> bool {
    const KEEP: &str = "run.oci.keep_original_groups";
    let value = spec.annotations().as_ref().and_then(|annotations| annotations.get(KEEP));
    value.is_some_and(|value| value != "0")
}

struct Confinement<'a> {
    spec: &'a Spec,
    identity: Identity<'a>,
    process: &'a Process,
    program: Option<&'a str>,
    arrival: Arrival,
    host: &'a HostFeatures,
    own_user_namespace: bool,
    preserve_fds: u32,
}

impl Confinement<'_> {
    fn plan(&self, filter: Option<seccomp::Filter>, builder: &mut Builder) -> Result<(), Refusal> {
        let process = self.process;
        crate::scheduling::plan(self.spec, process, self.host, builder)?;
        if process.command_line().as_ref().is_some_and(|line| !line.is_empty()) {
            builder.warn("/process/commandLine: only Windows has one, it is ignored");
        }
        if !builder.contains(|op| *op == Op::ForbidDump) {
            builder.step(Stage::Confine, "every container", Op::ForbidDump);
        }
        if self.preserve_fds > PRESERVED_MAX {
            let problem = format!("{} descriptors to preserve, at most {PRESERVED_MAX}", self.preserve_fds);
            return Err(Refusal::invalid("preserve-fds", problem));
        }
        let first = FIRST_FREE + self.preserve_fds;
        builder.step(Stage::Confine, "every container", Op::CloseDescriptors { first });
        let path = directory(process)?;
        builder.step(Stage::Confine, "/process/cwd", Op::ChangeDirectory { path });
        let mask = process.user().umask().unwrap_or(0o022);
        builder.step(Stage::Confine, "/process/user/umask", Op::SetUmask { mask });

        if !process.terminal().unwrap_or(false) {
            builder.step(Stage::Confine, "every container", Op::ReopenNull);
        }
        let (uid, gid) = (process.user().uid(), process.user().gid());
        if uid != 0 && !process.terminal().unwrap_or(false) {
            builder.step(Stage::Confine, "/process/user", Op::GiveStdio { uid, gid });
        }
        let sets = self.capabilities(builder);
        builder.step(
            Stage::Confine,
            "/process/capabilities/bounding",
            Op::BoundCapabilities { keep: sets.bounding.bits() },
        );
        let no_new_privileges = process.no_new_privileges().unwrap_or(false);
        // Without no-new-privileges only CAP_SYS_ADMIN may load a filter: then the ids change after it.
        let late_ids = filter.is_some() && !no_new_privileges;
        let loading = loading(filter.as_ref(), late_ids, builder);
        let stage = if late_ids { loading } else { Stage::Confine };
        let program = self.program()?;
        if !self.environment().iter().any(|pair| pair.starts_with("HOME=")) {
            let uid = process.user().uid();
            builder.step(Stage::Confine, "/process/env", Op::FindHome { uid });
        }
        if late_ids {
            builder.step(Stage::Confine, "/process/args", program);
            builder.step(Stage::Exec, "every container", Op::ResetSignals);
            self.load(filter, loading, builder)?;
            self.ids(stage, sets, builder)?;
        } else {
            self.ids(stage, sets, builder)?;
            if no_new_privileges {
                builder.step(Stage::Confine, "/process/noNewPrivileges", Op::ForbidNewPrivileges);
            }
            builder.step(Stage::Confine, "/process/args", program);
            builder.step(Stage::Exec, "every container", Op::ResetSignals);
            self.load(filter, loading, builder)?;
        }
        if self.arrival == Arrival::Last {
            builder.step(Stage::Exec, "exec", Op::EnterPidNamespace);
            // What is not inherited.
            builder.step(Stage::Exec, "exec", Op::NewSession);
            if process.terminal().unwrap_or(false) {
                builder.step(Stage::Exec, "/process/terminal", Op::TakeTerminal);
            }
        }
        self.exec(builder)
    }

    fn capabilities(&self, builder: &mut Builder) -> CapabilitySets {
        let wanted = self.process.capabilities().as_ref().map(CapabilitySets::from_oci).unwrap_or_default();
        // A new user namespace gives every capability inside it.
        let available =
            if self.own_user_namespace { CapSet::ALL } else { CapSet::from_bits(self.host.capabilities) };
        let (sets, warnings) = wanted.grantable(available);
        for warning in warnings {
            let text = format!("/process/capabilities: {warning}");
            // An engine that has emptied the inheritable set (CVE-2022-24769) and left the ambient one as it was: podman 4 and
            // buildah 1.28 in every step of a build, whose output this would be part of.
            if wanted.inheritable.is_empty() && warning.reason == NOT_INHERITABLE {
                builder.remark(text);
            } else {
                builder.warn(text);
            }
        }
        sets
    }

    fn load(
        &self,
        filter: Option<seccomp::Filter>,
        loading: Stage,
        builder: &mut Builder,
    ) -> Result<(), Refusal> {
        let Some(filter) = filter else { return Ok(()) };
        let handover = match &filter.notify {
            None => None,
            Some(notify) => {
                let pointer = "/linux/seccomp/listenerPath";
                let path = HostPath::new(&notify.listener_path, pointer)?;
                let socket = builder.slot("listener");
                builder.step(Stage::Host, pointer, Op::ConnectListener { path, into: socket });
                let status = match loading {
                    Stage::Exec if waits(builder) => "created",
                    _ => self.identity.status,
                };
                let identity = Identity { status, ..self.identity };
                let message = identity.message(self.spec, &notify.listener_metadata)?;
                Some(Handover { socket, message, close_by_range: notify.asks_close })
            }
        };
        let ahead = holds_ahead(&filter, builder);
        let op = Op::LoadFilter { program: filter.program, flags: filter.flags, handover, ahead };
        builder.step(loading, "/linux/seccomp", op);
        Ok(())
    }

    fn ids(&self, stage: Stage, sets: CapabilitySets, builder: &mut Builder) -> Result<(), Refusal> {
        let user = self.process.user();
        let groups = user.additional_gids().clone().unwrap_or_default();
        let (uid, gid) = (user.uid(), user.gid());
        // (uid_t)-1 means "leave as it is" to setresuid: whoever passes it on stays root.
        if [uid, gid].iter().chain(&groups).any(|id| *id == u32::MAX) {
            return Err(Refusal::invalid("/process/user", "4294967295 is not an id"));
        }
        self.mapped(uid, gid, &groups)?;
        let groups = (!keeps_groups(self.spec)).then_some(groups);
        builder.step(stage, "/process/user", Op::SetIds { uid, gid, groups });
        builder.step(
            stage,
            "/process/capabilities",
            Op::SetCapabilities {
                effective: sets.effective.bits(),
                permitted: sets.permitted.bits(),
                inheritable: sets.inheritable.bits(),
                ambient: sets.ambient.bits(),
            },
        );
        Ok(())
    }

    /// Ids that the container's own maps lack do not exist in it.
    fn mapped(&self, uid: u32, gid: u32, groups: &[u32]) -> Result<(), Refusal> {
        let Some((uids, gids)) = namespaces::own_maps(self.spec)? else { return Ok(()) };
        let refuse = |pointer: &str, id: u32| {
            Err(Refusal::invalid(pointer, format!("{id} is not mapped into the container's user namespace")))
        };
        if !namespaces::is_mapped(&uids, uid) {
            return refuse("/process/user/uid", uid);
        }
        if !namespaces::is_mapped(&gids, gid) {
            return refuse("/process/user/gid", gid);
        }
        if let Some(group) = groups.iter().find(|group| !namespaces::is_mapped(&gids, **group)) {
            return refuse("/process/user/additionalGids", *group);
        }
        if !groups.is_empty() && namespaces::groups_denied(self.spec, self.host)? {
            let problem = "an ordinary user who maps his own group only can have no supplementary ones; a range from \
                           /etc/subgid allows them";
            return Err(Refusal::unsupported("/process/user/additionalGids", problem));
        }
        Ok(())
    }

    fn arguments(&self) -> Result<&[String], Refusal> {
        match self.process.args().as_deref() {
            Some(arguments) if !arguments.is_empty() => Ok(arguments),
            _ => Err(Refusal::invalid("/process/args", "empty: there is nothing to run")),
        }
    }

    fn program(&self) -> Result<Op, Refusal> {
        let name = self.program.unwrap_or(&self.arguments()?[0]);
        if name.is_empty() {
            return Err(Refusal::invalid("/process/args/0", "the program has no name"));
        }
        let text = |text: String| Text::new(text, "/process/args/0");
        let candidates = if name.contains('/') {
            vec![text(name.to_owned())?]
        } else {
            let environment = self.environment();
            let path = environment.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
            let candidate = |directory: &str| {
                let directory = if directory.is_empty() { "." } else { directory };
                text(format!("{}/{name}", directory.trim_end_matches('/')))
            };
            path.split(':').map(candidate).collect::<Result<_, _>>()?
        };
        Ok(Op::FindProgram { name: text(name.to_owned())?, candidates })
    }

    /// Every variable once, as it was said last: which of two a program takes is its own affair otherwise. An empty HOME is
    /// none.
    fn environment(&self) -> Vec<String> {
        let all = self.process.env().as_deref().unwrap_or_default();
        let name = |pair: &'_ str| pair.split_once('=').map_or(pair.len(), |(name, _)| name.len());
        let mut seen = std::collections::HashSet::new();
        let last = all.iter().rev().filter(|pair| seen.insert(&pair[..name(pair)]));
        let mut variables: Vec<String> = last.filter(|pair| *pair != "HOME=").cloned().collect();
        variables.reverse();
        variables
    }

    fn exec(&self, builder: &mut Builder) -> Result<(), Refusal> {
        let texts = |list: &[String], pointer: &str| {
            let text =
                |(index, text): (usize, &String)| Text::new(text.as_str(), &format!("{pointer}/{index}"));
            list.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()
        };
        let arguments = texts(self.arguments()?, "/process/args")?;
        let environment = texts(&self.environment(), "/process/env")?;
        builder.step(Stage::Exec, "/process/args", Op::Exec { arguments, environment });
        Ok(())
    }
}
