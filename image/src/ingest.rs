//! Bringing an image in, wherever its bytes come from: all layers at once, then the fix-up, then the name.
//!
//! The image's record is written last. Whatever happens before, the store shows the old state; layers that were finished
//! stay and are found by the next attempt, until the garbage collector sees that nobody needs them.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_registry::{Descriptor, Digest, ImageRef, Platform, parse_json};
use oci_spec::image::ImageConfiguration;

use crate::artifact::{self, Artifact, ArtifactRecord};
use crate::error::{Error, LayerError};
use crate::event::{Cancel, Pace, PullEvent};
use crate::fixup::{self, Blame};
use crate::identity::{ChainId, DiffId};
use crate::image::{ImageLayer, ImageRecord, NameRecord};
use crate::layer::{self, Fence, LayerContext, LayerPlan, OpenBlob};
use crate::layout::{self, Layout};
use crate::lock::Lock;
use crate::merge;
use crate::record::{self, Durable};
use crate::workspace::Workspace;

/// Layers fetched and unpacked at once: what containers' other pullers settled on, and enough to fill four cores.
pub(crate) const PARALLEL_LAYERS: usize = 6;
/// How often a layer's progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// An image to bring in.
pub(crate) struct Ingest<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) workspace: &'a Workspace,
    /// The image in messages.
    pub(crate) label: String,
    pub(crate) manifest: &'a [u8],
    pub(crate) manifest_digest: Digest,
    pub(crate) config: &'a [u8],
    pub(crate) config_digest: Digest,
    /// The layers, or an artifact's blobs.
    pub(crate) layers: Vec<LayerPlan>,
    /// What is to be kept as content, if it is no container image.
    pub(crate) artifact: Option<Artifact>,
    pub(crate) cancel: Cancel,
    pub(crate) parallel: usize,
}

/// Makes sure that a layer, or a blob, is stored.
type Make<T> = fn(&LayerContext<'_>, &LayerPlan, OpenBlob<'_>) -> Result<T, LayerError>;

/// Where a layer's bytes come from.
pub(crate) type OpenLayer<'a> = &'a (dyn Fn(usize) -> Result<Box<dyn Read>, LayerError> + Sync);

/// The configuration, its DiffIDs and its platform, checked against the number of layers.
pub(crate) fn read_config(
    label: &str,
    bytes: &[u8],
    layers: usize,
) -> Result<(ImageConfiguration, Vec<DiffId>, Platform), Error> {
    let invalid = |reason: String| Error::Invalid { image: label.to_owned(), what: "configuration", reason };
    let config: ImageConfiguration = parse_json(bytes).map_err(|error| invalid(error.to_string()))?;
    // image-spec 1.1, config.md: any other value is an error.
    if config.rootfs().typ() != "layers" {
        return Err(invalid(format!("its rootfs.type is {:?}, expected \"layers\"", config.rootfs().typ())));
    }
    let parse =
        |text: &String| Digest::parse(text).map(DiffId::new).map_err(|error| invalid(error.to_string()));
    let diff_ids: Vec<DiffId> = config.rootfs().diff_ids().iter().map(parse).collect::<Result<_, _>>()?;
    if diff_ids.len() != layers {
        return Err(invalid(format!("it has {} DiffIDs, the manifest has {layers} layers", diff_ids.len())));
    }
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    let platform = Platform::new(&os, &architecture, config.variant().as_deref());
    Ok((config, diff_ids, platform))
}

/// What the layers of an image are to be.
pub(crate) fn layer_plans(descriptors: &[Descriptor], diff_ids: &[DiffId]) -> Vec<LayerPlan> {
    let plans = descriptors.iter().zip(diff_ids).enumerate();
    plans.map(|(index, (blob, diff_id))| LayerPlan::new(index, blob, diff_id)).collect()
}

/// The same of an artifact's blobs, which are what they are.
pub(crate) fn content_plans(descriptors: &[Descriptor]) -> Vec<LayerPlan> {
    let same: Vec<DiffId> = descriptors.iter().map(|blob| DiffId::new(blob.digest.clone())).collect();
    layer_plans(descriptors, &same)
}

