//! Text that crosses to the kernel. All of it is NUL-terminated when it is made, so that nothing is allocated later, in
//! the child. A path inside a container and a path on the host are different types and neither turns into the other.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::refusal::Refusal;

/// Any text handed to the kernel: a hostname, an option value, an argument.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Text(CString);

impl Text {
    /// Makes a text; `pointer` names the configuration value in the refusal when it holds a NUL byte.
    pub fn new(bytes: impl Into<Vec<u8>>, pointer: &str) -> Result<Self, Refusal> {
        CString::new(bytes).map(Self).map_err(|_| Refusal::invalid(pointer, "holds a NUL byte"))
    }

    /// The NUL-terminated form.
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

impl From<CString> for Text {
    fn from(text: CString) -> Self {
        Self(text)
    }
}

/// A path on the host, absolute.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostPath(CString);

impl HostPath {
    /// Makes a host path; relative paths and NUL bytes are refused.
    pub fn new(path: impl AsRef<Path>, pointer: &str) -> Result<Self, Refusal> {
        let path = path.as_ref();
        if !path.is_absolute() {
            return Err(Refusal::invalid(pointer, format!("host path {} is not absolute", path.display())));
        }
        CString::new(path.as_os_str().as_bytes())
            .map(Self)
            .map_err(|_| Refusal::invalid(pointer, "path holds a NUL byte"))
    }

    /// The NUL-terminated form.
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }

    /// The path as std knows it.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.0.to_bytes()))
    }
}

/// A path inside a container: absolute, without `.`, `..` or empty components. It can be opened only through a handle on
/// the rootfs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContainerPath(CString);

impl ContainerPath {
    /// Cleans `path` as a path below the container's root: a relative path is taken from the root, `..` stops there.
    pub fn new(path: impl AsRef<Path>, pointer: &str) -> Result<Self, Refusal> {
        let bytes = path.as_ref().as_os_str().as_bytes();
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in bytes.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                name if name.len() > 255 => {
                    return Err(Refusal::invalid(pointer, "a path component is longer than 255 bytes"));
                }
                name => parts.push(name),
            }
        }
        let mut clean = vec![b'/'];
        clean.extend_from_slice(&parts.join(&b'/'));
        if clean.len() > 4095 {
            return Err(Refusal::invalid(pointer, "the path is longer than 4095 bytes"));
        }
        CString::new(clean).map(Self).map_err(|_| Refusal::invalid(pointer, "path holds a NUL byte"))
    }

    /// The NUL-terminated form, starting with `/`.
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }

    /// The path without its leading `/`, for use beneath a directory handle; `.` for the root itself.
    pub fn beneath(&self) -> &CStr {
        match self.0.to_bytes_with_nul() {
            [b'/', 0] => c".",
            // The tail of a NUL-terminated string is NUL-terminated.
            [_, rest @ ..] => CStr::from_bytes_with_nul(rest).unwrap_or(c"."),
            [] => c".",
        }
    }

    /// The path's bytes, without the NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.to_bytes()
    }

    /// Whether `self` is `other` or lies below it.
    pub fn is_at_or_below(&self, other: &str) -> bool {
        let (path, root) = (self.as_bytes(), other.as_bytes());
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || root == b"/")
    }
}

/// Prints bytes as a person reads them: UTF-8 as it is, the rest and control characters escaped.
fn readable(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

macro_rules! printed_as_bytes {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                readable(self.0.to_bytes(), f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                readable(self.0.to_bytes(), f)
            }
        }
    )*};
}
printed_as_bytes!(Text, HostPath, ContainerPath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_paths_are_cleaned_below_the_root() {
        for (raw, clean, beneath) in [
            ("/", "/", "."),
            ("", "/", "."),
            ("/a/b", "/a/b", "a/b"),
            ("a//b/", "/a/b", "a/b"),
            ("/../../etc", "/etc", "etc"),
            ("/a/./../b", "/b", "b"),
        ] {
            let path = ContainerPath::new(raw, "/p").unwrap();
            assert_eq!(path.to_string(), clean, "{raw}");
            assert_eq!(path.beneath().to_str().unwrap(), beneath, "{raw}");
        }
    }

    #[test]
    fn nul_bytes_and_overlong_parts_are_refused() {
        assert!(ContainerPath::new("/a\0b", "/p").is_err());
        assert!(ContainerPath::new(format!("/{}", "x".repeat(256)), "/p").is_err());
        assert!(HostPath::new("relative", "/p").is_err());
        assert!(Text::new("a\0", "/p").is_err());
    }

    #[test]
    fn below_means_whole_components() {
        let path = ContainerPath::new("/proc/sys", "/p").unwrap();
        assert!(path.is_at_or_below("/proc"));
        assert!(!path.is_at_or_below("/pro"));
        assert!(path.is_at_or_below("/"));
    }

    #[test]
    fn prints_escape_control_characters() {
        assert_eq!(Text::new("a\nb\u{1b}", "/p").unwrap().to_string(), "a\\nb\\u{1b}");
        assert_eq!(Text::new(vec![0xff], "/p").unwrap().to_string(), "\\xff");
    }
}
