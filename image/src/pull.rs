//! Pulling: from a reference to an image in the store.

use std::io::{self, Read};
use std::path::PathBuf;

use cofferdam_registry::{
    CONFIG_LIMIT_BYTES, Client, ClientOptions, CredentialSource, Descriptor, Digest, HostFiles, ImageRef,
    Kind, PlainHttp, Platform, RangePolicy, Resolved,
};
use serde::{Deserialize, Serialize};

use crate::artifact::{self, Artifact};
use crate::error::Error;
use crate::event::{Cancel, PullEvent};
use crate::image::{self, ImageRecord};
use crate::ingest::{Ingest, PARALLEL_LAYERS, content_plans, layer_plans, name_record, read_config};
use crate::keep::Keeper;
use crate::layer::LayerPlan;
use crate::layout::Layout;
use crate::partial::{self, Partials};
use crate::policy::{Admission, Policy};
use crate::verifier::Verifier;
use crate::workspace::Workspace;

/// A blob below this is fetched in one stream: it is over before several are worth their requests.
const RANGES_FROM_BYTES: u64 = 64 << 20;

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

/// What becomes of a reference that means an artifact and no container image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Artifacts {
    /// It is stored as content: its blobs as they come.
    #[default]
    Taken,
    /// It is refused before any of its blobs is fetched.
    Refused,
}

/// How an image is pulled: the one structure behind the command line, the configuration file and embedders.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The platform wanted; this host's if `None`.
    pub platform: Option<Platform>,
    /// When the registry is asked.
    pub policy: PullPolicy,
    /// Credentials, mirrors, certificates, proxies, plain HTTP, time limits, retries.
    pub client: ClientOptions,
    /// What must hold of an image before any of its layers is fetched.
    pub admission: Admission,
    /// Whether artifacts are stored too.
    pub artifacts: Artifacts,
    /// Layers fetched and unpacked at once.
    pub parallel_layers: usize,
    /// How a blob that is most of an image is fetched, if the registry serves ranges; in one stream if `None`.
    pub ranges: Option<RangePolicy>,
    /// Stops the pull from another thread.
    pub cancel: Cancel,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions {
            platform: None,
            policy: PullPolicy::default(),
            client: ClientOptions::default(),
            admission: Admission::default(),
            artifacts: Artifacts::default(),
            parallel_layers: PARALLEL_LAYERS,
            ranges: Some(RangePolicy::default()),
            cancel: Cancel::default(),
        }
    }
}

/// What can be written about pulls in a configuration file or on a command line; see [`PullConfig::options`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PullConfig {
    /// Talk plain HTTP to registries that do not speak TLS.
    pub plain_http: bool,
    /// The file with credentials, in place of the usual ones.
    pub authfile: Option<PathBuf>,
    /// PEM files of authorities to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Folders with hosts.toml files, in place of the usual ones.
    pub hosts_dirs: Option<Vec<PathBuf>>,
    /// registries.conf, in place of the usual one.
    pub registries_conf: Option<PathBuf>,
    /// Hosts that foreign layers may be fetched from.
    pub foreign_hosts: Vec<String>,
    /// The policy file; without one, everything is let in.
    pub policy: Option<PathBuf>,
    /// Programs that must let every image in.
    pub verifiers: Vec<PathBuf>,
    /// Layers fetched and unpacked at once.
    pub parallel_layers: Option<usize>,
}

