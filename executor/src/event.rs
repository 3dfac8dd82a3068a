//! Every status of every task, in one log: what `cofferdam events` prints and the library's stream carries.
//!
//! One JSON object a line, appended in one write, so that writers in several processes do not mix and a reader sees whole
//! lines in one order for everybody. Past [`LOG_LIMIT_BYTES`] the file becomes `events.1` and a new one begins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_shim::{Exit, Timestamp};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::disk::TaskRecord;
use crate::error::Error;
use crate::id::{TaskId, TaskName};
use crate::spec::Source;
use crate::status::{Limitation, Reason, Status, TaskState};
use crate::watch::Watch;

/// Size at which the log is put aside: some 30,000 events.
pub(crate) const LOG_LIMIT_BYTES: u64 = 16 << 20;

/// A task entered a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEvent {
    /// When.
    pub time: Timestamp,
    /// Which task.
    pub task: TaskId,
    /// Its name.
    pub name: TaskName,
    /// The image it runs, as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<String>,
    /// The state it entered.
    pub state: TaskState,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Reason>,
    /// The same in a sentence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// How its first process ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit: Option<Exit>,
    /// The limit that ended it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limitation: Option<Limitation>,
    /// Its first process.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
}

impl TaskEvent {
    /// The event that a status is.
    pub fn of(record: &TaskRecord, status: &Status) -> TaskEvent {
        let image = if let Source::Image(image) = &record.spec.source { Some(image.clone()) } else { None };
        TaskEvent {
            time: status.since,
            task: record.id.clone(),
            name: record.name.clone(),
            image,
            state: status.state,
            reason: status.reason,
            message: status.message.clone(),
            exit: status.exit,
            limitation: status.limitation,
            pid: status.pid,
            restarts: status.restarts,
        }
    }
}

/// Appends an event.
pub(crate) fn append(path: &Path, event: &TaskEvent) -> Result<(), Error> {
    let failed = |source| Error::Io { operation: "append to", path: path.to_owned(), source };
    let mut line = serde_json::to_vec(event).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(&line).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > LOG_LIMIT_BYTES {
        put_aside(path, &file).map_err(failed)?;
    }
    Ok(())
}

/// Renames the full log. The lock on the file itself and the look at its name let one of several writers do it.
fn put_aside(path: &Path, file: &File) -> io::Result<()> {
    if flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    if fs::metadata(path)?.ino() == file.metadata()?.ino() {
        fs::rename(path, aside(path))?;
    }
    Ok(())
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The last event of a task in the log, as long as the log reaches back to it.
pub(crate) fn last_of(path: &Path, task: &TaskId) -> Option<TaskEvent> {
    let read = |path: &Path| fs::read(path).unwrap_or_default();
    let bytes = [read(&aside(path)), read(path)].concat();
    let is_its = |event: &TaskEvent| event.task == *task;
    bytes.rsplit(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).find(is_its)
}

/// Reads events, those that were and then those that come.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
    ready: std::collections::VecDeque<TaskEvent>,
    watch: Watch,
}

impl Events {
    /// A reader of the log at `path` from `since` on; `None` begins with what happens next. Must be called within a
    /// tokio runtime with I/O.
    pub fn open(path: &Path, since: Option<Timestamp>) -> Result<Events, Error> {
        let failed = |source: io::Error| Error::Io { operation: "watch", path: path.to_owned(), source };
        // There must be a file to watch. An empty one is a log without events.
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let watch = Watch::open(directory).map_err(failed)?;
        let mut events =
            Events { path: path.to_owned(), file: None, rest: Vec::new(), ready: Default::default(), watch };
        match since {
            Some(since) => events.load_since(since).map_err(failed)?,
            None => events.skip_to_end().map_err(failed)?,
        }
        Ok(events)
    }

    /// The next event; waits for one. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Result<TaskEvent, Error> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            self.watch.changed().await.map_err(Error::io("watch", &self.path))?;
        }
    }

    /// The next event that has happened, if there is one.
    pub fn try_next(&mut self) -> Result<Option<TaskEvent>, Error> {
        if self.ready.is_empty() {
            self.read_more().map_err(Error::io("read", &self.path))?;
        }
        Ok(self.ready.pop_front())
    }

    fn load_since(&mut self, since: Timestamp) -> io::Result<()> {
        if let Ok(old) = fs::read(aside(&self.path)) {
            self.take_lines(&old);
            self.rest.clear();
        }
        self.read_more()?;
        self.ready.retain(|event| event.time >= since);
        Ok(())
    }

    fn skip_to_end(&mut self) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        self.file = Some(file);
        Ok(())
    }

    /// Reads to the end of the file, and goes on in the new one if it was put aside.
    fn read_more(&mut self) -> io::Result<()> {
        loop {
            let file = match &mut self.file {
                Some(file) => file,
                None => match File::open(&self.path) {
                    Ok(file) => self.file.insert(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(error),
                },
            };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let ours = file.metadata()?.ino();
            self.take_lines(&bytes);
            match fs::metadata(&self.path) {
                Ok(meta) if meta.ino() == ours => return Ok(()),
                _ if bytes.is_empty() => self.file = None,
                // Put aside, and we just read something: look once more before leaving it.
                _ => {}
            }
            if self.file.is_none() && !self.path.exists() {
                return Ok(());
            }
        }
    }

    fn take_lines(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            // A line that is none of ours (a newer version's, a torn one) is passed over: the others still count.
            self.ready.extend(serde_json::from_slice(&line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u32) -> TaskEvent {
        let task = TaskId::random().unwrap();
        TaskEvent {
            time: Timestamp::from_unix_seconds(i64::from(number)),
            name: TaskName::from_id(&task),
            task,
            image: None,
            state: TaskState::Running,
            reason: None,
            message: None,
            exit: None,
            limitation: None,
            pid: Some(1),
            restarts: number,
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_was_and_what_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        for number in 0..3 {
            append(&path, &event(number)).unwrap();
        }
        let mut all = Events::open(&path, Some(Timestamp::from_unix_seconds(1))).unwrap();
        let mut live = Events::open(&path, None).unwrap();
        append(&path, &event(3)).unwrap();
        for number in 1..4 {
            assert_eq!(all.next().await.unwrap().restarts, number);
        }
        assert_eq!(live.next().await.unwrap().restarts, 3);
        assert!(live.try_next().unwrap().is_none());
    }

    #[tokio::test]
    async fn a_log_that_is_put_aside_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        append(&path, &event(0)).unwrap();
        let mut live = Events::open(&path, None).unwrap();
        append(&path, &event(1)).unwrap();
        fs::rename(&path, aside(&path)).unwrap();
        append(&path, &event(2)).unwrap();
        assert_eq!(live.next().await.unwrap().restarts, 1);
        assert_eq!(live.next().await.unwrap().restarts, 2);
        let mut all = Events::open(&path, Some(Timestamp::from_unix_seconds(0))).unwrap();
        for number in 0..3 {
            assert_eq!(all.next().await.unwrap().restarts, number);
        }
    }
}
