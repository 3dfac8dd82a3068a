//! The child half: from the clone to the program.
//!
//! Everything here is *child-safe*: no allocation, no lock, no log. Texts come NUL-terminated from the plan, vectors were
//! laid out by [`Half::prepare`], descriptors live in a table whose room was made beforehand, and what happens is
//! recorded in the shared report page.

mod confine;
mod copy;
mod enter;
mod gate;
mod home;
mod mounts;
mod nodes;
mod views;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use cofferdam_linux::process::{Vector, exit_now};
use cofferdam_linux::report::Report;
use cofferdam_linux::seccomp::SockFilter;
use cofferdam_linux::terminal::DESCRIPTORS_MAX;
use cofferdam_plan::op::Handover;
use cofferdam_plan::{Op, Plan, Slot};
use rustix::io::Errno;
use rustix::path::DecInt;

use crate::applied::{Fault, now};
use crate::channel::LateFailure;

/// Detail of a failure that the fault sweep asked for.
pub(crate) const INJECTED: i32 = i32::MIN;

/// The descriptors of a plan, by slot.
pub(crate) struct Table(Vec<Option<OwnedFd>>);

impl Table {
    /// A table with room for `slots` descriptors, the first of them filled in.
    pub(crate) fn new(slots: usize, filled: Vec<(Slot, OwnedFd)>) -> Self {
        let mut table = Self(std::iter::repeat_with(|| None).take(slots).collect());
        for (slot, descriptor) in filled {
            table.set(slot, descriptor);
        }
        table
    }

    /// Puts a descriptor into a slot. *Child-safe.*
    pub(crate) fn set(&mut self, slot: Slot, descriptor: OwnedFd) {
        if let Some(place) = self.0.get_mut(usize::from(slot.0)) {
            *place = Some(descriptor);
        }
    }

    /// The descriptor in a slot; `EBADF` when the plan uses it before it is made. *Child-safe.*
    pub(crate) fn get(&self, slot: Slot) -> Result<BorrowedFd<'_>, Errno> {
        self.0.get(usize::from(slot.0)).and_then(Option::as_ref).map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// Takes the descriptor out of a slot. *Child-safe.*
    pub(crate) fn take(&mut self, slot: Slot) -> Result<OwnedFd, Errno> {
        self.0.get_mut(usize::from(slot.0)).and_then(Option::take).ok_or(Errno::BADF)
    }

    /// Closes everything.
    pub(crate) fn clear(&mut self) {
        self.0.iter_mut().for_each(|slot| drop(slot.take()));
    }

    /// Lets go of everything, for who is about to close all descriptors there are, by ranges. *Child-safe.*
    fn forget(&mut self) {
        self.0.iter_mut().for_each(|slot| std::mem::forget(slot.take()));
    }
}

/// The child's half of a plan, prepared before the clone.
pub(crate) struct Half<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) report: &'a Report,
    channel: Option<OwnedFd>,
    fault: Option<Fault>,
    arguments: Vector,
    environment: Vector,
    filters: Vec<(usize, Vec<SockFilter>)>,
    /// What came of the filter that was loaded ahead.
    loaded: Option<Result<(), Errno>>,
    /// Which candidate of `FindProgram` it is, for `Exec`.
    program: Option<(usize, usize)>,
    /// The empty directory that masks directories is attached; later masks are copies of it.
    mask_attached: bool,
    /// Where `start` waits for the outcome.
    knock: Option<OwnedFd>,
    /// Who takes the filter's notifications.
    listener: Option<OwnedFd>,
    /// The container's namespaces, for those who knock before `start`.
    lent: gate::Lent,
    detail: i32,
}

