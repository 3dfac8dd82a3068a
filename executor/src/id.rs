//! Names of tasks: the id that we give and the name that a person gives.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name of a task: it also becomes its host name's default and a file name.
pub(crate) const NAME_LIMIT_BYTES: usize = 128;

const ID_BYTES: usize = 16;

/// The text is not an id or a name of a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not 32 hexadecimal digits.
    #[error("{0:?} is no task id (32 hexadecimal digits)")]
    Id(String),
    /// Not a name.
    #[error(
        "{0:?} is no task name: letters, digits, then also '_', '.', '-', at most {NAME_LIMIT_BYTES} bytes"
    )]
    Name(String),
}

/// The id of a task: 32 hexadecimal digits, drawn at random, never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

impl TaskId {
    /// A new id.
    pub fn random() -> std::io::Result<TaskId> {
        let mut bytes = [0u8; ID_BYTES];
        let mut filled = 0;
        while filled < ID_BYTES {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(TaskId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Checks `text` against the grammar.
    pub fn parse(text: &str) -> Result<TaskId, InvalidName> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let fits = text.len() == 2 * ID_BYTES && text.bytes().all(digit);
        if fits { Ok(TaskId(text.to_owned())) } else { Err(InvalidName::Id(text.chars().take(64).collect())) }
    }

    /// All 32 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits: what tables show.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl TryFrom<String> for TaskId {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<TaskId, InvalidName> {
        TaskId::parse(&text)
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> String {
        id.0
    }
}

/// The name of a task, unique among the tasks that exist: `[A-Za-z0-9][A-Za-z0-9_.-]*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskName(String);

impl TaskName {
    /// Checks `text` against the grammar.
    pub fn parse(text: &str) -> Result<TaskName, InvalidName> {
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let fits = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().all(rest)
            && text.len() <= NAME_LIMIT_BYTES;
        if fits {
            Ok(TaskName(text.to_owned()))
        } else {
            Err(InvalidName::Name(text.chars().take(64).collect()))
        }
    }

    /// A name that a person can say, made from the id's random digits.
    pub fn from_id(id: &TaskId) -> TaskName {
        let pick = |at: usize, words: &[&'static str]| {
            words[usize::from(u8::from_str_radix(&id.0[at..at + 2], 16).unwrap_or_default()) % words.len()]
        };
        TaskName(format!("{}-{}-{}", pick(0, &QUALITIES), pick(2, &THINGS), &id.0[4..8]))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const QUALITIES: [&str; 16] = [
    "brisk", "calm", "deep", "dry", "even", "fair", "firm", "grey", "high", "keen", "level", "quiet",
    "solid", "still", "tight", "wide",
];

const THINGS: [&str; 16] = [
    "anchor", "basin", "beam", "buoy", "caisson", "dock", "dyke", "harbour", "hull", "keel", "lock",
    "mooring", "pier", "pile", "sluice", "weir",
];

impl fmt::Display for TaskName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl TryFrom<String> for TaskName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<TaskName, InvalidName> {
        TaskName::parse(&text)
    }
}

impl From<TaskName> for String {
    fn from(name: TaskName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_and_parse_back() {
        let (one, two) = (TaskId::random().unwrap(), TaskId::random().unwrap());
        assert_ne!(one, two);
        assert_eq!(TaskId::parse(one.as_str()), Ok(one.clone()));
        assert!(TaskName::parse(TaskName::from_id(&one).as_str()).is_ok());
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", ".", "..", "a/b", "-rf", "a b", "a\n", "é", "a\0", &"x".repeat(129)] {
            assert!(TaskName::parse(bad).is_err(), "{bad:?}");
            assert!(TaskId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(TaskName::parse("web-1.a_b").is_ok());
    }
}
