//! `linux.cgroupsPath`: where the container's cgroup goes.

use cofferdam_plan::Refusal;

/// Who makes the cgroup, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupPath {
    /// We do, by mkdir: below the root of each hierarchy where it starts with `/`, otherwise below our own cgroup.
    Cgroupfs(String),
    /// systemd does, as a scope in a slice.
    Systemd {
        /// The slice, such as `machine.slice`; empty for the default one.
        slice: String,
        /// What the scope's name begins with.
        prefix: String,
        /// The container.
        name: String,
    },
}

const POINTER: &str = "/linux/cgroupsPath";

/// `NAME_MAX`.
const COMPONENT_LIMIT_BYTES: usize = 255;

/// cgroupfs has no deeper names than paths have room for; the hierarchy's own mount point needs some of it.
const PATH_LIMIT_BYTES: usize = 3072;

impl CgroupPath {
    /// Reads the path for a manager that works by mkdir. Repeated slashes and `.` go; an absent or empty path is `fallback`.
    ///
    /// # Errors
    /// `..`, the root itself, names that are too long, control characters.
    pub fn cgroupfs(path: Option<&str>, fallback: &str) -> Result<Self, Refusal> {
        let path = path.filter(|path| !path.is_empty()).unwrap_or(fallback);
        let refuse = |problem: &str| Err(Refusal::invalid(POINTER, problem));
        let mut clean = String::new();
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            if name == ".." {
                return refuse("leads out of the hierarchy by ..");
            }
            if name.len() > COMPONENT_LIMIT_BYTES {
                return refuse("a component is longer than 255 bytes");
            }
            if name.chars().any(char::is_control) {
                return refuse("holds a control character");
            }
            if !clean.is_empty() || path.starts_with('/') {
                clean.push('/');
            }
            clean.push_str(name);
        }
        if clean.is_empty() {
            return refuse("names the root of the hierarchy");
        }
        if clean.len() > PATH_LIMIT_BYTES {
            return refuse("is longer than 3072 bytes");
        }
        Ok(Self::Cgroupfs(clean))
    }

    /// Reads the path for systemd: `slice:prefix:name`; an absent or empty one is the default slice, `prefix` and `id`.
    ///
    /// # Errors
    /// Another number of parts, a slice that systemd would not take, characters that would reach into unit names.
    pub fn systemd(path: Option<&str>, prefix: &str, id: &str) -> Result<Self, Refusal> {
        let Some(path) = path.filter(|path| !path.is_empty()) else {
            return Ok(Self::Systemd {
                slice: String::new(),
                prefix: prefix.to_owned(),
                name: id.to_owned(),
            });
        };
        let refuse = |problem: &str| Err(Refusal::invalid(POINTER, problem));
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts.as_slice() else {
            return refuse("is not slice:prefix:name, as systemd needs it");
        };
        let plain = |text: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | '\\'))
                && text != ".."
                && text.len() <= COMPONENT_LIMIT_BYTES
        };
        if name.is_empty() || ![*slice, *prefix, *name].into_iter().all(plain) {
            return refuse("holds what a systemd unit name cannot hold");
        }
        if !slice.is_empty() && !is_slice(slice) {
            return refuse("does not begin with the name of a slice, such as machine.slice");
        }
        Ok(Self::Systemd { slice: (*slice).into(), prefix: (*prefix).into(), name: (*name).into() })
    }

    /// The directory of the scope below the hierarchy's root: `a-b.slice` lies in `a.slice`.
    #[must_use]
    pub fn directory(&self, default_slice: &str) -> String {
        match self {
            Self::Cgroupfs(path) => path.clone(),
            Self::Systemd { slice, prefix, name } => {
                let slice = if slice.is_empty() { default_slice } else { slice };
                let scope = match (name.strip_suffix(".slice"), prefix.as_str()) {
                    (Some(_), _) => name.clone(),
                    (None, "") => format!("{name}.scope"),
                    (None, prefix) => format!("{prefix}-{name}.scope"),
                };
                format!("{}/{scope}", expand(slice))
            }
        }
    }
}

/// `-.slice` is the root slice; dashes separate levels, none of them empty.
fn is_slice(slice: &str) -> bool {
    let Some(levels) = slice.strip_suffix(".slice") else { return false };
    levels == "-" || levels.split('-').all(|level| !level.is_empty())
}

/// `a-b-c.slice` → `/a.slice/a-b.slice/a-b-c.slice`
fn expand(slice: &str) -> String {
    let levels = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut path = String::new();
    if levels == "-" {
        return path;
    }
    let mut upto = 0;
    while upto < levels.len() {
        let end = levels[upto..].find('-').map_or(levels.len(), |dash| upto + dash);
        path += &format!("/{}.slice", &levels[..end]);
        upto = end + 1;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_are_cleaned() {
        for (given, expected) in [
            (Some("/a/b"), "/a/b"),
            (Some("a//b/"), "a/b"),
            (Some("//a/./b"), "/a/b"),
            (Some("-v"), "-v"),
            (Some("/kubepods/besteffort/pod-1/x.scope"), "/kubepods/besteffort/pod-1/x.scope"),
            (Some("machine.slice:x:y"), "machine.slice:x:y"),
            (Some(""), "/cofferdam/id"),
            (None, "/cofferdam/id"),
        ] {
            let expected = CgroupPath::Cgroupfs(expected.to_owned());
            assert_eq!(CgroupPath::cgroupfs(given, "/cofferdam/id").unwrap(), expected, "{given:?}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(300);
        let deep = "abcdefgh/".repeat(400);
        for bad in ["..", "../../x", "/a/../b", "a/..", "/", "//", ".", "a\nb", "a\0b", &long, &deep] {
            let refusal = CgroupPath::cgroupfs(Some(bad), "/x").unwrap_err();
            assert!(refusal.to_string().starts_with("/linux/cgroupsPath: "), "{bad:?}: {refusal}");
        }
    }

    #[test]
    fn systemd_paths_have_three_parts() {
        let path = |given| CgroupPath::systemd(given, "cofferdam", "id");
        let full = path(Some("machine-lab.slice:libpod:abc")).unwrap();
        assert_eq!(full.directory("system.slice"), "/machine.slice/machine-lab.slice/libpod-abc.scope");
        assert_eq!(path(None).unwrap().directory("system.slice"), "/system.slice/cofferdam-id.scope");
        assert_eq!(
            path(Some(":crio:abc")).unwrap().directory("system.slice"),
            "/system.slice/crio-abc.scope"
        );
        assert_eq!(path(Some("-.slice::abc")).unwrap().directory("system.slice"), "/abc.scope");
        for bad in [
            "a",
            "a:b",
            "a.slice:b:c:d",
            "a/b.slice:c:d",
            "../x.slice:c:d",
            "a.slice:c:",
            "x:y:z",
            "a--b.slice:c:d",
            "a.slice:c:d/e",
            "a.slice:c\n:d",
            ".slice:c:d",
        ] {
            assert!(path(Some(bad)).is_err(), "{bad:?}");
        }
    }
}
