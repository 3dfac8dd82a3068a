//! Layers: unpacked once, stored under their DiffID, shared by every image that has them.
//!
//! ```text
//! lock the DiffID ─▶ stored? ── its blob is known ─────────────────────────────▶ exists
//!                      │   └── another blob ─▶ read it, compare digests, note it ─▶ exists
//!                      └▶ unpack into the workspace ─▶ compare digests ─▶ rename ─▶ done
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use cofferdam_registry::{Descriptor, Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::backend::Form;
use crate::decode::{Compression, Expected, TarStream};
use crate::error::{Error, LayerError};
use crate::event::PullEvent;
use crate::identity::DiffId;
use crate::layout::{self, Layout, make_private};
use crate::lock::Lock;
use crate::owners::{OwnedSink, Owners};
use crate::path::EntryPath;
use crate::record::{self, Durable};
use crate::ring::PIECE_BYTES;
use crate::{unpack, workspace};

/// What a layer is to be and where its bytes come from.
#[derive(Clone)]
pub(crate) struct LayerPlan {
    pub(crate) index: usize,
    pub(crate) media_type: String,
    pub(crate) blob: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: DiffId,
}

impl LayerPlan {
    pub(crate) fn new(index: usize, descriptor: &Descriptor, diff_id: &DiffId) -> LayerPlan {
        LayerPlan {
            index,
            media_type: descriptor.media_type.clone(),
            blob: descriptor.digest.clone(),
            size: descriptor.size,
            diff_id: diff_id.clone(),
        }
    }
}

/// A blob that was seen to unpack to a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// `layer.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: DiffId,
    pub(crate) tar_bytes: u64,
    pub(crate) origins: Vec<Origin>,
    /// What it is on the disk.
    #[serde(default)]
    pub(crate) form: Form,
    pub(crate) opaque_root: bool,
    pub(crate) implied: BTreeSet<EntryPath>,
    pub(crate) links: Vec<(EntryPath, EntryPath)>,
    /// Directories that hold marks of deleted names.
    pub(crate) marked: BTreeSet<EntryPath>,
    /// A name that the archive gives to one entry after another: the tree has the last one's data alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaced: Option<EntryPath>,
    #[serde(flatten)]
    pub(crate) fence: Fence,
}

/// Whether something written without fsync can be trusted: in the boot that wrote it, or once it was settled. A crash of
/// the process loses nothing of the page cache; a loss of power may, and is then known by the boot id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Fence {
    boot: String,
    pub(crate) durable: bool,
}

impl Fence {
    pub(crate) fn new() -> Fence {
        Fence { boot: boot_id(), durable: false }
    }

    pub(crate) fn holds(&self) -> bool {
        self.durable || (!self.boot.is_empty() && self.boot == boot_id())
    }
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Everything that making a layer needs beside its plan.
pub(crate) struct LayerContext<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) workspace: &'a Path,
    pub(crate) report: &'a dyn Fn(PullEvent),
    /// Whether the caller wants no more.
    pub(crate) is_stopped: &'a dyn Fn() -> bool,
}

/// Opens a layer's blob, when it is known to be needed.
pub(crate) type OpenBlob<'a> = Box<dyn FnOnce() -> Result<Box<dyn Read + 'a>, LayerError> + 'a>;

/// Loads a stored layer's record; `None` if the layer is not there or cannot be trusted.
pub(crate) fn load(layout: &Layout, diff_id: &DiffId) -> Result<Option<LayerRecord>, Error> {
    let path = layout.at(&layout::layer(diff_id)).join("layer.json");
    let record: Option<LayerRecord> = record::load(&path)?;
    Ok(record.filter(|record| record.fence.holds() && record.diff_id == *diff_id))
}

/// The file with what the tree lacks of the layer's tar.
pub(crate) const RECIPE: &str = "recipe";

impl LayerRecord {
    /// What a failure to put the layer's tar together again means: of a layer with replaced entries it says nothing about
    /// the tree.
    pub(crate) fn explain(&self, error: LayerError) -> LayerError {
        match (&self.replaced, error) {
            (_, error @ (LayerError::Cancelled | LayerError::Store(_))) => error,
            (Some(name), _) => {
                LayerError::ListedTwice { path: String::from_utf8_lossy(name.bytes()).into_owned() }
            }
            (None, error) => error,
        }
    }
}

/// The layer's tree, for looking into, whatever form it is kept in.
pub(crate) fn open_tree(layout: &Layout, record: &LayerRecord) -> Result<OwnedFd, Error> {
    record.form.open(&layout.at(&layout::layer(&record.diff_id)))
}

/// Makes sure that the layer is stored and that its blob is what the plan says.
pub(crate) fn ensure(
    context: &LayerContext<'_>,
    plan: &LayerPlan,
    open: OpenBlob<'_>,
) -> Result<LayerRecord, LayerError> {
    let _lock = lock(context, plan, &layout::layer(&plan.diff_id))?;
    let (layer, digest, total_bytes) = (plan.index, plan.blob.clone(), plan.size);
    match load(context.layout, &plan.diff_id)? {
        Some(record) if is_known(&record, plan) => {
            (context.report)(PullEvent::LayerExists { layer, digest, total_bytes });
            Ok(record)
        }
        Some(mut record) => {
            (context.report)(PullEvent::LayerStarted { layer, digest, total_bytes });
            record.origins.push(verify(context, plan, open()?)?);
            let path = context.layout.at(&layout::layer(&plan.diff_id)).join("layer.json");
            record::store(&path, context.workspace, &record, Durable::Later)?;
            done(context, plan, &record);
            Ok(record)
        }
        None => {
            (context.report)(PullEvent::LayerStarted { layer, digest, total_bytes });
            let record = unpack(context, plan, open()?)?;
            done(context, plan, &record);
            Ok(record)
        }
    }
}

