//! From a request and an image to the container's configuration (`config.json` of the runtime specification).
//!
//! [`build`] is pure: what it needs from the host, the image's files and the network is in [`Ingredients`]. What the host
//! cannot give exactly as asked is either refused or, where only a default is concerned, clamped and told in the notes.
//!
//! Image text (environment, user, volumes …) is data here: it never becomes a host path, and image labels mean nothing.

mod confinement;
mod docker_profile;
mod mounts;
mod process;
mod resources;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, Root, Spec,
};

use crate::host::HostLimits;
use crate::id::TaskId;
use crate::passwd::{Accounts, Identity};
use crate::request::Refusal;
use crate::request::userns::IdRange;
use crate::request::volume::Access;
use crate::spec::{NetworkChoice, Source, TaskSpec};
use crate::subordinate::IdMaps;

/// Version of the runtime specification that we write.
const OCI_VERSION: &str = "1.3.0";

/// A volume whose source is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundVolume {
    /// File or directory of the host.
    pub source: PathBuf,
    /// Where in the task.
    pub target: PathBuf,
    /// Whether it may be written.
    pub access: Access,
    /// Further mount options.
    pub options: Vec<String>,
}

/// Files that we wrote for the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcFiles {
    /// Becomes `/etc/hosts`.
    pub hosts: PathBuf,
    /// Becomes `/etc/hostname`.
    pub hostname: PathBuf,
    /// Becomes `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// A user namespace that is pinned.
#[derive(Clone, Copy, Debug)]
pub struct UserNamespace<'a> {
    /// Where.
    pub path: &'a Path,
    /// Its maps.
    pub maps: &'a IdMaps,
}

/// Everything a configuration is made of.
#[derive(Clone, Debug)]
pub struct Ingredients<'a> {
    /// The task.
    pub id: &'a TaskId,
    /// What was asked for.
    pub spec: &'a TaskSpec,
    /// The image's configuration, if it runs an image.
    pub image: Option<&'a ImageConfiguration>,
    /// The image's account files.
    pub accounts: &'a Accounts,
    /// The host.
    pub host: &'a HostLimits,
    /// The pinned network namespace; none for the host's.
    pub netns: Option<&'a Path>,
    /// Its user namespace; none for the host's.
    pub user: Option<UserNamespace<'a>>,
    /// Files for `/etc`; none with the host's root.
    pub etc: Option<&'a EtcFiles>,
    /// Volumes, in the order in which they are mounted.
    pub volumes: &'a [BoundVolume],
    /// Our init on the host, if the task wants it.
    pub init: Option<&'a Path>,
    /// Further environment variables that we give it, below the request's.
    pub extra_env: &'a [String],
}

/// A container's configuration and what is worth telling about it.
#[derive(Clone, Debug)]
pub struct Built {
    /// The configuration.
    pub spec: Spec,
    /// Who it runs as.
    pub identity: Identity,
    /// What was clamped, in words.
    pub notes: Vec<String>,
}

/// Makes the configuration, or says what cannot be done.
pub fn build(from: &Ingredients<'_>) -> Result<Built, Refusal> {
    let mut notes = Vec::new();
    let identity = process::identity(from)?;
    if from.user.is_some() && is_host_rootfs(from) {
        let problem = "a user namespace needs a root file system of the task's own";
        return Err(Refusal::new("option", "--host-rootfs", problem));
    }
    let mut linux = Linux::default();
    if let Some(user) = from.user {
        linux
            .set_uid_mappings(Some(mappings(&user.maps.uids)?))
            .set_gid_mappings(Some(mappings(&user.maps.gids)?));
    }
    linux
        .set_cgroups_path(Some(PathBuf::from(cgroup_path(from.id))))
        .set_namespaces(Some(namespaces(from)))
        .set_resources(Some(resources::resources(from)?))
        .set_sysctl(sysctls(from))
        .set_devices(None)
        .set_rootfs_propagation(Some(propagation(from).to_owned()))
        .set_seccomp(confinement::seccomp(from)?)
        .set_masked_paths(Some(confinement::masked_paths(from)))
        .set_readonly_paths(Some(confinement::readonly_paths(from)))
        .set_mount_label(None);
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(from.spec.read_only));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(Some(hostname(from.id, from.spec)?))
        .set_process(Some(process::process(from, &identity, &mut notes)?))
        .set_mounts(Some(mounts::mounts(from)?))
        .set_annotations(None)
        .set_linux(Some(linux));
    Ok(Built { spec, identity, notes })
}

fn mappings(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>, Refusal> {
    let mapping = |range: &IdRange| {
        let draft = LinuxIdMappingBuilder::default().container_id(range.inside).host_id(range.outside);
        draft.size(range.count).build().map_err(|error| Refusal::new("id map", "", error.to_string()))
    };
    ranges.iter().map(mapping).collect()
}

/// A volume that shares its mounts with the host's needs a root that may.
fn propagation(from: &Ingredients<'_>) -> &'static str {
    let shares = |option: &String| matches!(option.as_str(), "shared" | "rshared");
    if from.volumes.iter().any(|volume| volume.options.iter().any(shares)) { "rshared" } else { "rprivate" }
}

/// Where the task's cgroup is, below the root of each hierarchy.
pub fn cgroup_path(id: &TaskId) -> String {
    format!("/cofferdam-{id}")
}

/// The name the task goes by: letters, digits, `-` and `.`, at most 63 a label, because it goes into files.
pub fn hostname(id: &TaskId, spec: &TaskSpec) -> Result<String, Refusal> {
    let Some(name) = &spec.hostname else { return Ok(id.short().to_owned()) };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() <= 64 && name.split('.').all(label) {
        return Ok(name.clone());
    }
    Err(Refusal::new("host name", name, "labels of letters, digits and '-', at most 64 characters together"))
}

fn is_host_rootfs(from: &Ingredients<'_>) -> bool {
    from.spec.source == Source::HostRootfs
}

fn namespaces(from: &Ingredients<'_>) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let make = |typ, path: Option<&Path>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ).set_path(path.map(Path::to_owned));
        namespace
    };
    let mut all: Vec<_> = [Mount, Ipc, Uts, Cgroup].into_iter().map(|typ| make(typ, None)).collect();
    // With the host's root goes the host's /proc, in which a process of another pid namespace would not find itself.
    if !is_host_rootfs(from) {
        all.push(make(Pid, None));
    }
    if from.spec.network != NetworkChoice::Host {
        all.push(make(Network, from.netns));
    }
    all.extend(from.user.map(|user| make(User, Some(user.path))));
    all
}

/// Ports below 1024 and `ping` need no capability in a network namespace of one's own.
fn sysctls(from: &Ingredients<'_>) -> Option<HashMap<String, String>> {
    if from.spec.network == NetworkChoice::Host {
        return None;
    }
    // A user namespace takes only groups that it has.
    let highest = from.user.map_or(i32::MAX.unsigned_abs(), |user| user.maps.highest_group());
    let pairs = [
        ("net.ipv4.ip_unprivileged_port_start", "0".to_owned()),
        ("net.ipv4.ping_group_range", format!("0 {highest}")),
    ];
    Some(pairs.map(|(name, value)| (name.to_owned(), value)).into())
}

#[cfg(test)]
mod tests;
