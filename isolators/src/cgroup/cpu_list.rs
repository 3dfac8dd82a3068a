//! Lists of processors or memory nodes as the kernel writes them: `0-3,7`.

use std::collections::BTreeSet;
use std::fmt;

/// A set of processor or node numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(BTreeSet<u32>);

/// Above the largest CONFIG_NR_CPUS there is (8,192): a list that goes further is a mistake, and long to walk.
const NUMBER_LIMIT: u32 = 65_536;

impl CpuList {
    /// Reads a list as in cpuset(7), "List format".
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut numbers = BTreeSet::new();
        for part in text.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (range, step) = match part.split_once(':') {
                Some((range, step)) => (range, Some(step)),
                None => (part, None),
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?} runs backwards"));
            }
            match step {
                None => numbers.extend(first..=last),
                Some(step) => {
                    numbers.extend(grouped(first, last, step).ok_or_else(|| format!("{part:?} is no range"))?)
                }
            }
        }
        Ok(Self(numbers))
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// As a bit mask, the least significant byte first.
    #[must_use]
    pub fn mask(&self) -> Vec<u8> {
        let bytes = self.0.last().map_or(0, |last| last / 8 + 1);
        let mut mask = vec![0_u8; usize::try_from(bytes).unwrap_or(0)];
        for number in &self.0 {
            if let Some(byte) = usize::try_from(number / 8).ok().and_then(|at| mask.get_mut(at)) {
                *byte |= 1 << (number % 8);
            }
        }
        mask
    }

    /// What is in this list and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

/// `0-31:2/8`: the first two of every eight.
fn grouped(first: u32, last: u32, step: &str) -> Option<impl Iterator<Item = u32>> {
    let (used, group) = step.split_once('/')?;
    let (used, group): (u32, u32) = (used.parse().ok()?, group.parse().ok()?);
    (used > 0 && used <= group).then(|| (first..=last).filter(move |number| (number - first) % group < used))
}

fn number(text: &str) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(number) if number < NUMBER_LIMIT => Ok(number),
        _ => Err(format!("{text:?} is not a number below {NUMBER_LIMIT}")),
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                last = next;
            }
            match last - first {
                0 => write!(formatter, "{separator}{first}")?,
                _ => write!(formatter, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, canonical) in [
            ("0", "0"),
            ("0-3,7", "0-3,7"),
            ("7,0-2,1-3\n", "0-3,7"),
            ("", ""),
            ("0-31:2/8", "0-1,8-9,16-17,24-25"),
            (" 1 , 2 ", "1-2"),
        ] {
            assert_eq!(CpuList::parse(text).unwrap().to_string(), canonical, "{text:?}");
        }
        for bad in ["x", "3-1", "-1", "1-", "0-99999999", "0-7:3", "0-7:0/2", "0-7:9/8", "1;2"] {
            assert!(CpuList::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_the_host_lacks_is_what_is_left() {
        let host = CpuList::parse("0-3").unwrap();
        assert_eq!(CpuList::parse("2-5").unwrap().without(&host).to_string(), "4-5");
        assert!(CpuList::parse("1,3").unwrap().without(&host).is_empty());
    }
}