impl Ingest<'_> {
    /// Stores everything and, if `name` is given, makes it stand for the image.
    pub(crate) fn run(
        &self,
        platform: Platform,
        name: Option<NameRecord>,
        open: OpenLayer<'_>,
        progress: &dyn Fn(PullEvent),
    ) -> Result<ImageRecord, Error> {
        self.workspace.lease(self.layout, self.keeps())?;
        let record = match &self.artifact {
            Some(artifact) => self.store_artifact(artifact, platform, open, progress)?,
            None => self.store_image(platform, open, progress)?,
        };
        if let Some(name) = name {
            name.store(self.layout, self.workspace)?;
        }
        progress(PullEvent::Finished { digest: self.manifest_digest.clone() });
        Ok(record)
    }

    fn store_image(
        &self,
        platform: Platform,
        open: OpenLayer<'_>,
        progress: &dyn Fn(PullEvent),
    ) -> Result<ImageRecord, Error> {
        let records = self.store_layers(open, progress, layer::ensure)?;
        self.store_documents()?;
        let fixup =
            fixup::ensure(self.layout, self.workspace, &records).map_err(|blame| self.fixup_error(blame))?;
        let merged = merge::relative(&records);
        if let Some(merged) = &merged {
            self.workspace.lease(self.layout, self.keeps().into_iter().chain([merged.clone()]))?;
            merge::ensure(self.layout, self.workspace, &records, merged)
                .map_err(|error| self.layer_error("merged", error))?;
        }
        let layers = self.layers.iter().zip(&records).map(|(plan, record)| ImageLayer {
            diff_id: plan.diff_id.clone(),
            blob: plan.blob.clone(),
            blob_bytes: plan.size,
            unpacked_bytes: record.tar_bytes,
        });
        let record =
            ImageRecord { layers: layers.collect(), fixup, merged, artifact: None, ..self.record(platform) };
        record.store(self.layout, self.workspace)?;
        Ok(record)
    }

    fn store_artifact(
        &self,
        artifact: &Artifact,
        platform: Platform,
        open: OpenLayer<'_>,
        progress: &dyn Fn(PullEvent),
    ) -> Result<ImageRecord, Error> {
        self.store_layers(open, progress, artifact::ensure)?;
        self.store_documents()?;
        let artifact = ArtifactRecord { artifact: artifact.clone(), fence: Fence::new() };
        let record = ImageRecord { artifact: Some(artifact), ..self.record(platform) };
        // Whoever makes the record durable is not to write the one of before over this one.
        let lock = layout::image(&self.manifest_digest).replace('/', "-");
        let _lock = Lock::wait_unless(&self.layout.lock(&lock), &|| self.cancel.is_cancelled())?;
        record.store(self.layout, self.workspace)?;
        Ok(record)
    }

    /// The record of an image without anything in it.
    fn record(&self, platform: Platform) -> ImageRecord {
        ImageRecord {
            manifest: self.manifest_digest.clone(),
            config: self.config_digest.clone(),
            platform,
            layers: Vec::new(),
            fixup: None,
            merged: None,
            artifact: None,
            stored_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        }
    }

    fn keeps(&self) -> Vec<String> {
        let documents = [layout::blob(&self.manifest_digest), layout::blob(&self.config_digest)];
        if self.artifact.is_some() {
            let blobs = self.layers.iter().map(|plan| layout::blob(&plan.blob));
            return blobs.chain(documents).collect();
        }
        let diff_ids: Vec<DiffId> = self.layers.iter().map(|plan| plan.diff_id.clone()).collect();
        let layers = diff_ids.iter().map(layout::layer);
        let fixup = ChainId::of(&diff_ids).map(|chain| layout::fixup(&chain));
        layers.chain(fixup).chain(documents).collect()
    }

    fn store_documents(&self) -> Result<(), Error> {
        self.store_document(&self.manifest_digest, self.manifest)?;
        self.store_document(&self.config_digest, self.config)
    }

    fn store_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.layout.at(&layout::blob(digest));
        record::publish(&path, self.workspace.path(), bytes, Durable::Later)
    }

    fn fixup_error(&self, blame: Blame) -> Error {
        let plan = self.layers.iter().find(|plan| Some(&plan.diff_id) == blame.layer.as_ref());
        let layer = plan.map_or_else(|| "fix-up".to_owned(), |plan| plan.blob.to_string());
        self.layer_error(&layer, blame.source)
    }

    fn layer_error(&self, layer: &str, source: LayerError) -> Error {
        match source {
            LayerError::Cancelled => Error::Cancelled,
            LayerError::Store(error) => *error,
            source => {
                Error::Layer { image: self.label.clone(), layer: layer.to_owned(), source: source.into() }
            }
        }
    }

    /// All layers at once, the largest first, each on its own thread; events reach `progress` on the caller's thread. The
    /// first failure stops the others.
    fn store_layers<T: Send>(
        &self,
        open: OpenLayer<'_>,
        progress: &dyn Fn(PullEvent),
        make: Make<T>,
    ) -> Result<Vec<T>, Error> {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(self.layers[*index].size));
        let queue = Mutex::new(VecDeque::from(order));
        let results: Mutex<Vec<Option<Result<T, LayerError>>>> =
            Mutex::new(self.layers.iter().map(|_| None).collect());
        let stop = AtomicBool::new(false);
        let (sender, events) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..self.parallel.clamp(1, PARALLEL_LAYERS.max(self.parallel)).min(self.layers.len()) {
                let (queue, results, stop, sender) = (&queue, &results, &stop, sender.clone());
                scope.spawn(move || {
                    // In a function of its own: a lock taken in the loop's condition would be held through its body, and
                    // one layer would wait for the other.
                    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    while let Some(index) = next() {
                        let result = self.store_layer(index, open, stop, &sender, make);
                        stop.fetch_or(result.is_err(), Ordering::Relaxed);
                        results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
                    }
                });
            }
            drop(sender);
            for event in events {
                progress(event);
            }
        });
        self.collect(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn store_layer<T>(
        &self,
        index: usize,
        open: OpenLayer<'_>,
        stop: &AtomicBool,
        sender: &Sender<PullEvent>,
        make: Make<T>,
    ) -> Result<T, LayerError> {
        let plan = &self.layers[index];
        let is_stopped = || stop.load(Ordering::Relaxed) || self.cancel.is_cancelled();
        if is_stopped() {
            return Err(LayerError::Cancelled);
        }
        // The receiver lives as long as this scope.
        let report = |event| drop(sender.send(event));
        let context = LayerContext {
            layout: self.layout,
            workspace: self.workspace.path(),
            report: &report,
            is_stopped: &is_stopped,
        };
        let watched = || -> Result<Box<dyn Read + '_>, LayerError> {
            Ok(Box::new(Watched {
                source: open(index)?,
                is_stopped: &is_stopped,
                report: &report,
                layer: index,
                bytes: 0,
                total_bytes: plan.size,
                reported_at: Instant::now(),
                pace: Pace::new(),
            }))
        };
        make(&context, plan, Box::new(watched))
    }

    fn collect<T>(&self, results: Vec<Option<Result<T, LayerError>>>) -> Result<Vec<T>, Error> {
        let mut records = Vec::new();
        let mut cancelled = false;
        for (plan, result) in self.layers.iter().zip(results) {
            match result {
                Some(Ok(record)) => records.push(record),
                Some(Err(LayerError::Cancelled)) | None => cancelled = true,
                Some(Err(error)) => return Err(self.layer_error(&plan.blob.to_string(), error)),
            }
        }
        if cancelled { Err(Error::Cancelled) } else { Ok(records) }
    }
}

/// A layer's source that reports progress and can be stopped.
struct Watched<'a> {
    source: Box<dyn Read>,
    is_stopped: &'a dyn Fn() -> bool,
    report: &'a dyn Fn(PullEvent),
    layer: usize,
    bytes: u64,
    total_bytes: u64,
    reported_at: Instant,
    pace: Pace,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.is_stopped)() {
            return Err(io::Error::other(LayerError::Cancelled));
        }
        let count = self.source.read(buffer)?;
        self.bytes += count as u64;
        if count == 0 || self.reported_at.elapsed() >= PROGRESS_INTERVAL {
            self.reported_at = Instant::now();
            let (layer, bytes, total_bytes) = (self.layer, self.bytes, self.total_bytes.max(self.bytes));
            let (bytes_per_second, eta_ms) = self.pace.advance(bytes, total_bytes);
            (self.report)(PullEvent::LayerProgress { layer, bytes, total_bytes, bytes_per_second, eta_ms });
        }
        Ok(count)
    }
}

/// What a name will stand for.
pub(crate) fn name_record(name: &ImageRef, image: &Digest, target: &Digest) -> NameRecord {
    NameRecord { name: name.clone(), image: image.clone(), target: target.clone() }
}
