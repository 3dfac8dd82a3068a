//! Stopping, killing and removing what is in a cgroup. Every wait has a deadline.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::place::{Place, read_all};
use super::{Cgroup, Error, Layout, sites};

/// Until all processes stand still. A process in uninterruptible sleep can make it longer; then nothing stays frozen.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Until killed processes are gone. What does not die within it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Until an emptied cgroup can be removed: the kernel lets go of it some time after its last process.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// Version 1 tells nobody when a state is reached, so it is asked, first soon and then less often.
const PAUSE_FIRST: Duration = Duration::from_micros(200);
const PAUSE_LONGEST: Duration = Duration::from_millis(20);

impl Cgroup {
    /// Stops every process and waits until all stand still. On failure everything runs again.
    ///
    /// # Errors
    /// [`Error::NoController`] where neither version can freeze, [`Error::Timeout`].
    pub fn freeze(&self) -> Result<(), Error> {
        let place = self.freezer()?;
        let result = if place.unified { freeze_v2(place) } else { freeze_v1(place) };
        if result.is_err() {
            let _ = self.thaw();
        }
        result
    }

    /// Lets every process run again.
    ///
    /// # Errors
    /// [`Error::NoController`] where neither version can freeze, or the kernel's answer.
    pub fn thaw(&self) -> Result<(), Error> {
        let place = self.freezer()?;
        let (file, value) = if place.unified { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
        place.write(file, value).map_err(|errno| place.failed("write", file, errno))
    }

    /// Whether the cgroup is frozen or about to be.
    ///
    /// # Errors
    /// As [`Cgroup::thaw`].
    pub fn is_frozen(&self) -> Result<bool, Error> {
        let place = self.freezer()?;
        let file = if place.unified { "cgroup.freeze" } else { "freezer.state" };
        let state = place.read(file).map_err(|errno| place.failed("read", file, errno))?;
        Ok(!matches!(state.trim(), "0" | "THAWED"))
    }

    /// Kills every process in the cgroup and below it, and waits until none is left. Frozen ones too.
    ///
    /// # Errors
    /// [`Error::Timeout`] where some do not die.
    pub fn kill(&self) -> Result<(), Error> {
        let deadline = Instant::now() + KILL_LIMIT;
        let mut pause = PAUSE_FIRST;
        loop {
            let processes = self.strike()?;
            if processes == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.timeout("kill", KILL_LIMIT));
            }
            std::thread::sleep(pause);
            pause = PAUSE_LONGEST.min(pause * 2);
        }
    }

    /// One blow at all that lives; gives how many were there.
    fn strike(&self) -> Result<usize, Error> {
        for place in self.places.iter().filter(|place| place.unified) {
            // Takes forks in flight with it (Linux 5.14); where the file is missing, the signals below do.
            let _ = place.write("cgroup.kill", "1");
        }
        if self.processes()?.is_empty() {
            return Ok(0);
        }
        let freezer = self.place("freezer").filter(|place| place.exists());
        if let Some(place) = freezer {
            // A program that forks faster than we read the list must stand still for it.
            let _ = place.write("freezer.state", "FROZEN");
        }
        let mut count = 0;
        for place in self.present() {
            let processes = place.processes().map_err(|errno| place.failed("read", "cgroup.procs", errno))?;
            count = count.max(processes.len());
            processes.into_iter().for_each(end);
        }
        if let Some(place) = freezer {
            // A version 1 freezer keeps even the killed: they die when it lets go.
            place
                .write("freezer.state", "THAWED")
                .map_err(|errno| place.failed("write", "freezer.state", errno))?;
        }
        Ok(count)
    }

    /// Removes the cgroup from every hierarchy, with everything below it. It must hold no process; what is gone already is
    /// well. Every hierarchy is tried, and each failure told.
    ///
    /// # Errors
    /// `EBUSY` where processes are in it after two seconds.
    pub fn remove(&self) -> Result<(), Error> {
        let deadline = Instant::now() + REMOVE_LIMIT;
        let failures = self.places.iter().filter_map(|place| {
            let mut pause = PAUSE_FIRST;
            loop {
                match place.remove() {
                    Ok(()) => return None,
                    Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < deadline => {
                        std::thread::sleep(pause);
                        pause = PAUSE_LONGEST.min(pause * 2);
                    }
                    Err(errno) => return Some(place.failed("rmdir", "", errno)),
                }
            }
        });
        Error::all(failures.collect())
    }

    /// Removes the cgroup at `path` from every hierarchy in which nobody is in it and nothing lies below it, and gives whether
    /// nothing of it is left: a stopped container's, most often. Nothing is opened but what lies above.
    ///
    /// # Errors
    /// Where a hierarchy cannot be reached; what was removed until then stays removed.
    pub fn remove_idle_in(layout: &Layout, path: &str) -> Result<bool, Error> {
        let mut gone = true;
        for site in sites(layout, path)? {
            gone &= site.remove_idle()?;
        }
        Ok(gone)
    }

    fn freezer(&self) -> Result<&Place, Error> {
        self.place("freezer").or_else(|| self.place("")).ok_or_else(|| Error::NoController {
            controller: "freezer".to_owned(),
            file: "freezer.state".to_owned(),
        })
    }

    fn timeout(&self, operation: &'static str, limit: Duration) -> Error {
        let path = self.places.first().map(|place| place.path.clone()).unwrap_or_default();
        Error::Timeout { operation, path, limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
    }
}

fn freeze_v1(place: &Place) -> Result<(), Error> {
    let deadline = Instant::now() + FREEZE_LIMIT;
    let mut pause = PAUSE_FIRST;
    loop {
        // Written again each time: a process forked in between is caught by the next write only.
        place
            .write("freezer.state", "FROZEN")
            .map_err(|errno| place.failed("write", "freezer.state", errno))?;
        let state =
            place.read("freezer.state").map_err(|errno| place.failed("read", "freezer.state", errno))?;
        if state.trim() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(late("freeze", place));
        }
        std::thread::sleep(pause);
        pause = PAUSE_LONGEST.min(pause * 2);
    }
}

fn freeze_v2(place: &Place) -> Result<(), Error> {
    let events = place
        .open("cgroup.events", OFlags::RDONLY)
        .map_err(|errno| place.failed("open", "cgroup.events", errno))?;
    place.write("cgroup.freeze", "1").map_err(|errno| place.failed("write", "cgroup.freeze", errno))?;
    let deadline = Instant::now() + FREEZE_LIMIT;
    loop {
        let text = read_all(events.as_fd()).map_err(|errno| place.failed("read", "cgroup.events", errno))?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Err(late("freeze", place));
        };
        wait_changed(&events, left).map_err(|errno| place.failed("poll", "cgroup.events", errno))?;
    }
}

fn late(operation: &'static str, place: &Place) -> Error {
    let limit_ms = u64::try_from(FREEZE_LIMIT.as_millis()).unwrap_or(u64::MAX);
    Error::Timeout { operation, path: place.path.clone(), limit_ms }
}

/// Waits until the kernel announces a change of an events file, or the time is up.
fn wait_changed(events: &OwnedFd, limit: Duration) -> Result<(), Errno> {
    let timeout = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    match poll(&mut [PollFd::new(events, PollFlags::PRI)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// SIGKILL through a descriptor: the number may belong to somebody else by the time it is used.
fn end(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}
