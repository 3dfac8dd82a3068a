//! In what two images differ, entry by entry.
//!
//! Told from the layers' recipes, not from their trees: a path's entry is the one of the uppermost layer that has it, unless
//! a layer above deletes it. Two entries of the same layer are the same. Of others, files that a listing shows alike are
//! compared byte by byte.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::Serialize;

use crate::entry::{Entry, Node};
use crate::error::{Error, LayerError};
use crate::extract::split;
use crate::image::ImageLayer;
use crate::layer::{self, LayerRecord, RECIPE};
use crate::layout::{self, Layout};
use crate::recipe::{self, LayerTar};

/// What happened to a path. Stable JSON: fields are added, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The path within the image, with a leading slash; what is not UTF-8 is replaced.
    pub path: String,
    /// What happened to it.
    pub change: ChangeKind,
    /// Bytes of the file there is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It was there with other contents or attributes.
    Changed,
    /// It is not there any more.
    Deleted,
}

/// What an image shows under each path: the layer that it is from, and the entry.
type Listing = BTreeMap<Vec<u8>, (usize, Entry)>;

/// What the stack `to` shows other than the stack `from`, both lowest first.
pub(crate) fn diff(layout: &Layout, from: &[ImageLayer], to: &[ImageLayer]) -> Result<Vec<Change>, Error> {
    let shared = from.iter().zip(to).take_while(|(a, b)| a.diff_id == b.diff_id).count();
    let mut below = Listing::new();
    for (number, layer) in from[..shared].iter().enumerate() {
        add(layout, layer, number, &mut below)?;
    }
    let (mut before, mut after) = (below.clone(), below);
    for (number, layer) in from.iter().enumerate().skip(shared) {
        add(layout, layer, number, &mut before)?;
    }
    for (number, layer) in to.iter().enumerate().skip(shared) {
        // Numbered apart from those of the other stack.
        add(layout, layer, from.len() + number, &mut after)?;
    }
    let mut trees = Vec::new();
    for layer in from.iter().chain(to) {
        trees.push(layer::open_tree(layout, &load(layout, layer)?)?);
    }
    compare(&before, &after, &trees)
}

/// `trees` are those of the layers, by their numbers.
fn compare(before: &Listing, after: &Listing, trees: &[OwnedFd]) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    for (path, (layer, entry)) in after {
        let change = match before.get(path) {
            None => ChangeKind::Added,
            Some((other, _)) if layer == other => continue,
            Some((other, old))
                if !is_same(old, entry) || !has_same_data(&trees[*other], &trees[*layer], entry)? =>
            {
                ChangeKind::Changed
            }
            Some(_) => continue,
        };
        changes.push(Change { path: shown(path), change, size: size(entry) });
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        changes.push(Change { path: shown(path), change: ChangeKind::Deleted, size: None });
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

fn has_same_data(old: &OwnedFd, new: &OwnedFd, entry: &Entry) -> Result<bool, Error> {
    if size(entry).is_none_or(|size| size == 0) {
        return Ok(true);
    }
    let path = PathBuf::from(String::from_utf8_lossy(&entry.name).into_owned());
    let open = |tree| recipe::open_file(tree, &entry.name).map_err(Error::io("open", &path));
    let read = |file: &mut BufReader<File>| -> Result<usize, Error> {
        Ok(file.fill_buf().map_err(Error::io("read", &path))?.len())
    };
    let (mut old, mut new) = (BufReader::new(open(old)?), BufReader::new(open(new)?));
    loop {
        let count = read(&mut old)?.min(read(&mut new)?);
        if count == 0 {
            return Ok(old.buffer().len() == new.buffer().len());
        }
        if old.buffer()[..count] != new.buffer()[..count] {
            return Ok(false);
        }
        old.consume(count);
        new.consume(count);
    }
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

fn size(entry: &Entry) -> Option<u64> {
    match &entry.node {
        Node::File => Some(entry.size),
        Node::Sparse(_, size) => Some(*size),
        _ => None,
    }
}

/// Directories are the same if their attributes are but for the time, which changes with what is in them.
fn is_same(old: &Entry, new: &Entry) -> bool {
    if old.node == Node::Directory && new.node == Node::Directory {
        let (old, new) = (&old.attributes, &new.attributes);
        return (old.mode, old.uid, old.gid, &old.xattrs) == (new.mode, new.uid, new.gid, &new.xattrs);
    }
    old.node == new.node && old.size == new.size && old.attributes == new.attributes
}

/// Applies a layer to a listing: first what it deletes, then what it has.
fn add(layout: &Layout, layer: &ImageLayer, number: usize, listing: &mut Listing) -> Result<(), Error> {
    let entries = read(layout, layer).map_err(|error| match error {
        LayerError::Store(error) => *error,
        error => Error::NotExportable {
            image: "to compare".to_owned(),
            layer: layer.diff_id.to_string(),
            reason: error.to_string(),
        },
    })?;
    for entry in &entries {
        let (parent, base) = split(&entry.name);
        match base.strip_prefix(b".wh.") {
            Some(b".wh..opq") => remove(listing, parent, Within::Only),
            Some(name) if !name.starts_with(b".wh.") => {
                let separator: &[u8] = if parent.is_empty() { b"" } else { b"/" };
                remove(listing, &[parent, separator, name].concat(), Within::AndItself);
            }
            _ => {}
        }
    }
    for entry in entries {
        if split(&entry.name).1.starts_with(b".wh.") {
            continue;
        }
        if entry.node != Node::Directory {
            remove(listing, &entry.name, Within::Only);
        }
        listing.insert(entry.name.clone(), (number, entry));
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Only,
    AndItself,
}

fn remove(listing: &mut Listing, path: &[u8], within: Within) {
    if path.is_empty() {
        listing.clear();
        return;
    }
    let below = [path, b"/"].concat();
    let names: Vec<Vec<u8>> = listing
        .range(below.clone()..)
        .map(|(name, _)| name.clone())
        .take_while(|name| name.starts_with(&below))
        .collect();
    for name in names {
        listing.remove(&name);
    }
    if within == Within::AndItself {
        listing.remove(path);
    }
}

fn read(layout: &Layout, layer: &ImageLayer) -> Result<Vec<Entry>, LayerError> {
    let recipe = layout.at(&layout::layer(&layer.diff_id)).join(RECIPE);
    LayerTar::open(&recipe, layer::open_tree(layout, &load(layout, layer)?)?)?.entries()
}

fn load(layout: &Layout, layer: &ImageLayer) -> Result<LayerRecord, Error> {
    let missing = || Error::Incomplete {
        image: "to compare".to_owned(),
        layer: layer.diff_id.to_string(),
        reason: "is not in the store any more".to_owned(),
    };
    layer::load(layout, &layer.diff_id)?.ok_or_else(missing)
}
