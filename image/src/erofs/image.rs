//! An image opened for looking into: mounted nowhere, gone with its descriptor.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cofferdam_linux::image_file::{Access, mount};
use cofferdam_registry::Digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::backend::{Sink, Unavailable};
use crate::error::Error;
use crate::identity::DiffId;

use super::Writer;

/// The root directory of an image. It is a mount that is attached nowhere; needs CAP_SYS_ADMIN.
pub(crate) fn open(image: &Path) -> Result<OwnedFd, Error> {
    let path =
        CString::new(image.as_os_str().as_bytes()).map_err(|_| Error::io("mount", image)(Errno::INVAL))?;
    mount(c"erofs", &path, Access::ReadOnly).map_err(Error::io("mount", image))
}

/// Whether the kernel mounts images in files of this folder: tried with an empty one that has no name.
pub(crate) fn is_supported(folder: &Path) -> Result<(), Unavailable> {
    let refused = |reason: String| Unavailable { reason };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| refused(format!("{}: {errno}", folder.display())))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let writable = rustix::io::dup(&file).map_err(|errno| refused(errno.to_string()))?;
    Box::new(Writer::new(writable, &DiffId::new(Digest::of(b""))))
        .finish()
        .map_err(|error| refused(error.to_string()))?;
    match open(Path::new(&path)) {
        Ok(_) => Ok(()),
        Err(Error::Io { source, .. }) => Err(refused(match Errno::from_io_error(&source) {
            Some(Errno::NODEV) => "the kernel has no EROFS (CONFIG_EROFS_FS)".to_owned(),
            Some(Errno::NOENT) => {
                "the kernel wants a block device (files: Linux 6.12), and has no loop devices".to_owned()
            }
            Some(Errno::PERM) => "mounting EROFS needs CAP_SYS_ADMIN on the host".to_owned(),
            _ => source.to_string(),
        })),
        Err(error) => Err(refused(error.to_string())),
    }
}
