//! Telling the caller: JSON or text lines in the log file, and the last word on standard error.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use crate::failed::Failed;
use crate::global::{Format, Global, Level};

/// Where messages go.
#[derive(Default)]
pub(crate) struct Log {
    file: Option<std::fs::File>,
    format: Format,
    level: Level,
}

impl Log {
    /// Opens the log file, if there is to be one.
    pub(crate) fn open(global: &Global) -> Result<Self, Failed> {
        let open = |path: &std::path::PathBuf| {
            // A FIFO that nobody reads must not hold us up.
            let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let file = std::fs::OpenOptions::new().append(true).create(true).custom_flags(no_wait).open(path);
            file.map_err(|error| Failed::new(format!("open {}: {error}", path.display())))
        };
        let file = global.log.as_ref().map(open).transpose()?;
        Ok(Self { file, format: global.format, level: global.level })
    }

    /// An error: to the log, and to standard error as well.
    pub(crate) fn error(&self, message: &str) {
        self.write(Level::Error, message);
        let message = printable(message);
        if self.file.is_some() {
            eprintln!("{message}");
        } else if self.format == Format::Text {
            eprintln!("cofferdam-oci: {message}");
        }
    }

    /// A warning: to the log, which is standard error where there is no file.
    pub(crate) fn warning(&self, message: &str) {
        self.at_level(Level::Warning, message);
    }

    /// What helps to find a fault; said only where it is asked for.
    pub(crate) fn debug(&self, message: &str) {
        self.at_level(Level::Debug, message);
    }

    fn at_level(&self, level: Level, message: &str) {
        if level <= self.level {
            self.write(level, message);
        }
    }

    fn write(&self, level: Level, message: &str) {
        let (time, name) = (cofferdam_runtime::now_rfc3339(), level.name());
        let line = match self.format {
            Format::Json => serde_json::json!({ "level": name, "msg": message, "time": time }).to_string(),
            Format::Text => format!("time={time:?} level={name} msg={message:?}"),
        };
        match &self.file {
            // One write a line: several processes append to one file.
            Some(file) => drop((&mut &*file).write_all(format!("{line}\n").as_bytes())),
            // An error in text is told to people, in words.
            None if level == Level::Error && self.format == Format::Text => {}
            None => eprintln!("{line}"),
        }
    }
}

/// A message for a terminal: what a configuration says may hold escape sequences.
fn printable(message: &str) -> String {
    let shown = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    message.chars().map(|c| if shown(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}
