//! The one loop.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use cofferdam_linux::cgroup::{Cgroup, Error as CgroupError, Layout};
use cofferdam_linux::process::{
    Child, Outer, affinity, clone_noted, clone_noted_inside, restore_affinity, set_affinity, set_namespace,
};
use cofferdam_linux::report::Report;
use cofferdam_plan::op::{HookPoint, UnitProperty};
use cofferdam_plan::{Barrier, Create, Namespace, Op, Plan, Slot, Stage, Step};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::channel::{self, Heard};
use crate::child::{Half, Table};
use crate::error::Failure;
use crate::host::plain;
use crate::{attach, host, undo};

/// Runs the hooks of the configuration on behalf of the plan, and speaks to the service manager: the interpreter knows only
/// the kernel.
pub trait Attendant {
    /// Runs every hook of `point`; the error says which hook failed, and how.
    fn run_hooks(&mut self, point: HookPoint, child: &Child) -> Result<(), String>;

    /// Has the service manager make a scope with the child in it.
    fn start_unit(&mut self, unit: &str, _properties: &[UnitProperty], _child: &Child) -> Result<(), String> {
        Err(format!("nobody here can start {unit}"))
    }

    /// Has the service manager end a unit and forget it; one that is gone is well.
    fn stop_unit(&mut self, _unit: &str) -> Result<(), String> {
        Ok(())
    }

    /// Claims the cgroup that was made, or found empty, before anybody is in it.
    fn claim(&mut self, _cgroup: &Cgroup) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Told once: right after the clone, or when there is nothing better to do, before a child that waits for it passes
    /// [`Barrier::Noted`].
    fn cloned(&mut self, _child: &Child) -> Result<(), String> {
        Ok(())
    }

    /// Told once, when all that is left is to wait for the child: what is done now costs no time.
    fn about_to_wait(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Nobody: for plans without hooks.
impl Attendant for () {
    fn run_hooks(&mut self, _point: HookPoint, _child: &Child) -> Result<(), String> {
        Ok(())
    }
}

/// Makes one step fail, for the fault sweep: the step is not run and the error number is taken as the kernel's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Index of the step in the plan.
    pub step: usize,
    /// The answer to give.
    pub errno: Errno,
}

/// What a plan is applied with.
pub struct Inputs<'a> {
    /// Descriptors that fill the plan's first slots.
    pub descriptors: Vec<(Slot, OwnedFd)>,
    /// Who runs hooks.
    pub attendant: &'a mut dyn Attendant,
    /// The host's cgroup hierarchies.
    pub cgroups: &'a Layout,
    /// A fault to inject.
    pub fault: Option<Fault>,
    /// How long the child may be silent before it is taken to hang, and killed.
    pub patience: Duration,
    /// Whether this process ends soon. Then it does not free what it prepared for the child: while the child has the same
    /// memory, each page of it would be copied first.
    pub ends_soon: bool,
}

/// How far the child has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It waits at the gate.
    Created,
    /// It has executed the program.
    Executed,
}

/// When a step was finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepTime {
    /// Index of the step in the plan.
    pub step: usize,
    /// Nanoseconds after the start of [`apply`]; 0 when the step did not run yet.
    pub at_ns: u64,
}

/// A process that a plan has made.
#[derive(Debug)]
pub struct Applied {
    /// The process. The caller is its parent and reaps it.
    pub child: Child,
    /// How far it has come.
    pub progress: Progress,
    /// When each step was finished.
    pub times: Vec<StepTime>,
}

/// The parent's side of one application.
pub(crate) struct Run<'a> {
    pub table: Table,
    pub cgroup: Option<Cgroup>,
    /// Whether the child was cloned into the version 2 cgroup.
    pub born_inside: bool,
    /// What the child moves itself into the version 1 cgroups through, until it is sent there.
    pub doors: Vec<OwnedFd>,
    pub cgroups: &'a Layout,
    pub channel: OwnedFd,
    pub attendant: &'a mut dyn Attendant,
    /// Processors on which the child starts.
    pub begin_on: Option<Vec<u32>>,
    /// The network namespace that devices were lent to: it and they end with their last holder, which may be us.
    pub lent_to: Option<OwnedFd>,
    pub patience: Duration,
}

