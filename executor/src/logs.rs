//! Reading a task's log.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_shim::Timestamp;
use cofferdam_shim::log::{CURRENT, LineEnd, Record};

use crate::disk::Disk;
use crate::error::Error;
use crate::id::TaskId;
use crate::watch::Watch;

/// How often a follower looks whether the task is over: its log gives no sign of that.
const OVER_CHECK: Duration = Duration::from_millis(200);

/// Which part of a log is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogRequest {
    /// Only the last so many lines of what is there.
    pub tail: Option<usize>,
    /// Only what is from then or later.
    pub since: Option<Timestamp>,
    /// Go on until the task is over.
    pub follow: bool,
}

/// A reader of a task's log.
#[derive(Debug)]
pub struct Logs {
    disk: Disk,
    task: TaskId,
    directory: PathBuf,
    since: Option<Timestamp>,
    ready: VecDeque<Record>,
    current: Option<BufReader<File>>,
    rest: Vec<u8>,
    watch: Option<Watch>,
}

impl Logs {
    /// Opens the log of a task. Needs a tokio runtime with I/O and time.
    pub(crate) fn open(disk: &Disk, task: &TaskId, request: LogRequest) -> Result<Logs, Error> {
        let directory = disk.log(task);
        let watch = if request.follow {
            Some(Watch::open(&directory).map_err(Error::io("watch", &directory))?)
        } else {
            None
        };
        let mut logs = Logs {
            disk: disk.clone(),
            task: task.clone(),
            directory,
            since: request.since,
            ready: VecDeque::new(),
            current: None,
            rest: Vec::new(),
            watch,
        };
        logs.read_history(request.tail).map_err(Error::io("read", &logs.directory))?;
        Ok(logs)
    }

    /// The next record; `None` at the end: of what there is, or of the task if it is followed. Cancelling loses nothing.
    pub async fn next(&mut self) -> Result<Option<Record>, Error> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Ok(Some(record));
            }
            if self.watch.is_none() {
                return Ok(None);
            }
            // Asked before reading: what was written before the end is then read after it.
            let over = self.is_over();
            self.read_more(None).map_err(Error::io("read", &self.directory))?;
            if self.ready.is_empty() && over {
                return Ok(None);
            }
            if self.ready.is_empty() {
                self.wait().await.map_err(Error::io("watch", &self.directory))?;
            }
        }
    }

    async fn wait(&mut self) -> io::Result<()> {
        let Some(watch) = &self.watch else { return Ok(()) };
        // Nothing changed, which is why we look whether the task is over.
        tokio::time::timeout(OVER_CHECK, watch.changed()).await.unwrap_or(Ok(()))
    }

    fn is_over(&self) -> bool {
        // A task that is gone altogether is over too.
        self.disk.load_status(&self.task).map_or(true, |status| status.state.is_final())
    }

    /// Reads the rotated files, oldest first, and the current one.
    fn read_history(&mut self, tail: Option<usize>) -> io::Result<()> {
        let mut old: Vec<u32> = fs::read_dir(&self.directory)?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("log.")?.parse().ok())
            .collect();
        old.sort_unstable_by(|one, other| other.cmp(one));
        for number in old {
            let path = self.directory.join(format!("{CURRENT}.{number}"));
            let mut reader = BufReader::new(File::open(path)?);
            self.take_lines(&mut reader, tail)?;
        }
        self.read_more(tail)
    }

    /// Reads the current file to its end, and goes on in the new one if it was rotated.
    fn read_more(&mut self, tail: Option<usize>) -> io::Result<()> {
        let path = self.directory.join(CURRENT);
        loop {
            let mut reader = match self.current.take() {
                Some(reader) => reader,
                None => match File::open(&path) {
                    Ok(file) => BufReader::new(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(error),
                },
            };
            let ours = reader.get_ref().metadata()?.ino();
            let rotated = fs::metadata(&path).is_ok_and(|meta| meta.ino() != ours);
            self.take_lines(&mut reader, tail)?;
            if !rotated {
                self.current = Some(reader);
                return Ok(());
            }
        }
    }

    fn take_lines(&mut self, reader: &mut BufReader<File>, tail: Option<usize>) -> io::Result<()> {
        loop {
            let length = Read::by_ref(reader).read_until(b'\n', &mut self.rest)?;
            if length == 0 || self.rest.last() != Some(&b'\n') {
                return Ok(());
            }
            self.rest.pop();
            let record = Record::decode(&self.rest);
            self.rest.clear();
            let wanted = |record: &Record| self.since.is_none_or(|since| record.time >= since);
            self.ready.extend(record.filter(wanted));
            if let Some(tail) = tail {
                keep_last_lines(&mut self.ready, tail);
            }
        }
    }
}

/// Drops whole lines from the front until at most `count` are left.
fn keep_last_lines(records: &mut VecDeque<Record>, count: usize) {
    let lines =
        |records: &VecDeque<Record>| records.iter().filter(|record| record.end == LineEnd::Full).count();
    // Usually one record too many: the scan is only made when the queue is long enough to matter.
    if records.len() <= count || lines(records) <= count {
        return;
    }
    while let Some(record) = records.pop_front() {
        if record.end == LineEnd::Full && lines(records) <= count {
            return;
        }
    }
}
