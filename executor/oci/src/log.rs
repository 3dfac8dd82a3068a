//! Telling the caller: JSON or text lines in the log, and the last word on standard error.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::failed::Failed;
use crate::global::{Destination, Format, Global, Level};

/// Where the journal of systemd takes entries, systemd-journald.service(8).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where the system's log takes lines, syslog(3).
const SYSLOG: &str = "/dev/log";

/// Messages of programs that are no part of the system, syslog(3): `LOG_USER`.
const FACILITY: u8 = 1 << 3;

/// Where messages go.
#[derive(Default)]
pub(crate) struct Log {
    sink: Option<Sink>,
    format: Format,
    level: Level,
}

impl Log {
    /// Opens the log file, if there is to be one.
    pub(crate) fn open(global: &Global) -> Result<Self, Failed> {
        let sink = global.log.as_ref().map(Sink::open).transpose()?;
        Ok(Self { sink, format: global.format, level: global.level })
    }

    /// An error: to the log, and to standard error as well. The line there says that it is one: what follows may not, and
    /// there are callers that look for the word and not at the exit status.
    pub(crate) fn error(&self, message: &str) {
        self.write(Level::Error, message);
        let message = printable(message);
        if self.sink.is_some() {
            eprintln!("{message}");
        } else if self.format == Format::Text {
            eprintln!("cofferdam-oci: error: {message}");
        }
    }

    /// A warning: to the log, which is standard error where there is no file.
    pub(crate) fn warning(&self, message: &str) {
        self.at_level(Level::Warning, message);
    }

    /// A warning that is told to whoever keeps a log; on standard error, which is the container's as well, only where more is
    /// asked for.
    pub(crate) fn remark(&self, message: &str) {
        self.at_level(if self.sink.is_some() { Level::Warning } else { Level::Debug }, message);
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
        let line = || {
            let (time, level) = (cofferdam_runtime::now_rfc3339(), level.name());
            match self.format {
                Format::Json => {
                    serde_json::json!({ "level": level, "msg": message, "time": time }).to_string()
                }
                Format::Text => format!("time={time:?} level={level} msg={message:?}"),
            }
        };
        match &self.sink {
            // One write a line: several processes append to one file.
            Some(Sink::File(file)) => drop((&mut &*file).write_all(format!("{}\n", line()).as_bytes())),
            // A service that has gone away is no reason to fail.
            Some(Sink::Journal(socket, name)) => drop(socket.send(&journal_entry(name, level, message))),
            Some(Sink::Syslog(socket, name)) => {
                let line = format!("<{}>{name}: {message}", FACILITY | severity(level));
                drop(socket.send(line.as_bytes()));
            }
            // An error in text is told to people, in words.
            None if level == Level::Error && self.format == Format::Text => {}
            None => eprintln!("{}", line()),
        }
    }
}

/// What takes messages.
enum Sink {
    File(std::fs::File),
    Journal(UnixDatagram, String),
    Syslog(UnixDatagram, String),
}

impl Sink {
    fn open(destination: &Destination) -> Result<Self, Failed> {
        let failed =
            |path: &Path, error: std::io::Error| Failed::new(format!("open {}: {error}", path.display()));
        let connect = |path: &str| -> Result<UnixDatagram, Failed> {
            let connected = UnixDatagram::unbound().and_then(|socket| {
                socket.set_nonblocking(true)?;
                socket.connect(path).map(|()| socket)
            });
            connected.map_err(|error| failed(Path::new(path), error))
        };
        match destination {
            Destination::File(path) => {
                // A FIFO that nobody reads must not hold us up.
                let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
                let mut options = std::fs::OpenOptions::new();
                let opened = options.append(true).create(true).custom_flags(no_wait).open(path);
                opened.map(Self::File).map_err(|error| failed(path, error))
            }
            Destination::Journal(name) => Ok(Self::Journal(connect(JOURNAL)?, name.clone())),
            Destination::Syslog(name) => Ok(Self::Syslog(connect(SYSLOG)?, name.clone())),
        }
    }
}

/// `LOG_ERR`, `LOG_WARNING`, `LOG_DEBUG` of syslog(3).
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warning => 4,
        Level::Debug => 7,
    }
}

/// An entry in the journal's own form: a name, its length in eight bytes, its bytes, which may hold line ends.
fn journal_entry(name: &str, level: Level, message: &str) -> Vec<u8> {
    let severity = severity(level).to_string();
    let fields = [("MESSAGE", message), ("PRIORITY", &severity), ("SYSLOG_IDENTIFIER", name)];
    let mut entry = Vec::new();
    for (key, value) in fields {
        entry.extend_from_slice(key.as_bytes());
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

/// A message for a terminal: what a configuration says may hold escape sequences.
fn printable(message: &str) -> String {
    let shown = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    message.chars().map(|c| if shown(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_journal_says_how_long_each_field_is() {
        let entry = journal_entry("c1", Level::Error, "two\nlines");
        let mut expected =
            b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY\n\x01\0\0\0\0\0\0\x003\n".to_vec();
        expected.extend_from_slice(b"SYSLOG_IDENTIFIER\n\x02\0\0\0\0\0\0\0c1\n");
        assert_eq!(entry, expected);
    }

    #[test]
    fn a_service_is_told_in_a_datagram_and_an_error_goes_to_it_too() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let log = Log { sink: Some(Sink::Syslog(ours, "c1".into())), ..Log::default() };
        log.warning("careful");
        log.error("broken");
        let read = || {
            let mut buffer = [0; 64];
            let length = theirs.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!((read(), read()), ("<12>c1: careful".to_owned(), "<11>c1: broken".to_owned()));
    }
}