/// Nanoseconds of the monotonic clock. *Child-safe.*
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Applies a plan: afterwards the process exists, waits at its gate or has executed its program; or nothing exists and
/// the failure says why, and what could not be undone.
pub fn apply(plan: &Plan, inputs: Inputs<'_>) -> Result<Applied, Box<Failure>> {
    let begin = now();
    let boxed =
        |step, (errno, detail): (Errno, Option<String>)| Box::new(Failure::new(plan, step, errno, detail));
    let report = Report::new(plan.steps.len()).map_err(|errno| boxed(usize::MAX, plain(errno)))?;
    let (channel, child_end) = channel::pair().map_err(|errno| boxed(usize::MAX, plain(errno)))?;
    let mut run = Run {
        table: Table::new(plan.slots.len(), inputs.descriptors),
        cgroup: None,
        born_inside: false,
        doors: Vec::new(),
        cgroups: inputs.cgroups,
        channel,
        attendant: inputs.attendant,
        begin_on: None,
        lent_to: None,
        patience: inputs.patience,
    };
    let fault = |index: usize| inputs.fault.filter(|fault| fault.step == index);
    let half = Half::prepare(plan, &report, child_end, inputs.fault);
    let mut state = Parent {
        plan,
        done: Vec::with_capacity(plan.steps.len()),
        child: None,
        told: false,
        half: Some(half),
    };

    let mut failed = None;
    for (index, step) in plan.steps.iter().enumerate().filter(|(_, step)| step.stage.is_parent()) {
        // The intent is recorded before the act: a step that fails half-way is undone too.
        state.done.push(index);
        let result = match fault(index) {
            Some(fault) => Err((fault.errno, Some("injected".into()))),
            None => state.step(&mut run, step),
        };
        match result {
            Ok(()) => report.done(index, now()),
            Err(problem) => {
                failed = Some((index, problem));
                break;
            }
        }
    }
    match state.half.take() {
        Some(half) if inputs.ends_soon && state.child.is_some() => std::mem::forget(half),
        half => drop(half),
    }
    if failed.is_none() {
        let told = run.attendant.about_to_wait().map_err(|words| (usize::MAX, (Errno::IO, Some(words))));
        failed = told.and_then(|()| outcome(plan, &run, &report)).err();
    }
    if let Err(problem) = state.succeed(&report) {
        failed = failed.or(Some((usize::MAX, problem)));
    }
    let Some((index, problem)) = failed else {
        let progress = if waits(plan) { Progress::Created } else { Progress::Executed };
        let child = state.child.take().ok_or_else(|| boxed(usize::MAX, plain(Errno::CHILD)))?;
        return Ok(Applied { child, progress, times: times(plan, &report, begin) });
    };
    // The child's own record is nearer to the cause than what the parent met with when the child was gone.
    let behind = plan.steps.get(index).is_none_or(|step| step.stage == Stage::Attach);
    let waited = plan.steps.get(index).is_none_or(|step| matches!(step.op, Op::Await(_)));
    let mut failure = match report.failure() {
        Some(record) if behind => {
            let words = child_words(plan, run.cgroup.as_ref(), record.step, record.errno, record.detail);
            boxed(record.step, (record.errno, words))
        }
        _ if waited && problem.0 == Errno::TIMEDOUT => {
            let patience = if index == usize::MAX { last_patience(plan, &run) } else { run.patience };
            let words = format!("the child process was silent for {} s", patience.as_secs_f32());
            boxed(pending(plan, &report).unwrap_or(index), (Errno::TIMEDOUT, Some(words)))
        }
        _ => boxed(index, problem),
    };
    failure.left_behind = undo::undo(
        plan,
        &state.done,
        state.child.as_ref(),
        run.lent_to.as_ref(),
        run.cgroup.as_ref(),
        run.attendant,
    );
    Err(failure)
}

