//! Names that end up in file names, environment variables and the kernel: parsed once, safe ever after.

use std::fmt;

/// A name that does not follow its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not valid: {why}")]
pub struct InvalidName {
    what: &'static str,
    name: String,
    why: &'static str,
}

/// File names of records join network, container and interface and must stay below 255 bytes.
const LONGEST_NETWORK: usize = 100;
const LONGEST_CONTAINER: usize = 100;
/// `IFNAMSIZ` less the NUL.
const LONGEST_INTERFACE: usize = 15;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the grammar.
            pub fn parse(name: &str) -> Result<Self, InvalidName> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                check(name).map_err(|why| InvalidName { what: $what, name: name.into(), why })?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::parse(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name!(
    /// The name of a network: a letter or digit, then letters, digits, `_`, `.`, `-`; at most 100 bytes.
    NetworkName,
    "network name",
    |name| identifier(name, LONGEST_NETWORK)
);
name!(
    /// The identifier of a container, same grammar as a network's name.
    ContainerId,
    "container id",
    |name| identifier(name, LONGEST_CONTAINER)
);
name!(
    /// The name an interface gets inside the container.
    ///
    /// Besides what the kernel refuses, `%` (the kernel would expand `eth%d`) and names with a meaning under
    /// `/proc/sys/net` (`all`, `default`) are refused.
    IfName,
    "interface name",
    interface
);

fn identifier(name: &str, longest: usize) -> Result<(), &'static str> {
    if name.len() > longest {
        return Err("longer than 100 bytes");
    }
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Err("must begin with a letter or a digit");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.chars().all(allowed) { Ok(()) } else { Err("only letters, digits, '_', '.' and '-' are allowed") }
}

fn interface(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > LONGEST_INTERFACE {
        return Err("must have 1 to 15 bytes");
    }
    if matches!(name, "." | ".." | "all" | "default") {
        return Err("the name has a meaning of its own");
    }
    let refused = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    if name.chars().any(refused) { Err("'/', ':', '%' and white space are not allowed") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_or_confuse_the_kernel_are_refused() {
        for bad in ["", "../x", "a/b", "a b", ".hidden", "-x", &"x".repeat(201)] {
            assert!(NetworkName::parse(bad).is_err(), "{bad}");
            assert!(ContainerId::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "eth%d", "a/b", "0123456789abcdef", "..", "all", "a:b", "a b"] {
            assert!(IfName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(NetworkName::parse("k8s-pod.net_1").unwrap().as_str(), "k8s-pod.net_1");
        assert_eq!(IfName::parse("eth0").unwrap().as_str(), "eth0");
    }
}
