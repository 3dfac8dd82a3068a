//! Where this host keeps its control groups.
//!
//! ```text
//! version 1   one hierarchy a controller (or several mounted together), each with a tree of its own
//! version 2   one tree; controllers are switched on level by level
//! hybrid      version 1, and a version 2 tree beside it with the controllers that version 1 left over
//! ```
//!
//! Read from `/proc/self/mountinfo` and `/proc/self/cgroup` (cgroups(7), proc_pid_mountinfo(5)).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Error;

/// One mounted version 1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers, such as `cpu` and `cpuacct` together; `name=systemd` for a named one.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Our own cgroup in it, seen from the mount point; starts with `/`.
    pub own_path: String,
}

/// The version 2 tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unified {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Our own cgroup in it, seen from the mount point; starts with `/`.
    pub own_path: String,
    /// What it can control: `cgroup.controllers` at the mount point. Empty until [`Layout::probe`] has read it.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether this process may make cgroups below its own.
    #[must_use]
    pub fn is_delegated(&self) -> bool {
        writable(&inside(&self.mount_point, &self.own_path))
    }
}

impl Unified {
    /// Whether this process may make cgroups beside its own (below it, where version 1 has the controllers) and move
    /// there: a move is a write to the `cgroup.procs` of the nearest cgroup above both, cgroups(7).
    #[must_use]
    pub fn is_delegated(&self, alone: bool) -> bool {
        let above = match self.own_path.rsplit_once('/') {
            Some((above, _)) if alone => above,
            _ => &self.own_path,
        };
        let directory = inside(&self.mount_point, above);
        writable(&directory) && writable(&directory.join("cgroup.procs"))
    }
}

fn inside(mount_point: &Path, path: &str) -> PathBuf {
    mount_point.join(path.trim_start_matches('/'))
}

fn writable(path: &Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// The cgroup world of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Version 1 hierarchies, in the order of their mounts.
    pub v1: Vec<Hierarchy>,
    /// The version 2 tree, alone or beside them.
    pub unified: Option<Unified>,
}

