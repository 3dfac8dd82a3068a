//! Volumes and temporary file systems: `-v SOURCE:TARGET[:OPTIONS]`, `--tmpfs TARGET[:OPTIONS]`.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Refusal, size};

/// Places in a task that belong to the kernel: nothing may be mounted on or below them by request.
const KERNEL_PLACES: [&str; 2] = ["/proc", "/sys"];

/// Options a volume may have. `nodev` and `nosuid` are always on.
const VOLUME_OPTIONS: [&str; 14] = [
    "ro", "rw", "noexec", "exec", "nodev", "nosuid", "private", "rprivate", "slave", "rslave", "shared",
    "rshared", "idmap", NO_COPY,
];

/// The option of a volume of ours that stays empty where the image has something.
pub(crate) const NO_COPY: &str = "nocopy";

/// Whether a task may write to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading and writing.
    ReadWrite,
    /// Reading only.
    ReadOnly,
}

/// Where a volume's content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeSource {
    /// A file or directory of the host.
    Host(PathBuf),
    /// A directory of ours, kept under this name until it is removed.
    Named(String),
    /// A directory of ours that goes with the task.
    Anonymous,
}

/// Something of the host's that the task sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What.
    pub source: VolumeSource,
    /// Where in the task: absolute, without `..`.
    pub target: PathBuf,
    /// Whether it may be written.
    pub access: Access,
    /// Further mount options, such as `noexec` or `rslave`.
    pub options: Vec<String>,
}

/// A file system in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where in the task.
    pub target: PathBuf,
    /// Mount options; `nosuid`, `nodev` and `noexec` are on unless they say otherwise.
    pub options: Vec<String>,
}

impl Volume {
    /// Reads `/host:/task`, `/host:/task:ro,noexec`, `name:/task`, `/task`. A volume of ours (`name:/task`, `/task`) that is
    /// empty begins with what the task's root has there, unless its options say `nocopy`.
    pub fn parse(text: &str) -> Result<Volume, Refusal> {
        let refuse = |problem: &str| Refusal::new("volume", text, problem);
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => return Err(refuse("expected SOURCE:TARGET[:OPTIONS]")),
        };
        let source = match source {
            None => VolumeSource::Anonymous,
            Some(path) if path.starts_with('/') => VolumeSource::Host(PathBuf::from(path)),
            Some(name) if is_volume_name(name) => VolumeSource::Named(name.to_owned()),
            Some(_) => return Err(refuse("the source is neither an absolute path nor a volume's name")),
        };
        let target = parse_target(target).map_err(refuse)?;
        let options: Vec<&str> = options.split(',').filter(|option| !option.is_empty()).collect();
        if let Some(unknown) = options.iter().find(|option| !VOLUME_OPTIONS.contains(option)) {
            return Err(refuse(&format!("there is no option {unknown:?}")));
        }
        if matches!(source, VolumeSource::Host(_)) && options.contains(&NO_COPY) {
            return Err(refuse(
                "\"nocopy\" is for volumes of ours: nothing is ever copied to the host's directories",
            ));
        }
        let access = if options.contains(&"ro") { Access::ReadOnly } else { Access::ReadWrite };
        let options = options.into_iter().filter(|option| !matches!(*option, "ro" | "rw"));
        Ok(Volume { source, target, access, options: options.map(str::to_owned).collect() })
    }

    /// A volume that an image asks for. `None` if it asks for a place that is the kernel's, or for all devices.
    pub fn of_image(target: &str) -> Option<Volume> {
        let target = parse_target(target).ok().filter(|target| target != Path::new("/dev"))?;
        Some(Volume {
            source: VolumeSource::Anonymous,
            target,
            access: Access::ReadWrite,
            options: Vec::new(),
        })
    }
}

impl Tmpfs {
    /// Reads `/run`, `/tmp:size=64m,mode=1777`.
    pub fn parse(text: &str) -> Result<Tmpfs, Refusal> {
        let refuse = |problem: &str| Refusal::new("tmpfs", text, problem);
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let target = parse_target(target).map_err(refuse)?;
        let mut checked = Vec::new();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            checked.push(tmpfs_option(option).map_err(|problem| refuse(&problem))?);
        }
        Ok(Tmpfs { target, options: checked })
    }
}

fn tmpfs_option(option: &str) -> Result<String, String> {
    match option.split_once('=') {
        Some(("size", value)) => match size::parse_bytes(value) {
            Ok(bytes) => Ok(format!("size={bytes}")),
            Err(_) if value.strip_suffix('%').is_some_and(|digits| digits.parse::<u8>().is_ok()) => {
                Ok(option.to_owned())
            }
            Err(error) => Err(error.to_string()),
        },
        Some(("mode", value)) if u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777) => {
            Ok(option.to_owned())
        }
        Some(("uid" | "gid" | "nr_inodes", value)) if value.parse::<u32>().is_ok_and(|id| id != u32::MAX) => {
            Ok(option.to_owned())
        }
        None if ["ro", "rw", "exec", "noexec", "nosuid", "nodev", "suid", "dev"].contains(&option) => {
            Ok(option.to_owned())
        }
        _ => Err(format!("there is no option {option:?}")),
    }
}

/// A place for a mount in the task: absolute, no `..`, not the root, not the kernel's.
fn parse_target(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err("the place in the task must be an absolute path");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("the place in the task must not contain \"..\"");
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") {
        return Err("the task's root itself cannot be a volume");
    }
    if KERNEL_PLACES.iter().any(|place| clean.starts_with(place)) {
        return Err("/proc and /sys belong to the kernel");
    }
    Ok(clean)
}

fn is_volume_name(name: &str) -> bool {
    name.len() <= 128
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        let volume = Volume::parse("/srv/data:/data:ro,noexec").unwrap();
        assert_eq!(volume.source, VolumeSource::Host("/srv/data".into()));
        assert_eq!((volume.access, volume.options), (Access::ReadOnly, vec!["noexec".to_owned()]));
        assert_eq!(Volume::parse("cache:/c").unwrap().source, VolumeSource::Named("cache".into()));
        assert_eq!(Volume::parse("/data").unwrap().source, VolumeSource::Anonymous);
    }

    #[test]
    fn the_kernels_places_and_ways_out_are_refused() {
        for text in [
            "",
            "/a:b",
            "/a:/",
            "/a:/proc",
            "/a:/proc/sys",
            "/a:/sys/fs",
            "/a:/x/../..",
            "a/b:/x",
            "..:/x",
            "/a:/b:zz",
            "/a:/b:ro:x",
        ] {
            assert!(Volume::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Volume::of_image("/proc/sys"), None);
        assert!(Volume::of_image("/var/lib/data/").is_some());
    }

    #[test]
    fn tmpfs_options_are_checked() {
        assert_eq!(Tmpfs::parse("/tmp:size=64m,mode=1777").unwrap().options, ["size=67108864", "mode=1777"]);
        for text in ["tmp", "/tmp:size=x", "/tmp:mode=9", "/tmp:uid=4294967295", "/tmp:context=x", "/"] {
            assert!(Tmpfs::parse(text).is_err(), "{text:?}");
        }
    }
}
