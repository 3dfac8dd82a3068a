//! Resource limits of processes: `--ulimit NAME=SOFT[:HARD]`.

use serde::{Deserialize, Serialize};

use super::Refusal;

/// The value that means no limit.
pub const UNLIMITED: u64 = u64::MAX;

/// The limits that exist on Linux, as `--ulimit` names them.
pub const NAMES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// One of [`NAMES`].
    pub name: String,
    /// What the process gets.
    pub soft: u64,
    /// What it may raise it to.
    pub hard: u64,
}

impl Ulimit {
    /// Reads `nofile=1024:2048`, `core=0`, `memlock=unlimited`.
    pub fn parse(text: &str) -> Result<Ulimit, Refusal> {
        let refuse = |problem: &str| Refusal::new("ulimit", text, problem);
        let (name, values) = text.split_once('=').ok_or_else(|| refuse("expected NAME=SOFT[:HARD]"))?;
        if !NAMES.contains(&name) {
            return Err(refuse("there is no limit of this name"));
        }
        let value = |text: &str| match text {
            "unlimited" | "-1" => Ok(UNLIMITED),
            _ => text.parse().map_err(|_| refuse("a limit is a number or \"unlimited\"")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (value(soft)?, value(hard)?);
        if soft > hard {
            return Err(refuse("the soft limit is above the hard one"));
        }
        Ok(Ulimit { name: name.to_owned(), soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let limit = Ulimit::parse("nofile=1024:2048").unwrap();
        assert_eq!((limit.soft, limit.hard), (1024, 2048));
        assert_eq!(Ulimit::parse("memlock=unlimited").unwrap().hard, UNLIMITED);
        for text in ["", "nofile", "nofile=", "files=1", "nofile=2:1", "nofile=a"] {
            assert!(Ulimit::parse(text).is_err(), "{text:?}");
        }
    }
}
