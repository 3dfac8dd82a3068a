//! Waiting for a directory to change.

use std::io;
use std::path::Path;

use rustix::fs::inotify;
use tokio::net::unix::pipe;

/// A directory whose changes wake us. Needs a tokio runtime with I/O.
#[derive(Debug)]
pub(crate) struct Watch {
    /// An inotify descriptor. tokio has no type for one that is sound to make without unsafe code; all that is asked of a
    /// pipe's reading end, readiness and read(2), is what inotify gives too.
    notices: pipe::Receiver,
}

impl Watch {
    /// Watches files that are written, made and put aside in `directory`.
    pub(crate) fn open(directory: &Path) -> io::Result<Watch> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let wanted =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_FROM;
        inotify::add_watch(&fd, directory, wanted)?;
        Ok(Watch { notices: pipe::Receiver::from_owned_fd_unchecked(fd)? })
    }

    /// Waits for a change since the last call. What changed must be looked up; cancelling loses nothing.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        self.notices.readable().await?;
        let mut buffer = [0u8; 4096];
        while self.notices.try_read(&mut buffer).is_ok_and(|length| length > 0) {}
        Ok(())
    }
}