impl PullConfig {
    /// The options that this stands for. Reads the policy and the keys that it names.
    pub fn options(&self) -> Result<PullOptions, Error> {
        if let Some(path) = &self.authfile {
            // Without it the registry would be asked as if there were no credentials, and refuse for another reason.
            std::fs::metadata(path).map_err(Error::io("read the credentials", path))?;
        }
        let mut hosts = HostFiles::default();
        if let Some(folders) = &self.hosts_dirs {
            hosts.hosts.clone_from(folders);
        }
        if let Some(path) = &self.registries_conf {
            hosts.registries = Some(path.clone());
        }
        let client = ClientOptions {
            credentials: self.authfile.clone().map_or(CredentialSource::Files, CredentialSource::File),
            plain_http: if self.plain_http { PlainHttp::Allowed } else { PlainHttp::LoopbackOnly },
            ca_files: self.ca_files.clone(),
            foreign_hosts: self.foreign_hosts.clone(),
            hosts,
            ..ClientOptions::default()
        };
        let admission = Admission {
            policy: self.policy.as_deref().map(Policy::load).transpose()?.unwrap_or_default(),
            verifiers: self.verifiers.iter().map(Verifier::new).collect(),
        };
        let parallel_layers = self.parallel_layers.unwrap_or(PARALLEL_LAYERS);
        Ok(PullOptions { client, admission, parallel_layers, ..PullOptions::default() })
    }
}

/// Pulls and returns the image's manifest digest.
pub(crate) fn pull(
    layout: &Layout,
    reference: &ImageRef,
    options: &PullOptions,
    progress: &dyn Fn(PullEvent),
) -> Result<Digest, Error> {
    match pull_unless_cancelled(layout, reference, options, progress) {
        // Whatever broke when the connections were cut, this is why.
        Err(_) if options.cancel.is_cancelled() => Err(Error::Cancelled),
        result => result,
    }
}

/// Every tag of a repository.
pub(crate) fn tags(reference: &ImageRef, options: &PullOptions) -> Result<Vec<ImageRef>, Error> {
    let client = Client::new(options.client.clone())?;
    let stopper = client.stopper();
    let _stopping = options.cancel.on_cancel(move || stopper.stop());
    match client.tags(reference) {
        Err(_) if options.cancel.is_cancelled() => Err(Error::Cancelled),
        result => Ok(result?),
    }
}

fn pull_unless_cancelled(
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
    let stopper = client.stopper();
    let _stopping = options.cancel.on_cancel(move || stopper.stop());
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
    if let (Artifacts::Refused, Some(kind)) = (options.artifacts, &resolved.manifest.artifact) {
        return Err(image::not_runnable(&reference.familiar(), kind));
    }
    options.admission.check(&client, reference, &resolved, &options.cancel)?;
    let pull = Pull { layout, client: &client, reference, resolved: &resolved, platform, options, progress };
    if !pull.take_stored()? {
        pull.fetch()?;
    }
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
    let suits = |record: &ImageRecord| {
        record.artifact.is_some() || wanted.is_none_or(|wanted| wanted.preference(&record.platform).is_some())
    };
    Ok(record.filter(suits).map(|record| record.manifest))
}

fn is_current(layout: &Layout, reference: &ImageRef, target: &Digest) -> Result<bool, Error> {
    let record = image::load_name(layout, reference)?;
    Ok(record.is_some_and(|record| record.target == *target || record.image == *target))
}

/// A pull of an image whose manifest is known and allowed.
struct Pull<'a> {
    layout: &'a Layout,
    client: &'a Client,
    reference: &'a ImageRef,
    resolved: &'a Resolved,
    platform: Platform,
    options: &'a PullOptions,
    progress: &'a dyn Fn(PullEvent),
}

