//! fork(2), for the one process that needs it: a shim on its way to independence.

use std::io;

/// Forks this process; `Some(pid)` in the parent, `None` in the child.
///
/// Refuses with `InvalidInput` if there is more than one thread: the child would have only the calling one, with
/// every lock of the others taken for ever.
pub fn fork_single_threaded() -> io::Result<Option<i32>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("fork with {threads} threads")));
    }
    // SAFETY: fork takes no pointers. The dangers of a forked child are those of the threads that it lacks, and
    // there are none: we are the only thread, so nobody can start another between the count and the call.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}
