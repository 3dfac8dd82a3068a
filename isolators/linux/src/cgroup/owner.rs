//! Whose a cgroup is: a note on its directory, which every state root of this host can read.

use std::ffi::{CStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::{Cgroup, Error};

/// The extended attribute. In the user's namespace, so that an ordinary user's delegated cgroup takes it too; whoever may
/// write to the directory may change it, so that it is believed only where the owner that it names agrees. Linux 5.7.
const NAME: &CStr = c"user.cofferdam.owner";

impl Cgroup {
    /// Notes that the cgroup is `owner`'s, a folder of the host. One that is somebody else's already is taken over when
    /// `is_free` says so of him. Kernels and file systems that take no note are passed over.
    ///
    /// # Errors
    /// [`Error::Owned`].
    pub fn claim(&self, owner: &Path, is_free: impl FnOnce(&Path) -> bool) -> Result<(), Error> {
        let Some(place) = self.unified_first().next() else { return Ok(()) };
        let set = |flags| fsetxattr(place.directory(), NAME, owner.as_os_str().as_bytes(), flags);
        if set(XattrFlags::CREATE) != Err(Errno::EXIST) {
            return Ok(());
        }
        match read(place.directory()) {
            Some(other) if other != owner && !is_free(&other) => {
                Err(Error::Owned { path: place.path.clone(), owner: other })
            }
            _ => {
                let _ = set(XattrFlags::empty());
                Ok(())
            }
        }
    }

    /// Who claimed the cgroup last.
    #[must_use]
    pub fn owner(&self) -> Option<PathBuf> {
        read(self.unified_first().next()?.directory())
    }
}

fn read(directory: BorrowedFd<'_>) -> Option<PathBuf> {
    let mut path = vec![0; 4096];
    let length = fgetxattr(directory, NAME, &mut path[..]).ok()?;
    path.truncate(length);
    Some(OsString::from_vec(path).into())
}
