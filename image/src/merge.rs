//! Images with more layers than overlayfs stacks: the lowest ones are copied into one.
//!
//! overlayfs takes 500 lower directories. Of an image with more, the upper 498 layers stay as they are, shared with other
//! images; all below become one tree, which is what they look like when they are stacked and is stored under their ChainID.
//! A copy, not links: a link would show in the files' link counts.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cofferdam_linux::removal::remove_tree_at;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::attributes::apply;
use crate::backend::Form;
use crate::copy::{Original, copy};
use crate::directory::{join, open_beneath};
use crate::entry::Attributes;
use crate::error::{Error, LayerError};
use crate::extract::split;
use crate::fixup::FixupRecord;
use crate::identity::{ChainId, DiffId};
use crate::layer::{self, Fence, LayerRecord};
use crate::layout::{self, Layout, make_private};
use crate::lock::{Lock, Mode as LockMode};
use crate::path::EntryPath;
use crate::record::{self, Durable};
use crate::stack::{is_opaque, read_attributes, visible};
use crate::workspace::{self, Workspace};

/// Lower directories of one overlay mount, the fix-up layer not counted (500 with it, fs/overlayfs/params.h).
pub(crate) const LOWER_LIMIT: usize = 499;

/// The lower directories of a stack (lowest layer first) relative to the store, uppermost first, the fix-up layer left out.
pub(crate) fn lower(layers: &[LayerRecord]) -> Vec<String> {
    let visible: Vec<&LayerRecord> = visible(layers).collect();
    let merged = merged_name(&visible);
    let count = merged.as_ref().map_or(0, |_| merged_count(&visible));
    let of = |folder: &str, form: Form| format!("{folder}/{}", form.path());
    let kept = visible[count..].iter().rev().map(|record| of(&layout::layer(&record.diff_id), record.form));
    kept.chain(merged.map(|folder| of(&folder, Form::Directory))).collect()
}

/// Where the merged layer of a stack is, relative to the store; `None` if the stack needs none.
pub(crate) fn relative(layers: &[LayerRecord]) -> Option<String> {
    merged_name(&visible(layers).collect::<Vec<_>>())
}

/// Makes sure that the merged layer `relative` of a stack is stored.
pub(crate) fn ensure(
    layout: &Layout,
    workspace: &Workspace,
    layers: &[LayerRecord],
    relative: &str,
) -> Result<(), LayerError> {
    let visible: Vec<&LayerRecord> = visible(layers).collect();
    let target = layout.at(relative);
    let _lock = Lock::wait(&layout.lock(&relative.replace('/', "-")), LockMode::Exclusive)?;
    let stored: Option<FixupRecord> = record::load(&target.join("fixup.json"))?;
    if !stored.is_some_and(|record| record.fence.holds()) {
        let stage = workspace::make_stage(workspace.path())?;
        let tree = stage.join("diff");
        make_private(&tree)?;
        flatten(layout, &visible[..merged_count(&visible)], &tree)?;
        let record = FixupRecord { fence: Fence::new() };
        record::store(&stage.join("fixup.json"), workspace.path(), &record, Durable::Later)?;
        layout.discard(&target)?;
        fs::rename(&stage, &target).map_err(Error::io("publish", &target))?;
    }
    Ok(())
}

/// Makes what a whole stack (lowest layer first) shows, in the empty directory `tree`.
pub(crate) fn flatten_all(layout: &Layout, layers: &[LayerRecord], tree: &Path) -> Result<(), LayerError> {
    flatten(layout, &visible(layers).collect::<Vec<_>>(), tree)
}

fn flatten(layout: &Layout, layers: &[&LayerRecord], tree: &Path) -> Result<(), LayerError> {
    let mut merge = Merge::open(tree)?;
    for record in layers {
        merge.add(layout, record)?;
    }
    merge.finish()
}

/// How many of the lowest layers go into the merged one, which takes the place of one.
fn merged_count(visible: &[&LayerRecord]) -> usize {
    visible.len() + 1 - LOWER_LIMIT
}

