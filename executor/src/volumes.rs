//! Finding the host side of volumes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bundle::BoundVolume;
use crate::disk::{Disk, make_private};
use crate::error::Error;
use crate::id::TaskId;
use crate::request::Refusal;
use crate::request::volume::{Volume, VolumeSource};

/// Resolves the request's volumes, and the image's where the request has none of the place. Named and anonymous ones are
/// made if they are missing.
pub(crate) fn bind(
    disk: &Disk,
    id: &TaskId,
    asked: &[Volume],
    of_image: &[String],
    taken: impl Fn(&Path) -> bool,
) -> Result<Vec<BoundVolume>, Error> {
    let mut volumes = asked.to_vec();
    for target in of_image {
        let Some(volume) = Volume::of_image(target) else {
            let problem = "the image wants a volume in a place that is the kernel's";
            return Err(Refusal::new("volume", target, problem).into());
        };
        if !volumes.iter().any(|other| other.target == volume.target) && !taken(&volume.target) {
            volumes.push(volume);
        }
    }
    volumes.into_iter().enumerate().map(|(number, volume)| bind_one(disk, id, number, volume)).collect()
}

fn bind_one(disk: &Disk, id: &TaskId, number: usize, volume: Volume) -> Result<BoundVolume, Error> {
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
            own_directory(disk.task_root(id).join("volumes").join(number.to_string()))?
        }
    };
    Ok(BoundVolume { source, target: volume.target, access: volume.access, options: volume.options })
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
