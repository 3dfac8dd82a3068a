//! How a command fails: its exit status, its words, and whether the usage is shown.

use cofferdam_runtime::Error;

/// runc's exit status for a failed exec; 1 is for everything else.
const EXEC_FAILED: i32 = 255;

/// runc's exit status for a command that it does not know.
const NO_SUCH_COMMAND: i32 = 3;

/// A failure on its way to the caller.
#[derive(Debug)]
pub(crate) struct Failed {
    pub status: i32,
    pub words: String,
    /// The command line was wrong: the usage goes to standard output.
    pub usage: bool,
}

impl Failed {
    pub(crate) fn new(words: impl ToString) -> Self {
        Self { status: 1, words: words.to_string(), usage: false }
    }

    /// A wrong command line.
    pub(crate) fn usage(words: impl ToString) -> Self {
        Self { usage: true, ..Self::new(words) }
    }

    pub(crate) fn no_such_command(name: &str) -> Self {
        Self { status: NO_SUCH_COMMAND, ..Self::new(format!("No help topic for '{name}'")) }
    }

    /// The failure as runc's exec tells it.
    pub(crate) fn of_exec(self) -> Self {
        Self { status: EXEC_FAILED, words: format!("exec failed: {}", self.words), ..self }
    }

    /// The failure as runc's create and run tell it.
    pub(crate) fn of(self, command: &str) -> Self {
        Self { words: format!("runc {command} failed: {}", self.words), ..self }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Self {
        Self::new(error)
    }
}
