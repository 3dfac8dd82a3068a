//! Looking whether what is stored is still what was pulled, and taking away what is not.
//!
//! A layer's tar is put together again from its tree and its recipe: it has the DiffID, or something changed. On the way
//! each entry's owner, mode, time and kind are compared with the tree's. What is damaged and not in use is discarded; the
//! images that need it are incomplete then, and a pull or import brings it back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use cofferdam_registry::{Digest, Hasher};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use serde::Serialize;

use crate::entry::{Entry, Node};
use crate::error::{Error, LayerError};
use crate::event::Cancel;
use crate::identity::{ChainId, DiffId};
use crate::image::{self, ImageRecord};
use crate::layer::{self, LayerRecord, RECIPE};
use crate::layout::{self, Layout};
use crate::recipe::{LayerTar, replay};
use crate::snapshot;
use crate::workspace::Workspace;

/// What is looked at, and what becomes of what is damaged.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Only what these images need, by manifest digest; everything if empty.
    pub images: Vec<Digest>,
    /// What becomes of what is damaged.
    pub damaged: Damaged,
    /// Stops the work from another thread.
    pub cancel: Cancel,
}

/// What becomes of something damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Damaged {
    /// It is discarded, unless a snapshot uses it, so that the next pull or import brings it back.
    #[default]
    Discard,
    /// It stays.
    Keep,
}

/// What was found. Stable JSON: fields are added, never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Layers looked at.
    pub layers: usize,
    /// Manifests, configurations, kept blobs and those of artifacts looked at.
    pub blobs: usize,
    /// Bytes read of them.
    pub bytes: u64,
    /// What is not as it was.
    pub findings: Vec<Finding>,
}

/// Something that is not as it was stored, or of which that cannot be said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where it is, relative to the store.
    pub path: String,
    /// The images that need it, by manifest digest.
    pub images: Vec<Digest>,
    /// What is wrong with it.
    pub reason: String,
    /// What was done about it, and what is to be done.
    pub verdict: Verdict,
}

/// How a finding was dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is damaged and was discarded: pull or import the images again.
    Discarded,
    /// It is damaged and still there, because these snapshots use it; or because it was to be kept.
    StillThere(Vec<String>),
    /// It was never complete, or was lost with power before it was on disk: pull or import the images again.
    Missing,
    /// It cannot be compared with what it was.
    Unknown,
}

impl Verified {
    /// Whether everything is as it was.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict == Verdict::Unknown)
    }
}

/// Looks at everything that `options` name. Readers and pulls go on meanwhile.
pub(crate) fn verify(layout: &Layout, options: &VerifyOptions) -> Result<Verified, Error> {
    let mut records = image::records(layout)?;
    records.retain(|record| options.images.is_empty() || options.images.contains(&record.manifest));
    let workspace = Workspace::create(layout)?;
    workspace.lease(layout, records.iter().flat_map(ImageRecord::keeps))?;
    let mut verifier = Verifier { layout, options, users: users(&records), verified: Verified::default() };
    for path in needed(&records, |record| [&record.manifest, &record.config].map(layout::blob).to_vec()) {
        verifier.blob(&path, Required::Yes)?;
    }
    for path in
        needed(&records, |record| record.contents().iter().map(|blob| layout::blob(&blob.digest)).collect())
    {
        verifier.blob(&path, Required::Yes)?;
    }
    for path in
        needed(&records, |record| record.layers.iter().map(|layer| layout::blob(&layer.blob)).collect())
    {
        verifier.blob(&path, Required::No)?;
    }
    let layers: BTreeSet<DiffId> =
        records.iter().flat_map(|record| record.layers.iter().map(|layer| layer.diff_id.clone())).collect();
    for diff_id in &layers {
        verifier.layer(diff_id)?;
    }
    let is_damaged =
        |finding: &&Finding| matches!(finding.verdict, Verdict::Discarded | Verdict::StillThere(_));
    let broken: BTreeSet<String> =
        verifier.verified.findings.iter().filter(is_damaged).map(|finding| finding.path.clone()).collect();
    // What was made of a damaged layer may have the damage in it.
    for record in &records {
        if record.layers.iter().any(|layer| broken.contains(&layout::layer(&layer.diff_id))) {
            verifier.fixup(record)?;
        }
    }
    Ok(verifier.verified)
}