/// What the child is cloned into.
struct Joined<'a> {
    first: &'a [(Namespace, Slot)],
    user: Option<Slot>,
    pid: Option<Slot>,
    between: bool,
}

struct Parent<'a> {
    plan: &'a Plan,
    done: Vec<usize>,
    child: Option<Child>,
    told: bool,
    half: Option<Half<'a>>,
}

impl Parent<'_> {
    fn step(&mut self, run: &mut Run<'_>, step: &Step) -> host::Outcome {
        match (&step.op, step.stage) {
            (Op::Clone { namespaces, first, user_namespace, pid_namespace, between, into_cgroup }, _) => {
                let flags = namespaces.iter().fold(0, |flags, namespace| flags | namespace.flag());
                let (user, pid) = (*user_namespace, *pid_namespace);
                let joined = Joined { first, user, pid, between: *between };
                self.child = Some(self.clone(run, flags, &joined, *into_cgroup)?);
                if is_noted_later(self.plan) { Ok(()) } else { self.tell(run) }
            }
            // systemd may take its time: whoever wants to end the child meanwhile finds it.
            (Op::Release(Barrier::Noted) | Op::StartUnit { .. }, _) => {
                self.tell(run)?;
                self.attach(run, &step.op)
            }
            (_, Stage::Host) => host::run(run, &step.op),
            _ => self.attach(run, &step.op),
        }
    }

    fn attach(&self, run: &mut Run<'_>, op: &Op) -> host::Outcome {
        attach::run(run, self.child.as_ref().ok_or((Errno::CHILD, None))?, op)
    }

    fn tell(&mut self, run: &mut Run<'_>) -> host::Outcome {
        if std::mem::replace(&mut self.told, true) {
            return Ok(());
        }
        let child = self.child.as_ref().ok_or((Errno::CHILD, None))?;
        run.attendant.cloned(child).map_err(|words| (Errno::IO, Some(words)))
    }

    /// Takes the process that the child goes on as for the child, where it has entered its pid namespace last. What it was
    /// before has ended, or ends now: it could still clone.
    fn succeed(&mut self, report: &Report) -> Result<(), (Errno, Option<String>)> {
        let enters = self.plan.find(|op| (*op == Op::EnterPidNamespace).then_some(())).is_some();
        let Some(before) = self.child.as_ref().filter(|_| enters) else { return Ok(()) };
        undo::kill(before).map_err(plain)?;
        let pid = report.pid().load(Ordering::Acquire);
        if pid == before.pid {
            return Ok(());
        }
        // Ours, and not reaped: the number is still its own.
        let number = Pid::from_raw(pid).ok_or((Errno::CHILD, None))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(plain)?;
        self.child = Some(Child { pid, pidfd });
        Ok(())
    }

    fn clone(
        &mut self,
        run: &mut Run<'_>,
        flags: u64,
        joined: &Joined<'_>,
        into_cgroup: bool,
    ) -> Result<Child, (Errno, Option<String>)> {
        let mut half = self.half.take().ok_or((Errno::INVAL, None))?;
        let copy = |slot: Option<Slot>| slot.map(|slot| copy_of(run, slot)).transpose();
        let early = joined.first.iter().map(|(kind, slot)| Ok((copy_of(run, *slot)?, kind.flag())));
        let early = early.collect::<Result<Vec<_>, _>>()?;
        let inside = if joined.between { Some((copy(joined.user)?, copy(joined.pid)?)) } else { None };
        // pid namespaces are joined by children only: this thread points its children there, and back.
        let own = match joined.pid {
            Some(slot) if inside.is_none() => {
                let own = std::fs::File::open("/proc/thread-self/ns/pid_for_children")
                    .map_err(|error| plain(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
                set_namespace(run.table.get(slot).map_err(plain)?, Namespace::Pid.flag()).map_err(plain)?;
                Some(own)
            }
            _ => None,
        };
        let cgroup = cgroup_directory(run, into_cgroup)?;
        run.born_inside = cgroup.is_some();
        let lent_to = half.plan.find(|op| match op {
            Op::MoveNetDevice { into, .. } => *into,
            _ => None,
        });
        if let Some(slot) = lent_to {
            run.lent_to = Some(copy_of(run, slot)?);
        }
        // The child starts where its parent is; this thread goes there for the moment of the clone.
        let own_cpus = match &run.begin_on {
            None => None,
            Some(cpus) => {
                let own = affinity().map_err(plain)?;
                set_affinity(cpus).map_err(plain)?;
                Some(own)
            }
        };
        let parent_end = run.channel.as_raw_fd();
        let table = &mut run.table;
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let noted = half.report.pid();
        let body = || half.run(table, parent_end);
        let child = match &inside {
            None => clone_noted(flags, cgroup, Some(noted), body),
            Some((user, pid)) => {
                let (user, pid) = (user.as_ref().map(AsFd::as_fd), pid.as_ref().map(AsFd::as_fd));
                let joined = Outer { first: &early, user, pid };
                clone_noted_inside(&joined, flags, cgroup, noted, body)
            }
        };
        let child = child.map_err(plain);
        // With it goes our copy of the child's end of the channel: from here on, its closing means the child's. So with
        // the table: whoever reads to the end of what the child sends must not wait for us.
        half.close();
        self.half = Some(half);
        run.table.clear();
        if let Some(own) = own_cpus {
            restore_affinity(&own).map_err(plain)?;
        }
        if let Some(own) = own {
            set_namespace(own.as_fd(), Namespace::Pid.flag()).map_err(plain)?;
        }
        child
    }
}

/// A second descriptor of what is in a slot: the child's half takes the table.
fn copy_of(run: &Run<'_>, slot: Slot) -> Result<OwnedFd, (Errno, Option<String>)> {
    rustix::io::fcntl_dupfd_cloexec(run.table.get(slot).map_err(plain)?, 0).map_err(plain)
}

fn cgroup_directory(run: &Run<'_>, wanted: bool) -> Result<Option<OwnedFd>, (Errno, Option<String>)> {
    let cgroup = run.cgroup.as_ref().filter(|cgroup| wanted && cgroup.is_unified());
    cgroup.map(|cgroup| cgroup.directory().map_err(host::cgroup_words)).transpose()
}

fn waits(plan: &Plan) -> bool {
    plan.stage(Stage::Gate).next().is_some()
}

/// Whether the child waits to be noted: until then it ends with its parent, which has more to do for it first.
fn is_noted_later(plan: &Plan) -> bool {
    plan.find(|op| (*op == Op::Release(Barrier::Noted)).then_some(())).is_some()
}

/// What is known of a child that has left no record.
const ENDED: &str = "the child process ended before it could say why: something killed it, as the kernel does where the \
                     memory limit is less than the start takes";

/// Waits for the child's last word.
fn outcome(plan: &Plan, run: &Run<'_>, report: &Report) -> Result<(), (usize, (Errno, Option<String>))> {
    let dead = || {
        let at = pending(plan, report).filter(|_| report.failure().is_none());
        (at.unwrap_or(usize::MAX), (Errno::CHILD, Some(ENDED.to_owned())))
    };
    let hands_over = hands_over(plan);
    match channel::hear(run.channel.as_fd(), last_patience(plan, run)) {
        // Somebody else decides when this exec returns.
        Err(Errno::TIMEDOUT) if hands_over && executed(plan, report) => Ok(()),
        Ok(Heard::Created) if waits(plan) => Ok(()),
        // End of file without a failure record: exec closed the channel, or the child was killed before it could write.
        Ok(Heard::Closed) if report.failure().is_none() && !waits(plan) && executed(plan, report) => Ok(()),
        Ok(Heard::Closed) => Err(dead()),
        Ok(_) => Err((usize::MAX, plain(Errno::PROTO))),
        Err(errno) => Err((usize::MAX, plain(errno))),
    }
}

/// How long the child's last word is waited for.
fn last_patience(plan: &Plan, run: &Run<'_>) -> std::time::Duration {
    if hands_over(plan) { channel::SUPERVISED } else { run.patience }
}

/// Whether somebody supervises the child's way to its program. Before a gate, nothing is asked that has to be answered.
fn hands_over(plan: &Plan) -> bool {
    !waits(plan) && plan.find(notifies).is_some()
}

/// Whether somebody supervises the system calls of the child.
fn notifies(op: &Op) -> Option<()> {
    matches!(op, Op::LoadFilter { handover: Some(_), .. }).then_some(())
}

/// sched(7).
const SCHED_DEADLINE: u32 = 6;

/// The step that the child is at: the first of its own without a time stamp.
fn pending(plan: &Plan, report: &Report) -> Option<usize> {
    let mut steps = plan.steps.iter().enumerate();
    steps.find(|(index, step)| !step.stage.is_parent() && report.time(*index) == 0).map(|(index, _)| index)
}

/// Whether the child came as far as exec: the time stamp of that step is written just before the call.
fn executed(plan: &Plan, report: &Report) -> bool {
    plan.stage(Stage::Exec).last().is_some_and(|(index, _)| report.time(index) != 0)
}

/// What the number in the child's record means.
fn child_words(
    plan: &Plan,
    cgroup: Option<&Cgroup>,
    step: usize,
    errno: Errno,
    detail: i32,
) -> Option<String> {
    match &plan.steps.get(step)?.op {
        _ if detail == crate::child::INJECTED => Some("injected".into()),
        Op::Pass(Barrier::Attached) if detail > 0 => {
            let door = usize::try_from(detail - 1).ok()?;
            let behind = cgroup.and_then(|cgroup| cgroup.behind(door))?;
            Some(format!("moving itself into the cgroup {}", behind.display()))
        }
        Op::FindProgram { name, .. } => Some(format!("looking for {name:?}")),
        Op::Place { at, create: Create::RealDirectory, .. }
            if matches!(errno, Errno::LOOP | Errno::NOTDIR) =>
        {
            Some(format!("{at} must be mounted on ordinary directory, not on a link or a file"))
        }
        Op::Place { at, .. } if errno == Errno::NOTDIR => Some(format!(
            "a directory goes onto a directory and a file onto a file: either something on the way to {at} is a file, or {at} and \
             what is to be mounted there are not of one kind"
        )),
        Op::NewFilesystem { kind, .. } if errno == Errno::PERM => refused(&kind.to_string()),
        Op::SetUnlocked { attributes, .. } if errno == Errno::PERM => Some(format!(
            "[{attributes}] would take back what the source is mounted with: in a user namespace ro, nosuid, nodev, noexec \
             and the access times of a mount stay as they are; leave out the option that changes one of them"
        )),
        Op::MapTree { .. } => crate::host::unmappable(errno).1,
        Op::SetScheduler { policy: SCHED_DEADLINE, .. } if errno == Errno::PERM => Some(
            "process scheduler can't be used together with AllowedCPUs: SCHED_DEADLINE takes a process that may run on every \
             processor; leave out /linux/resources/cpu/cpus"
                .into(),
        ),
        _ => None,
    }
}

/// Why the kernel refuses a file system to a user namespace, mount_namespaces(7) and user_namespaces(7).
fn refused(kind: &str) -> Option<String> {
    let words = match kind {
        "proc" | "sysfs" => {
            "in a user namespace it takes one of our own that nothing is mounted over, and for sysfs a network namespace \
             that belongs to it; binding the host's instead works everywhere"
        }
        "mqueue" => "in a user namespace it takes an ipc namespace that belongs to it",
        "cgroup" | "cgroup2" => "in a user namespace it takes a cgroup namespace that belongs to it",
        _ => "not every file system can be mounted in a user namespace",
    };
    Some(words.into())
}

fn times(plan: &Plan, report: &Report, begin: u64) -> Vec<StepTime> {
    let at = |step| report.time(step).saturating_sub(begin);
    (0..plan.steps.len()).map(|step| StepTime { step, at_ns: at(step) }).collect()
}
