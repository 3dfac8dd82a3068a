//! Where an export goes: the files of a directory, or the members of an archive.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

use crate::error::Error;

const BLOCK_BYTES: u64 = 512;

/// Takes files one after another: `begin`, `write` as often as needed, `end`.
pub(crate) enum Target<'a> {
    /// A tar archive.
    Archive { stream: &'a mut dyn Write, folders: BTreeSet<String>, padding: u64 },
    /// A directory.
    Directory { root: PathBuf, file: Option<(PathBuf, File)> },
}

impl<'a> Target<'a> {
    pub(crate) fn archive(stream: &'a mut dyn Write) -> Target<'a> {
        Target::Archive { stream, folders: BTreeSet::new(), padding: 0 }
    }

    pub(crate) fn directory(root: &Path) -> Target<'a> {
        Target::Directory { root: root.to_owned(), file: None }
    }

    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.begin(path, bytes.len() as u64)?;
        self.write(bytes)?;
        self.end()
    }

    pub(crate) fn begin(&mut self, path: &str, size: u64) -> Result<(), Error> {
        match self {
            Target::Archive { stream, folders, padding } => {
                for (end, _) in path.match_indices('/') {
                    if folders.insert(path[..end].to_owned()) {
                        put(*stream, &header(&format!("{}/", &path[..end]), EntryType::Directory, 0)?)?;
                    }
                }
                *padding = size.next_multiple_of(BLOCK_BYTES) - size;
                put(*stream, &header(path, EntryType::Regular, size)?)
            }
            Target::Directory { root, file } => {
                let path = root.join(path);
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
                }
                let opened = File::create_new(&path).map_err(Error::io("create", &path))?;
                *file = Some((path, opened));
                Ok(())
            }
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Target::Archive { stream, .. } => put(*stream, bytes),
            Target::Directory { file: Some((path, file)), .. } => {
                file.write_all(bytes).map_err(Error::io("write", path))
            }
            Target::Directory { .. } => Ok(()),
        }
    }

    pub(crate) fn end(&mut self) -> Result<(), Error> {
        match self {
            Target::Archive { stream, padding, .. } => put(*stream, &vec![0; *padding as usize]),
            Target::Directory { file, .. } => {
                *file = None;
                Ok(())
            }
        }
    }

    /// Nothing follows.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        match self {
            Target::Archive { stream, .. } => {
                put(*stream, &[0; 2 * BLOCK_BYTES as usize])?;
                stream.flush().map_err(Error::io("write", Path::new("the archive")))
            }
            Target::Directory { .. } => Ok(()),
        }
    }
}

fn put(stream: &mut dyn Write, bytes: &[u8]) -> Result<(), Error> {
    stream.write_all(bytes).map_err(Error::io("write", Path::new("the archive")))
}

/// Root's, from the beginning of time: the same for everybody.
fn header(path: &str, kind: EntryType, size: u64) -> Result<Vec<u8>, Error> {
    let mode = if kind == EntryType::Directory { 0o755 } else { 0o644 };
    let mut builder = EntryBuilder::new_gnu();
    builder.path(path).entry_type(kind);
    let numbers = builder
        .mode(mode)
        .and_then(|builder| builder.uid(0))
        .and_then(|builder| builder.gid(0))
        .and_then(|builder| builder.size(size))
        .and_then(|builder| builder.mtime(0));
    numbers.map_err(|error| Error::InvalidInput {
        what: "member of an archive",
        input: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(builder.finish_bytes())
}
