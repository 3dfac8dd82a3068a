//! Learning that the kernel ended a process for want of memory.
//!
//! Version 2 announces every change of `memory.events`; version 1 signals an eventfd that was tied to `memory.oom_control`.
//! Neither tells more than "look now", and neither loses the count: that is read from the cgroup itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::place::read_all;
use super::{Cgroup, Error};

/// A descriptor to wait on and the count behind it.
#[derive(Debug)]
pub struct OomWatch {
    counter: OwnedFd,
    /// Version 1 only.
    signal: Option<OwnedFd>,
    path: std::path::PathBuf,
}

impl Cgroup {
    /// Begins to watch for processes ended by the out-of-memory killer.
    ///
    /// # Errors
    /// [`Error::NoController`] where nothing counts memory.
    pub fn watch_oom(&self) -> Result<OomWatch, Error> {
        if let Some(place) = self.place("memory") {
            let failed = |operation| move |errno| place.failed(operation, "memory.oom_control", errno);
            let counter = place.open("memory.oom_control", OFlags::RDONLY).map_err(failed("open"))?;
            let signal =
                eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed("eventfd"))?;
            let order = format!("{} {}", signal.as_raw_fd(), counter.as_raw_fd());
            place.write("cgroup.event_control", &order).map_err(failed("cgroup.event_control"))?;
            return Ok(OomWatch {
                counter,
                signal: Some(signal),
                path: place.path.join("memory.oom_control"),
            });
        }
        let missing = || Error::NoController { controller: "memory".into(), file: "memory.events".into() };
        let place = self.place("").ok_or_else(missing)?;
        match place.open("memory.events", OFlags::RDONLY) {
            Ok(counter) => Ok(OomWatch { counter, signal: None, path: place.path.join("memory.events") }),
            Err(Errno::NOENT) => Err(missing()),
            Err(errno) => Err(place.failed("open", "memory.events", errno)),
        }
    }
}

impl OomWatch {
    /// What to wait for on [`OomWatch::descriptor`].
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        if self.signal.is_some() { PollFlags::IN } else { PollFlags::PRI }
    }

    /// Becomes ready when something may have happened; also when the cgroup is removed.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.signal.as_ref().unwrap_or(&self.counter).as_fd()
    }

    /// How many processes were ended so far; makes the descriptor wait for the next. `None` when the cgroup is gone.
    ///
    /// # Errors
    /// Where the count cannot be read.
    pub fn kills(&self) -> Result<Option<u64>, Error> {
        if let Some(signal) = &self.signal {
            // Emptied first: an event between the two reads is then announced once more and not lost.
            match rustix::io::read(signal, &mut [0_u8; 8]) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(Error::call("read", &self.path, errno)),
            }
        }
        match read_all(self.counter.as_fd()) {
            Ok(text) => Ok(Some(count(&text))),
            Err(Errno::NODEV | Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::call("read", &self.path, errno)),
        }
    }
}

fn count(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_both_files() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(count("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(count(""), 0);
    }
}
