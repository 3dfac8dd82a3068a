//! Owners that this process can give to files: all of them on the host, a few ranges in a user namespace.

use serde::{Deserialize, Serialize};

use crate::backend::{Contents, Sink};
use crate::entry::Entry;
use crate::error::LayerError;
use crate::extract::Extracted;

/// What becomes of an entry whose owner has no id in the user namespace of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnmappedOwners {
    /// The layer is refused.
    #[default]
    Refuse,
    /// It belongs to root. For namespaces of few ids, where an image is only to be run (podman's `ignore_chown_errors`).
    Squash,
}

/// Ids that exist here, as first and last.
type Ranges = Vec<(u32, u32)>;

/// The ids of the user namespace of this process.
pub(crate) struct Owners {
    uids: Ranges,
    gids: Ranges,
    unmapped: UnmappedOwners,
}

impl Owners {
    /// Asks the kernel; `None` where every id exists, as on the host.
    pub(crate) fn here(unmapped: UnmappedOwners) -> Option<Owners> {
        let read = |path| ranges(&std::fs::read_to_string(path).unwrap_or_default());
        let owners = Owners { uids: read("/proc/self/uid_map"), gids: read("/proc/self/gid_map"), unmapped };
        let everything = |ranges: &Ranges| ranges.is_empty() || has(ranges, 0) && has(ranges, u32::MAX - 1);
        (!everything(&owners.uids) || !everything(&owners.gids)).then_some(owners)
    }

    fn check(&self, entry: &mut Entry) -> Result<(), LayerError> {
        for (kind, ranges, id) in
            [("uid", &self.uids, &mut entry.attributes.uid), ("gid", &self.gids, &mut entry.attributes.gid)]
        {
            match self.unmapped {
                _ if has(ranges, *id) => {}
                UnmappedOwners::Squash => *id = 0,
                UnmappedOwners::Refuse => {
                    let known: Vec<String> = ranges.iter().map(|(a, b)| format!("{a}-{b}")).collect();
                    let rule = format!(
                        "its {kind} {id} does not exist in this user namespace, which has {}: map more ids, or squash \
                         such owners to root (unmapped-owners = \"squash\")",
                        known.join(", ")
                    );
                    return Err(LayerError::entry(&entry.name, rule));
                }
            }
        }
        Ok(())
    }
}

fn has(ranges: &Ranges, id: u32) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&id))
}

/// Lines of `inside outside count`, user_namespaces(7).
fn ranges(map: &str) -> Ranges {
    let lines = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (first, _, count) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
        Some((first, first.checked_add(count.checked_sub(1)?)?))
    });
    lines.collect()
}

/// A sink behind which all owners exist.
pub(crate) struct OwnedSink {
    pub(crate) owners: Owners,
    pub(crate) sink: Box<dyn Sink>,
}

impl Sink for OwnedSink {
    fn add(&mut self, mut entry: Entry, contents: &mut dyn Contents) -> Result<(), LayerError> {
        self.owners.check(&mut entry)?;
        self.sink.add(entry, contents)
    }

    fn finish(self: Box<Self>) -> Result<Extracted, LayerError> {
        self.sink.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_ranges_of_inside_ids() {
        assert_eq!(ranges("         0     100000      65536\n"), [(0, 65_535)]);
        assert_eq!(ranges("0 1000 1\n1 100000 10\n"), [(0, 0), (1, 10)]);
        assert_eq!(ranges("0 0 4294967295\n"), [(0, u32::MAX - 1)]);
        assert!(ranges("x").is_empty());
    }
}
