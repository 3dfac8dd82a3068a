//! Ranges of addresses, and the order in which they are tried.

use std::fmt;
use std::net::IpAddr;

use cofferdam_cni::{IpRange, Prefix};

/// A range with its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) subnet: Prefix,
    pub(super) gateway: IpAddr,
    first: IpAddr,
    last: IpAddr,
}

/// Ranges of one family that one address is allocated from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RangeSet(Vec<Range>);

impl Range {
    fn new(range: &IpRange) -> Result<Self, String> {
        let subnet = range.subnet;
        let bits = if subnet.address.is_ipv4() { 32 } else { 128 };
        if subnet.network() != subnet.address {
            return Err(format!("the subnet {subnet} has host bits set"));
        }
        if subnet.length > bits - 2 {
            return Err(format!("the subnet {subnet} is too small to allocate from"));
        }
        let inside = |what: &str, address: Option<IpAddr>, default: IpAddr| match address {
            Some(address) if !subnet.contains(address) => Err(format!("{what} {address} is not in {subnet}")),
            address => Ok(address.unwrap_or(default)),
        };
        let lowest = step(subnet.network(), 1);
        // The highest address of an IPv4 subnet is for broadcast.
        let highest = if subnet.address.is_ipv4() { step(subnet.last(), -1) } else { subnet.last() };
        let filled = Self {
            subnet,
            gateway: range.gateway.unwrap_or(lowest),
            first: inside("rangeStart", range.range_start, lowest)?,
            last: inside("rangeEnd", range.range_end, highest)?,
        };
        if filled.first > filled.last {
            return Err(format!("the range {} to {} is empty", filled.first, filled.last));
        }
        Ok(filled)
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }
}

impl RangeSet {
    pub(super) fn new(ranges: &[IpRange]) -> Result<Self, String> {
        let ranges = ranges.iter().map(Range::new).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = ranges.first() else { return Err("a list of ranges is empty".into()) };
        if ranges.iter().any(|range| range.first.is_ipv4() != first.first.is_ipv4()) {
            return Err("a list of ranges mixes IPv4 and IPv6".into());
        }
        for (at, one) in ranges.iter().enumerate() {
            if let Some(other) =
                ranges[at + 1..].iter().find(|other| one.first <= other.last && other.first <= one.last)
            {
                return Err(format!("the ranges in {} and {} overlap", one.subnet, other.subnet));
            }
        }
        Ok(Self(ranges))
    }

    pub(super) fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    /// Every address once but the gateways, beginning behind the last one given out.
    pub(super) fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let from = last.and_then(|last| {
            let at = self.0.iter().position(|range| range.contains(last))?;
            Some((at, last))
        });
        Candidates { set: self, start: from, now: None, finished: false }
            .filter(|(address, range)| *address != range.gateway)
    }
}

/// Walks round the ranges until it is back where it began.
struct Candidates<'a> {
    set: &'a RangeSet,
    /// The address before the first; absent means the walk begins at the first address.
    start: Option<(usize, IpAddr)>,
    now: Option<(usize, IpAddr)>,
    finished: bool,
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (IpAddr, &'a Range);

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let ranges = &self.set.0;
        let next = match self.now.or(self.start) {
            None => (0, ranges[0].first),
            Some((at, address)) if address < ranges[at].last => (at, step(address, 1)),
            Some((at, _)) => ((at + 1) % ranges.len(), ranges[(at + 1) % ranges.len()].first),
        };
        let begun_at_first = self.start.is_none() && self.now.is_some() && next == (0, ranges[0].first);
        if begun_at_first {
            return None;
        }
        self.finished = Some(next) == self.start;
        self.now = Some(next);
        Some((next.1, &ranges[next.0]))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(out, "{comma}{}-{}", range.first, range.last)?;
        }
        Ok(())
    }
}

/// The address so many steps on; callers stay inside a subnet.
fn step(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).wrapping_add_signed(by.into()).into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).wrapping_add_signed(by.into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Result<RangeSet, String> {
        RangeSet::new(&serde_json::from_str::<Vec<IpRange>>(text).unwrap())
    }

    fn walk(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(|last| last.parse().unwrap()))
            .map(|(address, _)| address.to_string())
            .collect()
    }

    #[test]
    fn the_walk_goes_once_round_and_skips_gateways() {
        let set = range(r#"[{"subnet":"10.0.0.0/29"}]"#).unwrap();
        assert_eq!(walk(&set, None), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(
            walk(&set, Some("10.0.0.4")),
            ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        );
        assert_eq!(walk(&set, Some("10.9.9.9")).len(), 5);
        let two = r#"[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.9"},{"subnet":"10.0.1.0/30"}]"#;
        assert_eq!(walk(&range(two).unwrap(), Some("10.0.1.2")), ["10.0.0.9", "10.0.1.2"]);
        let one = r#"[{"subnet":"fd00::/64","rangeStart":"fd00::10","rangeEnd":"fd00::10"}]"#;
        assert_eq!(walk(&range(one).unwrap(), Some("fd00::10")), ["fd00::10"]);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for bad in [
            r#"[{"subnet":"10.0.0.1/24"}]"#,
            r#"[{"subnet":"10.0.0.0/31"}]"#,
            r#"[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.1"}]"#,
            r#"[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]"#,
            r#"[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]"#,
            r#"[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.0/25"}]"#,
            "[]",
        ] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}
