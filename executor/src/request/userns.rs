//! The user namespace of a task: `--userns`, `--uidmap`, `--gidmap`.

use serde::{Deserialize, Serialize};

use super::Refusal;

/// How many ids a task gets that does not say: all that programs and images have names for.
pub const DEFAULT_IDS: u32 = 65_536;

/// Ranges that the kernel takes in a map, and bytes of their text, less than a page: user_namespaces(7).
const MAP_RANGES: usize = 340;
const MAP_BYTES: usize = 4095;

/// Whose ids a task's are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNamespaceChoice {
    /// The host's own.
    #[default]
    Host,
    /// As many of the host's subordinate ids, which no other task has.
    Auto(u32),
    /// These.
    Maps {
        /// User ids.
        uids: Vec<IdRange>,
        /// Group ids.
        gids: Vec<IdRange>,
    },
}

/// Ids in a task that are others on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first, in the task.
    pub inside: u32,
    /// The same on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl UserNamespaceChoice {
    /// Reads what the three options say together: `host`, `auto`, `auto:size=N`, or maps; one kind of map counts for both.
    pub fn parse(userns: Option<&str>, uids: &[String], gids: &[String]) -> Result<Self, Refusal> {
        let refuse = |problem: &str| Refusal::new("user namespace", userns.unwrap_or_default(), problem);
        let ranges =
            |texts: &[String]| texts.iter().map(|text| IdRange::parse(text)).collect::<Result<Vec<_>, _>>();
        let (uids, gids) = (ranges(uids)?, ranges(gids)?);
        [&uids, &gids].into_iter().try_for_each(|ranges| check_map(ranges))?;
        let has_maps = !uids.is_empty() || !gids.is_empty();
        let or = |these: &[IdRange], those: &[IdRange]| if these.is_empty() { those } else { these }.to_vec();
        let maps = || Self::Maps { uids: or(&uids, &gids), gids: or(&gids, &uids) };
        match (userns.unwrap_or_default(), has_maps) {
            ("" | "private", true) => Ok(maps()),
            ("" | "host", false) => Ok(Self::Host),
            ("auto", false) => Ok(Self::Auto(DEFAULT_IDS)),
            ("private", false) => Err(refuse("say which ids, with --uidmap, or auto")),
            ("keep-id" | "nomap", _) => {
                Err(refuse("it is for ordinary users, whose own id is mapped; root has auto, host, --uidmap"))
            }
            (_, true) => Err(refuse("it has no room for --uidmap and --gidmap: leave one out")),
            (other, false) => match other.strip_prefix("auto:size=").map(str::parse) {
                Some(Ok(count)) if count > 0 => Ok(Self::Auto(count)),
                _ => Err(refuse("expected host, auto or auto:size=NUMBER")),
            },
        }
    }
}

/// Refuses what the kernel takes for no map: a range beyond the ids that there are, an id in two ranges, on either side, or
/// more than it reads.
pub(crate) fn check_map(ranges: &[IdRange]) -> Result<(), Refusal> {
    let meet =
        |one: u32, other: u32, a: &IdRange, b: &IdRange| one < other + b.count && other < one + a.count;
    for (index, a) in ranges.iter().enumerate() {
        a.check(&a.to_string())?;
        if ranges[..index].iter().any(|b| meet(a.inside, b.inside, a, b) || meet(a.outside, b.outside, a, b))
        {
            return Err(Refusal::new("id map", &a.to_string(), "it overlaps another one"));
        }
    }
    if ranges.len() > MAP_RANGES || lines(ranges).len() > MAP_BYTES {
        let problem = format!("the kernel takes {MAP_RANGES} ranges in {MAP_BYTES} bytes; join some");
        return Err(Refusal::new("id map", &format!("{} ranges", ranges.len()), problem));
    }
    Ok(())
}

/// The lines that the kernel takes, user_namespaces(7).
pub(crate) fn lines(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
    ranges.iter().map(line).collect()
}

impl std::fmt::Display for IdRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.count)
    }
}

