//! Calls that some 32-bit ABIs reach through one door: `socketcall(2)` and `ipc(2)`.
//!
//! A rule that names `socket` must also hold for `socketcall(SYS_SOCKET, …)`, or a 32-bit program walks around it. What can
//! *not* hold there is a condition on the call's own arguments: they lie in memory, out of a filter's sight. As in
//! libseccomp, the operation number replaces the condition on the first argument.

use super::syscalls::Numbers;

/// A call that others are reached through, and the operation number to look for in its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Door {
    call: Through,
    operation: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    Socketcall,
    Ipc,
}

impl Door {
    /// The numbers of the call that others are reached through.
    #[must_use]
    pub(super) fn numbers(self) -> Option<Numbers> {
        Numbers::of(match self.call {
            Through::Socketcall => "socketcall",
            Through::Ipc => "ipc",
        })
    }

    #[must_use]
    pub(super) fn operation(self) -> u64 {
        self.operation.into()
    }
}

/// The door to the call `name`. For the compiler, which notes it beside every name.
#[must_use]
pub(super) const fn door(name: &str) -> Option<Door> {
    let mut place = 0;
    while place < DOORS.len() {
        let (other, call, operation) = DOORS[place];
        if is_same(name.as_bytes(), other.as_bytes()) {
            return Some(Door { call, operation });
        }
        place += 1;
    }
    None
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// Operation numbers of linux/net.h and linux/ipc.h, sorted by call.
const DOORS: &[(&str, Through, u8)] = &[
    ("accept", Through::Socketcall, 5),
    ("accept4", Through::Socketcall, 18),
    ("bind", Through::Socketcall, 2),
    ("connect", Through::Socketcall, 3),
    ("getpeername", Through::Socketcall, 7),
    ("getsockname", Through::Socketcall, 6),
    ("getsockopt", Through::Socketcall, 15),
    ("listen", Through::Socketcall, 4),
    ("msgctl", Through::Ipc, 14),
    ("msgget", Through::Ipc, 13),
    ("msgrcv", Through::Ipc, 12),
    ("msgsnd", Through::Ipc, 11),
    ("recv", Through::Socketcall, 10),
    ("recvfrom", Through::Socketcall, 12),
    ("recvmmsg", Through::Socketcall, 19),
    ("recvmsg", Through::Socketcall, 17),
    ("semctl", Through::Ipc, 3),
    ("semget", Through::Ipc, 2),
    ("semop", Through::Ipc, 1),
    ("semtimedop", Through::Ipc, 4),
    ("send", Through::Socketcall, 9),
    ("sendmmsg", Through::Socketcall, 20),
    ("sendmsg", Through::Socketcall, 16),
    ("sendto", Through::Socketcall, 11),
    ("setsockopt", Through::Socketcall, 14),
    ("shmat", Through::Ipc, 21),
    ("shmctl", Through::Ipc, 24),
    ("shmdt", Through::Ipc, 22),
    ("shmget", Through::Ipc, 23),
    ("shutdown", Through::Socketcall, 13),
    ("socket", Through::Socketcall, 1),
    ("socketpair", Through::Socketcall, 8),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(DOORS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(door("socket"), Some(Door { call: Through::Socketcall, operation: 1 }));
        assert_eq!(door("shmctl"), Some(Door { call: Through::Ipc, operation: 24 }));
        assert_eq!(door("read"), None);
    }
}
