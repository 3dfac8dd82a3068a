//! Calls that some 32-bit ABIs reach through one door: `socketcall(2)` and `ipc(2)`.
//!
//! A rule that names `socket` must also hold for `socketcall(SYS_SOCKET, …)`, or a 32-bit program walks around it. What can
//! *not* hold there is a condition on the call's own arguments: they lie in memory, out of a filter's sight. As in
//! libseccomp, the operation number replaces the condition on the first argument.

/// The call that multiplexes `name`, and the operation number to look for in its first argument.
#[must_use]
pub(super) fn door(name: &str) -> Option<(&'static str, u64)> {
    let within =
        |table: &[(&str, u64)]| table.iter().find(|(call, _)| *call == name).map(|(_, operation)| *operation);
    within(SOCKETCALL)
        .map(|operation| ("socketcall", operation))
        .or_else(|| within(IPC).map(|operation| ("ipc", operation)))
}

/// Operation numbers of linux/net.h.
const SOCKETCALL: &[(&str, u64)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// Operation numbers of linux/ipc.h.
const IPC: &[(&str, u64)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];
