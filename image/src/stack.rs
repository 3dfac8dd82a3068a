//! A stack of layers, seen as overlayfs will see it: which directory or file a name means, and in which layer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::directory::open_beneath;
use crate::entry::{Attributes, ESCAPED_OVERLAY};
use crate::error::{Error, LayerError};
use crate::extract::split;
use crate::layer::{self, LayerRecord};
use crate::layout::Layout;
use crate::path::EntryPath;

/// One layer of a stack.
pub(crate) struct StackedLayer {
    pub(crate) root: OwnedFd,
    pub(crate) record: LayerRecord,
}

/// The layers of an image that can be seen, lowest first.
pub(crate) struct Stack {
    pub(crate) layers: Vec<StackedLayer>,
    /// Of the directories that were asked for: a deep one is asked for with each of its parents.
    opacities: RefCell<HashMap<(usize, Vec<u8>), Opacity>>,
}

/// What one layer says about a name.
pub(crate) enum Found {
    Directory(OwnedFd),
    /// Anything else but a deletion: where it is, its last component, and what it is.
    Node(OwnedFd, Vec<u8>, Box<Stat>),
    /// Nothing, and lower layers are not asked: the name, or a directory on its way, is deleted or replaced here.
    Hidden,
    /// Nothing; lower layers are asked.
    Absent,
}

impl Stack {
    /// Opens the layers of `records` (lowest first) that can be seen in the stack.
    pub(crate) fn open(layout: &Layout, records: &[LayerRecord]) -> Result<Stack, Error> {
        let open = |record: &LayerRecord| {
            Ok(StackedLayer { root: layer::open_tree(layout, record)?, record: record.clone() })
        };
        let layers = visible(records).map(open).collect::<Result<_, Error>>()?;
        Ok(Stack { layers, opacities: RefCell::default() })
    }

    /// What the layer at `index` says about `path`, and whether it hides what lies below.
    pub(crate) fn find(&self, index: usize, path: &[u8]) -> Result<Found, LayerError> {
        let failed = |operation| LayerError::entry_io(path, operation);
        let root = &self.layers[index].root;
        // Most names asked for are directories, and a directory is one whatever lies above it.
        if let Ok(directory) = open_beneath(root, path, OFlags::RDONLY) {
            return Ok(Found::Directory(directory));
        }
        let mut current = open_beneath(root, b"", OFlags::RDONLY).map_err(failed("open the layer of"))?;
        let mut components = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
        let mut opaque = false;
        while let Some(component) = components.next() {
            let stat = match rustix::fs::statat(&current, component, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(if opaque { Found::Hidden } else { Found::Absent }),
                Err(error) => return Err(failed("look up")(error)),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    current = open_beneath(&current, component, OFlags::RDONLY).map_err(failed("open"))?;
                    opaque |= is_opaque(&current);
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Found::Hidden),
                _ if components.peek().is_some() => return Ok(Found::Hidden),
                _ => return Ok(Found::Node(current, component.to_vec(), Box::new(stat))),
            }
        }
        Ok(Found::Directory(current))
    }

    /// The layers whose directories `path` are merged into one, uppermost first.
    pub(crate) fn merged(&self, path: &[u8]) -> Result<Vec<usize>, LayerError> {
        let mut merged = Vec::new();
        for index in (0..self.layers.len()).rev() {
            match self.find(index, path)? {
                Found::Directory(_) => merged.push(index),
                Found::Absent => continue,
                Found::Hidden | Found::Node(..) => break,
            }
            if self.opacity(index, path)? != Opacity::Clear {
                break;
            }
        }
        Ok(merged)
    }

    /// The attributes that the directory `path` has in the image, and whether its uppermost layer says so. `None` if the
    /// stack shows no directory of that name. An opaque directory hides what lower layers have in it, not what they say of it.
    pub(crate) fn directory(&self, path: &[u8]) -> Result<Option<(Attributes, Agreement)>, LayerError> {
        let key = EntryPath::new(path.to_vec());
        let mut agreement = Agreement::Same;
        let mut exists = false;
        for index in (0..self.layers.len()).rev() {
            match self.find(index, path)? {
                Found::Directory(directory) if !self.layers[index].record.implied.contains(&key) => {
                    return Ok(Some((read_attributes(&directory, path)?, agreement)));
                }
                Found::Directory(_) => (exists, agreement) = (true, Agreement::Differs),
                Found::Absent => continue,
                Found::Hidden | Found::Node(..) => break,
            }
            if self.opacity(index, path)? == Opacity::Above {
                break;
            }
        }
        Ok(exists.then(|| (Attributes::implied(), Agreement::Same)))
    }

    /// What the directories on the way to `path`, which the layer at `index` has, hide of lower layers.
    fn opacity(&self, index: usize, path: &[u8]) -> Result<Opacity, LayerError> {
        // Below the lowest layer nothing is left to hide.
        if index == 0 {
            return Ok(Opacity::Clear);
        }
        let mut opacities = self.opacities.borrow_mut();
        let mut unknown = Vec::new();
        let mut current = path;
        let mut opacity = loop {
            if current.is_empty() {
                break Opacity::Clear;
            }
            match opacities.get(&(index, current.to_vec())) {
                Some(known) => break *known,
                None => unknown.push(current),
            }
            current = split(current).0;
        };
        for directory in unknown.into_iter().rev() {
            opacity = match opacity {
                Opacity::Clear => {
                    let opened = open_beneath(&self.layers[index].root, directory, OFlags::RDONLY)
                        .map_err(LayerError::entry_io(path, "open"))?;
                    if is_opaque(&opened) { Opacity::Itself } else { Opacity::Clear }
                }
                Opacity::Itself | Opacity::Above => Opacity::Above,
            };
            opacities.insert((index, directory.to_vec()), opacity);
        }
        Ok(opacity)
    }
}

