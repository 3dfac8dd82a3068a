//! Telling the caller: JSON or text lines in the log file, and the last word on standard error.

use std::io::Write;

use crate::arguments::Global;

/// Where messages go.
pub(crate) struct Log {
    file: Option<std::fs::File>,
    json: bool,
}

impl Log {
    pub(crate) fn new(global: &Global) -> Self {
        let open = |path| std::fs::OpenOptions::new().append(true).create(true).open(path);
        Self { file: global.log.as_ref().and_then(|path| open(path).ok()), json: global.log_json }
    }

    /// An error: to the log, and to standard error.
    pub(crate) fn error(&self, message: &str) {
        self.write("error", message);
        if self.file.is_some() || !self.json {
            eprintln!("cofferdam-oci: {message}");
        }
    }

    /// A warning: to the log file only, so that a successful command says nothing.
    pub(crate) fn warning(&self, message: &str) {
        if self.file.is_some() {
            self.write("warning", message);
        }
    }

    fn write(&self, level: &str, message: &str) {
        let time = cofferdam_runtime::now_rfc3339();
        let line = if self.json {
            serde_json::json!({ "level": level, "msg": message, "time": time }).to_string()
        } else {
            format!("time={time:?} level={level} msg={message:?}")
        };
        match &self.file {
            Some(file) => drop(writeln!(&mut &*file, "{line}")),
            None if self.json => eprintln!("{line}"),
            None => {}
        }
    }
}
