//! What went wrong, for the person at the terminal and for the shell.

use std::process::ExitCode;

use cofferdam_executor::Error;

use crate::escape::escape;

/// Exit code of our own failures, as in Docker.
pub(crate) const OURS: u8 = 125;

/// A failed command: a sentence and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    pub(crate) fn plain(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: OURS }
    }

    /// The same failure with another exit code.
    pub(crate) fn with_code(self, code: u8) -> Failure {
        Failure { code, ..self }
    }

    /// Somebody pressed Ctrl-C: the code that a shell gives for it.
    pub(crate) fn interrupted() -> Failure {
        Failure { message: "interrupted".to_owned(), code: 128 + 2 }
    }

    /// Whether it is that.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.code == Failure::interrupted().code
    }

    /// The same failure, saying what was being done.
    pub(crate) fn while_doing(mut self, what: &str) -> Failure {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("cofferdam: {}", escape(&self.message));
        ExitCode::from(self.code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = u8::try_from(error.shell_code()).unwrap_or(OURS);
        Failure { message: error.to_string(), code }
    }
}

impl From<cofferdam_executor::request::Refusal> for Failure {
    fn from(refusal: cofferdam_executor::request::Refusal) -> Failure {
        Failure::plain(refusal.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::plain(error.to_string())
    }
}

/// The exit code for a shell: codes are bytes.
pub(crate) fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(OURS))
}
