//! What people write on a command line or in a file, read into values: one grammar a file.
//!
//! Every reader takes text and nothing else, touches no file (an `--env-file`'s content is handed in)
//! and refuses with a [`Refusal`] that names what was asked and what would have been right.

pub mod env;
pub mod network;
pub mod port;
pub mod size;
pub mod span;
pub mod storage;
pub mod ulimit;
pub mod userns;
pub mod volume;

/// The text of an option is not what the option takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {text:?}: {problem}")]
pub struct Refusal {
    what: &'static str,
    text: String,
    problem: String,
}

impl Refusal {
    /// A refusal of `text` as a `what`.
    pub fn new(what: &'static str, text: &str, problem: impl Into<String>) -> Refusal {
        Refusal { what, text: text.chars().take(200).collect(), problem: problem.into() }
    }
}
