//! Versions of the CNI specification.

use std::fmt;

/// A version of the specification, compared by its three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// The newest version we speak.
    pub const NEWEST: Self = Self::new(1, 1, 0);
    /// From here on CHECK exists and DEL gets the previous result.
    pub const V0_4_0: Self = Self::new(0, 4, 0);
    /// From here on addresses no longer carry their family.
    pub const V1_0_0: Self = Self::new(1, 0, 0);
    /// From here on GC and STATUS exist.
    pub const V1_1_0: Self = Self::new(1, 1, 0);
    /// From here on results list interfaces and addresses.
    pub const V0_3_0: Self = Self::new(0, 3, 0);
    /// A configuration that names no version means this one.
    pub const OLDEST: Self = Self::new(0, 1, 0);

    /// Every version we speak, oldest first.
    pub const SUPPORTED: [Self; 7] = [
        Self::OLDEST,
        Self::new(0, 2, 0),
        Self::V0_3_0,
        Self::new(0, 3, 1),
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads up to three numbers joined by dots; missing ones are 0.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = [0; 3];
        let mut parts = text.split('.');
        for (at, number) in numbers.iter_mut().enumerate() {
            match parts.next() {
                Some(part) if part.bytes().all(|byte| byte.is_ascii_digit()) => {
                    *number = part.parse().ok()?
                }
                None if at > 0 => {}
                _ => return None,
            }
        }
        parts.next().is_none().then_some(Self::new(numbers[0], numbers[1], numbers[2]))
    }

    /// Whether we speak it.
    pub fn is_supported(self) -> bool {
        Self::SUPPORTED.contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_and_print_in_full() {
        assert_eq!(Version::parse("1.1"), Some(Version::NEWEST));
        assert_eq!(Version::parse("1.1").unwrap().to_string(), "1.1.0");
        assert!(Version::parse("0.10.0") > Version::parse("0.4.0"));
        for bad in ["", "1.", "a", "1.0.0-rc1", "1.2.3.4", "+1"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
        assert!(!Version::parse("9.0.0").unwrap().is_supported());
    }
}
