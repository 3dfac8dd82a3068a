//! `--pidfd-socket`: a descriptor of the process, sent to whoever listens.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use cofferdam_runtime::send_descriptor;

use crate::failed::Failed;

/// A connection to the socket.
pub(crate) struct PidfdSocket(UnixStream);

impl PidfdSocket {
    /// Connects before anything is made: a socket where nobody listens fails the command early.
    pub(crate) fn connect(path: &Path) -> Result<Self, Failed> {
        let stream = UnixStream::connect(path);
        stream.map(Self).map_err(|error| Failed::new(format!("pidfd socket {}: {error}", path.display())))
    }

    /// Sends the descriptor with runc's word for what it is: `standard` for a first process, `setns` for one that joined.
    pub(crate) fn send(self, pidfd: &OwnedFd, word: &str) -> Result<(), Failed> {
        send_descriptor(self.0.as_fd(), word.as_bytes(), pidfd.as_fd())
            .map_err(|errno| Failed::new(format!("sending the pidfd: {errno}")))
    }
}
