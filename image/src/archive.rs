//! The files of a layout, wherever they are: in a directory, or in an archive that was spooled into the workspace.
//!
//! Archives come in any order, often from a pipe, so their members are written out first and opened by name afterwards. A
//! member's name is only a key: on disk it is a number.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cofferdam_registry::Algorithm;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::decode::{Expected, TarStream};
use crate::entry::{Node, normalise};
use crate::error::{Error, LayerError};
use crate::extract::split;
use crate::layout::make_private;
use crate::limits::Limits;
use crate::tar::TarReader;

/// The most members of an archive: a thousand images of a hundred layers.
const MEMBER_LIMIT: u64 = 100_000;
/// Links followed from one member to another; docker wrote a layer that two images share as a link.
const LINK_LIMIT: usize = 8;

/// Files by name.
pub(crate) enum Files {
    /// In a directory.
    Directory(OwnedFd),
    /// In an archive's spool.
    Spool { folder: PathBuf, members: HashMap<Vec<u8>, Member> },
}

/// A member of an archive.
pub(crate) enum Member {
    /// Its file in the spool.
    File(u64),
    /// The name that it links to.
    Link(Vec<u8>),
}

impl Files {
    pub(crate) fn open_directory(path: &Path) -> Result<Files, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Files::Directory(rustix::fs::open(path, flags, Mode::empty()).map_err(Error::io("open", path))?))
    }

    /// Reads a whole archive, compressed or not, into `folder`.
    pub(crate) fn spool(label: &str, source: &mut dyn Read, folder: &Path) -> Result<Files, Error> {
        make_private(folder)?;
        spool(source, folder).map_err(|error| match error {
            LayerError::Store(error) => *error,
            LayerError::Tar { position: 0, .. } => Error::Invalid {
                image: label.to_owned(),
                what: "archive",
                reason: "it is no tar archive, compressed or not".to_owned(),
            },
            error => Error::Invalid { image: label.to_owned(), what: "archive", reason: error.to_string() },
        })
    }

    /// Opens a file; `None` if there is none of that name.
    pub(crate) fn open(&self, name: &str) -> Result<Option<File>, Error> {
        match self {
            Files::Directory(root) => open_below(root, name),
            Files::Spool { folder, members } => {
                let Some(number) = resolve(members, name) else { return Ok(None) };
                let path = folder.join(number.to_string());
                File::open(&path).map(Some).map_err(Error::io("open", &path))
            }
        }
    }

    /// Reads a small file; `None` if there is none of that name or it is larger than `limit_bytes`.
    pub(crate) fn read(&self, name: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(Error::io("read", Path::new(name)))?;
        Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= limit_bytes))
    }
}

fn open_below(root: &OwnedFd, name: &str) -> Result<Option<File>, Error> {
    // Links within the layout are fine (tools share blobs that way), links out of it are not.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(root, name, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::io("open", Path::new(name))(error)),
    };
    let metadata = file.metadata().map_err(Error::io("examine", Path::new(name)))?;
    Ok(Some(file).filter(|_| metadata.is_file()))
}

fn resolve(members: &HashMap<Vec<u8>, Member>, name: &str) -> Option<u64> {
    let mut name = normalise(name.as_bytes()).ok()?;
    for _ in 0..LINK_LIMIT {
        match members.get(&name)? {
            Member::File(number) => return Some(*number),
            Member::Link(target) => name.clone_from(target),
        }
    }
    None
}

fn spool(source: &mut dyn Read, folder: &Path) -> Result<Files, LayerError> {
    let limits = Limits { entries: MEMBER_LIMIT, ..Limits::default() };
    let stream = TarStream::open(source, Expected::default(), limits)?;
    let mut tar = TarReader::new(stream, Algorithm::Sha256, limits);
    let mut members = HashMap::new();
    while let Some(entry) = tar.next()? {
        let member = match &entry.node {
            Node::File => {
                let number = members.len() as u64;
                let path = folder.join(number.to_string());
                let mut file = File::create(&path).map_err(Error::io("create", &path))?;
                loop {
                    let piece = tar.data()?;
                    if piece.is_empty() {
                        break;
                    }
                    file.write_all(piece).map_err(Error::io("write", &path))?;
                }
                Member::File(number)
            }
            Node::Symlink(target) => {
                let (parent, _) = split(&entry.name);
                Member::Link(normalise(&[parent, b"/", target].concat())?)
            }
            Node::Hardlink(target) => Member::Link(target.clone()),
            _ => continue,
        };
        members.insert(entry.name, member);
    }
    Ok(Files::Spool { folder: folder.to_owned(), members })
}
