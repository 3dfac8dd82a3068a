//! The plan and its builder.

use std::fmt;

use crate::op::{Op, Slot};
use crate::step::{Stage, Step, Why};

/// Most steps a plan may have: the report page holds one record a step.
pub const STEPS_MAX: usize = 4096;

/// An ordered list of steps. Stages are in order; within a stage, steps run as listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, sorted by stage.
    pub steps: Vec<Step>,
    /// The names of the descriptor slots, for print.
    pub slots: Vec<String>,
    /// What was asked for and could not be given, in words for the user.
    pub warnings: Vec<String>,
    /// The same of what callers write into every configuration without meaning it. It is for a log; a standard error that is
    /// the container's too should be spared it.
    pub remarks: Vec<String>,
}

impl Plan {
    /// The steps of one stage with their index in the plan.
    pub fn stage(&self, stage: Stage) -> impl Iterator<Item = (usize, &Step)> {
        self.steps.iter().enumerate().filter(move |(_, step)| step.stage == stage)
    }

    /// The first step that satisfies `test`.
    pub fn find<'a, T>(&'a self, test: impl FnMut(&'a Op) -> Option<T>) -> Option<T> {
        self.steps.iter().map(|step| &step.op).find_map(test)
    }
}

/// Collects steps from the isolators. Each isolator adds to whatever stages it needs; [`Builder::finish`] sorts by stage
/// and keeps the order of arrival within one.
#[derive(Debug, Default)]
pub struct Builder {
    steps: Vec<Step>,
    slots: Vec<String>,
    warnings: Vec<String>,
    remarks: Vec<String>,
    marks: Vec<&'static str>,
}

impl Builder {
    /// Starts a plan whose first slots are filled by the caller of the interpreter, in this order.
    pub fn with_inputs(names: &[&str]) -> Self {
        Self { slots: names.iter().map(|name| (*name).to_owned()).collect(), ..Self::default() }
    }

    /// Names a new descriptor slot.
    pub fn slot(&mut self, name: impl Into<String>) -> Slot {
        let index = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        self.slots.push(name.into());
        Slot(index)
    }

    /// Adds a step.
    pub fn step(&mut self, stage: Stage, why: impl Into<Why>, op: Op) {
        self.steps.push(Step { stage, op, why: why.into() });
    }

    /// Records something that was asked for and cannot be given.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Records something that cannot be given, and that the caller asks for whoever the user is.
    pub fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// Whether a step like this was added already.
    pub fn contains(&self, test: impl FnMut(&Op) -> bool) -> bool {
        self.steps.iter().map(|step| &step.op).any(test)
    }

    /// The first step added so far that satisfies `test`.
    pub fn find<T>(&self, test: impl FnMut(&Op) -> Option<T>) -> Option<T> {
        self.steps.iter().map(|step| &step.op).find_map(test)
    }

    /// Marks something as planned; tells whether it was marked before.
    pub fn marked(&mut self, mark: &'static str) -> bool {
        let before = self.marks.contains(&mark);
        if !before {
            self.marks.push(mark);
        }
        before
    }

    /// The finished plan.
    pub fn finish(mut self) -> Plan {
        self.steps.sort_by_key(|step| step.stage);
        Plan { steps: self.steps, slots: self.slots, warnings: self.warnings, remarks: self.remarks }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for remark in &self.remarks {
            writeln!(f, "remark: {remark}")?;
        }
        for (index, step) in self.steps.iter().enumerate() {
            let line = format!("{index:>3} {:<8} {}", step.stage, self.describe(&step.op));
            writeln!(f, "{line:<100} # {}", step.why.0)?;
        }
        Ok(())
    }
}