impl Layout {
    /// Asks the host.
    ///
    /// # Errors
    /// Where `/proc` cannot be read. A host without cgroups is an empty layout.
    pub fn probe() -> Result<Self, Error> {
        let read = |path: &str| crate::text::read_text(path).map_err(|error| Error::io("read", path, &error));
        let mut layout = Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        if let Some(unified) = &mut layout.unified {
            let path = unified.mount_point.join("cgroup.controllers");
            let text = read(&path.to_string_lossy())?;
            unified.controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        Ok(layout)
    }

    /// Where a cgroup lies, by controller (`name=…` for named hierarchies, empty for the version 2 tree). Nothing is opened:
    /// it may not be there.
    pub fn directories(&self, path: &str) -> impl Iterator<Item = (String, PathBuf)> {
        let at = move |mount_point: &Path, own: &str| {
            let own = if path.starts_with('/') { "" } else { own.trim_matches('/') };
            mount_point.join(own).join(path.trim_start_matches('/'))
        };
        let v1 = self.v1.iter().flat_map(move |hierarchy| {
            let directory = at(&hierarchy.mount_point, &hierarchy.own_path);
            hierarchy.controllers.iter().map(move |name| (name.clone(), directory.clone()))
        });
        let unified =
            self.unified.iter().map(move |tree| (String::new(), at(&tree.mount_point, &tree.own_path)));
        v1.chain(unified)
    }

    /// The hierarchies that hold a cgroup, of what [`Layout::directories`] gave for its path when it was made: whatever
    /// cgroup we are in now, the path leads to the same directories. Nothing is asked of the host.
    #[must_use]
    pub fn of_directories(directories: &BTreeMap<String, PathBuf>, path: &str) -> Self {
        let path = Path::new(path.trim_matches('/'));
        let above = |directory: &Path| -> Option<PathBuf> {
            directory
                .ends_with(path)
                .then(|| directory.ancestors().nth(path.components().count()))?
                .map(Into::into)
        };
        let own_path = || "/".to_owned();
        let mut layout = Self::default();
        for (controller, directory) in directories {
            let Some(mount_point) = above(directory) else { continue };
            if controller.is_empty() {
                let controllers = Vec::new();
                layout.unified = Some(Unified { mount_point, own_path: own_path(), controllers });
                continue;
            }
            match layout.v1.iter_mut().find(|known| known.mount_point == mount_point) {
                Some(known) => known.controllers.push(controller.clone()),
                None => layout.v1.push(Hierarchy {
                    controllers: vec![controller.clone()],
                    mount_point,
                    own_path: own_path(),
                }),
            }
        }
        layout
    }

    /// Reads the texts of the two files. Lines that make no sense are passed over.
    #[must_use]
    pub fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let own = OwnCgroups::parse(cgroup);
        let mut layout = Self::default();
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            layout.cover(&mount.mount_point);
            match mount.filesystem {
                "cgroup" => layout.add_v1(&mount, &own),
                "cgroup2" if layout.unified.is_none() => {
                    layout.unified = Some(Unified {
                        own_path: below(&own.unified, &mount.root),
                        mount_point: mount.mount_point.into_owned().into(),
                        controllers: Vec::new(),
                    });
                }
                _ => {}
            }
        }
        layout
    }

    /// Whether the only hierarchy is the version 2 tree.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty() && self.unified.is_some()
    }

    /// What is left of it for a caller who may write only to what was delegated to him: hierarchies in which a cgroup
    /// can be made and entered, below our own on version 1, beside it on version 2.
    #[must_use]
    pub fn delegated(&self) -> Self {
        Self {
            v1: self.v1.iter().filter(|hierarchy| hierarchy.is_delegated()).cloned().collect(),
            unified: self.unified.clone().filter(|unified| unified.is_delegated(self.is_v2())),
        }
    }

    /// The hierarchies of these kinds: version 1, version 2.
    #[must_use]
    pub fn of_kinds(&self, (v1, v2): (bool, bool)) -> Self {
        Self {
            v1: if v1 { self.v1.clone() } else { Vec::new() },
            unified: self.unified.clone().filter(|_| v2),
        }
    }

    /// Forgets what a later mount at or above its mount point hides.
    fn cover(&mut self, mount_point: &str) {
        self.v1.retain(|hierarchy| !is_within(&hierarchy.mount_point, mount_point));
        self.unified = self.unified.take().filter(|unified| !is_within(&unified.mount_point, mount_point));
    }

    fn add_v1(&mut self, mount: &Mount<'_>, own: &OwnCgroups) {
        let Some((controllers, path)) = own.v1.iter().find(|(controllers, _)| {
            controllers.iter().all(|controller| mount.options.split(',').any(|option| option == controller))
        }) else {
            return;
        };
        if self.v1.iter().any(|known| known.controllers == *controllers) {
            return; // mounted twice
        }
        self.v1.push(Hierarchy {
            controllers: controllers.clone(),
            mount_point: mount.mount_point.to_string().into(),
            own_path: below(path, &mount.root),
        });
    }
}

/// Whether a mount point is another or lies below it. Both are as the kernel writes them, so their bytes tell: taken apart by
/// name, each of some hundred pairs at every start, they took a tenth of the instructions of `start`.
fn is_within(path: &Path, mount_point: &str) -> bool {
    let above = mount_point.trim_end_matches('/').as_bytes();
    let rest = path.as_os_str().as_encoded_bytes().strip_prefix(above);
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}

/// `/proc/self/cgroup`, by hierarchy.
#[derive(Default)]
struct OwnCgroups {
    v1: Vec<(Vec<String>, String)>,
    unified: String,
}

impl OwnCgroups {
    fn parse(text: &str) -> Self {
        let mut own = Self { unified: "/".to_owned(), ..Self::default() };
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if id == "0" && controllers.is_empty() {
                own.unified = path.to_owned();
            } else if !controllers.is_empty() {
                let controllers = controllers.split(',').map(str::to_owned).collect();
                own.v1.push((controllers, path.to_owned()));
            }
        }
        own
    }
}

/// One line of mountinfo, as far as we need it.
struct Mount<'a> {
    root: Cow<'a, str>,
    mount_point: Cow<'a, str>,
    filesystem: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (fixed, typed) = line.split_once(" - ")?;
        let mut fixed = fixed.split(' ').skip(3);
        let (root, mount_point) = (fixed.next()?, fixed.next()?);
        let mut typed = typed.split(' ');
        let filesystem = typed.next()?;
        let options = typed.nth(1)?;
        Some(Self { root: unescape(root), mount_point: unescape(mount_point), filesystem, options })
    }
}

/// Undoes the octal escapes of mountinfo: space, tab, newline, backslash.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) if byte.is_ascii() => {
                plain.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    (plain + rest).into()
}

