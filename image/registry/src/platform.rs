//! Platforms: what this host can run, in order of preference, and what an index offers.
//!
//! The order of variants is containerd's: a host takes the newest variant that it can execute and then every older one
//! (amd64 v4 > v3 > v2 > v1 = none, arm v8 > v7 > v6 > v5).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `os/architecture[/variant]` in the words of the image specification (GOOS, GOARCH).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture, such as `amd64`.
    pub architecture: String,
    /// Variant, such as `v3` or `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a string is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid platform {input:?}: expected os/architecture or os/architecture/variant, such as linux/arm64/v8"
)]
pub struct InvalidPlatform {
    /// The text that was refused.
    pub input: String,
}

impl Platform {
    /// Parses `linux/arm64/v8`; `x86_64` and `aarch64` are accepted for the names that the specification uses.
    pub fn parse(input: &str) -> Result<Platform, InvalidPlatform> {
        let refuse = || InvalidPlatform { input: input.to_owned() };
        let parts: Vec<&str> = input.split('/').collect();
        if parts.iter().any(|part| part.is_empty() || !part.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(refuse());
        }
        match parts[..] {
            [os, architecture] => Ok(Platform::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, Some(variant))),
            _ => Err(refuse()),
        }
    }

    /// A platform with its names normalised.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let architecture = architecture.to_ascii_lowercase();
        let (architecture, implied) = normalise(&architecture);
        let variant = variant.map(str::to_ascii_lowercase).or_else(|| implied.map(str::to_owned));
        let variant = match (architecture, variant.as_deref()) {
            ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) => None,
            ("arm", None) => Some("v7".to_owned()),
            ("arm", Some("5" | "6" | "7" | "8")) => variant.map(|number| format!("v{number}")),
            _ => variant,
        };
        Platform { os: os.to_ascii_lowercase(), architecture: architecture.to_owned(), variant }
    }

    /// The platform of this machine, with the newest variant that its processor executes.
    pub fn host() -> Platform {
        Platform::new("linux", std::env::consts::ARCH, host_variant())
    }

    /// How well `offered` suits a machine of this platform: 0 is best, `None` is not at all.
    pub fn preference(&self, offered: &Platform) -> Option<usize> {
        self.acceptable_variants().iter().position(|variant| {
            offered.os == self.os && offered.architecture == self.architecture && offered.variant == *variant
        })
    }

    /// Best first.
    fn acceptable_variants(&self) -> Vec<Option<String>> {
        let level = |variant: &str| variant.strip_prefix('v').and_then(|number| number.parse::<u8>().ok());
        let own = self.variant.as_deref().and_then(level);
        let named =
            |levels: std::ops::RangeInclusive<u8>| levels.rev().map(|n| Some(format!("v{n}"))).collect();
        match (self.architecture.as_str(), own) {
            ("amd64", Some(own)) => {
                let mut variants: Vec<Option<String>> = named(2..=own);
                variants.push(None);
                variants
            }
            ("arm", Some(own)) => named(5..=own),
            ("arm64", Some(own)) => vec![Some(format!("v{own}")), None],
            _ => vec![self.variant.clone()],
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(input: &str) -> Result<Platform, InvalidPlatform> {
        Platform::parse(input)
    }
}

fn normalise(architecture: &str) -> (&str, Option<&str>) {
    match architecture {
        "x86_64" | "x86-64" => ("amd64", None),
        "aarch64" => ("arm64", None),
        "i386" | "i686" | "x86" => ("386", None),
        "armhf" => ("arm", Some("v7")),
        "armel" => ("arm", Some("v6")),
        "powerpc64" => ("ppc64le", None),
        "loongarch64" => ("loong64", None),
        other => (other, None),
    }
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 =
        v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v4, v3, v2) {
        (true, ..) => Some("v4"),
        (_, true, _) => Some("v3"),
        (.., true) => Some("v2"),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_preferred_newest_first() {
        let best = |host: &str, offers: &[&str]| {
            let host = Platform::parse(host).unwrap();
            let offers: Vec<Platform> = offers.iter().map(|offer| Platform::parse(offer).unwrap()).collect();
            let chosen =
                offers.iter().filter_map(|o| Some((host.preference(o)?, o))).min_by_key(|(rank, _)| *rank);
            chosen.map(|(_, offer)| offer.to_string())
        };
        let amd = ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"];
        assert_eq!(best("linux/amd64/v3", &amd).as_deref(), Some("linux/amd64/v3"));
        assert_eq!(best("linux/amd64/v3", &amd[..1]).as_deref(), Some("linux/amd64"));
        assert_eq!(best("linux/amd64", &amd).as_deref(), Some("linux/amd64"));
        assert_eq!(best("linux/amd64", &amd[1..]), None);
        assert_eq!(best("linux/arm/v7", &["linux/arm/v6", "linux/arm64"]).as_deref(), Some("linux/arm/v6"));
        assert_eq!(best("linux/arm/v6", &["linux/arm/v7"]), None);
        assert_eq!(best("linux/arm64/v8", &["linux/arm64"]).as_deref(), Some("linux/arm64"));
        assert_eq!(best("linux/aarch64", &["linux/arm64/v8"]).as_deref(), Some("linux/arm64"));
        assert_eq!(best("Linux/ARM/V7", &["linux/arm/v6"]).as_deref(), Some("linux/arm/v6"));
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for input in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64"] {
            assert!(Platform::parse(input).is_err(), "{input:?} was accepted");
        }
    }
}