/// Waits until nobody else makes what will be at that path of the store.
pub(crate) fn lock(context: &LayerContext<'_>, plan: &LayerPlan, relative: &str) -> Result<Lock, LayerError> {
    let path = context.layout.lock(&relative.replace('/', "-"));
    if let Some(lock) = Lock::try_exclusive(&path)? {
        return Ok(lock);
    }
    (context.report)(PullEvent::LayerWaiting { layer: plan.index });
    Ok(Lock::wait_unless(&path, context.is_stopped)?)
}

fn is_known(record: &LayerRecord, plan: &LayerPlan) -> bool {
    record.origins.iter().any(|origin| origin.digest == plan.blob && origin.size == plan.size)
}

fn done(context: &LayerContext<'_>, plan: &LayerPlan, record: &LayerRecord) {
    (context.report)(PullEvent::LayerDone {
        layer: plan.index,
        diff_id: record.diff_id.clone(),
        unpacked_bytes: record.tar_bytes,
    });
}

fn unpack<R: Read>(
    context: &LayerContext<'_>,
    plan: &LayerPlan,
    source: R,
) -> Result<LayerRecord, LayerError> {
    let stage = workspace::make_stage(context.workspace)?;
    let form = context.layout.options().layers.form();
    let folder = stage.join(form.folder());
    make_private(&folder)?;
    let stream = open_stream(context, plan, source)?;
    let (recipe, algorithm) = (stage.join(RECIPE), plan.diff_id.digest().algorithm());
    // Asked here: the unpacking thread sees no /proc.
    let owners = Owners::here(context.layout.options().unmapped_owners);
    let open_sink = |root| {
        let sink = form.begin(root, &plan.diff_id)?;
        Ok(match owners {
            Some(owners) => Box::new(OwnedSink { owners, sink }),
            None => sink,
        })
    };
    let unpacked =
        unpack::unpack(stream, &folder, open_sink, &recipe, algorithm, context.layout.options().limits)?;
    let extracted = unpacked.extracted;
    for warning in &extracted.warnings {
        warn(context, plan, warning);
    }
    compare(plan, unpacked.tar)?;
    let record = LayerRecord {
        diff_id: plan.diff_id.clone(),
        tar_bytes: unpacked.tar_bytes,
        origins: vec![Origin { digest: unpacked.blob, size: unpacked.blob_bytes }],
        form,
        opaque_root: extracted.opaque_root,
        implied: extracted.implied.into_iter().map(EntryPath::new).collect(),
        links: extracted.links.into_iter().map(|(a, b)| (EntryPath::new(a), EntryPath::new(b))).collect(),
        marked: extracted.marked.into_iter().map(EntryPath::new).collect(),
        replaced: extracted.replaced.map(EntryPath::new),
        fence: Fence::new(),
    };
    record::store(&stage.join("layer.json"), context.workspace, &record, Durable::Later)?;
    let target = context.layout.at(&layout::layer(&plan.diff_id));
    // What is there is torn or from before a loss of power: `load` did not accept it.
    context.layout.discard(&target)?;
    fs::rename(&stage, &target).map_err(Error::io("publish", &target))?;
    Ok(record)
}

/// Reads a blob for its digests alone: the layer is stored, but nobody has yet seen this blob unpack to it.
fn verify<R: Read>(context: &LayerContext<'_>, plan: &LayerPlan, source: R) -> Result<Origin, LayerError> {
    let mut stream = open_stream(context, plan, source)?;
    let mut hasher = Hasher::new(plan.diff_id.digest().algorithm());
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) => return Err(stream.explain(error)),
        }
    }
    let (digest, size) = stream.finish()?;
    compare(plan, hasher.finish())?;
    Ok(Origin { digest, size })
}

fn open_stream<R: Read>(
    context: &LayerContext<'_>,
    plan: &LayerPlan,
    source: R,
) -> Result<TarStream<R>, LayerError> {
    let expected = Expected { digest: Some(plan.blob.clone()), size: Some(plan.size) };
    let stream = TarStream::open(source, expected, context.layout.options().limits)?;
    if stream.compression() != Compression::of_media_type(&plan.media_type) {
        warn(context, plan, &format!("its media type {} does not match its contents", plan.media_type));
    }
    Ok(stream)
}

fn compare(plan: &LayerPlan, actual: Digest) -> Result<(), LayerError> {
    let expected = plan.diff_id.digest();
    if actual == *expected {
        return Ok(());
    }
    Err(LayerError::DiffId { expected: expected.clone(), actual })
}

fn warn(context: &LayerContext<'_>, plan: &LayerPlan, text: &str) {
    (context.report)(PullEvent::Warning { message: format!("layer {}: {text}", plan.blob) });
}
