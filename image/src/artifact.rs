//! Artifacts: signatures, bills of materials, charts, models. They are kept as the blobs that they came as: nothing of them is
//! unpacked, and nothing can be run.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use cofferdam_registry::{Digest, Hasher, Manifest, Platform};
use serde::{Deserialize, Serialize};

use crate::error::{Error, LayerError};
use crate::event::PullEvent;
use crate::layer::{self, Fence, LayerContext, LayerPlan, OpenBlob};
use crate::layout;

/// The annotation with a blob's file name (image-spec 1.1, annotations.md).
const TITLE: &str = "org.opencontainers.image.title";
/// How much of a blob is copied at once.
const PIECE_BYTES: usize = 256 * 1024;

/// What an artifact is, and what it is made of. Stable JSON: fields are added, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What kind of artifact: its artifact type, or the media type of its config.
    pub kind: String,
    /// Its blobs, in the manifest's order.
    pub blobs: Vec<ArtifactBlob>,
}

/// A blob of an artifact, as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactBlob {
    /// How its bytes are to be read.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What its maker calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// An artifact in an image's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ArtifactRecord {
    #[serde(flatten)]
    pub(crate) artifact: Artifact,
    #[serde(flatten)]
    pub(crate) fence: Fence,
}

impl Artifact {
    /// What a manifest says; `None` for a container image.
    pub(crate) fn of(manifest: &Manifest) -> Option<Artifact> {
        let blobs = manifest.layers.iter().map(|blob| ArtifactBlob {
            media_type: blob.media_type.clone(),
            digest: blob.digest.clone(),
            size: blob.size,
            title: blob.annotations.get(TITLE).cloned(),
        });
        Some(Artifact { kind: manifest.artifact.clone()?, blobs: blobs.collect() })
    }
}

/// An artifact is for no platform: what an index says of manifests that are no images.
pub(crate) fn platform() -> Platform {
    Platform::new("unknown", "unknown", None)
}

/// Makes sure that a blob is stored.
pub(crate) fn ensure(
    context: &LayerContext<'_>,
    plan: &LayerPlan,
    open: OpenBlob<'_>,
) -> Result<(), LayerError> {
    let relative = layout::blob(&plan.blob);
    let _lock = layer::lock(context, plan, &relative)?;
    let (layer, digest, total_bytes) = (plan.index, plan.blob.clone(), plan.size);
    let path = context.layout.at(&relative);
    if is_whole(context, &path, plan)? {
        (context.report)(PullEvent::LayerExists { layer, digest, total_bytes });
        return Ok(());
    }
    (context.report)(PullEvent::LayerStarted { layer, digest, total_bytes });
    let staged = context.workspace.join(format!("content-{layer}"));
    let file = File::create(&staged).map_err(Error::io("create", &staged))?;
    copy(context, open()?, file, &staged, plan)?;
    fs::rename(&staged, &path).map_err(Error::io("publish", &path))?;
    let diff_id = plan.diff_id.clone();
    (context.report)(PullEvent::LayerDone { layer, diff_id, unpacked_bytes: total_bytes });
    Ok(())
}

/// Whether the blob is there. Its bytes are looked at: whoever asks knows of no artifact whose record vouches for them.
fn is_whole(context: &LayerContext<'_>, path: &Path, plan: &LayerPlan) -> Result<bool, LayerError> {
    let Ok(mut file) = File::open(path) else { return Ok(false) };
    if file.metadata().map_err(Error::io("examine", path))?.len() != plan.size {
        return Ok(false);
    }
    let mut hasher = Hasher::new(plan.blob.algorithm());
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        if (context.is_stopped)() {
            return Err(LayerError::Cancelled);
        }
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hasher.finish() == plan.blob),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn copy<R: Read>(
    context: &LayerContext<'_>,
    mut source: R,
    mut file: File,
    path: &Path,
    plan: &LayerPlan,
) -> Result<(), LayerError> {
    let mut hasher = Hasher::new(plan.blob.algorithm());
    let mut buffer = vec![0; PIECE_BYTES];
    let mut actual = 0;
    // No further than one byte too many: a source without end fills no disk.
    while actual <= plan.size {
        if (context.is_stopped)() {
            return Err(LayerError::Cancelled);
        }
        let wanted =
            PIECE_BYTES.min(usize::try_from(plan.size - actual).unwrap_or(usize::MAX).saturating_add(1));
        let count = source.read(&mut buffer[..wanted]).map_err(crate::decode::read_error)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(Error::io("write", path))?;
        actual += count as u64;
    }
    if actual != plan.size {
        return Err(LayerError::BlobSize { expected: plan.size, actual });
    }
    let digest = hasher.finish();
    if digest != plan.blob {
        return Err(LayerError::BlobDigest { expected: plan.blob.clone(), actual: digest });
    }
    Ok(())
}
