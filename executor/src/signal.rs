//! Signals by name and number, as people and images write them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Highest signal number on Linux.
const LAST: i32 = 64;

/// First real-time signal that programs may use: the C library keeps 32 and 33.
const RTMIN: i32 = 34;

/// A signal number from 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct Signal(i32);

/// The text names no signal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no signal: a name such as TERM or SIGTERM, RTMIN+3, or a number from 1 to {LAST}")]
pub struct InvalidSignal(String);

const NAMES: [(&str, i32); 32] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("POLL", 29),
];

impl Signal {
    /// SIGINT.
    pub const INT: Signal = Signal(2);
    /// SIGKILL, which nothing can refuse.
    pub const KILL: Signal = Signal(9);
    /// SIGTERM, the polite one.
    pub const TERM: Signal = Signal(15);

    /// Reads `TERM`, `sigterm`, `15`, `RTMIN+3`, `SIGRTMAX-1`.
    pub fn parse(text: &str) -> Result<Signal, InvalidSignal> {
        let upper = text.trim().to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = name.parse().ok().or_else(|| by_name(name)).or_else(|| real_time(name));
        number
            .filter(|number| (1..=LAST).contains(number))
            .map(Signal)
            .ok_or_else(|| InvalidSignal(text.chars().take(64).collect()))
    }

    /// The number.
    pub fn number(self) -> i32 {
        self.0
    }
}

fn by_name(name: &str) -> Option<i32> {
    NAMES.iter().find(|(other, _)| *other == name).map(|(_, number)| *number)
}

fn real_time(name: &str) -> Option<i32> {
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, '+').map(|offset| RTMIN + offset);
    }
    offset(name.strip_prefix("RTMAX")?, '-').map(|offset| LAST - offset)
}

fn offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    text.strip_prefix(sign)?.parse().ok().filter(|offset| (0..=LAST - RTMIN).contains(offset))
}

impl TryFrom<i32> for Signal {
    type Error = InvalidSignal;
    fn try_from(number: i32) -> Result<Signal, InvalidSignal> {
        Signal::parse(&number.to_string())
    }
}

impl From<Signal> for i32 {
    fn from(signal: Signal) -> i32 {
        signal.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(out, "SIG{name}"),
            None => write!(out, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for (text, number) in [
            ("TERM", 15),
            ("sigterm", 15),
            ("15", 15),
            ("RTMIN+3", 37),
            ("SIGRTMIN", 34),
            ("RTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(Signal::parse(text).map(Signal::number), Ok(number), "{text}");
        }
        assert_eq!(Signal::KILL.to_string(), "SIGKILL");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "0", "65", "-1", "NOPE", "RTMIN-1", "RTMAX+1", "RTMIN+99", "SIG"] {
            assert!(Signal::parse(text).is_err(), "{text:?}");
        }
    }
}