impl IdRange {
    /// Reads `INSIDE:OUTSIDE[:COUNT]`.
    pub fn parse(text: &str) -> Result<IdRange, Refusal> {
        let refuse = |problem: &str| Refusal::new("id map", text, problem);
        let numbers: Vec<&str> = text.split(':').collect();
        let (inside, outside, count) = match numbers[..] {
            [inside, outside] => (inside, outside, "1"),
            [inside, outside, count] => (inside, outside, count),
            _ => return Err(refuse("expected INSIDE:OUTSIDE[:COUNT]")),
        };
        let number = |text: &str| text.parse::<u32>().map_err(|_| refuse("an id is a number below 2^32"));
        let range = IdRange { inside: number(inside)?, outside: number(outside)?, count: number(count)? };
        range.check(text).map(|()| range)
    }

    fn check(&self, text: &str) -> Result<(), Refusal> {
        let fits = |first: u32| first.checked_add(self.count).is_some();
        if self.count == 0 || !fits(self.inside) || !fits(self.outside) {
            return Err(Refusal::new("id map", text, "the range is empty or ends above the highest id"));
        }
        Ok(())
    }

    /// What an id of the task is on the host.
    pub fn outside(&self, inside: u32) -> Option<u32> {
        let offset = inside.checked_sub(self.inside).filter(|offset| *offset < self.count)?;
        Some(self.outside + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_choice_or_say_what_is_wrong() {
        let parse = |userns: Option<&str>, uids: &[&str], gids: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            UserNamespaceChoice::parse(userns, &owned(uids), &owned(gids))
                .map_err(|refusal| refusal.to_string())
        };
        let range = |inside, outside, count| IdRange { inside, outside, count };
        let same = |ranges: Vec<IdRange>| UserNamespaceChoice::Maps { uids: ranges.clone(), gids: ranges };
        for (userns, uids, gids, expected) in [
            (None, &[][..], &[][..], UserNamespaceChoice::Host),
            (Some("host"), &[], &[], UserNamespaceChoice::Host),
            (Some("auto"), &[], &[], UserNamespaceChoice::Auto(65_536)),
            (Some("auto:size=1000"), &[], &[], UserNamespaceChoice::Auto(1000)),
            (None, &["0:100000:1000", "1000:7"], &[], same(vec![range(0, 100_000, 1000), range(1000, 7, 1)])),
            (Some("private"), &[], &["0:5:6"], same(vec![range(0, 5, 6)])),
        ] {
            assert_eq!(parse(userns, uids, gids), Ok(expected), "{userns:?} {uids:?} {gids:?}");
        }
        for (userns, uids, words) in [
            (Some("keep-id"), &[][..], "ordinary users"),
            (Some("nomap"), &[], "ordinary users"),
            (Some("private"), &[], "--uidmap"),
            (Some("auto"), &["0:1:2"], "leave one out"),
            (Some("auto:size=0"), &[], "auto:size=NUMBER"),
            (Some("container:x"), &[], "expected host, auto"),
            (None, &["0:100:10", "10:109:10"], "overlaps"),
            (None, &["0:100:10", "9:110:10"], "overlaps"),
            (None, &["0"], "INSIDE:OUTSIDE"),
            (None, &["0:1:0"], "empty"),
            (None, &["0:4294967295:2"], "highest id"),
            (None, &["0:-1:2"], "number below"),
        ] {
            let refused = parse(userns, uids, &[]).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn a_map_that_the_kernel_does_not_take_is_refused_in_words_whoever_made_it() {
        let map = |count: u32| -> Vec<IdRange> {
            (0..count).map(|id| IdRange { inside: 2 * id, outside: 100_000 + 2 * id, count: 1 }).collect()
        };
        assert!(check_map(&map(200)).is_ok());
        assert!(check_map(&map(330)).unwrap_err().to_string().contains("join some"));
        let beyond = IdRange { inside: u32::MAX, outside: 0, count: 2 };
        assert!(check_map(&[beyond]).unwrap_err().to_string().contains("highest id"));
    }
}
