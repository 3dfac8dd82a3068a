//! The configuration directory: every network in it, and what could not be read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::{ConfigError, NetworkList};
use crate::kept::Kept;

/// A file that gave no network, or gave one that does not count, or that is odd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with line and column if it is not JSON.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.path.display(), self.message)
    }
}

/// The networks of one or more configuration directories.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    lists: Vec<NetworkList>,
    problems: Vec<Problem>,
}

impl Networks {
    /// Reads `*.conflist`, `*.conf` and `*.json` of each directory by file name.
    ///
    /// A bad file is reported in [`Self::problems`] and costs no other network. Of two networks with one name the first
    /// counts. A missing directory has no networks.
    pub fn load<P: AsRef<Path>>(directories: &[P]) -> Self {
        Self::read(directories, None)
    }

    /// The same, but a file that cannot be read stands for what it said when it could: somebody may be writing it at this
    /// moment, and a mistake in it must not take a network from those who use it.
    ///
    /// What files said is kept in `directory` (made if missing), so that it is known to every process, and after a restart.
    /// Call this at each use: a change of a file or of a whole directory counts from the next call on.
    pub fn load_keeping<P: AsRef<Path>>(directories: &[P], directory: &Path) -> Self {
        let kept = Kept::new(directory);
        let networks = Self::read(directories, Some(&kept));
        kept.forget_all_but_seen();
        networks
    }

    fn read<P: AsRef<Path>>(directories: &[P], kept: Option<&Kept>) -> Self {
        let mut networks = Self::default();
        for directory in directories {
            for path in files(directory.as_ref(), &mut networks.problems) {
                networks.load_file(path, kept);
            }
        }
        networks
    }

    fn load_file(&mut self, path: PathBuf, kept: Option<&Kept>) {
        match NetworkList::load(&path) {
            Ok(list) => {
                if let Some(kept) = kept {
                    kept.keep(&path, &list);
                }
                self.add(list, path);
            }
            Err(error) => {
                let good = kept.and_then(|kept| kept.last_good(&path));
                let mut message = describe(&error);
                if good.is_some() {
                    message.push_str("; what it said before is used");
                }
                self.problems.push(Problem { path: path.clone(), message });
                if let Some(list) = good {
                    self.add(list, path);
                }
            }
        }
    }

    fn add(&mut self, list: NetworkList, path: PathBuf) {
        if let Some(first) = self.get(list.name.as_str()) {
            let holder = first.source.as_deref().unwrap_or(Path::new("(built in)")).display();
            let message = format!(
                "the network {:?} is already defined by {holder}; this file is not used",
                list.name.as_str()
            );
            self.problems.push(Problem { path, message });
        } else {
            let odd = list.warnings.iter().map(|text| Problem { path: path.clone(), message: text.clone() });
            self.problems.extend(odd);
            self.lists.push(list);
        }
    }

    /// Adds a network made in code, unless a file has defined one with its name.
    pub fn add_default(&mut self, list: NetworkList) {
        if self.get(list.name.as_str()).is_none() {
            self.lists.push(list);
        }
    }

    /// The network of this name.
    pub fn get(&self, name: &str) -> Option<&NetworkList> {
        self.lists.iter().find(|list| list.name.as_str() == name)
    }

    /// Every network in order; the first is the default of the directory.
    pub fn iter(&self) -> impl Iterator<Item = &NetworkList> {
        self.lists.iter()
    }

    /// What could not be used and why, and what is odd about what is used.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

fn describe(error: &ConfigError) -> String {
    match error {
        ConfigError::Json(json) if json.line() > 0 => {
            format!("line {}, column {}: {json}", json.line(), json.column())
        }
        other => other.to_string(),
    }
}

/// The configuration files of a directory in byte order of their names; lists and single plugins are mixed.
fn files(directory: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(Problem { path: directory.into(), message: error.to_string() });
            return Vec::new();
        }
    };
    let mut found = BTreeMap::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let wanted = path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if wanted && !hidden && path.is_file() {
            found.insert(entry.file_name().into_encoded_bytes(), path);
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_reported_and_costs_no_other_network() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("00-broken.conflist", "{\"name\": \"x\",\n  oops}");
        write("10-a.conflist", r#"{"name":"a","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#);
        write("20-b.conf", r#"{"name":"b","cniVersion":"0.4.0","type":"loopback"}"#);
        write("30-a.json", r#"{"name":"a","type":"other"}"#);
        write(".hidden.conf", "{");
        write("readme.txt", "{");
        std::fs::create_dir(dir.path().join("dir.conf")).unwrap();

        let networks = Networks::load(&[dir.path(), &dir.path().join("missing")]);
        let names: Vec<_> = networks.iter().map(|list| list.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(networks.get("b").unwrap().plugins[0].kind, "loopback");
        assert_eq!(networks.get("b").unwrap().version.to_string(), "0.4.0");
        let problems: Vec<_> = networks.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("00-broken.conflist: line 2, column 3"), "{}", problems[0]);
        assert!(
            problems[1].contains("30-a.json") && problems[1].contains("10-a.conflist"),
            "{}",
            problems[1]
        );
    }
}
