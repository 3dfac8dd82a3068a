//! The log of a task: its output in lines that we frame, in files that rotate.
//!
//! ```text
//! 2026-01-31T12:00:00.123456789Z stdout F a whole line
//! 2026-01-31T12:00:00.123456789Z stderr P the first 16 KiB of a longer line
//! ```
//!
//! It is the format that Kubernetes' kubelet reads. The tag `P` says that the line goes on in the next record of the
//! same stream. The payload's bytes are kept as they are: a task cannot forge a record, because every newline it
//! writes ends one of ours. Files: `log` is written, `log.1` is the one before, `log.4` the oldest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Longest payload of one record; a longer line becomes several records.
pub const CHUNK_LIMIT_BYTES: usize = 16 << 10;

/// Name of the file that is being written.
pub const CURRENT: &str = "log";

/// How much log a task may leave on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Size at which a file is rotated.
    pub file_bytes: u64,
    /// How many files are kept, the current one included.
    pub files: u32,
}

impl Default for LogLimits {
    /// 5 files of 16 MiB: a day of a talkative service, and a bound on what a flood can cost.
    fn default() -> LogLimits {
        LogLimits { file_bytes: 16 << 20, files: 5 }
    }
}

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Whether a record ends its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// The line goes on in the next record of this stream.
    Partial,
    /// The line ends here.
    Full,
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When we read it from the task.
    pub time: Timestamp,
    /// Which stream it came from.
    pub stream: Stream,
    /// Whether the line ends with it.
    pub end: LineEnd,
    /// The bytes, without the newline.
    pub payload: Vec<u8>,
}

impl Record {
    /// Appends the record and its newline to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let tag = if self.end == LineEnd::Full { 'F' } else { 'P' };
        out.extend_from_slice(format!("{} {} {tag} ", self.time, self.stream.name()).as_bytes());
        out.extend_from_slice(&self.payload);
        out.push(b'\n');
    }

    /// Reads one record from a line without its newline; `None` if it is not one.
    pub fn decode(line: &[u8]) -> Option<Record> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok().and_then(|text| Timestamp::parse(text).ok())?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let end = match parts.next()? {
            b"F" => LineEnd::Full,
            b"P" => LineEnd::Partial,
            _ => return None,
        };
        Some(Record { time, stream, end, payload: parts.next()?.to_vec() })
    }
}

/// Cuts the bytes of one stream into records.
#[derive(Debug)]
pub struct Framer {
    stream: Stream,
    rest: Vec<u8>,
}

impl Framer {
    /// A framer for one stream.
    pub fn new(stream: Stream) -> Framer {
        Framer { stream, rest: Vec::new() }
    }

    /// Takes in bytes; hands out every record that is complete.
    pub fn feed(&mut self, mut bytes: &[u8], time: Timestamp, mut emit: impl FnMut(Record)) {
        while !bytes.is_empty() {
            let room = CHUNK_LIMIT_BYTES - self.rest.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    self.rest.extend_from_slice(&window[..at]);
                    emit(self.take(time, LineEnd::Full));
                    bytes = &bytes[at + 1..];
                }
                None => {
                    self.rest.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.rest.len() == CHUNK_LIMIT_BYTES {
                        emit(self.take(time, LineEnd::Partial));
                    }
                }
            }
        }
    }

    /// The unfinished last line, when the stream has ended.
    pub fn finish(&mut self, time: Timestamp) -> Option<Record> {
        if self.rest.is_empty() { None } else { Some(self.take(time, LineEnd::Partial)) }
    }

    fn take(&mut self, time: Timestamp, end: LineEnd) -> Record {
        Record { time, stream: self.stream, end, payload: std::mem::take(&mut self.rest) }
    }
}

/// Writes records into a directory and rotates. A full disk costs records, never the task: they are counted.
#[derive(Debug)]
pub struct LogWriter {
    directory: PathBuf,
    limits: LogLimits,
    file: File,
    written_bytes: u64,
    dropped: u64,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens (or goes on with) the log in `directory`, which must exist.
    pub fn open(directory: &Path, limits: LogLimits) -> io::Result<LogWriter> {
        let file = open_current(directory)?;
        let written_bytes = file.metadata()?.len();
        let directory = directory.to_owned();
        Ok(LogWriter { directory, limits, file, written_bytes, dropped: 0, buffer: Vec::new() })
    }

    /// Queues a record; [`LogWriter::flush`] writes.
    pub fn push(&mut self, record: &Record) {
        record.encode(&mut self.buffer);
        if self.buffer.len() > 4 * CHUNK_LIMIT_BYTES {
            self.flush();
        }
    }

    /// Writes what is queued. Failures drop it and are counted in [`LogWriter::dropped`].
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if self.written_bytes >= self.limits.file_bytes && self.rotate().is_err() {
            self.dropped += 1;
        }
        match self.file.write_all(&self.buffer) {
            Ok(()) => self.written_bytes += self.buffer.len() as u64,
            Err(_) => self.dropped += 1,
        }
        self.buffer.clear();
    }

    /// How many writes or rotations failed.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.limits.files).rev() {
            let from = if number == 1 { CURRENT.to_owned() } else { format!("{CURRENT}.{}", number - 1) };
            match fs::rename(self.directory.join(from), self.directory.join(format!("{CURRENT}.{number}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.limits.files <= 1 {
            fs::remove_file(self.directory.join(CURRENT))?;
        }
        self.file = open_current(&self.directory)?;
        self.written_bytes = 0;
        Ok(())
    }
}

fn open_current(directory: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(directory.join(CURRENT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(pieces: &[Vec<u8>]) -> Vec<Record> {
        let mut framer = Framer::new(Stream::Stdout);
        let mut records = Vec::new();
        let time = Timestamp::from_unix_seconds(1);
        for piece in pieces {
            framer.feed(piece, time, |record| records.push(record));
        }
        records.extend(framer.finish(time));
        records
    }

    fn unframe(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend_from_slice(&record.payload);
            if record.end == LineEnd::Full {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn framing_keeps_every_byte_wherever_the_reads_were_cut(pieces in prop::collection::vec(
            prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200), 0..20)) {
            let records = frame(&pieces);
            prop_assert_eq!(unframe(&records), pieces.concat());
            for record in &records {
                let mut line = Vec::new();
                record.encode(&mut line);
                line.pop();
                let read = Record::decode(&line);
                prop_assert_eq!(read.as_ref(), Some(record));
            }
        }
    }

    #[test]
    fn a_line_without_end_becomes_partial_records_of_bounded_size() {
        let records = frame(&[vec![b'x'; 40 << 10]]);
        assert_eq!(records.iter().map(|record| record.payload.len()).max(), Some(CHUNK_LIMIT_BYTES));
        assert!(records.iter().all(|record| record.end == LineEnd::Partial));
    }

    #[test]
    fn a_task_cannot_forge_a_record() {
        let forged = b"2026-01-01T00:00:00.000000000Z stderr F not mine\n".to_vec();
        let records = frame(&[forged]);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].stream, Stream::Stdout);
    }

    #[test]
    fn files_rotate_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_bytes: 200, files: 3 };
        let mut writer = LogWriter::open(dir.path(), limits).unwrap();
        for _ in 0..50 {
            for record in frame(&[b"some line of text\n".to_vec()]) {
                writer.push(&record);
                writer.flush();
            }
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        assert_eq!(writer.dropped(), 0);
    }
}
