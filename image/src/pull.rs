//! Pulling: from a reference to an image in the store.

use cofferdam_registry::{
    CONFIG_LIMIT_BYTES, Client, ClientOptions, Digest, ImageRef, Kind, Platform, Resolved,
};

use crate::error::Error;
use crate::event::{Cancel, PullEvent};
use crate::image::{self, ImageRecord};
use crate::ingest::{Ingest, PARALLEL_LAYERS, name_record, read_config};
use crate::keep::Keeper;
use crate::layer::LayerPlan;
use crate::layout::Layout;
use crate::limits::Limits;
use crate::workspace::Workspace;

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// Always: the name means what the registry says now.
    #[default]
    Always,
    /// Only if the store has no image of that name.
    Missing,
    /// Never: the image must be in the store.
    Never,
    /// Pull if the registry has another image than the store; if it cannot be asked, the store's will do.
    Newer,
}

/// How an image is pulled.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The platform wanted; this host's if `None`.
    pub platform: Option<Platform>,
    /// When the registry is asked.
    pub policy: PullPolicy,
    /// Credentials, certificates, plain HTTP, time limits, retries.
    pub client: ClientOptions,
    /// Layers fetched and unpacked at once.
    pub parallel_layers: usize,
    /// What a layer may ask of the host.
    pub limits: Limits,
    /// Stops the pull from another thread.
    pub cancel: Cancel,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions {
            platform: None,
            policy: PullPolicy::default(),
            client: ClientOptions::default(),
            parallel_layers: PARALLEL_LAYERS,
            limits: Limits::default(),
            cancel: Cancel::default(),
        }
    }
}

/// Pulls and returns the image's manifest digest.
pub(crate) fn pull(
    layout: &Layout,
    reference: &ImageRef,
    options: &PullOptions,
    progress: &dyn Fn(PullEvent),
) -> Result<Digest, Error> {
    let present = find_present(layout, reference, options.platform.as_ref())?;
    let unknown = || Error::UnknownImage { name: reference.familiar() };
    match (options.policy, &present) {
        (PullPolicy::Never, _) => return present.ok_or_else(unknown),
        (PullPolicy::Missing, Some(digest)) => return Ok(digest.clone()),
        _ => {}
    }
    progress(PullEvent::Resolving { reference: reference.to_string() });
    let client = Client::new(options.client.clone())?;
    if let (PullPolicy::Newer, Some(digest)) = (options.policy, &present) {
        match client.target(reference) {
            Ok(target) if is_current(layout, reference, &target)? => return Ok(digest.clone()),
            Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::NotFound) => {
                return Ok(digest.clone());
            }
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let resolved = client.resolve(reference, &platform)?;
    fetch(layout, &client, reference, &resolved, &platform, options, progress)?;
    Ok(resolved.digest)
}

/// The image that the name stands for, unless another platform is wanted.
fn find_present(
    layout: &Layout,
    name: &ImageRef,
    wanted: Option<&Platform>,
) -> Result<Option<Digest>, Error> {
    let Some(digest) = image::find(layout, &name.to_string())? else { return Ok(None) };
    let record = intact(layout, &digest)?;
    let suits =
        |record: &ImageRecord| wanted.is_none_or(|wanted| wanted.preference(&record.platform).is_some());
    Ok(record.filter(suits).map(|record| record.manifest))
}

fn is_current(layout: &Layout, reference: &ImageRef, target: &Digest) -> Result<bool, Error> {
    let record = image::load_name(layout, reference)?;
    Ok(record.is_some_and(|record| record.target == *target || record.image == *target))
}

fn fetch(
    layout: &Layout,
    client: &Client,
    reference: &ImageRef,
    resolved: &Resolved,
    platform: &Platform,
    options: &PullOptions,
    progress: &dyn Fn(PullEvent),
) -> Result<(), Error> {
    let label = reference.familiar();
    let descriptors = &resolved.manifest.layers;
    let config = client.fetch(reference, &resolved.manifest.config, CONFIG_LIMIT_BYTES)?;
    let (_, diff_ids, actual) = read_config(&label, &config, descriptors.len())?;
    check_platform(&label, platform, &actual)?;
    let plans = descriptors.iter().zip(&diff_ids).enumerate();
    let layers: Vec<LayerPlan> =
        plans.map(|(index, (blob, diff_id))| LayerPlan::new(index, blob, diff_id)).collect();
    check_media_types(&label, &layers)?;
    progress(PullEvent::Resolved {
        digest: resolved.digest.clone(),
        platform: actual.clone(),
        layers: layers.len(),
        total_bytes: descriptors.iter().map(|descriptor| descriptor.size).sum(),
    });
    let name = name_record(reference, &resolved.digest, &resolved.target);
    let workspace = Workspace::create(layout)?;
    if let Some(record) = intact(layout, &resolved.digest)? {
        // Nothing is missing: only the name may be new, or mean another image than before.
        workspace.lease(layout, record.keeps())?;
        if intact(layout, &resolved.digest)?.is_some() {
            name.store(layout, &workspace)?;
            progress(PullEvent::Finished { digest: resolved.digest.clone() });
            return Ok(());
        }
    }
    let ingest = Ingest {
        layout,
        workspace: &workspace,
        label,
        manifest: &resolved.bytes,
        manifest_digest: resolved.digest.clone(),
        config: &config,
        config_digest: resolved.manifest.config.digest.clone(),
        layers,
        limits: options.limits,
        cancel: options.cancel.clone(),
        parallel: options.parallel_layers,
    };
    let keeper = Keeper::new(layout, workspace.path());
    let open = |index: usize| keeper.keep(index, Box::new(client.open(reference, &descriptors[index])));
    ingest.run(actual, Some(name), &open, progress)?;
    keeper.publish(descriptors.iter().map(|blob| (&blob.digest, blob.size)))
}

/// The image's record, if everything that it needs is there and can be trusted.
pub(crate) fn intact(layout: &Layout, manifest: &Digest) -> Result<Option<ImageRecord>, Error> {
    let Some(record) = image::load_record(layout, manifest)? else { return Ok(None) };
    Ok(if image::missing(layout, &record)?.is_none() { Some(record) } else { None })
}

/// A manifest outside of an index names no platform; its configuration does.
pub(crate) fn check_platform(label: &str, wanted: &Platform, actual: &Platform) -> Result<(), Error> {
    if wanted.preference(actual).is_some() {
        return Ok(());
    }
    Err(Error::WrongPlatform {
        image: label.to_owned(),
        wanted: wanted.to_string(),
        actual: actual.to_string(),
    })
}

/// A layer of an unknown type is never guessed to be a tar.
fn check_media_types(label: &str, layers: &[LayerPlan]) -> Result<(), Error> {
    const FAMILIES: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    const SUFFIXES: [&str; 5] = ["", "+gzip", "+zstd", ".gzip", ".zstd"];
    for layer in layers {
        let suffix = FAMILIES.iter().find_map(|family| layer.media_type.strip_prefix(family));
        if !suffix.is_some_and(|suffix| SUFFIXES.contains(&suffix)) {
            return Err(cofferdam_registry::Error::NotRunnable {
                reference: label.to_owned(),
                media_type: layer.media_type.clone(),
            }
            .into());
        }
    }
    Ok(())
}