fn merged_name(visible: &[&LayerRecord]) -> Option<String> {
    if visible.len() <= LOWER_LIMIT {
        return None;
    }
    let lowest = &visible[..merged_count(visible)];
    let diff_ids: Vec<DiffId> = lowest.iter().map(|record| record.diff_id.clone()).collect();
    ChainId::of(&diff_ids).map(|chain| format!("{}-merged", layout::fixup(&chain)))
}

/// A tree in the making.
struct Merge {
    root: OwnedFd,
    /// Of directories, which get them last.
    attributes: BTreeMap<Vec<u8>, Attributes>,
}

/// One layer while it is laid over the tree.
struct Layer<'a> {
    root: OwnedFd,
    record: &'a LayerRecord,
    /// What was copied of files with several names, by inode.
    copied: HashMap<u64, Vec<u8>>,
}

impl Merge {
    fn open(tree: &Path) -> Result<Merge, LayerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(tree, flags, Mode::empty()).map_err(Error::io("open", tree))?;
        Ok(Merge { root, attributes: BTreeMap::from([(Vec::new(), Attributes::implied())]) })
    }

    fn add(&mut self, layout: &Layout, record: &LayerRecord) -> Result<(), LayerError> {
        let root = layer::open_tree(layout, record)?;
        let mut layer = Layer { root, record, copied: HashMap::new() };
        // Links to what lies below are made before this layer hides it, and take their places after.
        let aside = self.put_links_aside(record)?;
        self.lay(&mut layer)?;
        for (number, (name, _)) in record.links.iter().enumerate().filter(|(number, _)| aside[*number]) {
            let (parent, base) = split(name.bytes());
            let parent = self.directory(parent)?;
            self.clear(&parent, name.bytes())?;
            rustix::fs::renameat(&self.root, aside_name(number), &parent, base)
                .map_err(LayerError::entry_io(name.bytes(), "link"))?;
        }
        Ok(())
    }

    /// Whether each link was put aside. One whose target is not here was refused when the fix-up layer was made, or is hidden.
    fn put_links_aside(&self, record: &LayerRecord) -> Result<Vec<bool>, LayerError> {
        let mut aside = Vec::new();
        for (number, (name, target)) in record.links.iter().enumerate() {
            let (parent, base) = split(target.bytes());
            let linked = open_beneath(&self.root, parent, OFlags::PATH).and_then(|parent| {
                rustix::fs::linkat(&parent, base, &self.root, aside_name(number), AtFlags::empty())
            });
            aside.push(match linked {
                Ok(()) => true,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::PERM) => false,
                Err(error) => return Err(LayerError::entry_io(name.bytes(), "link")(error)),
            });
        }
        Ok(aside)
    }

    /// Lays what the layer has over the tree, directories before what is in them; however deep they are, with no stack of calls.
    fn lay(&mut self, layer: &mut Layer<'_>) -> Result<(), LayerError> {
        let mut folders = vec![Vec::new()];
        while let Some(path) = folders.pop() {
            folders.extend(self.lay_directory(layer, &path)?);
        }
        Ok(())
    }

    /// The same for one directory; the directories in it come back.
    fn lay_directory(&mut self, layer: &mut Layer<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>, LayerError> {
        let failed = |operation| LayerError::entry_io(path, operation);
        let source = open_beneath(&layer.root, path, OFlags::RDONLY).map_err(failed("open"))?;
        self.make_directory(layer, &source, path)?;
        let mut folders = Vec::new();
        for entry in rustix::fs::Dir::read_from(&source).map_err(failed("list"))? {
            let entry = entry.map_err(failed("list"))?;
            let base = entry.file_name().to_bytes();
            if matches!(base, b"." | b"..") {
                continue;
            }
            let name = join(path, base);
            let stat = rustix::fs::statat(&source, base, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(LayerError::entry_io(&name, "examine"))?;
            let target = self.directory(path)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => folders.push(name),
                FileType::CharacterDevice if stat.st_rdev == 0 => self.clear(&target, &name)?,
                _ => {
                    self.clear(&target, &name)?;
                    let original = Original { folder: &source, base, stat: &stat };
                    self.copy(layer, &original, &target, &name)?;
                }
            }
        }
        Ok(folders)
    }

    fn make_directory(&mut self, layer: &Layer<'_>, source: &OwnedFd, path: &[u8]) -> Result<(), LayerError> {
        let failed = |operation| LayerError::entry_io(path, operation);
        let is_implied = layer.record.implied.contains(&EntryPath::new(path.to_vec()));
        if path.is_empty() {
            if layer.record.opaque_root {
                self.empty(b"")?;
            }
        } else {
            let (parent, base) = split(path);
            let parent = self.directory(parent)?;
            match rustix::fs::mkdirat(&parent, base, Mode::RWXU) {
                Ok(()) => drop(self.attributes.insert(path.to_vec(), Attributes::implied())),
                Err(Errno::EXIST) if !self.attributes.contains_key(path) => {
                    self.clear(&parent, path)?;
                    rustix::fs::mkdirat(&parent, base, Mode::RWXU).map_err(failed("create"))?;
                    self.attributes.insert(path.to_vec(), Attributes::implied());
                }
                Err(Errno::EXIST) if is_opaque(source) => self.empty(path)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("create")(error)),
            }
        }
        if !is_implied {
            self.attributes.insert(path.to_vec(), read_attributes(source, path)?);
        }
        Ok(())
    }

    fn copy(
        &self,
        layer: &mut Layer<'_>,
        original: &Original<'_>,
        target: &OwnedFd,
        name: &[u8],
    ) -> Result<(), LayerError> {
        let (_, base) = split(name);
        if let Some(first) = layer.copied.get(&original.stat.st_ino) {
            let (parent, first) = split(first);
            let parent = self.directory(parent)?;
            return rustix::fs::linkat(&parent, first, target, base, AtFlags::empty())
                .map_err(LayerError::entry_io(name, "link"));
        }
        copy(original, target, base, name)?;
        if original.stat.st_nlink > 1 {
            layer.copied.insert(original.stat.st_ino, name.to_vec());
        }
        Ok(())
    }

    fn directory(&self, path: &[u8]) -> Result<OwnedFd, LayerError> {
        open_beneath(&self.root, path, OFlags::RDONLY).map_err(LayerError::entry_io(path, "open"))
    }

    /// Removes `name`, whatever it is, from the directory `parent`.
    fn clear(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), LayerError> {
        let (_, base) = split(name);
        match rustix::fs::unlinkat(parent, base, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                let below: Vec<Vec<u8>> =
                    self.attributes.range(name.to_vec()..).map(|(path, _)| path.clone()).collect();
                for path in below.iter().filter(|path| is_at_or_below(path, name)) {
                    self.attributes.remove(path);
                }
                remove_tree_at(parent.as_fd(), base).map_err(LayerError::entry_io(name, "replace"))
            }
            Err(error) => Err(LayerError::entry_io(name, "replace")(error)),
        }
    }

    fn empty(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let directory = self.directory(path)?;
        let mut names = Vec::new();
        for entry in
            rustix::fs::Dir::read_from(&directory).map_err(LayerError::entry_io(path, "list"))?.flatten()
        {
            let base = entry.file_name().to_bytes();
            if !matches!(base, b"." | b"..") && !base.starts_with(ASIDE) {
                names.push(join(path, base));
            }
        }
        names.iter().try_for_each(|name| self.clear(&directory, name))
    }

    fn finish(self) -> Result<(), LayerError> {
        for (path, attributes) in &self.attributes {
            apply(&self.directory(path)?, path, attributes)?;
        }
        Ok(())
    }
}

/// A name that no layer has: it would be a deletion's.
const ASIDE: &[u8] = b".wh..wh.link-";

fn aside_name(number: usize) -> Vec<u8> {
    [ASIDE, number.to_string().as_bytes()].concat()
}

fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}
