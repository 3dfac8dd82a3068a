//! What each configuration file said when it was last good.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::config::NetworkList;
use crate::store::{Durable, replace};

/// A directory with a copy of each file that was good.
///
/// Nothing here fails: a copy that cannot be written or read is as if there had been none.
pub(crate) struct Kept {
    directory: PathBuf,
    seen: RefCell<BTreeSet<OsString>>,
}

impl Kept {
    pub(crate) fn new(directory: &Path) -> Self {
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        Self { directory: directory.into(), seen: RefCell::default() }
    }

    /// Notes what a good file says.
    pub(crate) fn keep(&self, file: &Path, list: &NetworkList) {
        let (path, text) = (self.copy_of(file), list.to_text_of_file());
        // Nearly always it says what it said.
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return;
        }
        let _ = replace(&path, text.as_bytes(), Durable::No);
    }

    /// What a file said before it went bad.
    pub(crate) fn last_good(&self, file: &Path) -> Option<NetworkList> {
        let text = fs::read_to_string(self.copy_of(file)).ok()?;
        let mut list = NetworkList::parse(&text, None).ok()?;
        list.source = Some(file.into());
        Some(list)
    }

    /// Forgets files that are gone: theirs are no networks any more.
    pub(crate) fn forget_all_but_seen(&self) {
        let seen = self.seen.borrow();
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // A name that begins with a dot is a copy that somebody is writing.
            if !seen.contains(&name) && !name.as_encoded_bytes().starts_with(b".") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Files of one name in two directories have two copies.
    fn copy_of(&self, file: &Path) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        file.hash(&mut hasher);
        let mut name = OsString::from(format!("{:016x}-", hasher.finish()));
        name.push(file.file_name().unwrap_or_default());
        self.seen.borrow_mut().insert(name.clone());
        self.directory.join(name)
    }
}
