//! Reading a small file of an image without mounting it: the first layer from the top that knows it decides.
//!
//! No symbolic link is followed at all: `/etc` or `/etc/passwd` as a link (absolute, or to a place outside) reads as
//! "missing". What is read is a regular file of bounded size, never a FIFO or a device.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use cofferdam_image::Lower;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fgetxattr, fstat, openat2};
use rustix::io::Errno;

use crate::passwd::Accounts;

/// Largest account file that is read: some 50,000 users.
const FILE_LIMIT_BYTES: u64 = 4 << 20;

/// Reads the account files of a stack of layers, uppermost first.
pub(crate) fn read_accounts(layers: impl IntoIterator<Item = Lower>) -> Accounts {
    let mut layers = Layers { unopened: layers.into_iter(), opened: Vec::new() };
    let mut read = |name: &str| read_text(&mut layers, "etc", name).unwrap_or_default();
    Accounts { passwd: read("passwd"), group: read("group") }
}

/// Layers, each opened when it is asked first: most files are in one of the uppermost.
struct Layers<I> {
    unopened: I,
    opened: Vec<OwnedFd>,
}

impl<I: Iterator<Item = Lower>> Layers<I> {
    fn get(&mut self, index: usize) -> Option<Result<&OwnedFd, Errno>> {
        while self.opened.len() <= index {
            match self.unopened.next()?.open() {
                Ok(layer) => self.opened.push(layer),
                Err(_) => return Some(Err(Errno::IO)),
            }
        }
        self.opened.get(index).map(Ok)
    }
}

/// What a layer says of a file.
enum Answer {
    Content(String),
    /// It hides what is below it, or it is something that we do not read.
    Gone,
    /// It does not know.
    Unknown,
}

fn read_text(
    layers: &mut Layers<impl Iterator<Item = Lower>>,
    directory: &str,
    name: &str,
) -> Option<String> {
    for index in 0.. {
        match layers.get(index)?.and_then(|layer| ask(layer, directory, name)) {
            Ok(Answer::Content(text)) => return Some(text),
            Ok(Answer::Unknown) => {}
            Ok(Answer::Gone) | Err(_) => return None,
        }
    }
    None
}

fn ask(layer: &OwnedFd, directory: &str, name: &str) -> Result<Answer, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match openat2(layer, directory, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => return Ok(Answer::Unknown),
        Err(_) => return Ok(Answer::Gone),
        Ok(parent) => parent,
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat2(&parent, name, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) if is_opaque(&parent) => Ok(Answer::Gone),
        Err(Errno::NOENT) => Ok(Answer::Unknown),
        Err(_) => Ok(Answer::Gone),
        Ok(file) if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile => {
            Ok(Answer::Gone)
        }
        Ok(file) => {
            let mut bytes = Vec::new();
            File::from(file).take(FILE_LIMIT_BYTES).read_to_end(&mut bytes).map_err(|_| Errno::IO)?;
            Ok(Answer::Content(String::from_utf8_lossy(&bytes).into_owned()))
        }
    }
}

fn is_opaque(directory: &impl std::os::fd::AsFd) -> bool {
    let mut value = [0u8; 1];
    fgetxattr(directory, "trusted.overlay.opaque", &mut value[..])
        .is_ok_and(|length| length == 1 && value[0] == b'y')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn directories(paths: &[PathBuf]) -> Vec<Lower> {
        paths.iter().cloned().map(Lower::Directory).collect()
    }

    fn layers(count: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<_> = (0..count).map(|number| dir.path().join(number.to_string())).collect();
        layers.iter().for_each(|layer| fs::create_dir_all(layer.join("etc")).unwrap());
        (dir, layers)
    }

    #[test]
    fn the_uppermost_layer_that_has_the_file_decides() {
        let (_dir, layers) = layers(3);
        fs::write(layers[1].join("etc/passwd"), "upper").unwrap();
        fs::write(layers[2].join("etc/passwd"), "lower").unwrap();
        fs::write(layers[2].join("etc/group"), "group").unwrap();
        let accounts = read_accounts(directories(&layers));
        assert_eq!((accounts.passwd.as_str(), accounts.group.as_str()), ("upper", "group"));
    }

    #[test]
    fn links_and_pipes_read_as_missing() {
        let (_dir, layers) = layers(1);
        symlink("/etc/passwd", layers[0].join("etc/passwd")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            layers[0].join("etc/group"),
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        let accounts = read_accounts(directories(&layers));
        assert!(accounts.passwd.is_empty() && accounts.group.is_empty());
    }
}
