//! Ids of the host for tasks with a user namespace: ranges of /etc/subuid and /etc/subgid, each task's its own.
//!
//! A range is in the task's record before anything is made with it, and free again when the record is removed, which is
//! after the last process and the last file of the task. Whoever chooses one holds the lock of [`Disk::lock_ids`] until it
//! is written down, so that two launches never choose the same.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::error::Error;
use crate::request::Refusal;
use crate::request::userns::{IdRange, UserNamespaceChoice, check_map};

/// Whose ranges are given out, the first that has any: the name that other engines use for the same, and root.
const OWNERS: [&str; 3] = ["containers", "root", "0"];

/// What the ids of a task are on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
}

impl IdMaps {
    /// A user and a group of the task, as the host knows them; `None` if one of them is not mapped.
    pub fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let find = |ranges: &[IdRange], id| ranges.iter().find_map(|range| range.outside(id));
        find(&self.uids, uid).zip(find(&self.gids, gid))
    }

    /// Whether a group exists in the task.
    pub fn has_group(&self, gid: u32) -> bool {
        self.gids.iter().any(|range| range.outside(gid).is_some())
    }

    /// The highest group that exists in the task.
    pub fn highest_group(&self) -> u32 {
        self.gids.iter().map(|range| range.inside + (range.count - 1)).max().unwrap_or(0)
    }
}

/// The maps of a new task; `None` if it has the host's ids. For [`UserNamespaceChoice::Auto`] the caller holds the lock.
pub(crate) fn choose(disk: &Disk, choice: &UserNamespaceChoice) -> Result<Option<IdMaps>, Error> {
    let count = match choice {
        UserNamespaceChoice::Host => return Ok(None),
        UserNamespaceChoice::Maps { uids, gids } => {
            // They may come from a request that no option was read for.
            [uids, gids].into_iter().try_for_each(|ranges| check_map(ranges))?;
            return Ok(Some(IdMaps { uids: uids.clone(), gids: gids.clone() }));
        }
        UserNamespaceChoice::Auto(count) => *count,
    };
    let taken = taken(disk)?;
    let one = |path: &str, part: fn(&IdMaps) -> &[IdRange]| -> Result<Vec<IdRange>, Error> {
        let owned = owned(&fs::read_to_string(path).map_err(Error::io("read", path))?);
        if owned.is_empty() {
            let problem = format!(
                "{path} gives nobody a range for it; add a line such as containers:2147483648:1073741824"
            );
            return Err(Refusal::new("user namespace", "auto", problem).into());
        }
        let used: Vec<Span> =
            taken.iter().flat_map(part).map(|range| Span::new(range.outside, range.count)).collect();
        let outside = free(&owned, &used, count).ok_or_else(|| Error::NoFreeIds {
            path: path.into(),
            count,
            tasks: taken.len(),
        })?;
        Ok(vec![IdRange { inside: 0, outside, count }])
    };
    Ok(Some(IdMaps {
        uids: one("/etc/subuid", |maps| &maps.uids)?,
        gids: one("/etc/subgid", |maps| &maps.gids)?,
    }))
}

/// What every task has, running or not.
fn taken(disk: &Disk) -> Result<Vec<IdMaps>, Error> {
    let mut all = Vec::new();
    for id in disk.tasks()? {
        match disk.load_record(&id) {
            Ok(record) => all.extend(record.ids),
            // Removed meanwhile, or not there yet: then it chooses after us, under the lock.
            Err(Error::Record(error)) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Ids in a row. In 64 bits, so that no end overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u64,
    end: u64,
}

impl Span {
    fn new(first: u32, count: u32) -> Span {
        Span { first: first.into(), end: u64::from(first) + u64::from(count) }
    }
}

/// The ranges of the first owner that has any, subuid(5). Lines that do not parse are skipped, and id 0 is nobody's.
fn owned(text: &str) -> Vec<Span> {
    let of = |owner: &str| -> Vec<Span> {
        let range = |line: &str| {
            let mut fields = line.trim().split(':');
            let (name, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
            let span = Span::new(first, count);
            // The last id of all means "none".
            let span = Span { first: span.first.max(1), end: span.end.min(u32::MAX.into()) };
            (name == owner && span.first < span.end).then_some(span)
        };
        text.lines().filter_map(range).collect()
    };
    OWNERS.iter().map(|owner| of(owner)).find(|spans| !spans.is_empty()).unwrap_or_default()
}

/// The first `count` ids in a row that are owned and not used.
fn free(owned: &[Span], used: &[Span], count: u32) -> Option<u32> {
    let within = |range: &Span| {
        let mut first = range.first;
        loop {
            let end = first + u64::from(count);
            if end > range.end {
                return None;
            }
            match used.iter().find(|span| span.first < end && first < span.end) {
                None => return u32::try_from(first).ok(),
                Some(span) => first = span.end,
            }
        }
    };
    owned.iter().find_map(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(pairs: &[(u32, u32)]) -> Vec<Span> {
        pairs.iter().map(|(first, count)| Span::new(*first, *count)).collect()
    }

    #[test]
    fn ranges_are_those_of_the_first_owner_that_has_any() {
        let root = "root:100:50\n";
        let both = "somebody:1:9\nroot:100:50\ncontainers:200:10\n# containers:1:1\ncontainers:x:1\ncontainers:300:5\n";
        for (text, expected) in [
            ("", &[][..]),
            (root, &[(100, 50)]),
            (both, &[(200, 10), (300, 5)]),
            ("0:7:2", &[(7, 2)]),
            ("root:5:0\nroot:5\nroot::::", &[]),
            // Nobody is given the host's root, nor the id that is none.
            ("root:0:10", &[(1, 9)]),
            ("root:4294967290:10", &[(4_294_967_290, 5)]),
        ] {
            assert_eq!(owned(text), spans(expected), "{text:?}");
        }
    }

    #[test]
    fn what_is_given_out_is_owned_and_nobody_elses() {
        for (owned, used, count, expected) in [
            (&[(100, 50)][..], &[][..], 20, Some(100)),
            (&[(100, 50)], &[(100, 20)], 20, Some(120)),
            (&[(100, 50)], &[(120, 20)], 20, Some(100)),
            (&[(100, 50)], &[(110, 20)], 20, Some(130)),
            (&[(100, 50)], &[(110, 20)], 21, None),
            (&[(100, 10), (200, 30)], &[(200, 1)], 20, Some(201)),
            (&[(100, 50)], &[(90, 15), (140, 90)], 35, Some(105)),
            (&[(100, 50)], &[], 51, None),
            (&[(u32::MAX - 10, 10)], &[], 10, Some(u32::MAX - 10)),
        ] {
            assert_eq!(free(&spans(owned), &spans(used), count), expected, "{owned:?} {used:?} {count}");
        }
        // One after the other fills the range without an overlap and without a gap.
        let (owned, mut used) = (spans(&[(1000, 1000)]), Vec::new());
        while let Some(first) = free(&owned, &used, 100) {
            let span = Span::new(first, 100);
            assert!(used.iter().all(|other: &Span| other.end <= span.first || span.end <= other.first));
            used.push(span);
        }
        assert_eq!(used.len(), 10);
    }
}