impl<'a> Half<'a> {
    /// Lays out everything that the child will need.
    pub(crate) fn prepare(
        plan: &'a Plan,
        report: &'a Report,
        channel: OwnedFd,
        fault: Option<Fault>,
    ) -> Self {
        let mut vectors = (Vector::new([]), Vector::new([]));
        let mut filters = Vec::new();
        for (index, step) in plan.steps.iter().enumerate() {
            match &step.op {
                Op::Exec { arguments, environment } => {
                    let late = plan.steps.iter().any(|step| matches!(step.op, Op::FindHome { .. }));
                    let variables = environment.iter().map(|text| text.as_c_str());
                    vectors = (
                        Vector::new(arguments.iter().map(|text| text.as_c_str())),
                        if late { Vector::with_room(variables) } else { Vector::new(variables) },
                    );
                }
                Op::LoadFilter { program, .. } => {
                    let filter = |i: &cofferdam_plan::op::Instruction| SockFilter {
                        code: i.code,
                        jt: i.jt,
                        jf: i.jf,
                        k: i.k,
                    };
                    filters.push((index, program.iter().map(filter).collect()));
                }
                _ => {}
            }
        }
        let (arguments, environment) = vectors;
        Self {
            plan,
            report,
            channel: Some(channel),
            fault,
            arguments,
            environment,
            filters,
            loaded: None,
            program: None,
            mask_attached: false,
            knock: None,
            listener: None,
            lent: [const { None }; DESCRIPTORS_MAX],
            detail: 0,
        }
    }

    /// Closes what belongs to the child alone. For the parent, after the clone.
    pub(crate) fn close(&mut self) {
        self.channel = None;
    }

    /// Runs in the child, over its copy of the parent's table. Returns only when a step has failed.
    pub(crate) fn run(&mut self, table: &mut Table, parent_end: RawFd) -> i32 {
        // Our copy of the parent's end: while it is open, the parent's death would go unnoticed.
        cofferdam_linux::process::close_descriptor(parent_end);
        rustix::process::umask(rustix::fs::Mode::empty());
        let plan = self.plan;
        for (index, step) in plan.steps.iter().enumerate() {
            if step.stage.is_parent() {
                continue;
            }
            self.detail = 0;
            let result = match self.fault {
                Some(fault) if fault.step == index => {
                    self.detail = INJECTED;
                    Err(fault.errno)
                }
                _ => self.step(table, index, &step.op),
            };
            match result {
                Ok(()) => self.report.done(index, now()),
                Err(errno) => {
                    self.report.fail(index, errno, self.detail);
                    if let Some(knock) = &self.knock {
                        LateFailure { step: index, errno, detail: self.detail }.tell(knock.as_fd());
                    }
                    return 1;
                }
            }
        }
        exit_now(0)
    }

    fn channel(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.channel.as_ref().map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// The descriptors that stay open until exec closes them.
    fn kept(&self) -> [RawFd; 3 + DESCRIPTORS_MAX] {
        let single = [&self.channel, &self.knock, &self.listener];
        let mut kept = [-1; 3 + DESCRIPTORS_MAX];
        for (place, fd) in kept.iter_mut().zip(single.into_iter().chain(&self.lent)) {
            *place = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        }
        kept
    }

    fn step(&mut self, table: &mut Table, index: usize, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Pass(barrier) => crate::channel::pass(self.channel()?, *barrier).map_err(|(errno, door)| {
                self.detail = door;
                errno
            }),
            Op::Announce(barrier) => crate::channel::say(self.channel()?, barrier.token()),
            Op::CloneTree { .. }
            | Op::CloneInside { .. }
            | Op::MapTree { .. }
            | Op::SetUnlocked { .. }
            | Op::CopyUp { .. }
            | Op::FillEmpty { .. }
            | Op::Place { .. }
            | Op::AttachRoot { .. }
            | Op::NewFilesystem { .. }
            | Op::Overlay { .. }
            | Op::SetAttributes { .. }
            | Op::SetAttributesAt { .. }
            | Op::SetRootPropagation { .. }
            | Op::SetRootAttributes { .. }
            | Op::Pivot { .. }
            | Op::MoveRoot { .. }
            | Op::ChangeRoot { .. }
            | Op::MakeReadOnly { .. } => mounts::run(table, op),
            Op::Mask { root, at, directory, file } => {
                mounts::mask(table, &mut self.mask_attached, *root, at, *directory, *file)
            }
            Op::OpenDirectory { .. }
            | Op::OpenDevice { .. }
            | Op::MakeNode { .. }
            | Op::BindDevice { .. }
            | Op::MakeSymlink { .. }
            | Op::MakeDirectory { .. }
            | Op::MakeTerminal { .. } => nodes::run(table, op),
            Op::CloseDescriptors { first } => {
                // Before any path of the container is used: no descriptor of ours may be reachable through /proc/self/fd.
                let gate = self.plan.find(|op| match op {
                    Op::WaitStart { gate, lends } => Some((*gate, lends)),
                    _ => None,
                });
                if let Some((gate, lends)) = gate {
                    self.knock = table.take(gate).ok();
                    self.lent.iter_mut().zip(lends).for_each(|(place, slot)| *place = table.take(*slot).ok());
                }
                let listener = self.plan.find(|op| match op {
                    Op::LoadFilter { handover: Some(handover), .. } => Some(handover.socket),
                    _ => None,
                });
                self.listener = listener.and_then(|slot| table.take(slot).ok());
                table.forget();
                let kept = self.kept();
                // The preserved range may hold descriptors of ours too, where the caller has left holes.
                cofferdam_linux::process::close_marked(3, *first, &kept);
                cofferdam_linux::process::close_all_from(*first, kept)
            }
            Op::FindHome { uid } => home::fill(&mut self.environment, *uid),
            Op::FindProgram { candidates, .. } => {
                let found = confine::find_program(candidates)?;
                self.program = Some((index, found));
                Ok(())
            }
            Op::LoadFilter { flags, handover, .. } => match self.loaded.take() {
                Some(result) => result,
                None => match (self.load(index, *flags)?, handover) {
                    (Some(notifications), Some(handover)) => self.hand_over(notifications, handover),
                    _ => Ok(()),
                },
            },
            Op::EnterPidNamespace => cofferdam_linux::sibling::go_on(self.report.pid()),
            Op::WaitStart { .. } => {
                let gate = self.knock.take().ok_or(Errno::BADF)?;
                crate::channel::say_created(self.channel()?)?;
                drop(self.channel.take());
                self.load_ahead();
                self.knock = Some(gate::wait(gate.as_fd(), &self.lent)?);
                self.lent.iter_mut().for_each(|lent| drop(lent.take()));
                Ok(())
            }
            Op::Exec { .. } => Err(self.exec(index)),
            _ => enter::run(table, op).unwrap_or_else(|| confine::run(op)),
        }
    }

