//! Finding the host side of volumes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bundle::BoundVolume;
use crate::disk::{Disk, TaskRecord, make_private};
use crate::error::Error;
use crate::request::Refusal;
use crate::request::volume::{NO_COPY, Volume, VolumeSource};

/// Resolves the request's volumes, and the image's where the request has none of the place. Named and anonymous ones are
/// made if they are missing.
pub(crate) fn bind(
    disk: &Disk,
    record: &TaskRecord,
    of_image: &[String],
    taken: impl Fn(&Path) -> bool,
) -> Result<Vec<BoundVolume>, Error> {
    let mut volumes = record.spec.volumes.clone();
    for target in of_image {
        let Some(volume) = Volume::of_image(target) else {
            let problem = "the image wants a volume in a place that is the kernel's";
            return Err(Refusal::new("volume", target, problem).into());
        };
        if !volumes.iter().any(|other| other.target == volume.target) && !taken(&volume.target) {
            volumes.push(volume);
        }
    }
    volumes.into_iter().enumerate().map(|(number, volume)| bind_one(disk, record, number, volume)).collect()
}

fn bind_one(disk: &Disk, record: &TaskRecord, number: usize, volume: Volume) -> Result<BoundVolume, Error> {
    let mut options = volume.options;
    let source = match &volume.source {
        VolumeSource::Host(path) => {
            if fs::symlink_metadata(path).is_err() {
                let text = path.display().to_string();
                return Err(
                    Refusal::new("volume", &text, "there is no such file or directory on the host").into()
                );
            }
            path.clone()
        }
        VolumeSource::Named(name) => own_directory(disk.volume(name))?,
        VolumeSource::Anonymous => {
            own_directory(disk.task_root(&record.id).join("volumes").join(number.to_string()))?
        }
    };
    // Our own directories hold the ids that tasks see, so that one with other ids finds its files again. What is the host's
    // stays the host's: there the task is who it is outside, unless the request says otherwise.
    let is_ours = !matches!(volume.source, VolumeSource::Host(_));
    if record.ids.is_some() && is_ours && !options.iter().any(|option| option == "idmap") {
        options.push("idmap".to_owned());
    }
    // As with docker and podman, one of ours that is empty begins with what the image has in its place.
    if is_ours && !options.iter().any(|option| option == NO_COPY) {
        options.push("copyup".to_owned());
    }
    options.retain(|option| option != NO_COPY);
    Ok(BoundVolume { source, target: volume.target, access: volume.access, options })
}

/// A directory that tasks of any user can use, below one that nobody else reaches.
fn own_directory(path: PathBuf) -> Result<PathBuf, Error> {
    use std::os::unix::fs::PermissionsExt;
    if !path.exists() {
        make_private(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(Error::io("open up", &path))?;
    }
    Ok(path)
}