/// A cgroup's path seen from a mount whose root lies deeper in the hierarchy, as in a container's own mount.
fn below(path: &str, root: &str) -> String {
    if root == "/" {
        return path.to_owned();
    }
    match path.strip_prefix(root) {
        Some("") => "/".to_owned(),
        Some(rest) if rest.starts_with('/') => rest.to_owned(),
        _ => "/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_lies_below_the_mount_or_below_our_own() {
        let hierarchy = Hierarchy {
            controllers: vec!["cpu".into(), "cpuacct".into()],
            mount_point: "/cg/cpu".into(),
            own_path: "/own".into(),
        };
        let unified = Unified { mount_point: "/cg".into(), own_path: "/".into(), controllers: Vec::new() };
        let layout = Layout { v1: vec![hierarchy], unified: Some(unified) };
        for (path, expected) in [
            ("/a/b", ["cpu=/cg/cpu/a/b", "cpuacct=/cg/cpu/a/b", "=/cg/a/b"]),
            ("a", ["cpu=/cg/cpu/own/a", "cpuacct=/cg/cpu/own/a", "=/cg/a"]),
        ] {
            let found = |layout: &Layout| -> Vec<_> {
                layout.directories(path).map(|(name, at)| format!("{name}={}", at.display())).collect()
            };
            assert_eq!(found(&layout), expected, "{path}");
            let noted = Layout::of_directories(&layout.directories(path).collect(), path);
            assert_eq!(noted.v1.len(), 1, "one hierarchy with two controllers: {noted:?}");
            assert_eq!(found(&noted), expected, "{path} noted");
        }
    }

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "9:name=systemd:/user\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/me\n";

    #[test]
    fn a_hybrid_host_is_read() {
        let layout = Layout::parse(HYBRID, OWN);
        assert!(!layout.is_v2());
        let seen: Vec<_> = layout
            .v1
            .iter()
            .map(|h| (h.controllers.join(","), h.mount_point.to_str().unwrap(), h.own_path.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("cpu,cpuacct".to_owned(), "/sys/fs/cgroup/cpu,cpuacct", "/"),
                ("memory".to_owned(), "/sys/fs/cgroup/memory", "/a/b"),
                ("name=systemd".to_owned(), "/sys/fs/cgroup/systemd", "/user"),
            ]
        );
        assert_eq!(layout.unified.unwrap().own_path, "/me");
    }

    #[test]
    fn a_mount_over_the_folder_hides_what_lies_below() {
        let covered = format!("{HYBRID}99 23 0:50 / /sys/fs/cgroup rw - cgroup2 none rw\n");
        let layout = Layout::parse(&covered, OWN);
        assert!(layout.is_v2());
        assert_eq!(layout.unified.unwrap().mount_point, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn a_mount_point_lies_within_what_is_above_it_and_not_within_what_is_beside_it() {
        for (path, mount_point, expected) in [
            ("/cg/cpu", "/", true),
            ("/cg/cpu", "/cg", true),
            ("/cg/cpu", "/cg/cpu", true),
            ("/cg/cpu,cpuacct", "/cg/cpu", false),
            ("/cg", "/cg/cpu", false),
        ] {
            assert_eq!(is_within(Path::new(path), mount_point), expected, "{path} in {mount_point}");
        }
    }

    #[test]
    fn a_mount_of_a_subtree_is_the_root_of_what_we_see() {
        let mountinfo = "5 1 0:9 /docker/x /cg\\040roup rw - cgroup2 cgroup2 rw\n";
        let unified = Layout::parse(mountinfo, "0::/docker/x/inner\n").unified.unwrap();
        assert_eq!(unified.mount_point, Path::new("/cg roup"));
        assert_eq!(unified.own_path, "/inner");
        assert_eq!(below("/docker/xy", "/docker/x"), "/");
    }

    #[test]
    fn nonsense_is_an_empty_layout() {
        for text in ["", "\n\n", "a b c", "1 2 3 - cgroup", " - ", "1 2 0:9 / /x rw - cgroup cgroup"] {
            assert_eq!(Layout::parse(text, text), Layout::default(), "{text:?}");
        }
        assert_eq!(unescape("a\\"), "a\\");
        assert_eq!(unescape("\\999\\04"), "\\999\\04");
    }

    #[test]
    fn this_host_is_read() {
        let layout = Layout::probe().unwrap();
        for hierarchy in &layout.v1 {
            assert!(hierarchy.mount_point.join("cgroup.procs").exists(), "{hierarchy:?}");
        }
    }
}