/// Where on its path a directory is opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opacity {
    Clear,
    Itself,
    Above,
}

/// The layers that can be seen, lowest first: none below an opaque root, and of a layer that is listed several times only
/// the uppermost. Whatever the lower ones show or hide, the uppermost shows or hides too; overlayfs refuses duplicates.
pub(crate) fn visible(records: &[LayerRecord]) -> impl DoubleEndedIterator<Item = &LayerRecord> {
    let first = records.iter().rposition(|record| record.opaque_root).unwrap_or(0);
    let candidates = records.iter().enumerate().skip(first);
    let is_uppermost = move |(index, record): &(usize, &LayerRecord)| {
        records[index + 1..].iter().all(|above| above.diff_id != record.diff_id)
    };
    candidates.filter(is_uppermost).map(|(_, record)| record)
}

/// Whether the uppermost layer that has a directory also describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agreement {
    Same,
    Differs,
}

/// Whether overlayfs hides what lower layers have in a directory.
pub(crate) fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0; 2];
    rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value[..])
        .is_ok_and(|length| &value[..length] == b"y")
}

/// Owner, mode, time and attributes of an open file.
pub(crate) fn read_attributes(file: &impl AsFd, path: &[u8]) -> Result<Attributes, LayerError> {
    let stat = rustix::fs::fstat(file).map_err(LayerError::entry_io(path, "examine"))?;
    let mut attributes = from_stat(&stat);
    attributes.xattrs = read_xattrs(file).map_err(LayerError::entry_io(path, "read the attributes of"))?;
    Ok(attributes)
}

/// Everything that a stat tells.
pub(crate) fn from_stat(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: rustix::fs::Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
        xattrs: Vec::new(),
    }
}

fn read_xattrs(file: &impl AsFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    // With an empty buffer, rustix's plain calls report no length.
    let size = match rustix::fs::flistxattr_query(file) {
        Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = vec![0; size];
    let length = rustix::fs::flistxattr(file, &mut names[..])?;
    let mut xattrs = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // overlayfs's own; what an image means to show of that name is stored escaped.
        if name.starts_with(b"trusted.") && !name.starts_with(ESCAPED_OVERLAY) {
            continue;
        }
        let mut value = vec![0; rustix::fs::fgetxattr_query(file, name)?];
        let length = if value.is_empty() { 0 } else { rustix::fs::fgetxattr(file, name, &mut value[..])? };
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    Ok(xattrs)
}