impl Pull<'_> {
    /// If nothing is missing, only the name may be new, or mean another image than before: no further request is made.
    fn take_stored(&self) -> Result<bool, Error> {
        let digest = &self.resolved.digest;
        let Some(record) = intact(self.layout, digest)? else { return Ok(false) };
        if record.artifact.is_none() {
            check_platform(&self.reference.familiar(), &self.platform, &record.platform)?;
        }
        let name = name_record(self.reference, digest, &self.resolved.target);
        if image::load_name(self.layout, self.reference)?.as_ref() != Some(&name) {
            let workspace = Workspace::create(self.layout)?;
            workspace.lease(self.layout, record.keeps())?;
            if intact(self.layout, digest)?.is_none() {
                return Ok(false);
            }
            name.store(self.layout, &workspace)?;
        }
        self.tell_resolved(&record.platform);
        (self.progress)(PullEvent::Finished { digest: digest.clone() });
        Ok(true)
    }

    fn fetch(&self) -> Result<(), Error> {
        let label = self.reference.familiar();
        let (client, resolved, options) = (self.client, self.resolved, self.options);
        let descriptors = &resolved.manifest.layers;
        // What the layers need is made while the configuration, which says what they are, is fetched.
        client.warm(self.reference, descriptors.len().min(options.parallel_layers).saturating_sub(1));
        let config = client.fetch(self.reference, &resolved.manifest.config, CONFIG_LIMIT_BYTES)?;
        let (layers, actual) = match resolved.manifest.artifact {
            Some(_) => (content_plans(descriptors), artifact::platform()),
            None => {
                let (_, diff_ids, actual) = read_config(&label, &config, descriptors.len())?;
                check_platform(&label, &self.platform, &actual)?;
                let layers = layer_plans(descriptors, &diff_ids);
                check_media_types(&label, &layers)?;
                (layers, actual)
            }
        };
        self.tell_resolved(&actual);
        let partials = Partials::new(self.layout);
        let mut result = self.ingest(&config, layers.clone(), &actual, &partials);
        if result.as_ref().is_err_and(|error| error.kind() == Kind::InvalidInput) {
            let was_resumed = partials.has_resumed();
            partials.discard_all();
            if was_resumed {
                // What an earlier pull left may be what is wrong; without it, it is the registry's.
                result = self.ingest(&config, layers, &actual, &partials);
            }
        }
        partial::sweep(self.layout, false);
        result
    }

    fn ingest(
        &self,
        config: &[u8],
        layers: Vec<LayerPlan>,
        platform: &Platform,
        partials: &Partials<'_>,
    ) -> Result<(), Error> {
        let (client, resolved, options) = (self.client, self.resolved, self.options);
        let (reference, descriptors) = (self.reference, &resolved.manifest.layers);
        let workspace = Workspace::create(self.layout)?;
        let ranges: Vec<Option<RangePolicy>> = descriptors.iter().map(|blob| self.ranges_for(blob)).collect();
        let keeper = Keeper::new(self.layout, workspace.path());
        let open = |index: usize| {
            let blob = &descriptors[index];
            // An empty blob, as artifacts have it, comes with its descriptor.
            let source = match blob.embedded() {
                Some(bytes) => Box::new(io::Cursor::new(bytes)) as Box<dyn Read>,
                None => partials.open(client, reference, blob, ranges[index])?,
            };
            // What is kept as content anyway is not written twice.
            if resolved.manifest.artifact.is_some() { Ok(source) } else { keeper.keep(index, source) }
        };
        let progress = |event: PullEvent| {
            if let PullEvent::LayerDone { layer, .. } = &event {
                partials.discard(&descriptors[*layer].digest);
            }
            (self.progress)(event);
        };
        let ingest = Ingest {
            layout: self.layout,
            workspace: &workspace,
            label: reference.familiar(),
            manifest: &resolved.bytes,
            manifest_digest: resolved.digest.clone(),
            config,
            config_digest: resolved.manifest.config.digest.clone(),
            layers,
            artifact: Artifact::of(&resolved.manifest),
            cancel: options.cancel.clone(),
            parallel: options.parallel_layers,
        };
        let name = name_record(reference, &resolved.digest, &resolved.target);
        ingest.run(platform.clone(), Some(name), &open, &progress)?;
        keeper.publish(descriptors.iter().map(|blob| (&blob.digest, blob.size)))
    }

    /// Several ranges at once pay where one blob is most of what is fetched.
    fn ranges_for(&self, blob: &Descriptor) -> Option<RangePolicy> {
        let all: u64 =
            self.resolved.manifest.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        self.options.ranges.filter(|_| blob.size >= RANGES_FROM_BYTES && blob.size > all / 2)
    }

    fn tell_resolved(&self, platform: &Platform) {
        let descriptors = &self.resolved.manifest.layers;
        (self.progress)(PullEvent::Resolved {
            digest: self.resolved.digest.clone(),
            platform: platform.clone(),
            layers: descriptors.len(),
            total_bytes: descriptors.iter().map(|descriptor| descriptor.size).fold(0, u64::saturating_add),
        });
    }
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
