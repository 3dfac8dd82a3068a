//! Calls that some 32-bit ABIs reach through one door: `socketcall(2)` and `ipc(2)`.
//!
//! A rule that names `socket` must also hold for `socketcall(SYS_SOCKET, …)`, or a 32-bit program walks around it. What can
//! *not* hold there is a condition on the call's own arguments: they lie in memory, out of a filter's sight. As in
//! libseccomp, the operation number replaces the condition on the first argument.

/// A call that others are reached through, and the operation number to look for in its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Door {
    pub(super) call: &'static str,
    pub(super) operation: u64,
}

/// The door to the call `name`.
#[must_use]
pub(super) fn door(name: &str) -> Option<Door> {
    let place = DOORS.binary_search_by(|(call, _, _)| (*call).cmp(name)).ok()?;
    let (_, call, operation) = DOORS[place];
    Some(Door { call, operation })
}

const SOCKETCALL: &str = "socketcall";
const IPC: &str = "ipc";

/// Operation numbers of linux/net.h and linux/ipc.h, sorted by call.
const DOORS: &[(&str, &str, u64)] = &[
    ("accept", SOCKETCALL, 5),
    ("accept4", SOCKETCALL, 18),
    ("bind", SOCKETCALL, 2),
    ("connect", SOCKETCALL, 3),
    ("getpeername", SOCKETCALL, 7),
    ("getsockname", SOCKETCALL, 6),
    ("getsockopt", SOCKETCALL, 15),
    ("listen", SOCKETCALL, 4),
    ("msgctl", IPC, 14),
    ("msgget", IPC, 13),
    ("msgrcv", IPC, 12),
    ("msgsnd", IPC, 11),
    ("recv", SOCKETCALL, 10),
    ("recvfrom", SOCKETCALL, 12),
    ("recvmmsg", SOCKETCALL, 19),
    ("recvmsg", SOCKETCALL, 17),
    ("semctl", IPC, 3),
    ("semget", IPC, 2),
    ("semop", IPC, 1),
    ("semtimedop", IPC, 4),
    ("send", SOCKETCALL, 9),
    ("sendmmsg", SOCKETCALL, 20),
    ("sendmsg", SOCKETCALL, 16),
    ("sendto", SOCKETCALL, 11),
    ("setsockopt", SOCKETCALL, 14),
    ("shmat", IPC, 21),
    ("shmctl", IPC, 24),
    ("shmdt", IPC, 22),
    ("shmget", IPC, 23),
    ("shutdown", SOCKETCALL, 13),
    ("socket", SOCKETCALL, 1),
    ("socketpair", SOCKETCALL, 8),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(DOORS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(door("socket"), Some(Door { call: "socketcall", operation: 1 }));
        assert_eq!(door("shmctl"), Some(Door { call: "ipc", operation: 24 }));
        assert_eq!(door("read"), None);
    }
}
