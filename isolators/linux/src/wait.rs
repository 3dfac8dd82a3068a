//! Waiting for a descriptor, never longer than was said. poll(2).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until `descriptor` can be read, or its other side is closed, or (a pidfd) its process has ended; `false` when
/// `limit` is over first. Signals do not end the wait. *Child-safe.*
pub fn readable(descriptor: impl AsFd, limit: Duration) -> Result<bool, Errno> {
    first(&mut [PollFd::new(&descriptor, PollFlags::IN)], limit).map(|index| index.is_some())
}

/// As [`readable`], for whichever of two comes first; `Some(0)` where both do.
pub fn either_readable(one: impl AsFd, other: impl AsFd, limit: Duration) -> Result<Option<usize>, Errno> {
    first(&mut [PollFd::new(&one, PollFlags::IN), PollFd::new(&other, PollFlags::IN)], limit)
}

fn first(descriptors: &mut [PollFd<'_>], limit: Duration) -> Result<Option<usize>, Errno> {
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(descriptors, timeout.as_ref()) {
            Ok(_) => return Ok(descriptors.iter().position(|descriptor| !descriptor.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_pipe_is_waited_for_as_long_as_was_said_and_a_closed_one_not_at_all() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let begin = Instant::now();
        assert_eq!(readable(&reader, Duration::from_millis(50)), Ok(false));
        assert!(begin.elapsed() >= Duration::from_millis(50));
        drop(writer);
        assert_eq!(readable(&reader, Duration::from_secs(60)), Ok(true));
    }
}
