//! What a plan refuses: everything that can be known to fail is refused here, before anything is touched.

use thiserror::Error;

/// Why a configuration cannot be planned. Every variant carries the JSON pointer of the offending value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The value breaks the specification or a limit of this host.
    #[error("{pointer}: {problem}")]
    Invalid {
        /// JSON pointer into the configuration (RFC 6901).
        pointer: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The value is legal but neither this host nor this build can do it.
    #[error("{pointer}: not supported here: {problem}")]
    Unsupported {
        /// JSON pointer into the configuration (RFC 6901).
        pointer: String,
        /// What is missing.
        problem: String,
    },
}

impl Refusal {
    /// An illegal value at `pointer`.
    pub fn invalid(pointer: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { pointer: pointer.into(), problem: problem.into() }
    }

    /// A legal value at `pointer` that this host or build cannot honour.
    pub fn unsupported(pointer: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported { pointer: pointer.into(), problem: problem.into() }
    }
}