/// Which images need a path.
fn users(records: &[ImageRecord]) -> BTreeMap<String, Vec<Digest>> {
    let mut users: BTreeMap<String, Vec<Digest>> = BTreeMap::new();
    for record in records {
        for path in record.keeps().into_iter().collect::<BTreeSet<_>>() {
            users.entry(path).or_default().push(record.manifest.clone());
        }
    }
    users
}

fn needed(records: &[ImageRecord], paths: impl Fn(&ImageRecord) -> Vec<String>) -> BTreeSet<String> {
    records.iter().flat_map(paths).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Required {
    Yes,
    No,
}

struct Verifier<'a> {
    layout: &'a Layout,
    options: &'a VerifyOptions,
    users: BTreeMap<String, Vec<Digest>>,
    verified: Verified,
}

impl Verifier<'_> {
    fn blob(&mut self, path: &str, required: Required) -> Result<(), Error> {
        let file = self.layout.at(path);
        let failed = |operation| Error::io(operation, &file);
        let mut source = match File::open(&file) {
            Ok(source) => source,
            Err(error) if error.kind() == ErrorKind::NotFound && required == Required::No => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.find(path, "it is not there", Verdict::Missing);
                return Ok(());
            }
            Err(error) => return Err(failed("open")(error)),
        };
        self.verified.blobs += 1;
        let text = path.trim_start_matches("blobs/").replacen('/', ":", 1);
        let digest = Digest::parse(&text)
            .map_err(|error| Error::Record { path: file.clone(), reason: error.to_string() })?;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; 256 * 1024];
        loop {
            self.check_cancelled()?;
            match source.read(&mut buffer).map_err(failed("read"))? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    self.verified.bytes += count as u64;
                }
            }
        }
        let actual = hasher.finish();
        if actual != digest {
            self.damaged(path, &format!("its bytes have the digest {actual}"))?;
        }
        Ok(())
    }

    fn layer(&mut self, diff_id: &DiffId) -> Result<(), Error> {
        let path = layout::layer(diff_id);
        let Some(record) = layer::load(self.layout, diff_id)? else {
            let reason = "it is not there, or power was lost before it was on disk";
            self.find(&path, reason, Verdict::Missing);
            return Ok(());
        };
        self.verified.layers += 1;
        let recipe = self.layout.at(&path).join(RECIPE);
        if !recipe.exists() {
            let reason = "it was stored without what its tar needs: pull the image into a new store to have it verified";
            self.find(&path, reason, Verdict::Unknown);
            return Ok(());
        }
        match self.compare(&record, &recipe).map_err(|error| record.explain(error)) {
            Ok(()) => Ok(()),
            Err(LayerError::Cancelled) => Err(Error::Cancelled),
            Err(error @ LayerError::ListedTwice { .. }) => {
                self.find(&path, &error.to_string(), Verdict::Unknown);
                Ok(())
            }
            Err(error) => self.damaged(&path, &error.to_string()),
        }
    }

    fn compare(&mut self, record: &LayerRecord, recipe: &std::path::Path) -> Result<(), LayerError> {
        let entries: Arc<Mutex<BTreeMap<Vec<u8>, Entry>>> = Arc::default();
        let seen = Arc::clone(&entries);
        let tar = LayerTar::open(recipe, layer::open_tree(self.layout, record)?)?.visiting(Box::new(
            move |entry| {
                // Of a name that is listed twice, the last entry counts.
                seen.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.name.clone(), entry.clone());
                Ok(())
            },
        ));
        let cancel = self.options.cancel.clone();
        let stop = &mut |_: &[u8]| if cancel.is_cancelled() { Err(LayerError::Cancelled) } else { Ok(()) };
        self.verified.bytes += replay(tar, &record.diff_id, stop)?;
        let tree = layer::open_tree(self.layout, record)?;
        let entries = std::mem::take(&mut *entries.lock().unwrap_or_else(PoisonError::into_inner));
        for entry in entries.values() {
            if let Some(difference) = difference(&tree, entry)? {
                return Err(LayerError::entry(&entry.name, difference));
            }
        }
        Ok(())
    }

    fn fixup(&mut self, record: &ImageRecord) -> Result<(), Error> {
        let diff_ids: Vec<DiffId> = record.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let fixup = ChainId::of(&diff_ids).map(|chain| layout::fixup(&chain));
        for path in fixup.into_iter().chain(record.merged.clone()) {
            let is_known = self.verified.findings.iter().any(|known| known.path == path);
            if self.layout.at(&path).exists() && !is_known {
                self.damaged(&path, "it was made of a damaged layer")?;
            }
        }
        Ok(())
    }

    /// Discards what is damaged, unless it is in use: what is mounted must not change.
    fn damaged(&mut self, path: &str, reason: &str) -> Result<(), Error> {
        let snapshots = snapshot::records(self.layout)?;
        let users: Vec<String> = snapshots
            .into_iter()
            .filter(|snapshot| snapshot.keeps().any(|kept| kept == path))
            .map(|snapshot| snapshot.key)
            .collect();
        if !users.is_empty() || self.options.damaged == Damaged::Keep {
            self.find(path, reason, Verdict::StillThere(users));
            return Ok(());
        }
        self.layout.discard(&self.layout.at(path))?;
        self.find(path, reason, Verdict::Discarded);
        Ok(())
    }

    fn find(&mut self, path: &str, reason: &str, verdict: Verdict) {
        let images = self.users.get(path).cloned().unwrap_or_default();
        let (path, reason) = (path.to_owned(), reason.to_owned());
        self.verified.findings.push(Finding { path, images, reason, verdict });
    }

    fn check_cancelled(&self) -> Result<(), Error> {
        if self.options.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// In what a tree differs from an entry of its archive.
fn difference(tree: &OwnedFd, entry: &Entry) -> Result<Option<String>, LayerError> {
    let base = crate::extract::split(&entry.name).1;
    if base.starts_with(b".wh.") || matches!(entry.node, Node::Hardlink(_)) {
        return Ok(None);
    }
    let differs = |what: String| Ok(Some(what));
    let name: &[u8] = if entry.name.is_empty() { b"." } else { &entry.name };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(tree, name, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(error) => return differs(format!("the stored tree has no such file: {error}")),
    };
    let stat = rustix::fs::fstat(&file).map_err(LayerError::entry_io(&entry.name, "examine"))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != expected_kind(&entry.node) {
        return differs("the stored tree has another kind of file there".to_owned());
    }
    if let Node::Symlink(target) = &entry.node {
        let stored = rustix::fs::readlinkat(&file, "", Vec::new())
            .map_err(LayerError::entry_io(&entry.name, "read"))?;
        if stored.to_bytes() != target.as_slice() {
            return differs(format!("the stored link leads to {:?}", stored.to_string_lossy()));
        }
    }
    Ok(attributes(&stat, entry, kind))
}

fn expected_kind(node: &Node) -> FileType {
    match node {
        Node::Directory => FileType::Directory,
        Node::File | Node::Sparse(..) | Node::Hardlink(_) => FileType::RegularFile,
        Node::Symlink(_) => FileType::Symlink,
        Node::Character(_) => FileType::CharacterDevice,
        Node::Block(_) => FileType::BlockDevice,
        Node::Fifo => FileType::Fifo,
    }
}

fn attributes(stat: &Stat, entry: &Entry, kind: FileType) -> Option<String> {
    let expected = &entry.attributes;
    let mode = stat.st_mode & 0o7777;
    if kind != FileType::Symlink && mode != expected.mode {
        return Some(format!("its mode is {mode:o}, the archive says {:o}", expected.mode));
    }
    if (stat.st_uid, stat.st_gid) != (expected.uid, expected.gid) {
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        return Some(format!("its owner is {uid}:{gid}, the archive says {}:{}", expected.uid, expected.gid));
    }
    let size = match &entry.node {
        Node::File => entry.size,
        Node::Sparse(_, size) => *size,
        _ => return None,
    };
    let actual = stat.st_size as u64;
    (actual != size).then(|| format!("it has {actual} bytes, the archive says {size}"))
}
