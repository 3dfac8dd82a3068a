//! What went wrong, where: one failed step, and what could not be undone after it.

use cofferdam_plan::{Plan, Stage};
use rustix::io::Errno;
use std::fmt;

/// One step failed. Everything before it has been undone, but for what `left_behind` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Index of the step in the plan.
    pub step: usize,
    /// Its stage.
    pub stage: Stage,
    /// The operation with its arguments, as the plan prints it.
    pub operation: String,
    /// The configuration value that asked for it.
    pub why: String,
    /// The kernel's answer.
    pub errno: Errno,
    /// More than an error number can say: a hook's output, a file's name.
    pub detail: Option<String>,
    /// What the undo could not remove, in words.
    pub left_behind: Vec<String>,
}

impl Failure {
    /// The failure of step number `step` of `plan`.
    pub fn new(plan: &Plan, step: usize, errno: Errno, detail: Option<String>) -> Self {
        let (stage, operation, why) = match plan.steps.get(step) {
            Some(step) => (step.stage, plan.describe(&step.op), step.why.0.clone()),
            None => (Stage::Clone, "await the child".into(), "every container".into()),
        };
        Self { step, stage, operation, why, errno, detail, left_behind: Vec::new() }
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} step ", self.stage.name())?;
        // No step of the plan.
        if self.step != usize::MAX {
            write!(f, "{}, ", self.step)?;
        }
        write!(f, "`{}`, asked for by {}: {}", self.operation, self.why, in_words(self.errno))?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        if !self.left_behind.is_empty() {
            write!(f, "; left behind: {}", self.left_behind.join(", "))?;
        }
        Ok(())
    }
}

/// An error number as the C library words it, in lower case: `no such file or directory`.
pub fn in_words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_read_as_words() {
        assert_eq!(in_words(Errno::NOENT), "no such file or directory");
        assert_eq!(in_words(Errno::PERM), "operation not permitted");
    }
}