    fn load(&self, index: usize, flags: u32) -> Result<Option<OwnedFd>, Errno> {
        let filter = self.filters.iter().find(|(at, _)| *at == index).ok_or(Errno::INVAL)?;
        cofferdam_linux::seccomp::load(&filter.1, flags)
    }

    /// While the parent ends, and `start` is on its way: the kernel takes longer to translate a filter than either.
    fn load_ahead(&mut self) {
        for (index, step) in self.plan.steps.iter().enumerate() {
            if let Op::LoadFilter { flags, ahead: true, .. } = step.op {
                self.loaded = Some(self.load(index, flags).map(drop));
            }
        }
    }

    /// Gives the filter's notifications away and keeps nothing of them: from here on this process may be stopped in any
    /// call, and must not be the one who could answer.
    fn hand_over(&mut self, notifications: OwnedFd, handover: &Handover) -> Result<(), Errno> {
        let socket = self.listener.take().ok_or(Errno::BADF)?;
        let pid = DecInt::new(self.report.pid().load(Ordering::Relaxed));
        let mut parts = [IoSlice::new(&[]); 2 * Handover::PARTS];
        for (pair, part) in parts.chunks_exact_mut(2).zip(&handover.message) {
            pair.copy_from_slice(&[IoSlice::new(pid.as_bytes()), IoSlice::new(part.as_c_str().to_bytes())]);
        }
        // The pid is between the parts, not before the first.
        let parts = parts.get(1..2 * handover.message.len()).ok_or(Errno::INVAL)?;
        let sent =
            cofferdam_linux::terminal::send_descriptor_with(socket.as_fd(), parts, notifications.as_fd());
        if handover.close_by_range {
            // The socket too: the supervisor may read to its end before it answers.
            cofferdam_linux::process::close_by_range(notifications)?;
            cofferdam_linux::process::close_by_range(socket)?;
        }
        sent
    }

    fn exec(&mut self, index: usize) -> Errno {
        let program = self.program.and_then(|(at, candidate)| match &self.plan.steps.get(at)?.op {
            Op::FindProgram { candidates, .. } => candidates.get(candidate),
            _ => None,
        });
        let Some(program) = program else { return Errno::NOENT };
        // The stamp is the parent's proof that exec was reached; see `executed`.
        self.report.done(index, now());
        cofferdam_linux::process::exec(program.as_c_str(), &self.arguments, &self.environment)
    }
}
