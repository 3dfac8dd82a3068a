//! The mounts, in the order in which they are made: the kernel's own file systems first, volumes last.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::process::INIT;
use super::{Ingredients, is_host_rootfs};
use crate::request::Refusal;
use crate::request::volume::{Access, Tmpfs};
use crate::spec::NetworkChoice;

/// The group of terminals, the same everywhere.
const TTY: u32 = 5;

pub(super) fn mounts(from: &Ingredients<'_>) -> Result<Vec<Mount>, Refusal> {
    if is_host_rootfs(from) {
        return host_mounts(from);
    }
    let mut all = kernel_mounts(from);
    if let Some(etc) = from.etc {
        // They are the task's own, whoever its root is on the host.
        let options = if from.user.is_some() { vec!["idmap".to_owned()] } else { Vec::new() };
        let files = [
            (&etc.resolv_conf, "/etc/resolv.conf"),
            (&etc.hostname, "/etc/hostname"),
            (&etc.hosts, "/etc/hosts"),
        ];
        all.extend(files.map(|(file, at)| bind(file, Path::new(at), Access::ReadWrite, &options)));
    }
    if let Some(init) = from.init {
        all.push(bind(init, Path::new(INIT), Access::ReadOnly, &[]));
    }
    if from.spec.read_only {
        // What programs cannot do without, unless the request says otherwise below.
        let writable = ["/run", "/tmp"].map(|target| Tmpfs { target: target.into(), options: vec![] });
        let asked = |target: &Path| from.spec.tmpfs.iter().any(|other| other.target == target);
        all.extend(writable.iter().filter(|tmpfs| !asked(&tmpfs.target)).map(tmpfs));
    }
    all.extend(from.spec.tmpfs.iter().map(tmpfs));
    let mut volumes: Vec<_> = from.volumes.iter().collect();
    // A volume inside another one's place must come after it.
    volumes.sort_by_key(|volume| volume.target.components().count());
    all.extend(
        volumes
            .into_iter()
            .map(|volume| bind(&volume.source, &volume.target, volume.access, &volume.options)),
    );
    refuse_twins(&all)?;
    Ok(all)
}

/// The host's own root is left as it is.
fn host_mounts(from: &Ingredients<'_>) -> Result<Vec<Mount>, Refusal> {
    if !from.spec.volumes.is_empty() || !from.spec.tmpfs.is_empty() || from.spec.read_only {
        let problem = "volumes, tmpfs and read-only need a root file system of the task's own";
        return Err(Refusal::new("option", "--host-rootfs", problem));
    }
    Ok(Vec::new())
}

fn kernel_mounts(from: &Ingredients<'_>) -> Vec<Mount> {
    let shm = format!("size={}", from.spec.shm_bytes);
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if from.user.is_none_or(|user| user.maps.has_group(TTY)) {
        pts.push("gid=5");
    }
    // The host's network is not a user namespace's to show: of a new sysfs it would be a part.
    let sys = match (from.user, &from.spec.network) {
        (Some(_), NetworkChoice::Host) => {
            mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro"])
        }
        _ => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(target))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

fn bind(source: &Path, target: &Path, access: Access, more: &[String]) -> Mount {
    let mut options = vec!["rbind", "nosuid", "nodev"];
    options.push(if access == Access::ReadOnly { "ro" } else { "rw" });
    if !more
        .iter()
        .any(|option| option.ends_with("private") || option.ends_with("slave") || option.ends_with("shared"))
    {
        options.push("rprivate");
    }
    let more = more.iter().map(String::as_str).filter(|option| !matches!(*option, "nosuid" | "nodev"));
    options.extend(more);
    let mut made = mount("", "bind", "", &options);
    made.set_destination(target.to_owned()).set_source(Some(source.to_owned()));
    made
}

fn tmpfs(wanted: &Tmpfs) -> Mount {
    let has = |name: &str| {
        wanted.options.iter().any(|option| option == name || option.starts_with(&format!("{name}=")))
    };
    let mut options = Vec::new();
    for (default, opposite) in [("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")] {
        if !has(default) && !has(opposite) {
            options.push(default);
        }
    }
    if !has("mode") {
        options.push("mode=1777");
    }
    options.extend(wanted.options.iter().map(String::as_str));
    let mut made = mount("", "tmpfs", "tmpfs", &options);
    made.set_destination(wanted.target.clone());
    made
}

/// Two requests for one place: the second would hide the first, which nobody means.
fn refuse_twins(mounts: &[Mount]) -> Result<(), Refusal> {
    for (at, one) in mounts.iter().enumerate() {
        if mounts[..at].iter().any(|other| other.destination() == one.destination()) {
            let text = one.destination().display().to_string();
            return Err(Refusal::new("mount", &text, "two mounts want this place"));
        }
    }
    Ok(())
}
