//! How long an operation waits, and for what: nothing here waits without an end (ARCHITECTURE.md, invariant 12).
//!
//! The defaults are generous: under software emulation everything takes ten to twenty times as long, and whoever runs
//! into one of them has something that hangs, not something slow.

use std::time::Duration;

/// The waits of a runtime. A hook's own limit is its `timeout`, see [`crate::hooks::HOOK_TIMEOUT_S`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the next word of a process on its way to its program, and in `start` for that program: it mounts, which takes
    /// milliseconds unless a file system behind it is dead.
    pub child: Duration,
    /// For the lock of a container that another operation holds. Longer than any of that one's own waits between two
    /// words of its process, so that whoever hangs gives up before those who wait for it.
    pub lock: Duration,
    /// As `lock`, for `delete --force`, which then goes on without it; waited for twice, before and after the container's
    /// processes are ended.
    pub forced_lock: Duration,
    /// For whoever serves the console socket.
    pub console: Duration,
    /// For processes to be gone that were killed. What does not die within it hangs in the kernel.
    pub end: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            child: seconds(60),
            lock: seconds(90),
            forced_lock: seconds(10),
            console: seconds(30),
            end: seconds(10),
        }
    }
}
